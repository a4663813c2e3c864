/**
 * The primary brings its backups into its view: it learns each one's log, finds the point of agreement, feeds
 * the stream behind it and says `follow` until the backup answers.
 */
import { assert } from '../lib/assert.js';
import type { LogTail } from '../wire/view-table.js';
import type { Op } from '../wire/viewstamp.js';
import { feedStart } from './agreement.js';
import { resetReplication, resign, send, trace } from './state.js';
import type { MessageOf, Peer, State } from './state.js';
import { targetLost } from './transfer.js';
import type { Event, NodeId } from './types.js';

function sameTail(a: LogTail, b: LogTail): boolean {
  return a.last.view === b.last.view && a.last.op === b.last.op && a.table.length === b.table.length;
}

/** The data plane has appended view-start. */
export function onLeading(s: State, event: Extract<Event, { type: 'leading' }>): void {
  if (s.role !== 'primary' || event.view !== s.hard.view || s.ownTail !== null) return;
  const tail = s.tail;
  assert(tail !== null, 'led without a promised log');
  assert(
    event.startOp === tail.last.op + 1,
    `view-start at op ${event.startOp}, the log ended at ${tail.last.op}`,
  );
  s.ownTail = {
    last: { view: event.view, op: event.startOp },
    commitOp: tail.commitOp,
    table: [...tail.table, { view: event.view, firstOp: event.startOp }],
  };
  s.tail = null;
  s.startOp = event.startOp;
  s.lastOp = event.startOp;
  s.stampBase = { view: event.view, fromOp: event.startOp };
  for (const [node, peer] of s.peers) {
    if (peer.stage === 'known') feed(s, node, peer);
    else askForLog(s, node, peer);
  }
}

/** This replica's log as primary. Entries of its own view at a backup came from here, so it holds them too. */
function ownTailFor(s: State, theirs: LogTail): LogTail {
  const own = s.ownTail;
  assert(own !== null, 'not leading yet');
  const inOwnView = theirs.last.view === s.hard.view ? theirs.last.op : 0;
  return {
    last: { view: s.hard.view, op: Math.max(own.last.op, s.lastOp, inOwnView) },
    commitOp: own.commitOp,
    table: own.table,
  };
}

function askForLog(s: State, node: NodeId, peer: Peer): void {
  peer.retryAt = s.now + s.options.retryMs;
  if (peer.link !== 'down') send(s, node, { type: 'new-view', view: s.hard.view });
}

function feed(s: State, node: NodeId, peer: Peer): void {
  assert(peer.tail !== null, 'fed without knowing its log');
  const own = ownTailFor(s, peer.tail);
  // The oldest place that there is leaves the peer the most to give to others. The newest is the last resort: where the logs
  // part may be unknown, but what a peer has is not behind it, once it has moved on for long enough.
  const start =
    feedStart(own, peer.tail, peer.unreadable ? s.committed : s.base) ??
    feedStart(own, peer.tail, s.committed);
  if (start === null) {
    if (peer.stage !== 'apart') trace(s, `replica ${node}: where the logs part cannot be told`);
    peer.stage = 'apart';
    peer.retryAt = s.now + s.options.retryMs;
    return;
  }
  if (start.base !== null)
    trace(s, `replica ${node}: its log ends before op ${start.agreeOp + 1} and begins anew there`);
  peer.stage = 'fed';
  peer.agreeOp = start.agreeOp;
  peer.base = start.base;
  peer.caughtUpOp = own.last.op;
  s.out.push({ type: 'feed', peer: node, view: s.hard.view, agreeOp: start.agreeOp });
  sayFollow(s, node, peer);
}

function sayFollow(s: State, node: NodeId, peer: Peer): void {
  peer.retryAt = s.now + s.options.retryMs;
  const { agreeOp, base, caughtUpOp } = peer;
  send(s, node, { type: 'follow', view: s.hard.view, agreeOp, base, caughtUpOp });
}

export function onViewState(s: State, from: NodeId, message: MessageOf<'view-state'>): void {
  if (s.role !== 'primary' || message.view !== s.hard.view) return;
  const peer = s.peer(from);
  // A repeated answer gives no new stream, only the word to follow once more.
  if (
    (peer.stage === 'fed' || peer.stage === 'following') &&
    peer.tail !== null &&
    sameTail(peer.tail, message.tail)
  ) {
    sayFollow(s, from, peer);
    return;
  }
  // A log that has not moved is no nearer than it was.
  if (peer.stage === 'apart' && peer.tail !== null && sameTail(peer.tail, message.tail)) return;
  resetReplication(peer);
  peer.stage = 'known';
  peer.tail = message.tail;
  peer.tailAt = s.now;
  peer.retryAt = s.now + s.options.retryMs;
}

/**
 * Feeds those whose log has been learned since. `caughtUpOp` must cover all that was acknowledged before the log
 * was shown, so it waits for the next word of the data plane on where its own log ends.
 */
export function feedKnown(s: State): void {
  if (s.role !== 'primary' || s.ownTail === null) return;
  for (const [node, peer] of s.peers) if (peer.stage === 'known') feed(s, node, peer);
}

/** What it needs is not here any more, or cannot be read. It counts for nothing until a new connection lets it begin further on. */
export function onFeedLost(s: State, event: Extract<Event, { type: 'feed-lost' }>): void {
  const peer = s.peers.get(event.node);
  if (peer === undefined || s.role !== 'primary' || event.view !== s.hard.view) return;
  peer.stage = 'apart';
  peer.feedLost = true;
  peer.unreadable = !event.released;
  peer.ackedOp = 0;
  trace(s, `replica ${event.node}: the entries it needs ${event.released ? 'are gone' : 'cannot be read'}`);
  targetLost(s, event.node, `replica ${event.node} cannot be fed any more`);
}

export function onPeerFollowing(s: State, from: NodeId, message: MessageOf<'following'>): void {
  if (s.role !== 'primary' || message.view !== s.hard.view) return;
  const peer = s.peer(from);
  if (peer.stage !== 'fed') return;
  peer.stage = 'following';
  peer.unreadable = false;
}

/** Repeats what has not been answered. */
export function retryPeers(s: State): void {
  if (s.role !== 'primary' || s.ownTail === null) return;
  for (const [node, peer] of s.peers) {
    if (s.now < peer.retryAt || peer.link === 'down') continue;
    if (peer.stage === 'unknown') askForLog(s, node, peer);
    else if (peer.stage === 'fed') sayFollow(s, node, peer);
    else if (peer.stage === 'known' || (peer.stage === 'apart' && !peer.feedLost)) feed(s, node, peer);
  }
}

/** Rule "a higher view is told": nobody above can acknowledge anything to this primary any more. */
export function onStaleView(s: State, message: MessageOf<'stale-view'>): void {
  s.seenView = Math.max(s.seenView, message.currentView);
  if (s.role === 'primary' && message.currentView > s.hard.view)
    resign(s, `view ${message.currentView} exists`);
}

/** Where the log of a peer stands, as far as its acknowledgements say. */
export function noteAcked(s: State, acked: ReadonlyMap<NodeId, Op>): void {
  for (const [node, op] of acked) {
    const peer = s.peers.get(node);
    if (peer !== undefined) peer.ackedOp = op;
  }
}
