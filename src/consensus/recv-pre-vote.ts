/**
 * Pre-votes: may I stand? Asking changes nothing anywhere, so a replica that cannot win disturbs nobody
 * (Ongaro's thesis, section 9.6; stickiness: section 4.2.3).
 */
import { assert } from '../lib/assert.js';
import type { View } from '../wire/viewstamp.js';
import { compareViewstamps } from '../wire/viewstamp.js';
import { isQuorum } from './quorum.js';
import { armElection, refuseStaleView, requestPromise, send } from './state.js';
import type { MessageOf, State } from './state.js';
import { jittered, randomBetween } from './timer.js';
import type { NodeId } from './types.js';

/** Two candidates that the same event woke settle who goes first within this many repeats. */
const duelRepeats = 4;

/** The view above every view that this replica has heard of; it owns no vote in it. */
function nextView(s: State): View {
  return Math.max(s.hard.view, s.seenView) + 1;
}

/** May this replica stand at all? (It must also not hear a primary.) */
export function mayStand(s: State): boolean {
  return (
    !s.hard.recovering &&
    !s.isStarting() &&
    s.promising === null &&
    s.candidacy === null &&
    s.role !== 'primary'
  );
}

export function startAsking(s: State): void {
  assert(mayStand(s) && !s.hearsPrimary(), 'asking for pre-votes out of turn');
  const { electionTimeoutMinMs: low, electionTimeoutMaxMs: high, random } = s.options;
  s.asking = {
    view: nextView(s),
    startedAt: s.now,
    deadline: s.now + randomBetween(random, low, high),
    sendAt: s.now,
    granted: new Set([s.options.self]),
  };
  askAgain(s);
}

/** Repeats the question to those that have not granted it. A refusal is often only early by a few milliseconds. */
export function askAgain(s: State): void {
  const asking = s.asking;
  assert(asking !== null, 'nothing is asked');
  asking.sendAt = s.now + jittered(s.options.random, s.options.retryMs);
  for (const to of s.peerIds) {
    if (asking.granted.has(to) || s.peer(to).link === 'down') continue;
    send(s, to, { type: 'pre-vote', view: asking.view, last: s.lastStamp, hasGuest: s.guestWhole });
  }
  standIfGranted(s);
}

function standIfGranted(s: State): void {
  const asking = s.asking;
  if (asking === null || !isQuorum(asking.granted, s.options.members)) return;
  // Own lease rule: this replica is a voter too.
  if (!mayStand(s) || s.hearsPrimary()) return;
  assert(asking.view > s.hard.view, 'standing in a view it may own a vote in');
  requestPromise(s, asking.view, { kind: 'stand', handover: false }, 'pre-votes granted');
}

/** Null: granted. */
function refusal(s: State, from: NodeId, ask: MessageOf<'pre-vote'>): string | null {
  if (ask.view <= s.fencedView()) return 'stale view';
  if (s.hard.recovering) return 'recovering';
  if (s.isStarting()) return 'just started';
  // Rule "stickiness": a voter that still hears a live primary, or is one, does not help to replace it.
  if (s.role === 'primary' && s.ownLeaseMayRun()) return 'live primary';
  if (s.role !== 'primary' && s.hearsPrimary()) return 'live primary';
  if (compareViewstamps(ask.last, s.lastStamp) < 0) return 'newer log';
  if (goesFirst(s, from, ask)) return 'asks itself';
  return null;
}

/**
 * Rule "no duel": of two replicas that ask at the same time the one with the newer log, else with a guest, else
 * with the lower index goes first. Only for the first moments: it may be unable to win.
 */
function goesFirst(s: State, from: NodeId, ask: MessageOf<'pre-vote'>): boolean {
  if (s.asking === null || s.now >= s.asking.startedAt + duelRepeats * s.options.retryMs) return false;
  const byLog = compareViewstamps(s.lastStamp, ask.last);
  if (byLog !== 0) return byLog > 0;
  if (s.guestWhole !== ask.hasGuest) return s.guestWhole;
  return s.options.self < from;
}

export function onPreVote(s: State, from: NodeId, ask: MessageOf<'pre-vote'>): void {
  const reason = refusal(s, from, ask);
  send(s, from, {
    type: 'pre-vote-reply',
    view: ask.view,
    granted: reason === null,
    reason: reason ?? '',
    currentView: s.hard.view,
  });
}

export function onPreVoteReply(s: State, from: NodeId, reply: MessageOf<'pre-vote-reply'>): void {
  s.seenView = Math.max(s.seenView, reply.currentView);
  const asking = s.asking;
  if (asking === null) return;
  // Rule "a higher view is told": a primary in a lower view can never get this replica's acknowledgement again. It
  // steps down when it hears so; without this a replica fenced by a lost election would stay outside for ever.
  if (reply.currentView < s.hard.view && reply.reason === 'live primary') refuseStaleView(s, from);
  if (asking.view <= s.seenView) {
    asking.view = nextView(s);
    asking.granted.clear();
    asking.granted.add(s.options.self);
    return;
  }
  if (reply.view !== asking.view || !reply.granted) return;
  asking.granted.add(from);
  standIfGranted(s);
}

/** An asking round that got no quorum: wait and ask again, longer each time. */
export function giveUpAsking(s: State): void {
  assert(s.asking !== null, 'nothing to give up');
  s.asking = null;
  s.hinted = false;
  s.election.failed();
  armElection(s, s.now, s.election.backOffFactor() / 2);
}
