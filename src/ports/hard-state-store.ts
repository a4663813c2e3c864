import type { HardState } from '../consensus/types.js';

/** Where (view, votedFor) is kept. */
export interface HardStateStore {
  /** Returns when the state is forced to disk. Throws a coded error otherwise: the replica must then stop. */
  write(state: HardState): void;
}
