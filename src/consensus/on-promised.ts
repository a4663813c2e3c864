/**
 * The data plane has answered a promise: nothing below the view is acknowledged any more, so the log and the time of
 * the last acknowledged heartbeat are final. Here, and only here, views are entered and votes decided.
 */
import { assert } from '../lib/assert.js';
import { joinView } from './recv-follow.js';
import { beginCandidacy, decideVote } from './recv-vote.js';
import { setRole, trace } from './state.js';
import type { State } from './state.js';
import type { Event } from './types.js';

export function onPromised(s: State, event: Extract<Event, { type: 'promised' }>): void {
  const promising = s.promising;
  if (promising === null || event.view !== promising.view) {
    trace(s, `promise of view ${event.view} is not waited for`);
    return;
  }
  assert(s.role !== 'primary' && s.following === null, 'a promise was asked for without letting go');
  assert(
    event.tail.last.view <= event.view,
    `the log ends in view ${event.tail.last.view}, beyond ${event.view}`,
  );
  s.promising = null;
  s.tail = event.tail;
  s.lastStamp = event.tail.last;
  s.stampBase = null;
  s.lastOp = event.tail.last.op;
  s.durableOp = event.tail.last.op;
  s.commitOp = Math.max(s.commitOp, event.tail.commitOp);
  s.lowerAckedAt = event.heartbeatAckedAt;
  if (event.heartbeatAckedAt !== null)
    s.heardAt = Math.max(s.heardAt ?? event.heartbeatAckedAt, event.heartbeatAckedAt);
  const duty = promising.duty;
  switch (duty.kind) {
    case 'stand':
      beginCandidacy(s, promising.view, duty.handover);
      break;
    case 'vote':
      decideVote(s, duty.from, duty.request);
      break;
    case 'join':
      joinView(s, promising.view, duty.from);
      break;
  }
  assert(s.hard.view === promising.view, 'a promised view was not entered');
  if (s.role === 'candidate' && s.candidacy === null) setRole(s, 'backup', null, 'not standing');
}
