/**
 * The mutable state of the core, and the few steps that every rule shares: sending, persisting, changing role,
 * asking the data plane for a promise.
 *
 * Three things here carry the safety:
 *  - `hard` changes only in `adoptView`, which appends `persist` before anything that depends on it;
 *  - at most one promise is under way (`promising`), and what it was for is decided in `promised`, with the tail
 *    and the heartbeat time that the data plane gives there;
 *  - `tail` is this replica's log, exactly, while nothing can change it: from `promised` until `follow` or `lead`.
 */
import { assert } from '../lib/assert.js';
import { noBase } from '../wire/view-table.js';
import type { LogBase, LogTail } from '../wire/view-table.js';
import type { Op, View, Viewstamp } from '../wire/viewstamp.js';
import { Timeout, randomBetween } from './timer.js';
import type { CoreOptions, Effect, HardState, Message, Milliseconds, NodeId, Role } from './types.js';

export type MessageOf<Type extends Message['type']> = Extract<Message, { type: Type }>;

/** Why a promise was asked for. */
export type Duty =
  | { readonly kind: 'stand'; readonly handover: boolean }
  | { readonly kind: 'vote'; readonly from: NodeId; readonly request: MessageOf<'vote'> }
  | { readonly kind: 'join'; readonly from: NodeId };

export interface Peer {
  link: 'unknown' | 'up' | 'down';
  guestWhole: boolean;
  /** At the primary. unknown: asks for its log; known: log known, not fed yet; fed: `follow` repeated until it answers; apart: cannot be fed. */
  stage: 'unknown' | 'known' | 'fed' | 'following' | 'apart';
  tail: LogTail | null;
  tailAt: Milliseconds;
  agreeOp: Op;
  /** Fed over this connection, and cannot be again. */
  feedLost: boolean;
  /** What it needs could not be read here: it begins behind that. Outlives the connection. */
  unreadable: boolean;
  /** Its log is to begin anew behind this; null: it goes on from `agreeOp`. */
  base: LogBase | null;
  caughtUpOp: Op;
  ackedOp: Op;
  retryAt: Milliseconds;
}

/** Asking for pre-votes. Nothing is promised yet. */
export interface Asking {
  view: View;
  startedAt: Milliseconds;
  readonly deadline: Milliseconds;
  sendAt: Milliseconds;
  readonly granted: Set<NodeId>;
}

/** Standing in a view that has been promised. lease-wait: may not vote for itself yet. */
export interface Candidacy {
  readonly view: View;
  readonly handover: boolean;
  stage: 'lease-wait' | 'standing';
  deadline: Milliseconds;
  sendAt: Milliseconds;
  readonly granted: Set<NodeId>;
  readonly refused: Set<NodeId>;
}

/** The stream this replica takes entries from. */
export interface Following {
  readonly primary: NodeId;
  readonly agreeOp: Op;
  readonly caughtUpOp: Op;
  /** The data plane has cut the log and takes entries. */
  done: boolean;
  /** The connection was made anew since: the stream is gone and must be agreed on again. */
  broken: boolean;
}

export interface Transfer {
  readonly view: View;
  readonly to: NodeId;
  /** Not asked for by anybody: a replica without a guest hands over. */
  readonly automatic: boolean;
  phase: 'holding' | 'catching-up' | 'surrendering' | 'handed';
  lastOp: Op;
  deadline: Milliseconds;
  sendAt: Milliseconds;
}

export class State {
  readonly options: CoreOptions;
  readonly peerIds: readonly NodeId[];
  readonly peers = new Map<NodeId, Peer>();
  readonly startedAt: Milliseconds;
  now: Milliseconds;
  lastTickAt: Milliseconds;
  /** Where the effects of the step under way go. */
  out: Effect[] = [];

  hard: HardState;
  role: Role = 'backup';
  primary: NodeId | null = null;
  /** The greatest view that any member has said to be in. A candidate stands above it. */
  seenView: View;

  promising: { readonly view: View; readonly duty: Duty } | null = null;
  /** One mail that came while a promise was under way. */
  kept: { readonly from: NodeId; readonly message: Message } | null = null;
  tail: LogTail | null = null;
  /** Last heartbeat acknowledged to a primary of a view lower than `hard.view`, as the last `promised` said. */
  lowerAckedAt: Milliseconds | null = null;
  /** Last heartbeat acknowledged to anybody, as far as this core has been told. */
  heardAt: Milliseconds | null = null;

  /** End of the log as last told: exact at rest, at most a tick old in motion. Pre-votes go by it; votes do not. */
  lastStamp: Viewstamp;
  /** Entries from `fromOp` on are of `view`. */
  stampBase: { readonly view: View; readonly fromOp: Op } | null = null;
  lastOp: Op;
  durableOp: Op;
  commitOp: Op;
  /** What this replica's log stands behind, as last told. */
  base: LogBase = noBase;
  /** The last entry known to be committed; view 0: not at hand. */
  committed: LogBase = noBase;

  following: Following | null = null;
  /** When to tell the primary again that this replica waits for `follow`. */
  joinRetryAt: Milliseconds = 0;
  readonly election = new Timeout('election');
  /** The primary that this replica last gave up; it does not count among those who could stand. */
  suspect: NodeId | null = null;
  /** The connection to the primary broke: ask as soon as the lease rule allows. */
  hinted = false;
  asking: Asking | null = null;
  candidacy: Candidacy | null = null;
  guestWhole = false;
  /** A TimeoutNow that came before this replica's log was known to reach it. */
  timeoutNow: { readonly from: NodeId; readonly view: View; readonly last: Viewstamp } | null = null;

  /** The primary's log at its view-start; null: the data plane has not begun to lead. */
  ownTail: LogTail | null = null;
  startOp: Op = 0;
  /** The lease may be absent until electionTimeout after this: just elected, or taken up again. */
  leaseGraceFrom: Milliseconds = 0;
  leaseEndsAt: Milliseconds | null = null;
  transfer: Transfer | null = null;
  inputHeld = false;
  /** Answers of the data plane that are still to come; only the last one counts. */
  inputHeldAnswersDue = 0;
  surrenderedAnswersDue = 0;
  readonly handOver = new Timeout('hand-over');

  constructor(options: CoreOptions, hard: HardState, startedAt: Milliseconds, tail: LogTail) {
    const members = options.members;
    assert(members.includes(options.self), `replica ${options.self} is not a member`);
    assert(
      new Set(members).size === members.length && members.length % 2 === 1,
      'members are 2f+1 different nodes',
    );
    assert(
      options.witnesses.every((node) => members.includes(node)),
      'a witness is a member',
    );
    assert(
      options.electionTimeoutMinMs <= options.electionTimeoutMaxMs,
      'election timeouts the wrong way round',
    );
    assert(options.leaseMs > 0 && options.driftMarginMs >= 0 && options.retryMs > 0, 'times are positive');
    assert(tail.last.view <= hard.view, `log of view ${tail.last.view}, hard state of view ${hard.view}`);
    this.options = options;
    this.peerIds = members.filter((node) => node !== options.self);
    for (const node of this.peerIds) this.peers.set(node, newPeer());
    this.startedAt = startedAt;
    this.now = startedAt;
    this.lastTickAt = startedAt;
    this.hard = hard;
    this.seenView = hard.view;
    this.lastStamp = tail.last;
    this.lastOp = tail.last.op;
    this.durableOp = tail.last.op;
    this.commitOp = tail.commitOp;
    armElection(this, startedAt);
  }

  peer(node: NodeId): Peer {
    const peer = this.peers.get(node);
    assert(peer !== undefined, `replica ${node} is not a peer`);
    return peer;
  }

  isWitness(node: NodeId): boolean {
    return this.options.witnesses.includes(node);
  }

  /** The view below which this replica answers nobody any more: promised, even if not on disk yet. */
  fencedView(): View {
    return this.promising === null ? this.hard.view : this.promising.view;
  }

  /** A lease and the drift margin: how long an acknowledged heartbeat binds. */
  stickyMs(): Milliseconds {
    return this.options.leaseMs + this.options.driftMarginMs;
  }

  /** A replica that has restarted has forgotten what it acknowledged. */
  isStarting(): boolean {
    return this.now < this.startedAt + this.stickyMs();
  }

  /** Stickiness: it heard a primary whose lease may still run. */
  hearsPrimary(): boolean {
    return this.heardAt !== null && this.now < this.heardAt + this.stickyMs();
  }

  /** It is the primary and may be releasing output. */
  ownLeaseMayRun(): boolean {
    if (this.role !== 'primary') return false;
    const phase = this.transfer?.phase;
    if (phase === 'handed') return false;
    if (this.leaseEndsAt !== null && this.now < this.leaseEndsAt) return true;
    return this.now < this.leaseGraceFrom + this.options.leaseMs;
  }
}

function newPeer(): Peer {
  return {
    link: 'unknown',
    guestWhole: false,
    stage: 'unknown',
    tail: null,
    tailAt: 0,
    agreeOp: 0,
    base: null,
    feedLost: false,
    unreadable: false,
    caughtUpOp: 0,
    ackedOp: 0,
    retryAt: 0,
  };
}

/** Forgets what was known of the peer's log: it may have another one on its next connection, or in the next view. */
export function resetReplication(peer: Peer): void {
  peer.stage = 'unknown';
  peer.tail = null;
  peer.agreeOp = 0;
  peer.base = null;
  peer.feedLost = false;
  peer.caughtUpOp = 0;
  peer.ackedOp = 0;
  peer.retryAt = 0;
}

export function send(s: State, to: NodeId, message: Message): void {
  assert(to !== s.options.self, 'mail to itself');
  s.out.push({ type: 'send', to, message });
}

export function sendToPeers(s: State, message: Message): void {
  for (const to of s.peerIds) send(s, to, message);
}

export function trace(s: State, text: string): void {
  s.out.push({ type: 'trace', text });
}

export function refuseStaleView(s: State, to: NodeId): void {
  send(s, to, { type: 'stale-view', currentView: s.hard.view });
}

/** Enters `view`, on disk before anything that is appended after this. One vote per view, and views only grow. */
export function adoptView(s: State, view: View, votedFor: NodeId | null): void {
  assert(view >= s.hard.view, `view ${view} after view ${s.hard.view}`);
  if (view === s.hard.view) {
    assert(s.hard.votedFor === null || s.hard.votedFor === votedFor, `a second vote in view ${view}`);
    if (s.hard.votedFor === votedFor) return;
  }
  s.hard = { view, votedFor, recovering: s.hard.recovering };
  s.seenView = Math.max(s.seenView, view);
  s.out.push({ type: 'persist', state: s.hard });
}

/** Sets role and known primary and tells the engine if anything changed. */
export function setRole(s: State, role: Role, primary: NodeId | null, reason: string): void {
  assert(role !== 'primary' || primary === s.options.self, 'a primary knows itself');
  if (s.role === role && s.primary === primary) return;
  s.role = role;
  s.primary = primary;
  s.out.push({ type: 'role', role, view: s.hard.view, primary, reason });
}

/** A fresh election timeout from `from` on, `factor` times as long. */
export function armElection(s: State, from: Milliseconds, factor = 1): void {
  const { electionTimeoutMinMs: low, electionTimeoutMaxMs: high, random } = s.options;
  s.election.armAt(Math.max(from + factor * randomBetween(random, low, high), s.startedAt + s.stickyMs()));
}

/** Gives up whatever candidacy is under way; the view that was entered for it stays entered. */
export function dropCandidacy(s: State): void {
  s.asking = null;
  s.candidacy = null;
}

/**
 * Rule "fence first": asks the data plane to accept and acknowledge nothing below `view`. A primary resigns
 * with it. Everything else waits for `promised`.
 */
export function requestPromise(s: State, view: View, duty: Duty, reason: string): void {
  assert(s.promising === null, 'two promises under way');
  assert(
    view > s.hard.view || (view === s.hard.view && s.role !== 'primary'),
    `promise ${view} in view ${s.hard.view}`,
  );
  assert(duty.kind !== 'stand' || view > s.hard.view, 'a candidate stands in a new view');
  if (s.role === 'primary') resign(s, reason);
  dropCandidacy(s);
  if (duty.kind === 'stand') s.suspect = s.primary ?? s.suspect;
  s.following = null;
  s.tail = null;
  s.timeoutNow = null;
  s.promising = { view, duty };
  if (duty.kind === 'stand') setRole(s, 'candidate', null, reason);
  else setRole(s, 'backup', view > s.hard.view ? null : s.primary, reason);
  s.out.push({ type: 'promise', view });
}

/** No longer primary. Whoever waits for a transfer is told, unless the target may still take over. */
export function resign(s: State, reason: string): void {
  assert(s.role === 'primary', 'only a primary resigns');
  s.out.push({ type: 'resign', view: s.hard.view, reason });
  if (s.inputHeld) {
    s.inputHeld = false;
    s.out.push({ type: 'release-input', view: s.hard.view });
  }
  if (s.transfer !== null && s.transfer.phase !== 'handed') finishTransfer(s, false, reason);
  for (const peer of s.peers.values()) {
    resetReplication(peer);
    peer.unreadable = false;
  }
  s.ownTail = null;
  s.leaseEndsAt = null;
  s.inputHeldAnswersDue = 0;
  s.surrenderedAnswersDue = 0;
  s.tail = null;
  setRole(s, 'backup', null, reason);
  armElection(s, s.now);
}

/** The one exit of a transfer's record: the result goes out and nothing of it stays behind. */
export function finishTransfer(s: State, ok: boolean, reason: string): void {
  const transfer = s.transfer;
  assert(transfer !== null, 'no transfer to finish');
  s.transfer = null;
  if (ok) s.handOver.succeeded();
  else s.handOver.failed();
  s.handOver.armAt(s.now + s.options.electionTimeoutMaxMs * s.handOver.backOffFactor());
  if (transfer.automatic) trace(s, `hand-over to replica ${transfer.to}: ${reason}`);
  else s.out.push({ type: 'transfer-result', ok, to: transfer.to, reason });
}
