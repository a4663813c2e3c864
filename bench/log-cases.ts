/** The cases of append to commit over a fabric: bench/fabric.ts prints what bench/fabric-log.ts measures. */
import type { FabricName, Poll } from './members.js';

export interface LogCase {
  readonly name: string;
  /** How each member that is up waits, the primary first; null: one thread polls all of them in turn (commit_bench). */
  readonly polls: readonly Poll[] | null;
  readonly up: 2 | 3;
  readonly depth: number;
  /** Entries of a round; the round disturbed least counts. */
  readonly entries: Record<FabricName, number>;
  readonly rounds: number;
}

const spinNs = 20_000;

export const logEntryBytes = 64;

export const logCases: readonly LogCase[] = [
  {
    name: '2 up, spinning',
    polls: ['busy', 'busy'],
    up: 2,
    depth: 1,
    entries: { shm: 20_000, tcp: 1000, verbs: 100 },
    rounds: 15,
  },
  {
    name: '2 up, spinning',
    polls: ['busy', 'busy'],
    up: 2,
    depth: 64,
    entries: { shm: 50_000, tcp: 5000, verbs: 500 },
    rounds: 5,
  },
  {
    name: '3 up, sleeping',
    polls: [spinNs, spinNs, spinNs],
    up: 3,
    depth: 1,
    entries: { shm: 20_000, tcp: 500, verbs: 60 },
    rounds: 5,
  },
  {
    name: '2 up, one thread',
    polls: null,
    up: 2,
    depth: 1,
    entries: { shm: 20_000, tcp: 2000, verbs: 500 },
    rounds: 3,
  },
  {
    name: '3 up, one thread',
    polls: null,
    up: 3,
    depth: 1,
    entries: { shm: 20_000, tcp: 2000, verbs: 500 },
    rounds: 3,
  },
];
