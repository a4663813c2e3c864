/**
 * The consensus core: one function from an event to a list of effects. It decides who leads, in which view, who
 * votes for whom and who follows from which op. It reads no clock, draws no randomness of its own, waits for nothing.
 *
 * The order in which effects are appended is the contract (see types.ts). A new reader goes from here to
 * recv-pre-vote, recv-vote, on-promised, recv-view-state, recv-follow, in the order of an election.
 */
import { assert, unreachable } from '../lib/assert.js';
import type { LogTail } from '../wire/view-table.js';
import type { Op, View } from '../wire/viewstamp.js';
import { onPromised } from './on-promised.js';
import { onHeard, onPeerDown, onPeerUp, onTick } from './on-tick.js';
import { clearRecoveringIfCaughtUp, onFollow, onFollowing, onNewView } from './recv-follow.js';
import { onPreVote, onPreVoteReply } from './recv-pre-vote.js';
import { onTimeoutNow, standIfLogReaches } from './recv-timeout-now.js';
import {
  feedKnown,
  noteAcked,
  onFeedLost,
  onLeading,
  onPeerFollowing,
  onStaleView,
  onViewState,
} from './recv-view-state.js';
import { onVote, onVoteReply } from './recv-vote.js';
import { State, trace } from './state.js';
import type { Peer } from './state.js';
import {
  considerHandOver,
  onInputHeld,
  onSurrendered,
  onTransfer,
  surrenderIfCaughtUp,
  targetLost,
} from './transfer.js';
import type { CoreOptions, Effect, Event, HardState, Message, Milliseconds, NodeId, Role } from './types.js';

export type Phase =
  | 'starting' // neither votes nor stands yet
  | 'waiting' // knows no primary
  | 'joining' // knows the primary, takes no entries yet
  | 'following'
  | 'asking' // for pre-votes
  | 'promising' // waits for the data plane
  | 'lease-wait' // may not vote for itself yet
  | 'standing'
  | 'taking-over' // elected, view-start not appended yet
  | 'leading';

export interface CoreStatus {
  readonly role: Role;
  readonly view: View;
  readonly votedFor: NodeId | null;
  readonly primary: NodeId | null;
  readonly phase: Phase;
  readonly recovering: boolean;
  readonly transfer: {
    readonly to: NodeId;
    readonly phase: 'holding' | 'catching-up' | 'surrendering' | 'handed';
  } | null;
  /** Peers that take this primary's entries; empty on others. */
  readonly followers: readonly NodeId[];
  /** Peers that this primary cannot bring into its view. */
  readonly apart: readonly NodeId[];
  /** Peers whose log began anew on this primary's word, and with which op. */
  readonly anew: ReadonlyMap<NodeId, Op>;
}

export class Core {
  private readonly s: State;

  /**
   * `hard`: what the hard-state file holds. `startedAt`: now, on the clock of the events. `tail`: the log as the scan at start found
   * it. The data plane must have been told to accept and acknowledge nothing below `hard.view` before the first event.
   */
  constructor(options: CoreOptions, hard: HardState, startedAt: Milliseconds, tail: LogTail) {
    this.s = new State(options, hard, startedAt, tail);
  }

  /** Appends the effects of `event` to `out`. Throws only InvariantError, after which the process must stop. */
  step(event: Event, out: Effect[]): void {
    const s = this.s;
    assert(Number.isFinite(event.now), `event ${event.type} at ${event.now}`);
    assert(
      event.type !== 'tick' || event.now >= s.lastTickAt,
      `a tick went back from ${s.lastTickAt} to ${event.now}`,
    );
    const viewBefore = s.hard.view;
    s.now = Math.max(s.now, event.now);
    s.out = out;
    dispatch(s, event);
    if (s.promising === null) deliverKept(s);
    checkInvariants(s, viewBefore);
    s.out = [];
  }

  get status(): CoreStatus {
    const s = this.s;
    return {
      role: s.role,
      view: s.hard.view,
      votedFor: s.hard.votedFor,
      primary: s.primary,
      phase: phaseOf(s),
      recovering: s.hard.recovering,
      transfer: s.transfer === null ? null : { to: s.transfer.to, phase: s.transfer.phase },
      followers: peersAt(s, 'following'),
      apart: peersAt(s, 'apart'),
      anew: begunAnew(s),
    };
  }
}

function peersAt(s: State, stage: Peer['stage']): NodeId[] {
  return s.role === 'primary' ? s.peerIds.filter((node) => s.peer(node).stage === stage) : [];
}

function begunAnew(s: State): ReadonlyMap<NodeId, Op> {
  const begun = peersAt(s, 'following').map((node) => ({ node, base: s.peer(node).base }));
  return new Map(begun.flatMap(({ node, base }) => (base === null ? [] : [[node, base.op + 1] as const])));
}

function phaseOf(s: State): Phase {
  if (s.role === 'primary') return s.ownTail === null ? 'taking-over' : 'leading';
  if (s.promising !== null) return 'promising';
  if (s.candidacy !== null) return s.candidacy.stage;
  if (s.asking !== null) return 'asking';
  if (s.following !== null && s.following.done && !s.following.broken) return 'following';
  if (s.primary !== null) return 'joining';
  return s.isStarting() ? 'starting' : 'waiting';
}

function dispatch(s: State, event: Event): void {
  switch (event.type) {
    case 'tick':
      return onTick(s);
    case 'mail':
      return onMail(s, event.from, event.message);
    case 'promised':
      return onPromised(s, event);
    case 'heard':
      return onHeard(s, event);
    case 'following':
      return onFollowing(s, event.view);
    case 'leading':
      return onLeading(s, event);
    case 'progress':
      return onProgress(s, event);
    case 'peer-up':
      return s.peers.has(event.node) ? onPeerUp(s, event.node) : undefined;
    case 'peer-down':
      return s.peers.has(event.node) ? onPeerDown(s, event.node) : undefined;
    case 'feed-lost':
      return onFeedLost(s, event);
    case 'guest':
      return onGuest(s, event.whole);
    case 'peer-guest':
      return onPeerGuest(s, event.node, event.whole);
    case 'transfer':
      return onTransfer(s, event);
    case 'input-held':
      return onInputHeld(s, event);
    case 'surrendered':
      return onSurrendered(s, event);
    default:
      return unreachable(event);
  }
}

function onMail(s: State, from: NodeId, message: Message): void {
  if (!s.peers.has(from)) {
    trace(s, `mail from ${from}, which is not a peer`);
    return;
  }
  switch (message.type) {
    case 'pre-vote':
      return onPreVote(s, from, message);
    case 'pre-vote-reply':
      return onPreVoteReply(s, from, message);
    case 'vote':
      return onVote(s, from, message);
    case 'vote-reply':
      return onVoteReply(s, from, message);
    case 'new-view':
      return onNewView(s, from, message);
    case 'view-state':
      return onViewState(s, from, message);
    case 'follow':
      return onFollow(s, from, message);
    case 'following':
      return onPeerFollowing(s, from, message);
    case 'timeout-now':
      return onTimeoutNow(s, from, message);
    case 'stale-view':
      return onStaleView(s, message);
    default:
      return unreachable(message);
  }
}

/** The one mail that had to wait for a promise. */
function deliverKept(s: State): void {
  const kept = s.kept;
  s.kept = null;
  if (kept !== null) onMail(s, kept.from, kept.message);
}

function onProgress(s: State, event: Extract<Event, { type: 'progress' }>): void {
  s.base = event.base;
  s.committed = event.committed;
  // The log of a promise is exact; a word from before it would be older.
  if (s.promising !== null || s.tail !== null) return;
  s.lastOp = event.lastOp;
  s.durableOp = event.durableOp;
  s.commitOp = Math.max(s.commitOp, event.commitOp);
  const settled = s.role === 'primary' ? s.ownTail !== null : s.following === null || s.following.done;
  if (s.stampBase !== null && settled && event.durableOp >= s.stampBase.fromOp) {
    s.lastStamp = { view: s.stampBase.view, op: event.durableOp };
  }
  if (s.role === 'primary') {
    s.leaseEndsAt = event.leaseEndsAt;
    noteAcked(s, event.acked);
    feedKnown(s);
    surrenderIfCaughtUp(s);
    considerHandOver(s);
    return;
  }
  clearRecoveringIfCaughtUp(s);
  standIfLogReaches(s);
}

function onGuest(s: State, whole: boolean): void {
  s.guestWhole = whole;
}

function onPeerGuest(s: State, node: NodeId, whole: boolean): void {
  const peer = s.peers.get(node);
  if (peer === undefined) return;
  peer.guestWhole = whole;
  if (!whole && s.transfer?.automatic === false)
    targetLost(s, node, `replica ${node} has no whole guest any more`);
}

/** What holds after every step. */
function checkInvariants(s: State, viewBefore: View): void {
  assert(s.hard.view >= viewBefore, 'the view went back');
  assert(s.promising === null || s.role !== 'primary', 'primary while another view is promised');
  assert(
    s.role !== 'primary' || s.hard.votedFor === s.options.self,
    'primary of a view it did not vote for itself in',
  );
  assert(s.candidacy === null || s.role === 'candidate', 'a candidacy without a candidate');
  assert(s.following === null || (s.tail === null && s.role === 'backup'), 'following with a log at rest');
  assert(
    s.inputHeld === (s.role === 'primary' && s.transfer !== null),
    'input held without a transfer, or the other way round',
  );
  assert(!s.hard.recovering || s.role === 'backup', 'a recovering replica leads or stands');
}
