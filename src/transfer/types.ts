/**
 * The vocabulary of state transfer: what goes into the two cores (source.ts, target.ts) and what comes out.
 *
 * Like the consensus core they never wait, read no clock and call nothing; effects are carried out in the
 * order in which they were appended, and those that take time are answered by an event that carries the session's
 * number. An answer of an earlier session changes nothing.
 */
import type { Milliseconds, NodeId } from '../consensus/types.js';
import type { RoundFigures, RoundPages } from '../ports/data-plane.js';
import type { SessionId, TransferMessage } from '../wire/transfer-messages.js';
import type { Op, View } from '../wire/viewstamp.js';

export interface TransferOptions {
  readonly self: NodeId;
  /** How often an offer is repeated, and how long a target may take to make its guest ready to be filled. */
  readonly offerRetryMs: Milliseconds;
  readonly offerWaitMs: Milliseconds;
  /** Without any progress for so long a session is given up. */
  readonly progressWaitMs: Milliseconds;
  /** Nothing tells of progress within a round: it may take as long as all of the memory does at this speed. */
  readonly slowestBytesPerMs: number;
  /** The longest that the source's guest stands still: beyond it the session is given up. */
  readonly pauseMaxMs: Milliseconds;
  /** From the last byte sent until the target must be whole. */
  readonly confirmWaitMs: Milliseconds;
  /** After a session that failed. Doubles up to the second. */
  readonly backOffMinMs: Milliseconds;
  readonly backOffMaxMs: Milliseconds;
  /** Between two sessions for one member that diverges again and again. */
  readonly healEveryMs: Milliseconds;
  /** Copying while the guest runs ends when so few pages are left, or after so many rounds. */
  readonly settledPages: number;
  /**
   * At least so much time is between the last look at what has changed and the vm-sync behind which the guest stands still
   * (the next tick), unless more than `settledPages` are left.
   */
  readonly settleMs: Milliseconds;
  readonly roundsMax: number;
}

/** Why a session is begun. */
export type TransferReason =
  /** The target has no guest. */
  | 'fill'
  /** Its guest says something else than the primary's. */
  | 'diverged'
  /** An operator asked. */
  | 'asked';

/** What became of a session, kept for operators. */
export interface TransferRecord extends RoundFigures {
  readonly session: SessionId;
  readonly peer: NodeId;
  readonly reason: TransferReason;
  readonly ok: boolean;
  /** Why it was given up; empty if it was not. */
  readonly why: string;
  /** Both sides knew a common point. */
  readonly based: boolean;
  readonly op: Op;
  readonly rounds: number;
  /** Of the last round, with both guests stopped. */
  readonly finalPages: number;
  readonly finalSent: number;
  readonly stateBytes: number;
  readonly startedAt: Milliseconds;
  readonly durationMs: Milliseconds;
  /** How long the source's guest stood still. */
  readonly pauseMs: Milliseconds;
  readonly pauseParts: PauseParts;
}

/** What the pause went to. The last round runs while the state is saved; `send` begins when both are done. */
export interface PauseParts {
  readonly stopMs: Milliseconds;
  readonly collectMs: Milliseconds;
  readonly roundMs: Milliseconds;
  readonly saveMs: Milliseconds;
  readonly sendMs: Milliseconds;
  readonly resumeMs: Milliseconds;
}

/** A peer as the source sees it. */
export interface PeerFacts {
  readonly node: NodeId;
  /** It can run the guest, its connection is up, and its log follows this view. */
  readonly reachable: boolean;
  readonly whole: boolean;
  /** It boots a guest of its own: wait for that. */
  readonly booting: boolean;
  /** The vm-sync by which its guest became what it is; 0: none. */
  readonly syncOp: Op;
}

export type SourceEvent =
  /** `able`: this replica leads `view`, and its guest runs. */
  | {
      readonly type: 'tick';
      readonly now: Milliseconds;
      readonly view: View;
      readonly able: boolean;
      readonly peers: readonly PeerFacts[];
    }
  | {
      readonly type: 'request';
      readonly now: Milliseconds;
      readonly peer: NodeId;
      readonly reason: TransferReason;
    }
  | {
      readonly type: 'mail';
      readonly now: Milliseconds;
      readonly from: NodeId;
      readonly message: TransferMessage;
    }
  /** The connection to the peer broke: what was posted on it is lost. */
  | { readonly type: 'peer-down'; readonly now: Milliseconds; readonly peer: NodeId }
  | {
      readonly type: 'opened';
      readonly now: Milliseconds;
      readonly session: SessionId;
      readonly inbox: Uint8Array;
    }
  | {
      readonly type: 'collected';
      readonly now: Milliseconds;
      readonly session: SessionId;
      readonly pages: number;
    }
  | {
      readonly type: 'round-done';
      readonly now: Milliseconds;
      readonly session: SessionId;
      readonly figures: RoundFigures;
    }
  /** Delivery stands behind the vm-sync entry. */
  | { readonly type: 'held'; readonly now: Milliseconds; readonly session: SessionId; readonly op: Op }
  | { readonly type: 'paused'; readonly now: Milliseconds; readonly session: SessionId }
  | { readonly type: 'saved'; readonly now: Milliseconds; readonly session: SessionId }
  | { readonly type: 'sent'; readonly now: Milliseconds; readonly session: SessionId; readonly bytes: number }
  | { readonly type: 'resumed'; readonly now: Milliseconds; readonly session: SessionId }
  | {
      readonly type: 'failed';
      readonly now: Milliseconds;
      readonly session: SessionId;
      readonly why: string;
    };

export type SourceEffect =
  | { readonly type: 'send'; readonly to: NodeId; readonly message: TransferMessage }
  /** Native: memory for the target's answers. Answered by `opened`. */
  | { readonly type: 'open'; readonly session: SessionId; readonly peer: NodeId; readonly key: Uint8Array }
  /** Native: the target's memory, as its grants say. */
  | {
      readonly type: 'attach';
      readonly session: SessionId;
      readonly inbox: Uint8Array;
      readonly ram: Uint8Array;
    }
  /** Guest: pages changed since the last collection become pending. Answered by `collected`. */
  | { readonly type: 'collect'; readonly session: SessionId }
  /**
   * Native: compare and move the pages of a set, all that are not empty, or those pending. Answered by `round-done`.
   * `final`: both guests stand still.
   */
  | {
      readonly type: 'round';
      readonly session: SessionId;
      readonly round: number;
      readonly pages: RoundPages;
      readonly final: boolean;
    }
  /** Log: vm-sync; delivery stops behind it on both sides. Answered by `held`. */
  | { readonly type: 'propose'; readonly session: SessionId; readonly peer: NodeId }
  /** Guest: stop it. Answered by `paused`. */
  | { readonly type: 'pause'; readonly session: SessionId }
  /** Guest and native: the state of devices, flows and rings. Answered by `saved`. */
  | { readonly type: 'save'; readonly session: SessionId; readonly op: Op }
  /** Native: send it. Answered by `sent`. */
  | { readonly type: 'send-state'; readonly session: SessionId; readonly peer: NodeId; readonly op: Op }
  /** Guest and native: go on. Answered by `resumed`. */
  | { readonly type: 'resume'; readonly session: SessionId }
  /** Native: nothing of this session is written or read any more. */
  | { readonly type: 'close'; readonly session: SessionId }
  | { readonly type: 'record'; readonly record: TransferRecord };

export type TargetEvent =
  /** `primary`: of the view that this replica follows; null: none. */
  | {
      readonly type: 'tick';
      readonly now: Milliseconds;
      readonly view: View;
      readonly primary: NodeId | null;
      /** Of this replica: it runs or is whole, or could be filled in place. */
      readonly guest: 'none' | 'busy' | 'live';
    }
  | {
      readonly type: 'mail';
      readonly now: Milliseconds;
      readonly from: NodeId;
      readonly message: TransferMessage;
    }
  | { readonly type: 'peer-down'; readonly now: Milliseconds; readonly peer: NodeId }
  /** The guest stands still, or a fresh one waits to be filled. */
  | {
      readonly type: 'prepared';
      readonly now: Milliseconds;
      readonly session: SessionId;
      readonly based: boolean;
    }
  | {
      readonly type: 'opened';
      readonly now: Milliseconds;
      readonly session: SessionId;
      readonly inbox: Uint8Array;
      readonly ram: Uint8Array;
    }
  /** Bytes of the session came in. */
  | { readonly type: 'progress'; readonly now: Milliseconds; readonly session: SessionId }
  /** The whole state is here, and delivery stands behind its vm-sync. */
  | { readonly type: 'arrived'; readonly now: Milliseconds; readonly session: SessionId; readonly op: Op }
  | { readonly type: 'loaded'; readonly now: Milliseconds; readonly session: SessionId }
  | {
      readonly type: 'failed';
      readonly now: Milliseconds;
      readonly session: SessionId;
      readonly why: string;
    };

export type TargetEffect =
  | { readonly type: 'send'; readonly to: NodeId; readonly message: TransferMessage }
  /** This replica's guest is no whole copy from now on. Guest: stand still, or start one to be filled. Answered by `prepared`. */
  | {
      readonly type: 'prepare';
      readonly session: SessionId;
      readonly peer: NodeId;
      readonly keep: boolean;
      readonly baseOp: Op;
    }
  /** Native: open the guest's memory and an inbox to the source. Answered by `opened`. */
  | {
      readonly type: 'open';
      readonly session: SessionId;
      readonly peer: NodeId;
      readonly key: Uint8Array;
      readonly based: boolean;
      /** What opens the source's inbox. */
      readonly grant: Uint8Array;
    }
  /** Guest and native: take the state over and run. Answered by `loaded`. */
  | { readonly type: 'load'; readonly session: SessionId; readonly peer: NodeId; readonly op: Op }
  /** Native: close the memory. */
  | { readonly type: 'close'; readonly session: SessionId }
  /** Guest: end it; what it holds is no state of anything. */
  | { readonly type: 'discard'; readonly session: SessionId }
  | { readonly type: 'trace'; readonly text: string };
