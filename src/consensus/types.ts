/**
 * The vocabulary of the consensus core: what goes in (events) and what comes out (effects).
 *
 * The core is one function, `step(event, out)`. It never waits, never reads a clock, never calls out. The
 * effects of one step are carried out by the engine in the order in which they were appended; an effect is
 * finished before the next one starts (`persist` is on disk before a following `send` leaves). That order is
 * the contract; nothing else is.
 */
import type { Message } from '../wire/messages.js';
import type { LogBase, LogTail, ViewTable } from '../wire/view-table.js';
import type { Op, View } from '../wire/viewstamp.js';

/** Index of a member in the configuration, 0 to 7. */
export type NodeId = number & { readonly __brand?: 'node' };

/** Milliseconds on a monotonic clock. */
export type Milliseconds = number;

export interface CoreOptions {
  readonly self: NodeId;
  /** All members, self included; 2f+1 of them. */
  readonly members: readonly NodeId[];
  /** Members that never run a guest. */
  readonly witnesses: readonly NodeId[];
  readonly electionTimeoutMinMs: Milliseconds;
  readonly electionTimeoutMaxMs: Milliseconds;
  readonly leaseMs: Milliseconds;
  /** Added to a lease before another replica trusts that it has ended: clock drift over one lease. */
  readonly driftMarginMs: Milliseconds;
  /** How often an unanswered message is repeated. */
  readonly retryMs: Milliseconds;
  /** Uniform in [0, 1), seeded by the caller. */
  readonly random: () => number;
}

export interface HardState {
  readonly view: View;
  readonly votedFor: NodeId | null;
  /** The log has lost entries that this replica may have acknowledged: it does not vote until it has caught up. */
  readonly recovering: boolean;
}

export type Role = 'backup' | 'candidate' | 'primary';

// ---- messages: what replicas say to each other is part of the wire, see wire/messages.ts

export type { Message } from '../wire/messages.js';

// ---- events

export type Event =
  /** Every few milliseconds. `now` never goes back. */
  | { readonly type: 'tick'; readonly now: Milliseconds }
  | { readonly type: 'mail'; readonly now: Milliseconds; readonly from: NodeId; readonly message: Message }
  /** The data plane answers effect `promise`: it accepts and acknowledges nothing below `view` any more. */
  | {
      readonly type: 'promised';
      readonly now: Milliseconds;
      readonly view: View;
      readonly tail: LogTail;
      /** When this replica last acknowledged a heartbeat of a primary of a lower view; null: never since its start. */
      readonly heartbeatAckedAt: Milliseconds | null;
    }
  /** The data plane acknowledged a heartbeat of the primary `from` of `view`. Reported at most once a tick. */
  | {
      readonly type: 'heard';
      readonly now: Milliseconds;
      readonly view: View;
      readonly from: NodeId;
      readonly at: Milliseconds;
    }
  /** The data plane answers effect `follow`: the log is cut and entries of `view` are being taken. */
  | { readonly type: 'following'; readonly now: Milliseconds; readonly view: View }
  /** The data plane answers effect `lead`: view-start is appended at `startOp`. */
  | { readonly type: 'leading'; readonly now: Milliseconds; readonly view: View; readonly startOp: Op }
  /** Where the log stands (at most once a tick). `acked`: durable op of each peer in this replica's view, primary only. */
  | {
      readonly type: 'progress';
      readonly now: Milliseconds;
      readonly lastOp: Op;
      readonly durableOp: Op;
      readonly commitOp: Op;
      readonly acked: ReadonlyMap<NodeId, Op>;
      /** The entry before the first that can still be read; committed, and op 0 if all can. */
      readonly base: LogBase;
      /** The entry at `commitOp`; view 0: it is not at hand. */
      readonly committed: LogBase;
      /** When the current lease ends (primary), else null. */
      readonly leaseEndsAt: Milliseconds | null;
    }
  /** A connection to the peer is up (a new incarnation each time) or gone. A peer that goes down is suspected at once. */
  | { readonly type: 'peer-up'; readonly now: Milliseconds; readonly node: NodeId }
  | { readonly type: 'peer-down'; readonly now: Milliseconds; readonly node: NodeId }
  /**
   * The data plane of this primary cannot give the peer the entries that it needs: they were released, or they cannot be read.
   * Over this connection the peer cannot be fed again.
   */
  | {
      readonly type: 'feed-lost';
      readonly now: Milliseconds;
      readonly view: View;
      readonly node: NodeId;
      readonly released: boolean;
    }
  /** This replica's guest is a whole copy (or no longer). Members without one stand last and hand over when they win. */
  | { readonly type: 'guest'; readonly now: Milliseconds; readonly whole: boolean }
  /** Peers' guests, as their status mail says. */
  | {
      readonly type: 'peer-guest';
      readonly now: Milliseconds;
      readonly node: NodeId;
      readonly whole: boolean;
    }
  /** The operator asks for a leadership transfer; null: to the best target. */
  | { readonly type: 'transfer'; readonly now: Milliseconds; readonly to: NodeId | null }
  /** No client input waits for this cluster's lease or log: the data plane has stopped taking frames (answer to `hold-input`). */
  | { readonly type: 'input-held'; readonly now: Milliseconds; readonly view: View; readonly lastOp: Op }
  /** The lease is given up and the gate closed (answer to `surrender`). */
  | { readonly type: 'surrendered'; readonly now: Milliseconds; readonly view: View };

// ---- effects

export type Effect =
  /** Data plane: accept and acknowledge nothing below `view`; stop leading. Answered by `promised`. Must come before any vote for `view`. */
  | { readonly type: 'promise'; readonly view: View }
  /** Force to disk before the next effect. */
  | { readonly type: 'persist'; readonly state: HardState }
  | { readonly type: 'send'; readonly to: NodeId; readonly message: Message }
  /** Data plane: become primary of `view`, append view-start. Answered by `leading`. */
  | { readonly type: 'lead'; readonly view: View }
  /** Data plane: write entries after `agreeOp` to the peer, stream `view`. Comes before the `follow` message to it. */
  | { readonly type: 'feed'; readonly peer: NodeId; readonly view: View; readonly agreeOp: Op }
  /**
   * Data plane: cut the log behind `agreeOp` (never below what is committed here) and take entries of `view` from `primary`. With a
   * base, which is at `agreeOp`: end the guest, forget the log and begin it anew behind the base. Answered by `following`.
   */
  | {
      readonly type: 'follow';
      readonly view: View;
      readonly primary: NodeId;
      readonly agreeOp: Op;
      readonly base: LogBase | null;
    }
  /** Data plane: no longer primary of `view`; gate closed, nothing proposed. */
  | { readonly type: 'resign'; readonly view: View; readonly reason: string }
  /** Leadership transfer: stop taking frames (answered by `input-held`), take them again, give the lease up (answered by `surrendered`). */
  | { readonly type: 'hold-input'; readonly view: View }
  | { readonly type: 'release-input'; readonly view: View }
  | { readonly type: 'surrender'; readonly view: View }
  /** Take the lease up again after an abandoned transfer. */
  | { readonly type: 'reclaim'; readonly view: View }
  | {
      readonly type: 'transfer-result';
      readonly ok: boolean;
      readonly to: NodeId | null;
      readonly reason: string;
    }
  /** The role or the known primary has changed (for the engine, status and the log). */
  | {
      readonly type: 'role';
      readonly role: Role;
      readonly view: View;
      readonly primary: NodeId | null;
      readonly reason: string;
    }
  /** Something an operator may want to read; decides nothing. */
  | { readonly type: 'trace'; readonly text: string };

export type { LogBase, LogTail, ViewTable };
