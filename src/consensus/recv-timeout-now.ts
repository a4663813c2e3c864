/**
 * TimeoutNow: the primary of this view has given up its lease for good and wants this replica to take over. The
 * target stands at once in the very next view, without pre-votes.
 */
import { requestPromise, trace } from './state.js';
import type { MessageOf, State } from './state.js';
import type { NodeId } from './types.js';

/** Rule "stale TimeoutNow": only the primary of this very view may say so, to a replica that takes its entries. */
function refusal(s: State, from: NodeId, message: MessageOf<'timeout-now'>): string | null {
  if (message.view !== s.hard.view || message.last.view !== message.view) return 'of another view';
  if (s.promising !== null) return 'another view is being entered';
  if (s.role !== 'backup' || s.primary !== from) return 'not from the primary';
  if (s.hard.recovering) return 'recovering';
  if (s.isStarting()) return 'just started';
  if (s.following === null || s.following.broken) return 'not following';
  return null;
}

export function onTimeoutNow(s: State, from: NodeId, message: MessageOf<'timeout-now'>): void {
  const reason = refusal(s, from, message);
  if (reason !== null) {
    trace(s, `TimeoutNow of view ${message.view} ignored: ${reason}`);
    return;
  }
  s.timeoutNow = { from, view: message.view, last: message.last };
  standIfLogReaches(s);
}

/** The primary has seen this log reach its own; this core may hear of it a little later. */
export function standIfLogReaches(s: State): void {
  const wanted = s.timeoutNow;
  if (wanted === null) return;
  if (refusal(s, wanted.from, { type: 'timeout-now', view: wanted.view, last: wanted.last }) !== null) {
    s.timeoutNow = null;
    return;
  }
  if (s.following === null || !s.following.done || s.durableOp < wanted.last.op) return;
  requestPromise(s, wanted.view + 1, { kind: 'stand', handover: true }, `replica ${wanted.from} hands over`);
}
