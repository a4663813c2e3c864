/** The guest of `vm: none`: the service inside the data plane, ready as soon as its rings are. */
import { writeFileSync } from 'node:fs';
import { setImmediate as nextTurn } from 'node:timers/promises';

import type { GuestCallbacks, GuestRunner } from '../ports/guest.js';

/**
 * It has no memory of its own and stands still when nothing is delivered, so a state transfer moves what the data
 * plane captures, and no pages.
 */
export class BuiltinGuest implements GuestRunner {
  readonly pid = null;
  readonly ramPath = null;
  readonly ramBytes = 0;

  start(callbacks: GuestCallbacks): Promise<void> {
    callbacks.onEmpty();
    setImmediate(() => callbacks.onReady());
    return Promise.resolve();
  }

  stop(): Promise<void> {
    return Promise.resolve();
  }

  prepare(callbacks: GuestCallbacks): Promise<void> {
    callbacks.onEmpty();
    return nextTurn();
  }

  pause(): Promise<void> {
    return nextTurn();
  }

  resume(): Promise<void> {
    return nextTurn();
  }

  dirtyStart(): Promise<void> {
    return nextTurn();
  }

  dirtyStop(): Promise<void> {
    return nextTurn();
  }

  dirtyCollect(path: string): Promise<{ pages: number }> {
    return this.emptyFile(path, { pages: 0 });
  }

  saveState(path: string): Promise<{ bytes: number }> {
    return this.emptyFile(path, { bytes: 0 });
  }

  loadState(): Promise<{ bytes: number }> {
    return nextTurn({ bytes: 0 });
  }

  restartRings(): Promise<void> {
    return nextTurn();
  }

  private async emptyFile<T>(path: string, result: T): Promise<T> {
    writeFileSync(path, '', { mode: 0o600 });
    await nextTurn();
    return result;
  }
}
