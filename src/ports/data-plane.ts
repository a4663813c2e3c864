/**
 * The data plane as the engine sees it: commands that return at once and are carried out in the order of the
 * calls, events that tell what happened, and a view of where things stand. Times are milliseconds on the
 * same monotonic clock as ports/clock.
 */
import type { NodeId } from '../consensus/types.js';
import type { LogBase, LogTail } from '../wire/view-table.js';
import type { SessionId } from '../wire/transfer-messages.js';
import type { VerifyReport } from '../wire/verify-report.js';
import type { Op, View } from '../wire/viewstamp.js';

export const entryKinds = {
  frame: 1,
  viewStart: 2,
  vmBoot: 3,
  outputCheck: 4,
  vmSync: 5,
  membership: 6,
  noop: 7,
} as const;
export type EntryKind = (typeof entryKinds)[keyof typeof entryKinds];

/** No guest here; a guest that is booting (delivery waits); a guest that takes input. */
export type GuestMode = 'none' | 'booting' | 'running';

export interface DataPlane {
  /** `connection`: 8 bytes that name this incarnation on both sides. An earlier connection is dropped. */
  connect(peer: NodeId, connection: Uint8Array, descriptor: Uint8Array): void;
  disconnect(peer: NodeId): void;
  promise(view: View): void;
  lead(view: View): void;
  /** `base`: the log begins anew behind it, and it is at `agreeOp`; the guest must have been told to end. */
  follow(view: View, primary: NodeId, agreeOp: Op, base: LogBase | null): void;
  feed(peer: NodeId, view: View, agreeOp: Op): void;
  resign(view: View): void;
  holdInput(view: View): void;
  releaseInput(view: View): void;
  surrender(view: View): void;
  reclaim(view: View): void;
  openGate(view: View): void;
  /** Whether frames from the network are proposed when this replica leads. */
  admitInput(admit: boolean): void;
  /** `bootOp`: the vm-boot entry that the guest was started by; an older one changes nothing. */
  setGuest(mode: GuestMode, bootOp: Op): void;
  /** Makes the guest's rings empty and lets one guest attach. */
  expectGuest(): void;
  /** A message may be dropped: its sender repeats it. */
  sendMail(peer: NodeId, message: Uint8Array): void;
  propose(kind: EntryKind, payload: Uint8Array): void;

  // ---- state transfer: one session at a time. What fails is told by `transfer-failed`.
  /** Opens this side's memory to the peer. Answered by `transfer-opened`. */
  transferOpen(options: TransferOpen): void;
  /** Source: the target's memory, by its grants. */
  transferAttach(session: SessionId, inbox: Uint8Array, ram: Uint8Array): void;
  /** The file says which pages have changed since it was written last. */
  transferCollected(session: SessionId, file: string): void;
  /** Source: compares and moves. Answered by `transfer-round`. `final`: this becomes the common point. */
  transferRound(session: SessionId, round: number, pages: RoundPages, final: boolean): void;
  /** Source: proposes vm-sync; delivery stops behind it. Answered by `transfer-held`. */
  transferSync(session: SessionId): void;
  /**
   * Source: sends flows, rings, and the state of devices in `file`. Answered by `transfer-sent` when all pages have left: the
   * guest may write to them again. The state itself is a copy, and may still be leaving.
   */
  transferSend(session: SessionId, file: string): void;
  /** Verification: digests the memory of a guest that runs. Answered by `transfer-taken`. */
  transferLook(session: SessionId): void;
  /**
   * Verification: the guest stands still, the state of its devices is in `file`. Digests what has changed, takes its flows.
   * Answered by `transfer-taken`.
   */
  transferTake(session: SessionId, file: string): void;
  /**
   * Source: delivery goes on. Verification: on either side; answered by `transfer-sent` (target) when the source has what
   * was found, or `transfer-verified` (source).
   */
  transferRelease(session: SessionId): void;
  /** Answered by `transfer-settled` when all that was asked of the data plane before is done. */
  transferSettle(session: SessionId): void;
  /** Target: makes the guest's rings empty while it stands still, but keeps it attached. */
  transferRings(session: SessionId): void;
  /** Target: takes flows and rings over and delivers what is behind the vm-sync. Answered by `transfer-installed`. */
  transferInstall(session: SessionId): void;
  /** Whatever the session had open is closed, and delivery that stood goes on. Nothing of it is answered any more. */
  transferClose(session: SessionId): void;
  /** The common point with a peer, or with all, is forgotten. */
  transferForget(peer: NodeId | null): void;

  /** The deciding thread is alive: without it heartbeats stop. */
  tick(): void;
  /** Where things stand; asked on every tick. */
  progress(): PlaneProgress;
  /** Totals and gauges by dotted name, for status and metrics. */
  counters(): Record<string, number>;
  /** What the guest's applications have said, and how comparing it went. */
  outputs(): readonly OutputApplication[];
}

/** One application's output: a port of the guest (0: all that have no row of their own). */
export interface OutputApplication {
  readonly port: number;
  /** Connections whose output ended, and those that a reset cut short. */
  readonly flowsEnded: number;
  readonly flowsCut: number;
  readonly bytes: number;
  readonly datagrams: number;
  readonly datagramBytes: number;
  /** Verdicts of this replica. A check that was late may agree or diverge afterwards. */
  readonly agreed: number;
  readonly late: number;
  readonly diverged: number;
  readonly skipped: number;
  /** Connections that were forgotten before their end was checked. */
  readonly unchecked: number;
  /** Over all ended connections, in any order: equal on replicas whose guests said the same. */
  readonly summary: string;
}

/** One round of comparing and moving; durations in ns. */
export interface RoundFigures {
  /** Pages looked at: equal + sent + found. */
  readonly pages: number;
  readonly equal: number;
  /** Sent, of which partial: only the blocks that differ. */
  readonly sent: number;
  readonly partial: number;
  /** Differed, and the target had their contents at other places. */
  readonly found: number;
  /** Of contents. */
  readonly bytes: number;
  /** Of page sets and digests, both ways. */
  readonly overheadBytes: number;
  /** Digesting here, waiting for the target's digests behind that, finding what needs not be sent, moving. */
  readonly digestNs: number;
  readonly waitNs: number;
  readonly refineNs: number;
  readonly moveNs: number;
}

/** All pages that are not empty; those changed since the common point; those collected since the last round. */
export type RoundPages = 'resident' | 'since-base' | 'pending';

export interface TransferOpen {
  readonly session: SessionId;
  readonly peer: NodeId;
  readonly role: 'source' | 'target';
  readonly key: Uint8Array;
  /** The file that the guest's memory is, and its size in bytes; empty and 0: the guest has none. */
  readonly ram: string;
  readonly ramBytes: number;
  /** Files that the session makes: its inbox, and where a target finds the state of devices. */
  readonly inbox: string;
  readonly state: string;
  /** Target: look at the pages changed since the common point with the peer, not at all. */
  readonly based: boolean;
  /** Target: what opens the source's inbox. */
  readonly grant: Uint8Array;
  /** Two guests are compared: nothing but the source's inbox is opened. */
  readonly verify: boolean;
}

export type PlaneEvent =
  | {
      readonly type: 'promised';
      readonly view: View;
      readonly tail: LogTail;
      readonly heartbeatAckedAt: number | null;
    }
  | { readonly type: 'following'; readonly view: View }
  | { readonly type: 'leading'; readonly view: View; readonly startOp: Op }
  /** `generation`: how many connections to the peer had been made when it came. */
  | { readonly type: 'mail'; readonly from: NodeId; readonly generation: number; readonly bytes: Uint8Array }
  /** A committed entry that is no frame. */
  | {
      readonly type: 'control';
      readonly kind: EntryKind;
      readonly view: View;
      readonly op: Op;
      readonly payload: Uint8Array;
    }
  /** The guest of this primary has taken all input up to the start of its view. */
  | { readonly type: 'caught-up'; readonly view: View; readonly at: number }
  | { readonly type: 'gate-opened'; readonly view: View; readonly at: number }
  | { readonly type: 'input-held'; readonly view: View; readonly lastOp: Op }
  | { readonly type: 'surrendered'; readonly view: View }
  /** What the peer writes cannot be, or the connection broke: it has been dropped and must be made anew. */
  | {
      readonly type: 'stream-broken';
      readonly peer: NodeId;
      readonly generation: number;
      readonly code: string;
      readonly why: string;
    }
  /** This primary cannot read the entries that the peer needs, or does not keep them any more: `code` tells. */
  | {
      readonly type: 'feed-lost';
      readonly peer: NodeId;
      readonly view: View;
      readonly generation: number;
      readonly code: string;
      readonly why: string;
    }
  /** The replica must stop. `why` begins with a code. */
  | { readonly type: 'failed'; readonly why: string }
  | {
      readonly type: 'transfer-opened';
      readonly session: SessionId;
      readonly inbox: Uint8Array;
      /** Target only. */
      readonly ram: Uint8Array;
    }
  | { readonly type: 'transfer-round'; readonly session: SessionId; readonly figures: RoundFigures }
  | { readonly type: 'transfer-held'; readonly session: SessionId; readonly op: Op }
  | { readonly type: 'transfer-settled'; readonly session: SessionId }
  | { readonly type: 'transfer-sent'; readonly session: SessionId; readonly bytes: number }
  /** Target: a page set came in, and is looked at. */
  | { readonly type: 'transfer-progress'; readonly session: SessionId }
  | {
      readonly type: 'transfer-arrived';
      readonly session: SessionId;
      readonly op: Op;
      readonly bootOp: Op;
    }
  | { readonly type: 'transfer-installed'; readonly session: SessionId }
  | { readonly type: 'transfer-taken'; readonly session: SessionId }
  | { readonly type: 'transfer-verified'; readonly session: SessionId; readonly report: VerifyReport }
  /** `why` begins with a code. */
  | { readonly type: 'transfer-failed'; readonly session: SessionId; readonly why: string }
  /** Output of this primary's guest is to be compared (wire/output-check: decodeDue). */
  | { readonly type: 'check-due'; readonly view: View; readonly bytes: Uint8Array }
  /** What comparing has shown here (wire/output-check: decodeVerdicts). */
  | { readonly type: 'verdicts'; readonly bytes: Uint8Array }
  | { readonly type: 'guest-attached' }
  | { readonly type: 'guest-detached' }
  | { readonly type: 'guest-refused' };

export interface PlaneProgress {
  readonly role: 'idle' | 'leading' | 'following';
  readonly promisedView: View;
  readonly lastOp: Op;
  readonly durableOp: Op;
  readonly commitOp: Op;
  readonly deliveredOp: Op;
  /** The entry before the first that is kept on disk; op 0: all are. */
  readonly base: LogBase;
  /** The entry at `commitOp`; view 0: it is not at hand. */
  readonly committed: LogBase;
  /** Leading: durable op of each member that follows this view, null for the others and for self. */
  readonly acked: readonly (Op | null)[];
  /** When each member's words (acknowledgements, heartbeats and their echoes) came last; null: not over this connection. */
  readonly wordsAt: readonly (number | null)[];
  /** Leading: when the lease ends; null: none. */
  readonly leaseEndsAt: number | null;
  readonly gate: 'open' | 'armed' | 'closed';
  /** The last heartbeat that was acknowledged; null: none yet. */
  readonly heard: { readonly view: View; readonly from: NodeId; readonly at: number } | null;
  readonly guest: GuestMode;
}
