/**
 * Votes: one per view, on disk before it leaves, only for a log that is not older, never while a lease may run
 * (Raft section 5.4.1 with the lease rule of the thesis, section 6.4.1). A TimeoutNow of the primary lifts
 * the lease rule, because that primary has given its lease up for good, and lifts nothing else.
 */
import { assert } from '../lib/assert.js';
import { compareViewstamps } from '../wire/viewstamp.js';
import type { View } from '../wire/viewstamp.js';
import { isQuorum, quorumSize } from './quorum.js';
import {
  adoptView,
  armElection,
  dropCandidacy,
  requestPromise,
  resetReplication,
  send,
  setRole,
  trace,
} from './state.js';
import type { Candidacy, MessageOf, State } from './state.js';
import { jittered, randomBetween } from './timer.js';
import type { NodeId } from './types.js';

function refuse(s: State, to: NodeId, request: MessageOf<'vote'>, reason: string): void {
  send(s, to, {
    type: 'vote-reply',
    view: request.view,
    granted: false,
    reason,
    currentView: s.hard.view,
    tail: null,
  });
}

function grant(s: State, to: NodeId): void {
  assert(s.hard.votedFor === to, 'a vote that is not on disk');
  assert(s.tail !== null, 'a vote without the log it was given on');
  send(s, to, {
    type: 'vote-reply',
    view: s.hard.view,
    granted: true,
    reason: '',
    currentView: s.hard.view,
    tail: s.tail,
  });
}

/** Refusals that need no promise and change nothing; null: none applies. */
function cheapRefusal(s: State, from: NodeId, request: MessageOf<'vote'>): string | null {
  if (request.view < s.hard.view) return 'stale view';
  if (s.hard.recovering) return 'recovering';
  if (s.isStarting()) return 'just started';
  if (request.view === s.hard.view) {
    // Rule "one vote per view". A view that has a primary needs no other one.
    if (s.hard.votedFor !== null && s.hard.votedFor !== from) return 'voted for another';
    if (s.primary !== null) return 'the view has a primary';
    return null;
  }
  // Rule "stickiness". A primary that has not surrendered knows better than any handover about its lease.
  if (s.ownLeaseMayRun()) return 'live primary';
  if (s.role !== 'primary' && !request.handover && s.hearsPrimary()) return 'live primary';
  return null;
}

export function onVote(s: State, from: NodeId, request: MessageOf<'vote'>): void {
  const reason = cheapRefusal(s, from, request);
  if (reason !== null) {
    refuse(s, from, request, reason);
    return;
  }
  if (s.promising !== null) {
    if (request.view >= s.promising.view) s.kept = { from, message: request };
    return;
  }
  if (request.view === s.hard.view && s.tail !== null) decideVote(s, from, request);
  else
    requestPromise(
      s,
      request.view,
      { kind: 'vote', from, request },
      `replica ${from} stands in view ${request.view}`,
    );
}

/** With the view promised and the log at hand. */
export function decideVote(s: State, from: NodeId, request: MessageOf<'vote'>): void {
  assert(s.promising === null && s.tail !== null, 'a vote is decided on a promised tail');
  assert(request.view >= s.hard.view, 'a vote in a view of the past');
  const view = request.view;
  // The same candidate asking again gets the same answer again.
  if (view === s.hard.view && s.hard.votedFor === from) {
    grant(s, from);
    return;
  }
  const ackedAt = s.lowerAckedAt;
  if (!request.handover && ackedAt !== null && s.now < ackedAt + s.stickyMs()) {
    adoptView(s, view, s.hard.view === view ? s.hard.votedFor : null);
    refuse(s, from, request, 'live primary');
    return;
  }
  // Rule "the newer log wins" (Raft section 5.4.1).
  if (compareViewstamps(request.last, s.tail.last) < 0) {
    adoptView(s, view, s.hard.view === view ? s.hard.votedFor : null);
    refuse(s, from, request, 'newer log');
    return;
  }
  dropCandidacy(s);
  adoptView(s, view, from);
  setRole(s, 'backup', null, `voted for replica ${from}`);
  armElection(s, s.now);
  grant(s, from);
}

/** The promise for an own candidacy is there. */
export function beginCandidacy(s: State, view: View, handover: boolean): void {
  assert(s.tail !== null && s.role === 'candidate', 'a candidate stands on a promised tail');
  assert(view > s.hard.view, 'a candidate stands in a new view');
  s.candidacy = {
    view,
    handover,
    stage: 'lease-wait',
    deadline: s.now,
    sendAt: s.now,
    granted: new Set(),
    refused: new Set(),
  };
  standWhenLeaseOver(s);
}

/** The candidate is a voter too: its own vote waits for the lease rule like any other. */
export function standWhenLeaseOver(s: State): void {
  const candidacy = s.candidacy;
  assert(candidacy !== null && candidacy.stage === 'lease-wait', 'not waiting for a lease');
  assert(!s.hard.recovering && !s.isStarting(), 'a replica stands that must not vote');
  const bound = s.lowerAckedAt === null ? s.now : s.lowerAckedAt + s.stickyMs();
  if (!candidacy.handover && s.now < bound) {
    adoptView(s, candidacy.view, null);
    return;
  }
  const { electionTimeoutMinMs: low, electionTimeoutMaxMs: high, random } = s.options;
  adoptView(s, candidacy.view, s.options.self);
  candidacy.stage = 'standing';
  candidacy.deadline = s.now + (candidacy.handover ? high : randomBetween(random, low, high));
  candidacy.granted.add(s.options.self);
  askForVotes(s);
}

export function askForVotes(s: State): void {
  const candidacy = s.candidacy;
  assert(candidacy !== null && candidacy.stage === 'standing' && s.tail !== null, 'nobody stands');
  candidacy.sendAt = s.now + jittered(s.options.random, s.options.retryMs);
  for (const to of s.peerIds) {
    if (candidacy.granted.has(to) || s.peer(to).link === 'down') continue;
    send(s, to, { type: 'vote', view: candidacy.view, last: s.tail.last, handover: candidacy.handover });
  }
  winIfElected(s, candidacy);
}

export function onVoteReply(s: State, from: NodeId, reply: MessageOf<'vote-reply'>): void {
  s.seenView = Math.max(s.seenView, reply.currentView);
  const candidacy = s.candidacy;
  if (candidacy === null || candidacy.stage !== 'standing' || reply.view !== candidacy.view) return;
  if (reply.granted) {
    const peer = s.peer(from);
    candidacy.refused.delete(from);
    candidacy.granted.add(from);
    peer.tail = reply.tail;
    peer.tailAt = s.now;
    winIfElected(s, candidacy);
    return;
  }
  if (reply.currentView > candidacy.view) {
    loseElection(s, 'a higher view');
    return;
  }
  // A vote refused for the lease is asked for again; these two reasons stay for this view.
  if (reply.reason !== 'voted for another' && reply.reason !== 'newer log') return;
  candidacy.refused.add(from);
  const open = s.peerIds.filter(
    (node) => !candidacy.refused.has(node) && !candidacy.granted.has(node) && s.peer(node).link !== 'down',
  );
  if (candidacy.granted.size + open.length < quorumSize(s.options.members.length))
    loseElection(s, reply.reason);
}

function winIfElected(s: State, candidacy: Candidacy): void {
  if (!isQuorum(candidacy.granted, s.options.members)) return;
  assert(s.promising === null && s.tail !== null, 'elected without a promised log');
  assert(
    s.hard.view === candidacy.view && s.hard.votedFor === s.options.self,
    'elected in a view it has not voted for itself in',
  );
  for (const [node, peer] of s.peers) {
    const tail = candidacy.granted.has(node) ? peer.tail : null;
    resetReplication(peer);
    peer.tail = tail;
    peer.stage = tail === null ? 'unknown' : 'known';
  }
  dropCandidacy(s);
  s.election.cancel();
  s.election.succeeded();
  s.hinted = false;
  s.leaseGraceFrom = s.now;
  s.leaseEndsAt = null;
  s.ownTail = null;
  setRole(s, 'primary', s.options.self, 'elected');
  s.out.push({ type: 'lead', view: candidacy.view });
}

/** Not elected in this view. The next attempt comes soon if the votes were split, later if nobody answered. */
export function loseElection(s: State, reason: string): void {
  const candidacy = s.candidacy;
  assert(candidacy !== null, 'no election to lose');
  dropCandidacy(s);
  setRole(s, 'backup', null, reason);
  trace(s, `not elected in view ${candidacy.view}: ${reason}`);
  s.election.failed();
  if (candidacy.refused.size > 0)
    s.election.armAt(
      s.now + s.options.retryMs * randomBetween(s.options.random, 1, 1 + 4 * s.election.backOffFactor()),
    );
  else armElection(s, s.now, s.election.backOffFactor() / 2);
}
