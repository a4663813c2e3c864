/**
 * A backup joins the view of its primary: it promises the view, shows its log, is told where the logs agree, cuts
 * there and takes entries.
 *
 * A log is cut only on a `follow` that fits the log as it is now. An old `follow`, repeated by the network after
 * entries of this view were acknowledged, would cut entries away that may be committed: it is known by its
 * `agreeOp`, because a log whose last entry is of this view is already a beginning of the primary's log.
 */
import { assert } from '../lib/assert.js';
import type { LogTail } from '../wire/view-table.js';
import type { View } from '../wire/viewstamp.js';
import { committedHere, stampAt } from './agreement.js';
import {
  adoptView,
  armElection,
  dropCandidacy,
  refuseStaleView,
  requestPromise,
  send,
  setRole,
  trace,
} from './state.js';
import type { MessageOf, State } from './state.js';
import { settleTransfer } from './transfer.js';
import type { NodeId } from './types.js';

/** Repeats that the data plane gets to cut the log, or to begin it anew; a `follow` it could not carry out is begun again after that. */
const cutPatience = 10;
const anewPatience = 100;

/**
 * What `new-view` and `follow` have in common: true if the sender is the primary of this replica's view and nothing is
 * under way. Otherwise the message has been answered, kept or dropped.
 */
function fromPrimaryOfThisView(
  s: State,
  from: NodeId,
  message: MessageOf<'new-view'> | MessageOf<'follow'>,
): boolean {
  const view = message.view;
  if (view < s.hard.view) {
    refuseStaleView(s, from);
    return false;
  }
  if (s.promising !== null) {
    if (view >= s.promising.view) s.kept = { from, message };
    return false;
  }
  if (view > s.hard.view) {
    requestPromise(s, view, { kind: 'join', from }, `replica ${from} leads view ${view}`);
    return false;
  }
  acceptPrimary(s, from);
  return true;
}

/** Somebody leads the view this replica is in. */
export function acceptPrimary(s: State, from: NodeId): void {
  assert(
    s.role !== 'primary' && (s.primary === null || s.primary === from),
    `two primaries in view ${s.hard.view}`,
  );
  dropCandidacy(s);
  s.election.succeeded();
  s.suspect = null;
  if (s.primary === null) armElection(s, s.now);
  setRole(s, 'backup', from, `follows replica ${from}`);
  settleTransfer(s);
}

export function onNewView(s: State, from: NodeId, message: MessageOf<'new-view'>): void {
  if (!fromPrimaryOfThisView(s, from, message)) return;
  // Already taking entries on this connection: the message is late. Otherwise the primary has lost sight of this
  // log, or the stream broke: a log that has moved since it was shown is looked at again, under a new promise.
  if (s.following !== null && !s.following.broken) answerFollowing(s);
  else if (s.tail !== null) showLog(s);
  else requestPromise(s, message.view, { kind: 'join', from }, 'its log is asked for again');
}

export function onFollow(s: State, from: NodeId, message: MessageOf<'follow'>): void {
  if (!fromPrimaryOfThisView(s, from, message)) return;
  if (s.following !== null && !s.following.broken && s.following.agreeOp === message.agreeOp) {
    answerFollowing(s);
    return;
  }
  if (s.tail === null) {
    requestPromise(s, message.view, { kind: 'join', from }, 'told to follow from another op');
    return;
  }
  const misfit = followMisfit(s.tail, message);
  if (misfit !== null) {
    trace(s, `follow from op ${message.agreeOp} not carried out: ${misfit}`);
    showLog(s);
    return;
  }
  s.following = {
    primary: from,
    agreeOp: message.agreeOp,
    caughtUpOp: message.caughtUpOp,
    done: false,
    broken: false,
  };
  s.joinRetryAt = s.now + (message.base === null ? cutPatience : anewPatience) * s.options.retryMs;
  const { view, agreeOp, base } = message;
  s.lastStamp = base === null ? stampAt(s.tail, agreeOp) : { view: base.view, op: base.op };
  if (base !== null) {
    trace(s, `the log ends before op ${base.op + 1} and begins anew there`);
    s.commitOp = Math.max(s.commitOp, base.op);
  }
  s.stampBase = { view, fromOp: agreeOp + 1 };
  s.tail = null;
  s.out.push({ type: 'follow', view, primary: from, agreeOp, base });
}

/**
 * Why a log must not be cut behind `agreeOp` in `view`, or begin anew there; null: it may. A log that is a beginning of
 * the primary's up to its end gives nothing up by standing behind a later entry; another one may have gone on behind
 * the base with entries that nobody else has, which every `follow` cuts off.
 */
function followMisfit(tail: LogTail, { view, agreeOp, base }: MessageOf<'follow'>): string | null {
  if (base === null && agreeOp > tail.last.op) return `the log ends at ${tail.last.op}`;
  if (base !== null && tail.last.op <= agreeOp) return null;
  if (tail.last.view === view && agreeOp !== tail.last.op)
    return `op ${tail.last.op} is of this view already`;
  if (agreeOp < committedHere(tail)) return `op ${committedHere(tail)} is committed`;
  return null;
}

/** The data plane has cut the log and takes entries. */
export function onFollowing(s: State, view: View): void {
  if (s.promising !== null || view !== s.hard.view || s.following === null) return;
  s.following.done = true;
  s.durableOp = s.following.agreeOp;
  s.lastOp = s.following.agreeOp;
  answerFollowing(s);
}

function answerFollowing(s: State): void {
  assert(s.following !== null, 'following nobody');
  if (s.following.done && !s.following.broken)
    send(s, s.following.primary, { type: 'following', view: s.hard.view });
}

/** Shows the primary this replica's log; repeated until it says `follow`. */
export function showLog(s: State): void {
  assert(
    s.tail !== null && s.primary !== null && s.primary !== s.options.self,
    'no log to show, or nobody to show it to',
  );
  s.joinRetryAt = s.now + 2 * s.options.retryMs;
  send(s, s.primary, { type: 'view-state', view: s.hard.view, tail: s.tail });
}

/** The promise for joining `from`'s view is there. */
export function joinView(s: State, view: View, from: NodeId): void {
  assert(s.tail !== null, 'joining without a promised log');
  adoptView(s, view, view === s.hard.view ? s.hard.votedFor : null);
  acceptPrimary(s, from);
  showLog(s);
}

/**
 * Rule "caught up": the log has lost nothing any more that this replica may have acknowledged, because it holds all
 * that the primary held when it was told to follow, which was after the loss.
 */
export function clearRecoveringIfCaughtUp(s: State): void {
  const following = s.following;
  if (!s.hard.recovering || following === null || !following.done || following.broken) return;
  if (s.promising !== null || s.durableOp < following.caughtUpOp) return;
  s.hard = { view: s.hard.view, votedFor: s.hard.votedFor, recovering: false };
  s.out.push({ type: 'persist', state: s.hard });
  armElection(s, s.now);
  trace(s, `recovered: log whole up to op ${s.durableOp}`);
}
