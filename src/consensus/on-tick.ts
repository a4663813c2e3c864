/**
 * Time passing: suspicion, repeats, and the end of a lease that cannot be renewed.
 */
import { assert } from '../lib/assert.js';
import { askAgain, giveUpAsking, mayStand, startAsking } from './recv-pre-vote.js';
import { acceptPrimary, showLog } from './recv-follow.js';
import { retryPeers } from './recv-view-state.js';
import { askForVotes, loseElection, standWhenLeaseOver } from './recv-vote.js';
import { armElection, requestPromise, resetReplication, resign, trace } from './state.js';
import type { State } from './state.js';
import { randomBetween } from './timer.js';
import { considerHandOver, targetLost, transferTick } from './transfer.js';
import type { Event, Milliseconds, NodeId } from './types.js';

/** Candidates woken by the same broken connection spread over this time. */
const hintSpreadMs = 8;

/** Members that should not win stand this many of the longest election timeouts later. */
const lastResortTimeouts = 2;

export function onTick(s: State): void {
  noticeOwnPause(s);
  if (s.role === 'primary') {
    resignWithoutLease(s);
    retryPeers(s);
    considerHandOver(s);
  } else {
    tickCandidacy(s);
    tickAsking(s);
    tickJoining(s);
    tickElection(s);
  }
  transferTick(s);
}

/** After a pause of this process everything looks overdue, while what came in meanwhile has not been read yet. */
function noticeOwnPause(s: State): void {
  const pausedMs = s.now - s.lastTickAt;
  s.lastTickAt = s.now;
  if (pausedMs <= s.options.electionTimeoutMinMs) return;
  trace(s, `no tick for ${Math.round(pausedMs)} ms`);
  if (s.role === 'primary') s.leaseGraceFrom = s.now - s.options.leaseMs;
  else armElection(s, s.now);
}

/** Rule "quorum check": a primary that reaches no majority for an election timeout steps down (its gate is closed long since). */
function resignWithoutLease(s: State): void {
  const phase = s.transfer?.phase;
  if (phase === 'surrendering' || phase === 'handed') return;
  const lapsedAt = Math.max(s.leaseEndsAt ?? 0, s.leaseGraceFrom + s.options.leaseMs);
  if (s.now > lapsedAt + s.options.electionTimeoutMinMs) resign(s, 'no majority acknowledges the lease');
}

function tickCandidacy(s: State): void {
  const candidacy = s.candidacy;
  if (candidacy === null) return;
  assert(s.role === 'candidate' && s.promising === null, 'a candidacy without a candidate');
  if (candidacy.stage === 'lease-wait') standWhenLeaseOver(s);
  else if (s.now >= candidacy.deadline) loseElection(s, 'no majority answered');
  else if (s.now >= candidacy.sendAt) askForVotes(s);
}

function tickAsking(s: State): void {
  const asking = s.asking;
  if (asking === null) return;
  if (s.now >= asking.deadline) giveUpAsking(s);
  else if (s.now >= asking.sendAt) askAgain(s);
}

/**
 * Waits for `follow`: the primary may have lost the answer, or not have noticed that a stream broke. A log that may have
 * moved since it was last shown is looked at again, under a new promise of the same view.
 */
function tickJoining(s: State): void {
  if (s.promising !== null || s.primary === null || s.role !== 'backup' || s.now < s.joinRetryAt) return;
  if (s.following !== null && !s.following.broken && s.following.done) return;
  if (s.tail !== null) showLog(s);
  else if (s.hearsPrimary())
    requestPromise(s, s.hard.view, { kind: 'join', from: s.primary }, 'takes no entries');
}

function tickElection(s: State): void {
  if (s.asking !== null || !mayStand(s) || s.hearsPrimary() || s.election.deadline === null) return;
  if (s.now < s.election.deadline + lastResortDelayMs(s)) return;
  s.suspect = s.primary ?? s.suspect;
  startAsking(s);
}

/** Rule "guests first": a member that could only hand over again lets those stand first that need not. */
function lastResortDelayMs(s: State): Milliseconds {
  const witness = s.isWitness(s.options.self);
  if (s.guestWhole && !witness) return 0;
  const suspect = s.primary ?? s.suspect;
  for (const [node, peer] of s.peers) {
    if (peer.link !== 'up' || node === suspect || s.isWitness(node)) continue;
    if (peer.guestWhole || witness) return lastResortTimeouts * s.options.electionTimeoutMaxMs;
  }
  return 0;
}

/** Repeats that a backup gives its primary to ask for its log, after their connection was made anew, before it speaks first. */
const joinPatience = 4;

/** The data plane acknowledged a heartbeat. */
export function onHeard(s: State, event: Extract<Event, { type: 'heard' }>): void {
  if (s.heardAt !== null && event.at <= s.heardAt) return;
  s.heardAt = event.at;
  if (event.view !== s.hard.view || s.promising !== null) return;
  acceptPrimary(s, event.from);
  if (s.hinted && s.peer(event.from).link === 'down') {
    askSoon(s);
    return;
  }
  s.hinted = false;
  armElection(s, Math.min(event.at, s.now));
}

/** As soon as this replica's own lease rule allows, a little spread. */
function askSoon(s: State): void {
  const lapsesAt = s.heardAt === null ? s.now : Math.max(s.now, s.heardAt + s.stickyMs());
  s.election.armAt(
    Math.max(lapsesAt + randomBetween(s.options.random, 0, hintSpreadMs), s.startedAt + s.stickyMs()),
  );
}

export function onPeerUp(s: State, node: NodeId): void {
  s.peer(node).link = 'up';
  newConnection(s, node);
}

/** A hint, not a proof: it makes this replica ask; what the voters hold of it is their own lease rule. */
export function onPeerDown(s: State, node: NodeId): void {
  s.peer(node).link = 'down';
  newConnection(s, node);
  if (s.role === 'primary' || s.primary !== node || s.candidacy !== null) return;
  s.hinted = true;
  askSoon(s);
}

/** Whatever was agreed on over the old connection must be agreed on again. */
function newConnection(s: State, node: NodeId): void {
  resetReplication(s.peer(node));
  if (s.following !== null && s.following.primary === node) s.following.broken = true;
  if (s.primary === node) s.joinRetryAt = s.now + joinPatience * s.options.retryMs;
  if (s.kept !== null && s.kept.from === node) s.kept = null;
  if (s.timeoutNow !== null && s.timeoutNow.from === node) s.timeoutNow = null;
  targetLost(s, node, `the connection to replica ${node} broke`);
}
