/**
 * The source of a state transfer: the primary, which brings one member at a time to a full copy of its guest.
 *
 *   idle -> opening -> offering -> copying (rounds, the guest runs) -> settling (few pages are left)
 *        -> syncing (vm-sync is in the log) -> pausing -> final (both guests stand still) -> sending -> resuming -> confirming -> idle
 *
 * A session can be given up in every state. What was paused is resumed first; the target finds out by mail, by
 * the end of the connection or the view, or because nothing comes any more.
 */
import { assert } from '../lib/assert.js';
import type { Milliseconds, NodeId } from '../consensus/types.js';
import type { RoundFigures, RoundPages } from '../ports/data-plane.js';
import type { Op, View } from '../wire/viewstamp.js';
import { firstVerification, sessionId } from '../wire/transfer-messages.js';
import type { SessionId, TransferMessage } from '../wire/transfer-messages.js';
import { memoryDeadline } from './defaults.js';
import type {
  PauseParts,
  PeerFacts,
  SourceEffect,
  SourceEvent,
  TransferOptions,
  TransferReason,
} from './types.js';

type Phase =
  | 'opening'
  | 'offering'
  | 'copying'
  | 'settling'
  | 'syncing'
  | 'pausing'
  | 'final'
  | 'sending'
  | 'resuming'
  | 'confirming';

interface Session {
  readonly id: SessionId;
  readonly peer: NodeId;
  readonly reason: TransferReason;
  readonly key: Uint8Array;
  readonly startedAt: Milliseconds;
  phase: Phase;
  /** When it is given up if nothing happens. */
  deadline: Milliseconds;
  offer: Extract<TransferMessage, { type: 'offer' }> | null;
  sendAt: Milliseconds;
  /** When the vm-sync is proposed. */
  proposeAt: Milliseconds;
  based: boolean;
  accepted: boolean;
  rounds: number;
  /** Pages of the round that runs, and changed since it was begun. */
  roundPages: number;
  pendingPages: number;
  op: Op;
  pausedAt: Milliseconds | null;
  pauseMs: Milliseconds;
  parts: PauseParts;
  /** When the step of the pause that runs was begun. */
  stepAt: Milliseconds;
  finalDone: boolean;
  saved: boolean;
  figures: RoundFigures;
  finalFigures: RoundFigures;
  stateBytes: number;
}

const nothing: RoundFigures = {
  ...{ pages: 0, equal: 0, sent: 0, partial: 0, found: 0, bytes: 0, overheadBytes: 0 },
  ...{ digestNs: 0, waitNs: 0, refineNs: 0, moveNs: 0 },
};
const noPause: PauseParts = { stopMs: 0, collectMs: 0, roundMs: 0, saveMs: 0, sendMs: 0, resumeMs: 0 };

export interface SourceSetting {
  /** Fresh for each session. */
  readonly key: () => Uint8Array;
  readonly machine: () => string;
  readonly ramBytes: () => number;
  /** The vm-sync at which this guest and the peer's were equal last; 0: none. */
  readonly baseOf: (peer: NodeId) => Op;
}

/** What an operator sees of the session that runs. */
export interface SourceStatus {
  readonly session: SessionId;
  readonly peer: NodeId;
  readonly phase: Phase;
  readonly reason: TransferReason;
  readonly rounds: number;
  readonly pages: number;
  readonly sent: number;
  readonly pendingPages: number;
}

export class TransferSource {
  private readonly options: TransferOptions;
  private readonly setting: SourceSetting;
  private session: Session | null = null;
  private view: View = 0;
  private count = 0;
  private able = false;
  private peers: readonly PeerFacts[] = [];
  private readonly requests = new Map<NodeId, TransferReason>();
  /** A guest that parts again as soon as it has been healed is not healed all the time: since when it may be. */
  private readonly restUntil = new Map<NodeId, Milliseconds>();
  private readonly backOff = new Map<NodeId, { until: Milliseconds; ms: Milliseconds }>();
  private out: SourceEffect[] = [];

  constructor(options: TransferOptions, setting: SourceSetting) {
    this.options = options;
    this.setting = setting;
  }

  get status(): SourceStatus | null {
    const s = this.session;
    if (s === null) return null;
    const { id: session, peer, phase, reason, rounds, pendingPages } = s;
    return {
      session,
      peer,
      phase,
      reason,
      rounds,
      pages: s.figures.pages,
      sent: s.figures.sent,
      pendingPages,
    };
  }

  /** Members that a request waits for. */
  get requested(): ReadonlyMap<NodeId, TransferReason> {
    return this.requests;
  }

  step(event: SourceEvent, out: SourceEffect[]): void {
    this.out = out;
    if (event.type === 'tick') return this.tick(event);
    if (event.type === 'request') return this.request(event.peer, event.reason);
    const s = this.session;
    if (s === null) return;
    if (event.type === 'peer-down') {
      if (event.peer === s.peer) this.lose(s, event.now, 'its connection broke');
      return;
    }
    if (event.type === 'mail') {
      if (event.from === s.peer && event.message.session === s.id) this.mail(s, event.now, event.message);
      return;
    }
    if (event.session !== s.id) return;
    this.progress(s, event);
  }

  private request(peer: NodeId, reason: TransferReason): void {
    this.requests.set(peer, reason);
    // Somebody wants it now.
    if (reason === 'asked') this.backOff.delete(peer);
  }

  private tick(event: Extract<SourceEvent, { type: 'tick' }>): void {
    const { now, view, able, peers } = event;
    this.peers = peers;
    if (view !== this.view) {
      this.view = view;
      this.count = 0;
      this.requests.clear();
      this.backOff.clear();
      this.restUntil.clear();
    }
    this.able = able;
    const s = this.session;
    if (s !== null) return this.watch(s, now);
    if (able) this.begin(now);
  }

  private wanted(peer: PeerFacts, now: Milliseconds): boolean {
    if (!peer.whole) return true;
    const reason = this.requests.get(peer.node);
    return reason !== undefined && (reason === 'asked' || (this.restUntil.get(peer.node) ?? 0) <= now);
  }

  private begin(now: Milliseconds): void {
    const next = this.peers.find(
      (peer) =>
        peer.reachable &&
        !peer.booting &&
        this.wanted(peer, now) &&
        (this.backOff.get(peer.node)?.until ?? 0) <= now,
    );
    if (next === undefined || this.count + 1 >= firstVerification) return;
    this.count++;
    this.session = {
      id: sessionId(this.view, this.count),
      peer: next.node,
      reason: this.requests.get(next.node) ?? 'fill',
      key: this.setting.key(),
      startedAt: now,
      phase: 'opening',
      deadline: memoryDeadline(this.options, now, this.setting.ramBytes()),
      offer: null,
      sendAt: now,
      proposeAt: 0,
      based: false,
      accepted: false,
      rounds: 0,
      roundPages: 0,
      pendingPages: 0,
      op: 0,
      pausedAt: null,
      pauseMs: 0,
      parts: noPause,
      stepAt: 0,
      finalDone: false,
      saved: false,
      figures: nothing,
      finalFigures: nothing,
      stateBytes: 0,
    };
    const { id: session, peer, key } = this.session;
    this.out.push({ type: 'open', session, peer, key });
  }

  private watch(s: Session, now: Milliseconds): void {
    const peer = this.peers.find((facts) => facts.node === s.peer);
    if (!this.able && s.phase !== 'confirming')
      return this.lose(s, now, 'this replica is the source no more');
    if (peer === undefined || !peer.reachable) return this.lose(s, now, 'the target is out of reach');
    if (s.phase === 'confirming' && peer.whole && peer.syncOp === s.op) return this.finish(s, now, null);
    if (now >= s.deadline) return this.lose(s, now, `nothing happened while ${s.phase}`);
    if (s.phase === 'offering' && s.offer !== null && now >= s.sendAt) {
      s.sendAt = now + this.options.offerRetryMs;
      this.out.push({ type: 'send', to: s.peer, message: s.offer });
    }
    this.propose(s, now);
  }

  private propose(s: Session, now: Milliseconds): void {
    if (s.phase !== 'settling' || now < s.proposeAt) return;
    s.phase = 'syncing';
    this.out.push({ type: 'propose', session: s.id, peer: s.peer });
  }

  private mail(s: Session, now: Milliseconds, message: TransferMessage): void {
    if (message.type === 'refuse' || message.type === 'abandon')
      return this.lose(s, now, `the target gave it up: ${message.reason}`);
    if (message.type !== 'accept' || s.phase !== 'offering') return;
    s.phase = 'copying';
    s.based = message.based;
    s.accepted = true;
    this.advance(s, now);
    this.out.push({ type: 'attach', session: s.id, inbox: message.inbox, ram: message.ram });
    // From here on every change counts: without a base the first round looks at all pages there are.
    this.out.push({ type: 'collect', session: s.id });
  }

  private progress(
    s: Session,
    event: Exclude<SourceEvent, { type: 'tick' | 'request' | 'mail' | 'peer-down' }>,
  ): void {
    const { now } = event;
    switch (event.type) {
      case 'opened':
        return this.onOpened(s, now, event.inbox);
      case 'collected':
        return this.onCollected(s, now, event.pages);
      case 'round-done':
        return this.onRoundDone(s, now, event.figures);
      case 'held':
        if (s.phase !== 'syncing') return;
        s.phase = 'pausing';
        s.op = event.op;
        s.pausedAt = now;
        s.stepAt = now;
        s.deadline = now + this.options.pauseMaxMs;
        this.out.push({ type: 'pause', session: s.id });
        return;
      case 'paused':
        if (s.phase !== 'pausing') return;
        s.phase = 'final';
        this.spent(s, 'stopMs', now);
        this.out.push({ type: 'collect', session: s.id });
        return;
      case 'saved':
        s.saved = true;
        s.parts = { ...s.parts, saveMs: now - s.stepAt };
        return this.sendState(s, now);
      case 'sent':
        if (s.phase !== 'sending') return;
        s.phase = 'resuming';
        this.spent(s, 'sendMs', now);
        s.stateBytes = event.bytes;
        this.out.push({ type: 'resume', session: s.id });
        return;
      case 'resumed':
        if (s.phase !== 'resuming') return;
        s.phase = 'confirming';
        this.spent(s, 'resumeMs', now);
        s.pauseMs = now - (s.pausedAt ?? now);
        s.pausedAt = null;
        s.deadline = now + this.options.confirmWaitMs;
        return;
      case 'failed':
        return this.lose(s, now, event.why);
    }
  }

  private onOpened(s: Session, now: Milliseconds, inbox: Uint8Array): void {
    if (s.phase !== 'opening') return;
    s.phase = 'offering';
    s.deadline = now + this.options.offerWaitMs;
    s.sendAt = now + this.options.offerRetryMs;
    s.offer = {
      type: 'offer',
      session: s.id,
      view: this.view,
      machine: this.setting.machine(),
      ramBytes: this.setting.ramBytes(),
      // The dirty logs know what guests wrote. What made a guest part may have been something else, a failing
      // memory module say, so all of its memory is looked at.
      baseOp: s.reason === 'diverged' ? 0 : this.setting.baseOf(s.peer),
      key: s.key,
      inbox,
    };
    this.out.push({ type: 'send', to: s.peer, message: s.offer });
  }

  private onCollected(s: Session, now: Milliseconds, pages: number): void {
    s.pendingPages += pages;
    if (s.phase === 'final') {
      this.spent(s, 'collectMs', now);
      this.round(s, 'pending', true);
      this.out.push({ type: 'save', session: s.id, op: s.op });
      return;
    }
    if (s.phase !== 'copying') return;
    this.advance(s, now);
    if (s.rounds === 0) return this.round(s, s.based ? 'since-base' : 'resident', false);
    const { settledPages, roundsMax } = this.options;
    // A round that leaves almost as much as it took will not be the last of its kind.
    const settled =
      s.pendingPages <= settledPages || s.rounds >= roundsMax || s.pendingPages * 10 > s.roundPages * 8;
    if (!settled) return this.round(s, 'pending', false);
    s.phase = 'settling';
    // To say which pages it has changed, the guest has just been held up. It answers what it was asked meanwhile first, so
    // that nobody waits for both. One that changes more than can be followed would only change more.
    s.proposeAt = now + (s.pendingPages <= settledPages ? this.options.settleMs : 0);
    this.propose(s, now);
  }

  private round(s: Session, pages: RoundPages, final: boolean): void {
    s.rounds++;
    s.roundPages = s.pendingPages;
    s.pendingPages = 0;
    this.out.push({ type: 'round', session: s.id, round: s.rounds, pages, final });
  }

  private onRoundDone(s: Session, now: Milliseconds, figures: RoundFigures): void {
    s.figures = sum(s.figures, figures);
    if (s.phase === 'final') {
      s.finalDone = true;
      s.finalFigures = figures;
      s.parts = { ...s.parts, roundMs: now - s.stepAt };
      return this.sendState(s, now);
    }
    if (s.phase !== 'copying') return;
    s.roundPages = figures.pages;
    this.advance(s, now);
    this.out.push({ type: 'collect', session: s.id });
  }

  private sendState(s: Session, now: Milliseconds): void {
    if (s.phase !== 'final' || !s.saved || !s.finalDone) return;
    s.phase = 'sending';
    s.stepAt = now;
    this.out.push({ type: 'send-state', session: s.id, peer: s.peer, op: s.op });
  }

  private spent(s: Session, step: keyof PauseParts, now: Milliseconds): void {
    s.parts = { ...s.parts, [step]: now - s.stepAt };
    s.stepAt = now;
  }

  private advance(s: Session, now: Milliseconds): void {
    s.deadline = memoryDeadline(this.options, now, this.setting.ramBytes());
  }

  private lose(s: Session, now: Milliseconds, why: string): void {
    assert(why !== '', 'a session is given up for a reason');
    // `close` lets delivery go on; the guest itself stands still only from `pausing` on.
    if (s.pausedAt !== null) this.out.push({ type: 'resume', session: s.id });
    this.out.push({ type: 'close', session: s.id });
    const reason = why;
    if (s.offer !== null)
      this.out.push({ type: 'send', to: s.peer, message: { type: 'abandon', session: s.id, reason } });
    const before = this.backOff.get(s.peer)?.ms ?? 0;
    const { backOffMinMs, backOffMaxMs } = this.options;
    const ms = Math.min(Math.max(2 * before, backOffMinMs), backOffMaxMs);
    this.backOff.set(s.peer, { until: now + ms, ms });
    this.end(s, now, why);
  }

  private finish(s: Session, now: Milliseconds, why: null): void {
    this.out.push({ type: 'close', session: s.id });
    this.requests.delete(s.peer);
    this.backOff.delete(s.peer);
    this.restUntil.set(s.peer, now + this.options.healEveryMs);
    this.end(s, now, why);
  }

  private end(s: Session, now: Milliseconds, why: string | null): void {
    this.session = null;
    const pauseMs = s.pausedAt === null ? s.pauseMs : now - s.pausedAt;
    this.out.push({
      type: 'record',
      record: {
        ...s.figures,
        session: s.id,
        peer: s.peer,
        reason: s.reason,
        ok: why === null,
        why: why ?? '',
        based: s.based,
        op: s.op,
        rounds: s.rounds,
        finalPages: s.finalFigures.pages,
        finalSent: s.finalFigures.sent,
        stateBytes: s.stateBytes,
        startedAt: s.startedAt,
        durationMs: now - s.startedAt,
        pauseMs,
        pauseParts: s.parts,
      },
    });
  }
}

function sum(a: RoundFigures, b: RoundFigures): RoundFigures {
  return {
    pages: a.pages + b.pages,
    equal: a.equal + b.equal,
    sent: a.sent + b.sent,
    partial: a.partial + b.partial,
    found: a.found + b.found,
    bytes: a.bytes + b.bytes,
    overheadBytes: a.overheadBytes + b.overheadBytes,
    digestNs: a.digestNs + b.digestNs,
    waitNs: a.waitNs + b.waitNs,
    refineNs: a.refineNs + b.refineNs,
    moveNs: a.moveNs + b.moveNs,
  };
}
