/**
 * The guest of a simulated replica, as the engine asks for it. What it does lives in native/addon/sim_guest.cc; here
 * is its life: every call takes some of the world's time, and holds to what src/ports/guest.ts promises, errors
 * included. What checkers compare is written down beside it.
 */
import { createHash } from 'node:crypto';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';

import { FalconError } from '../../src/lib/errors.js';
import type { Random } from '../../src/lib/random.js';
import type { GuestCallbacks, GuestRunner } from '../../src/ports/guest.js';

const pageBytes = 4096;
const nsPerMs = 1e6;

export interface GuestWorld {
  readonly nowNs: number;
  readonly pages: number;
  startGuest(path: string, pages: number, seed: number): void;
  stopGuest(): void;
  runGuest(run: boolean): void;
  logDirty(): void;
  takeDirty(): { pages: number; set: Uint8Array };
  /** A fresh path for each memory. */
  ramPath(): string;
  /** What it has changed is about to be asked for. */
  collecting(ramPath: string): void;
  /** The guest stands still and its state is saved. */
  captured(memory: GuestMemoryImage): void;
  /** It stands still no more; `memory` asks what it holds. */
  goesOn(memory: () => GuestMemoryImage): void;
}

/** A memory at one moment. */
export interface GuestMemoryImage {
  readonly bytes: Uint8Array;
  readonly hash: string;
}

interface Deed {
  readonly dueNs: number;
  readonly run: () => void;
}

export class SimGuest implements GuestRunner {
  readonly pid = null;
  readonly ramBytes: number;
  ramPath: string | null = null;
  private readonly world: GuestWorld;
  private readonly random: Random;
  private readonly deeds: Deed[] = [];
  private readyAtNs: number | null = null;
  private onReady: (() => void) | null = null;
  private paused = false;
  private logging = false;

  constructor(world: GuestWorld, random: Random) {
    this.world = world;
    this.random = random;
    this.ramBytes = world.pages * pageBytes;
  }

  /** What is due by now happens. */
  step(): void {
    const { nowNs } = this.world;
    if (this.readyAtNs !== null && nowNs >= this.readyAtNs) {
      this.readyAtNs = null;
      this.onReady?.();
    }
    while (this.deeds[0] !== undefined && this.deeds[0].dueNs <= nowNs) this.deeds.shift()!.run();
  }

  /** The process ends, and the guest with it. */
  end(): void {
    this.deeds.length = 0;
    this.readyAtNs = null;
    this.empty();
  }

  image(): GuestMemoryImage | null {
    if (this.ramPath === null) return null;
    const bytes = readFileSync(this.ramPath).subarray(0, this.ramBytes);
    return { bytes, hash: createHash('sha256').update(bytes).digest('hex') };
  }

  start({ onEmpty, onReady }: GuestCallbacks): Promise<void> {
    return this.later(() => {
      this.fresh(onEmpty);
      this.world.runGuest(true);
      this.readyAtNs = this.world.nowNs + this.random.below(40) * nsPerMs;
      this.onReady = onReady;
    });
  }

  stop(): Promise<void> {
    return this.later(() => this.empty());
  }

  prepare({ onEmpty }: GuestCallbacks): Promise<void> {
    return this.later(() => {
      this.fresh(onEmpty);
      this.paused = true;
    });
  }

  pause(): Promise<void> {
    return this.withGuest(() => this.stand(true));
  }

  resume(): Promise<void> {
    return this.withGuest(() => this.stand(false));
  }

  dirtyStart(): Promise<void> {
    return this.withGuest(() => {
      if (this.logging) throw new FalconError('GUEST_WRONG_STATE', 'the dirty log is on');
      this.world.collecting(this.ramPath!);
      this.logging = true;
      this.world.logDirty();
    });
  }

  dirtyStop(): Promise<void> {
    return this.withGuest(() => {
      this.logging = false;
    });
  }

  dirtyCollect(path: string): Promise<{ pages: number }> {
    return this.withGuest(() => {
      if (!this.logging) throw new FalconError('GUEST_WRONG_STATE', 'the dirty log is off');
      this.world.collecting(this.ramPath!);
      const { pages, set } = this.world.takeDirty();
      writeFileSync(path, set);
      return { pages };
    });
  }

  saveState(path: string): Promise<{ bytes: number }> {
    return this.stopped(() => {
      writeFileSync(path, '');
      this.world.captured(this.image()!);
      return { bytes: 0 };
    });
  }

  loadState(): Promise<{ bytes: number }> {
    return this.stopped(() => ({ bytes: 0 }));
  }

  restartRings(): Promise<void> {
    return this.stopped(() => undefined);
  }

  private fresh(onEmpty: () => void): void {
    this.empty();
    onEmpty();
    this.ramPath = this.world.ramPath();
    this.world.startGuest(this.ramPath, this.world.pages, this.random.uint32());
  }

  private empty(): void {
    this.world.stopGuest();
    if (this.ramPath !== null) rmSync(this.ramPath);
    this.ramPath = null;
    this.paused = false;
    this.logging = false;
    this.readyAtNs = null;
  }

  private stand(still: boolean): void {
    if (!still && this.paused) this.world.goesOn(() => this.image()!);
    this.paused = still;
    this.world.runGuest(!still);
  }

  private stopped<T>(work: () => T): Promise<T> {
    return this.withGuest(() => {
      if (!this.paused) throw new FalconError('GUEST_WRONG_STATE', 'the guest is not paused');
      return work();
    });
  }

  private withGuest<T>(work: () => T): Promise<T> {
    return this.later(() => {
      if (this.ramPath === null) throw new FalconError('GUEST_WRONG_STATE', 'no guest runs');
      return work();
    });
  }

  /** One after the other, most of them at once, some only after a while. */
  private later<T>(work: () => T): Promise<T> {
    const before = this.deeds.at(-1)?.dueNs ?? 0;
    const delayNs = this.random.chance(0.3) ? this.random.below(4) * nsPerMs : 0;
    const dueNs = Math.max(before, this.world.nowNs + delayNs);
    return new Promise((resolve, reject) => {
      const run = (): void => {
        try {
          resolve(work());
        } catch (error) {
          reject(error instanceof Error ? error : new Error(String(error)));
        }
      };
      this.deeds.push({ dueNs, run });
    });
  }
}
