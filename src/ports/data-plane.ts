/**
 * The data plane as the engine sees it: commands that return at once and are carried out in the order of the
 * calls, events that tell what happened, and a view of where things stand. Times are milliseconds on the
 * same monotonic clock as ports/clock.
 */
import type { NodeId } from '../consensus/types.js';
import type { LogTail } from '../wire/view-table.js';
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
  follow(view: View, primary: NodeId, agreeOp: Op): void;
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
      readonly why: string;
    }
  /** The peer needs entries that are not kept any more. */
  | { readonly type: 'feed-lost'; readonly peer: NodeId }
  /** The replica must stop. `why` begins with a code. */
  | { readonly type: 'failed'; readonly why: string }
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
  /** Leading: durable op of each member that follows this view, null for the others and for self. */
  readonly acked: readonly (Op | null)[];
  /** Leading: when the lease ends; null: none. */
  readonly leaseEndsAt: number | null;
  readonly gate: 'open' | 'armed' | 'closed';
  /** The last heartbeat that was acknowledged; null: none yet. */
  readonly heard: { readonly view: View; readonly from: NodeId; readonly at: number } | null;
  readonly guest: GuestMode;
}
