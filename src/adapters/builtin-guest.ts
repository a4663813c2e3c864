/** The guest of `vm: none`: the service inside the data plane, ready as soon as its rings are. */
import type { GuestCallbacks, GuestRunner } from '../ports/guest.js';

export class BuiltinGuest implements GuestRunner {
  readonly pid = null;

  start(callbacks: GuestCallbacks): Promise<void> {
    callbacks.onEmpty();
    setImmediate(() => callbacks.onReady());
    return Promise.resolve();
  }

  stop(): Promise<void> {
    return Promise.resolve();
  }
}
