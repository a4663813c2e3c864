/**
 * The source of a verification: the primary, which compares its guest with one backup's on request.
 *
 *   idle -> opening -> offering (both look at their guests) -> syncing (vm-sync is in the log)
 *        -> pausing -> taking -> resuming -> comparing (both guests run again) -> idle
 *
 * Memory is digested while the guests run, and what they change meanwhile again while they stand still.
 * The two sides stand still each for itself, behind the same entry, and neither waits for the other before its guest
 * goes on.
 */
import { assert } from '../lib/assert.js';
import type { Milliseconds, NodeId } from '../consensus/types.js';
import type { Op, View } from '../wire/viewstamp.js';
import { firstVerification, sessionId, sessionsPerView } from '../wire/transfer-messages.js';
import type { SessionId, TransferMessage } from '../wire/transfer-messages.js';
import { memoryDeadline } from './defaults.js';
import type { PeerFacts, TransferOptions } from './types.js';
import type { VerifyFindings, VerifySourceEffect, VerifySourceEvent } from './verify-types.js';

type Phase = 'opening' | 'offering' | 'syncing' | 'pausing' | 'taking' | 'resuming' | 'comparing';

interface Session {
  readonly id: SessionId;
  readonly peer: NodeId;
  readonly key: Uint8Array;
  readonly view: View;
  readonly startedAt: Milliseconds;
  phase: Phase;
  deadline: Milliseconds;
  offer: Extract<TransferMessage, { type: 'verify' }> | null;
  sendAt: Milliseconds;
  looked: boolean;
  accepted: boolean;
  op: Op;
  /** null: the guest runs. */
  pausedAt: Milliseconds | null;
  pauseMs: Milliseconds;
}

export interface VerifySourceSetting {
  /** Fresh for each session. */
  readonly key: () => Uint8Array;
  readonly machine: () => string;
  readonly ramBytes: () => number;
}

export interface VerifyStatus {
  readonly session: SessionId;
  readonly peer: NodeId;
  readonly phase: string;
}

export class VerifySource {
  private readonly options: TransferOptions;
  private readonly setting: VerifySourceSetting;
  private session: Session | null = null;
  private view: View = 0;
  private count = firstVerification;
  private able = false;
  private peers: readonly PeerFacts[] = [];
  private out: VerifySourceEffect[] = [];

  constructor(options: TransferOptions, setting: VerifySourceSetting) {
    this.options = options;
    this.setting = setting;
  }

  get status(): VerifyStatus | null {
    const s = this.session;
    return s === null ? null : { session: s.id, peer: s.peer, phase: s.phase };
  }

  step(event: VerifySourceEvent, out: VerifySourceEffect[]): void {
    this.out = out;
    if (event.type === 'tick') return this.tick(event);
    if (event.type === 'request') return this.request(event.now, event.peer, event.transferring);
    const s = this.session;
    if (s === null) return;
    if (event.type === 'peer-down') {
      if (event.peer === s.peer) this.end(s, event.now, 'its connection broke', null);
      return;
    }
    if (event.type === 'mail') {
      if (event.from === s.peer && event.message.session === s.id) this.mail(s, event.now, event.message);
      return;
    }
    if (event.session === s.id) this.progress(s, event);
  }

  private request(now: Milliseconds, peer: NodeId, transferring: boolean): void {
    const why = this.whyNot(peer, transferring);
    if (why !== null) {
      this.out.push({ type: 'refuse', peer, why });
      return;
    }
    this.session = {
      id: sessionId(this.view, ++this.count),
      peer,
      key: this.setting.key(),
      view: this.view,
      startedAt: now,
      phase: 'opening',
      deadline: memoryDeadline(this.options, now, this.setting.ramBytes()),
      offer: null,
      sendAt: now,
      looked: false,
      accepted: false,
      op: 0,
      pausedAt: null,
      pauseMs: 0,
    };
    const { id: session, key } = this.session;
    this.out.push({ type: 'open', role: 'source', session, peer, key, grant: new Uint8Array() });
  }

  private whyNot(peer: NodeId, transferring: boolean): string | null {
    if (!this.able) return "the primary's guest does not run now";
    if (this.session !== null) return 'another verification runs';
    if (transferring) return 'a state transfer runs';
    const facts = this.peers.find(({ node }) => node === peer);
    if (facts === undefined || !facts.reachable) return 'the replica is out of reach';
    if (!facts.whole) return 'its guest is no whole copy';
    return this.count + 1 < sessionsPerView ? null : 'there were too many in this view';
  }

  private tick({ now, view, able, peers }: Extract<VerifySourceEvent, { type: 'tick' }>): void {
    this.peers = peers;
    this.able = able;
    if (view !== this.view) this.count = firstVerification;
    this.view = view;
    const s = this.session;
    if (s === null) return;
    const peer = peers.find(({ node }) => node === s.peer);
    if (!able || view !== s.view) return this.end(s, now, 'this replica is the source no more', null);
    if (peer === undefined || !peer.reachable) return this.end(s, now, 'the target is out of reach', null);
    if (!peer.whole) return this.end(s, now, "the target's guest is whole no more", null);
    if (now >= s.deadline) return this.end(s, now, `nothing happened while ${s.phase}`, null);
    if (s.phase === 'offering' && s.offer !== null && now >= s.sendAt) {
      s.sendAt = now + this.options.offerRetryMs;
      this.out.push({ type: 'send', to: s.peer, message: s.offer });
    }
  }

  private mail(s: Session, now: Milliseconds, message: TransferMessage): void {
    if (message.type === 'refuse' || message.type === 'abandon')
      return this.end(s, now, `the target gave it up: ${message.reason}`, null);
    if (message.type !== 'accept') return;
    s.accepted = true;
    this.propose(s, now);
  }

  /** Both have looked. */
  private propose(s: Session, now: Milliseconds): void {
    if (s.phase !== 'offering' || !s.accepted || !s.looked) return;
    s.phase = 'syncing';
    s.deadline = now + this.options.progressWaitMs;
    this.out.push({ type: 'propose', session: s.id });
  }

  private progress(
    s: Session,
    event: Exclude<VerifySourceEvent, { type: 'tick' | 'request' | 'mail' | 'peer-down' }>,
  ): void {
    const { now } = event;
    const session = s.id;
    switch (event.type) {
      case 'opened':
        if (s.phase === 'opening') this.offer(s, now, event.inbox);
        return;
      case 'held':
        if (s.phase !== 'syncing') return;
        s.phase = 'pausing';
        s.op = event.op;
        s.pausedAt = now;
        s.deadline = now + this.options.pauseMaxMs;
        this.out.push({ type: 'pause', session });
        return;
      case 'paused':
        if (s.phase === 'pausing') this.out.push({ type: 'collect', session });
        return;
      case 'collected':
        if (s.phase === 'offering') this.out.push({ type: 'look', session });
        if (s.phase === 'pausing') this.out.push({ type: 'save', session });
        return;
      case 'saved':
        if (s.phase !== 'pausing') return;
        s.phase = 'taking';
        this.out.push({ type: 'take', session });
        return;
      case 'taken':
        if (s.phase === 'offering') {
          s.looked = true;
          return this.propose(s, now);
        }
        if (s.phase !== 'taking') return;
        s.phase = 'resuming';
        this.out.push({ type: 'resume', session });
        return;
      case 'resumed':
        if (s.phase !== 'resuming') return;
        s.phase = 'comparing';
        s.pauseMs = now - (s.pausedAt ?? now);
        s.pausedAt = null;
        s.deadline = now + this.options.progressWaitMs;
        return;
      case 'verified':
        if (s.phase === 'comparing') this.end(s, now, null, event.findings);
        return;
      case 'failed':
        return this.end(s, now, event.why, null);
    }
  }

  private offer(s: Session, now: Milliseconds, inbox: Uint8Array): void {
    s.phase = 'offering';
    s.sendAt = now + this.options.offerRetryMs;
    const [machine, ramBytes] = [this.setting.machine(), this.setting.ramBytes()];
    s.deadline = memoryDeadline(this.options, now, ramBytes);
    s.offer = { type: 'verify', session: s.id, view: s.view, machine, ramBytes, key: s.key, inbox };
    this.out.push({ type: 'send', to: s.peer, message: s.offer });
    this.out.push({ type: 'collect', session: s.id });
  }

  private end(s: Session, now: Milliseconds, why: string | null, findings: VerifyFindings | null): void {
    assert((why === null) === (findings !== null), 'a session has findings, or a reason for having none');
    this.session = null;
    if (s.pausedAt !== null) this.out.push({ type: 'resume', session: s.id });
    this.out.push({ type: 'close', session: s.id });
    if (why !== null && s.offer !== null)
      this.out.push({
        type: 'send',
        to: s.peer,
        message: { type: 'abandon', session: s.id, reason: why },
      });
    this.out.push({
      type: 'record',
      record: {
        session: s.id,
        peer: s.peer,
        reason: 'verify',
        ok: why === null,
        why: why ?? '',
        view: s.view,
        op: s.op,
        findings,
        startedAt: s.startedAt,
        durationMs: now - s.startedAt,
        pauseMs: s.pausedAt === null ? s.pauseMs : now - s.pausedAt,
      },
    });
  }
}
