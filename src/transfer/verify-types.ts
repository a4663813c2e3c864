/**
 * The vocabulary of verification: comparing the primary's guest with a backup's at one viewstamp. Like a state
 * transfer it is two pure cores, a session number, and answers to effects; unlike one it changes nothing, so whatever
 * happens both guests just go on.
 */
import type { Milliseconds, NodeId } from '../consensus/types.js';
import type { SessionId, TransferMessage } from '../wire/transfer-messages.js';
import type { VerifyReport } from '../wire/verify-report.js';
import type { Op, View } from '../wire/viewstamp.js';
import type { DeviceComparison } from './device-state.js';
import type { PeerFacts } from './types.js';

/** What comparing has shown. */
export interface VerifyFindings extends Omit<VerifyReport, 'devices' | 'targetStoodNs'> {
  readonly devices: DeviceComparison;
  /** How long delivery stood at the target. */
  readonly targetPauseMs: Milliseconds;
}

/** What became of a session, kept for operators. */
export interface VerifyRecord {
  readonly session: SessionId;
  readonly peer: NodeId;
  readonly reason: 'verify';
  readonly ok: boolean;
  /** Why it was given up; empty if it was not. */
  readonly why: string;
  /** The viewstamp of the vm-sync behind which both guests stood; op 0: it did not come so far. */
  readonly view: View;
  readonly op: Op;
  /** null: it was given up. */
  readonly findings: VerifyFindings | null;
  readonly startedAt: Milliseconds;
  readonly durationMs: Milliseconds;
  /** How long the source's guest stood still. */
  readonly pauseMs: Milliseconds;
}

interface InSession {
  readonly now: Milliseconds;
  readonly session: SessionId;
}

/** Both sides do these, each for itself. */
type Common =
  /** Delivery stands behind the vm-sync entry. */
  | (InSession & { readonly type: 'held'; readonly op: Op })
  | (InSession & { readonly type: 'paused' })
  | (InSession & { readonly type: 'saved' })
  | (InSession & { readonly type: 'collected' })
  /** The memory, or everything, of the guest has been looked at. */
  | (InSession & { readonly type: 'taken' })
  | (InSession & { readonly type: 'resumed' })
  | (InSession & { readonly type: 'failed'; readonly why: string });

type FromPeer =
  | {
      readonly type: 'mail';
      readonly now: Milliseconds;
      readonly from: NodeId;
      readonly message: TransferMessage;
    }
  | { readonly type: 'peer-down'; readonly now: Milliseconds; readonly peer: NodeId };

export type VerifySourceEvent =
  /** `able`: this replica leads `view`, and its guest runs. */
  | {
      readonly type: 'tick';
      readonly now: Milliseconds;
      readonly view: View;
      readonly able: boolean;
      readonly peers: readonly PeerFacts[];
    }
  /** Answered by `refuse`, or in the end by `record`. `transferring`: a state transfer runs. */
  | {
      readonly type: 'request';
      readonly now: Milliseconds;
      readonly peer: NodeId;
      readonly transferring: boolean;
    }
  | FromPeer
  | (InSession & { readonly type: 'opened'; readonly inbox: Uint8Array })
  | (InSession & { readonly type: 'verified'; readonly findings: VerifyFindings })
  | Common;

export type VerifyTargetEvent =
  | {
      readonly type: 'tick';
      readonly now: Milliseconds;
      readonly view: View;
      readonly primary: NodeId | null;
      /** The guest here is whole, and runs. */
      readonly whole: boolean;
    }
  | FromPeer
  | (InSession & { readonly type: 'opened' })
  /** The source has what was found. */
  | (InSession & { readonly type: 'sent' })
  | Common;

/** What both sides do; each is answered by the event that says it is done. */
export type VerifyEffect =
  | { readonly type: 'send'; readonly to: NodeId; readonly message: TransferMessage }
  /**
   * Native. Source: an inbox for the target; `grant` is empty. Target: what opens that inbox; nothing of its own is
   * opened to anybody. Answered by `opened`.
   */
  | {
      readonly type: 'open';
      readonly role: 'source' | 'target';
      readonly session: SessionId;
      readonly peer: NodeId;
      readonly key: Uint8Array;
      readonly grant: Uint8Array;
    }
  /** Guest: which pages have changed since the last time. Answered by `collected`. */
  | { readonly type: 'collect'; readonly session: SessionId }
  /** Native: digests, while the guest runs. Answered by `taken`. */
  | { readonly type: 'look'; readonly session: SessionId }
  /** Guest: stop it. Answered by `paused`. */
  | { readonly type: 'pause'; readonly session: SessionId }
  /** Guest: the state of devices, to a file. Answered by `saved`. */
  | { readonly type: 'save'; readonly session: SessionId }
  /** Native: digests of what has changed since, flows, that file. Answered by `taken`. */
  | { readonly type: 'take'; readonly session: SessionId }
  /** Guest and native: go on. Answered by `resumed`. */
  | { readonly type: 'resume'; readonly session: SessionId }
  /** Native: nothing of this session is written or read any more, and delivery goes on. */
  | { readonly type: 'close'; readonly session: SessionId };

export type VerifySourceEffect =
  | VerifyEffect
  /** Log: vm-sync; delivery stops behind it on both sides. Answered by `held`. */
  | { readonly type: 'propose'; readonly session: SessionId }
  | { readonly type: 'refuse'; readonly peer: NodeId; readonly why: string }
  | { readonly type: 'record'; readonly record: VerifyRecord };

export type VerifyTargetEffect = VerifyEffect | { readonly type: 'trace'; readonly text: string };
