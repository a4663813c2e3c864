/**
 * Leadership transfer: hold input, let the target acknowledge everything, give the lease up, say TimeoutNow.
 *
 * Until TimeoutNow is sent nobody else knows, so an abandoned transfer takes the lease up again and goes on.
 *
 * Once it may have left, that is not safe any more. The target may read it late and be elected by voters that skip
 * the lease rule because they are told that the lease of this view was given up; they may have acknowledged a new
 * heartbeat of this primary just before, so its reclaimed lease and the target's new one would run at the
 * same time. So the lease of this view stays given up for good: an abandoned transfer then goes on serving by standing in
 * the next view itself, with `handover`, against the target's claim to the same view. One vote per view decides
 * between the two.
 */
import { assert } from '../lib/assert.js';
import { finishTransfer, requestPromise, send } from './state.js';
import type { State } from './state.js';
import type { Event, NodeId } from './types.js';

/** Why `node` cannot be the target; null: it can. */
function targetRefusal(s: State, node: NodeId, needsGuest: boolean): string | null {
  if (node === s.options.self) return 'it is the primary already';
  const peer = s.peers.get(node);
  if (peer === undefined) return `replica ${node} is not a member`;
  if (s.isWitness(node)) return `replica ${node} is a witness`;
  if (peer.link === 'down') return `replica ${node} is not connected`;
  if (peer.stage !== 'following') return `replica ${node} does not follow`;
  if (needsGuest && !peer.guestWhole) return `replica ${node} has no whole guest`;
  return null;
}

/** The follower that has acknowledged most among those with a whole guest, else (if allowed) among all. */
function bestTarget(s: State, needsGuest: boolean): NodeId | null {
  let best: NodeId | null = null;
  for (const [node, peer] of s.peers) {
    if (targetRefusal(s, node, needsGuest) !== null || peer.ackedOp < peer.caughtUpOp) continue;
    const than = best === null ? null : s.peer(best);
    if (than === null || Number(peer.guestWhole) > Number(than.guestWhole)) best = node;
    else if (peer.guestWhole === than.guestWhole && peer.ackedOp > than.ackedOp) best = node;
  }
  return best;
}

export function onTransfer(s: State, event: Extract<Event, { type: 'transfer' }>): void {
  const refuse = (reason: string): void => {
    s.out.push({ type: 'transfer-result', ok: false, to: event.to, reason });
  };
  if (s.role !== 'primary') return refuse('not the primary');
  if (s.ownTail === null) return refuse('the view has not begun yet');
  if (s.transfer !== null) return refuse(`a transfer to replica ${s.transfer.to} is under way`);
  const to = event.to ?? bestTarget(s, true);
  if (to === null) return refuse('no follower with a whole guest has caught up');
  const reason = targetRefusal(s, to, true);
  if (reason !== null) return refuse(reason);
  begin(s, to, false);
}

/**
 * A primary without a guest hands over as soon as a follower has one. A witness never stays while any member that
 * can run the VM follows it. If nobody has a guest, the primary stays, and the engine boots the guests.
 */
export function considerHandOver(s: State): void {
  if (s.role !== 'primary' || s.ownTail === null || s.transfer !== null) return;
  const witness = s.isWitness(s.options.self);
  if (s.guestWhole && !witness) return;
  if (s.handOver.deadline !== null && !s.handOver.due(s.now)) return;
  const to = bestTarget(s, !witness);
  if (to !== null) begin(s, to, true);
}

function begin(s: State, to: NodeId, automatic: boolean): void {
  assert(s.transfer === null && !s.inputHeld, 'a transfer left something behind');
  s.transfer = {
    view: s.hard.view,
    to,
    automatic,
    phase: 'holding',
    lastOp: s.lastOp,
    deadline: s.now + s.options.electionTimeoutMaxMs,
    sendAt: s.now,
  };
  s.inputHeld = true;
  s.inputHeldAnswersDue++;
  s.out.push({ type: 'hold-input', view: s.hard.view });
}

export function onInputHeld(s: State, event: Extract<Event, { type: 'input-held' }>): void {
  if (s.role !== 'primary' || event.view !== s.hard.view) return;
  assert(s.inputHeldAnswersDue > 0, 'input-held without hold-input');
  s.inputHeldAnswersDue--;
  const transfer = s.transfer;
  // An answer to an abandoned attempt says nothing about this one.
  if (transfer === null || transfer.phase !== 'holding' || s.inputHeldAnswersDue > 0) return;
  transfer.phase = 'catching-up';
  transfer.lastOp = event.lastOp;
  surrenderIfCaughtUp(s);
}

/** Rule "acknowledged, not sent": the target's log must be this log. An entry appended meanwhile counts too. */
export function surrenderIfCaughtUp(s: State): void {
  const transfer = s.transfer;
  if (transfer === null || transfer.phase !== 'catching-up') return;
  assert(s.role === 'primary' && s.inputHeld, 'catching up without holding input');
  transfer.lastOp = Math.max(transfer.lastOp, s.lastOp);
  if (s.peer(transfer.to).ackedOp < transfer.lastOp) return;
  transfer.phase = 'surrendering';
  s.surrenderedAnswersDue++;
  s.out.push({ type: 'surrender', view: s.hard.view });
}

export function onSurrendered(s: State, event: Extract<Event, { type: 'surrendered' }>): void {
  if (s.role !== 'primary' || event.view !== s.hard.view) return;
  assert(s.surrenderedAnswersDue > 0, 'surrendered without surrender');
  s.surrenderedAnswersDue--;
  const transfer = s.transfer;
  if (transfer === null || transfer.phase !== 'surrendering' || s.surrenderedAnswersDue > 0) return;
  transfer.phase = 'handed';
  // Nobody serves now. The target has this long; then, before the other backups lose patience, this replica stands itself.
  transfer.deadline = Math.min(transfer.deadline, s.now + s.options.electionTimeoutMinMs / 2);
  s.leaseEndsAt = null;
  sayTimeoutNow(s);
}

function sayTimeoutNow(s: State): void {
  const transfer = s.transfer;
  assert(
    transfer !== null && transfer.phase === 'handed' && s.role === 'primary',
    'TimeoutNow with the lease still held',
  );
  transfer.sendAt = s.now + s.options.retryMs;
  send(s, transfer.to, {
    type: 'timeout-now',
    view: transfer.view,
    last: { view: transfer.view, op: transfer.lastOp },
  });
}

export function transferTick(s: State): void {
  const transfer = s.transfer;
  if (transfer === null) return;
  if (s.now >= transfer.deadline)
    abandonTransfer(
      s,
      transfer.phase === 'handed'
        ? 'the target has not taken over'
        : 'not finished within an election timeout',
    );
  else if (transfer.phase === 'handed' && s.role === 'primary' && s.now >= transfer.sendAt) sayTimeoutNow(s);
}

/** The target's connection, stream or guest is gone. */
export function targetLost(s: State, node: NodeId, reason: string): void {
  if (s.transfer !== null && s.transfer.to === node) abandonTransfer(s, reason);
}

/** Every exit without success that leaves this replica in charge. See the head of this file. */
export function abandonTransfer(s: State, reason: string): void {
  const transfer = s.transfer;
  assert(transfer !== null, 'no transfer to abandon');
  finishTransfer(s, false, reason);
  if (s.role !== 'primary') return;
  assert(s.hard.view === transfer.view && s.inputHeld, 'a transfer of another view');
  if (transfer.phase === 'handed') {
    requestPromise(s, transfer.view + 1, { kind: 'stand', handover: true }, `transfer abandoned: ${reason}`);
    return;
  }
  if (transfer.phase === 'surrendering') {
    s.leaseGraceFrom = s.now;
    s.out.push({ type: 'reclaim', view: transfer.view });
  }
  s.inputHeld = false;
  s.out.push({ type: 'release-input', view: transfer.view });
}

/** A primary of a later view is known: the transfer has ended one way or the other. */
export function settleTransfer(s: State): void {
  const transfer = s.transfer;
  if (transfer === null || s.hard.view <= transfer.view) return;
  assert(transfer.phase === 'handed' && s.primary !== null, 'a transfer outlived its view');
  const ok = s.primary === transfer.to;
  finishTransfer(
    s,
    ok,
    ok
      ? `replica ${transfer.to} leads view ${s.hard.view}`
      : `replica ${s.primary} leads view ${s.hard.view}`,
  );
}
