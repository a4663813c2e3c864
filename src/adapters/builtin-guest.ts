/** The guest of `vm: none`: the service inside the data plane, ready as soon as its rings are. */
import { noGuestMemory } from '../ports/guest.js';
import type { GuestRunner } from '../ports/guest.js';

export function builtinGuest(): GuestRunner {
  return {
    ...noGuestMemory(),
    pid: null,
    start: (callbacks) => {
      callbacks.onEmpty();
      setImmediate(() => callbacks.onReady());
      return Promise.resolve();
    },
    stop: () => Promise.resolve(),
  };
}
