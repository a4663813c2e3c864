/**
 * The target of a verification: a backup whose guest is whole, and stays so whatever becomes of the session.
 *
 *   idle -> opening -> looking (the guest runs) -> waiting (for the vm-sync) -> pausing -> taking -> resuming -> sending -> idle
 */
import type { Milliseconds, NodeId } from '../consensus/types.js';
import type { View } from '../wire/viewstamp.js';
import type { SessionId, TransferMessage } from '../wire/transfer-messages.js';
import { memoryDeadline } from './defaults.js';
import type { TargetSetting } from './target.js';
import type { TransferOptions } from './types.js';
import type { VerifyStatus } from './verify-source.js';
import type { VerifyTargetEffect, VerifyTargetEvent } from './verify-types.js';

type Phase = 'opening' | 'looking' | 'waiting' | 'pausing' | 'taking' | 'resuming' | 'sending';

interface Session {
  readonly id: SessionId;
  readonly peer: NodeId;
  readonly view: View;
  phase: Phase;
  deadline: Milliseconds;
  /** The guest stands still, or is about to. */
  still: boolean;
  accept: Extract<TransferMessage, { type: 'accept' }> | null;
}

type Offer = Extract<TransferMessage, { type: 'verify' }>;

const nothing = new Uint8Array();

export class VerifyTarget {
  private readonly options: TransferOptions;
  private readonly setting: TargetSetting;
  private session: Session | null = null;
  /** Sessions that are over here; a late offer of one of them is not taken up again. */
  private newest: SessionId = 0;
  private view: View = 0;
  private primary: NodeId | null = null;
  private whole = false;
  private out: VerifyTargetEffect[] = [];

  constructor(options: TransferOptions, setting: TargetSetting) {
    this.options = options;
    this.setting = setting;
  }

  get status(): VerifyStatus | null {
    const s = this.session;
    return s === null ? null : { session: s.id, peer: s.peer, phase: s.phase };
  }

  step(event: VerifyTargetEvent, out: VerifyTargetEffect[]): void {
    this.out = out;
    if (event.type === 'tick') return this.tick(event);
    if (event.type === 'mail') return this.mail(event.now, event.from, event.message);
    const s = this.session;
    if (s === null) return;
    if (event.type === 'peer-down') {
      if (event.peer === s.peer) this.lose(s, 'the connection to the source broke');
      return;
    }
    if (event.session === s.id) this.progress(s, event);
  }

  private tick({ now, view, primary, whole }: Extract<VerifyTargetEvent, { type: 'tick' }>): void {
    this.view = view;
    this.primary = primary;
    this.whole = whole;
    const s = this.session;
    if (s === null) return;
    if (primary !== s.peer || view !== s.view) return this.lose(s, 'the source leads no more');
    if (!whole) return this.lose(s, 'the guest here is whole no more');
    if (now >= s.deadline) this.lose(s, `nothing happened while ${s.phase}`);
  }

  private mail(now: Milliseconds, from: NodeId, message: TransferMessage): void {
    const s = this.session;
    if (s !== null && message.session === s.id && from === s.peer) {
      if (message.type === 'verify' && s.accept !== null)
        this.out.push({ type: 'send', to: from, message: s.accept });
      if (message.type === 'abandon') this.lose(s, `the source gave it up: ${message.reason}`);
      return;
    }
    const current = from === this.primary && 'view' in message && message.view === this.view;
    // What the primary begins now says that it has given up what was before.
    if (message.type === 'offer' && current && s !== null) this.lose(s, 'a state transfer begins');
    if (message.type === 'verify' && current && message.session > this.newest) this.onOffer(now, message);
  }

  private onOffer(now: Milliseconds, offer: Offer): void {
    const { session, key } = offer;
    const peer = this.primary;
    if (peer === null) return;
    const why = this.whyNot(offer);
    if (why !== null) {
      this.out.push({ type: 'send', to: peer, message: { type: 'refuse', session, reason: why } });
      return;
    }
    if (this.session !== null) this.lose(this.session, 'another session begins');
    this.newest = session;
    const deadline = this.lookDeadline(now);
    const { view } = this;
    this.session = { id: session, peer, view, phase: 'opening', deadline, still: false, accept: null };
    this.out.push({ type: 'open', role: 'target', session, peer, key, grant: offer.inbox });
  }

  private whyNot(offer: Offer): string | null {
    if (!this.whole) return 'the guest here is no whole copy';
    if (this.setting.machine() !== offer.machine) return 'the machines differ';
    return this.setting.ramBytes() === offer.ramBytes ? null : 'the sizes of memory differ';
  }

  private progress(
    s: Session,
    event: Exclude<VerifyTargetEvent, { type: 'tick' | 'mail' | 'peer-down' }>,
  ): void {
    const { now } = event;
    const session = s.id;
    switch (event.type) {
      case 'opened':
        if (s.phase !== 'opening') return;
        s.phase = 'looking';
        s.deadline = this.lookDeadline(now);
        this.out.push({ type: 'collect', session });
        return;
      case 'collected':
        if (s.phase === 'looking') this.out.push({ type: 'look', session });
        if (s.phase === 'pausing') this.out.push({ type: 'save', session });
        return;
      case 'held':
        if (s.phase !== 'waiting') return;
        s.phase = 'pausing';
        s.still = true;
        s.deadline = now + this.options.pauseMaxMs;
        this.out.push({ type: 'pause', session });
        return;
      case 'paused':
        if (s.phase === 'pausing') this.out.push({ type: 'collect', session });
        return;
      case 'saved':
        if (s.phase !== 'pausing') return;
        s.phase = 'taking';
        this.out.push({ type: 'take', session });
        return;
      case 'taken':
        if (s.phase === 'looking') return this.accept(s, now);
        if (s.phase !== 'taking') return;
        s.phase = 'resuming';
        this.out.push({ type: 'resume', session });
        return;
      case 'resumed':
        if (s.phase !== 'resuming') return;
        s.phase = 'sending';
        s.still = false;
        s.deadline = now + this.options.progressWaitMs;
        return;
      case 'sent':
        if (s.phase !== 'sending') return;
        this.session = null;
        this.out.push({ type: 'close', session });
        return;
      case 'failed':
        return this.lose(s, event.why);
    }
  }

  private accept(s: Session, now: Milliseconds): void {
    s.phase = 'waiting';
    // The source may look for longer than this side did.
    s.deadline = this.lookDeadline(now);
    s.accept = { type: 'accept', session: s.id, based: false, inbox: nothing, ram: nothing };
    this.out.push({ type: 'send', to: s.peer, message: s.accept });
  }

  private lookDeadline(now: Milliseconds): Milliseconds {
    return memoryDeadline(this.options, now, this.setting.ramBytes());
  }

  private lose(s: Session, reason: string): void {
    this.session = null;
    if (s.still) this.out.push({ type: 'resume', session: s.id });
    this.out.push(
      { type: 'close', session: s.id },
      { type: 'send', to: s.peer, message: { type: 'abandon', session: s.id, reason } },
      { type: 'trace', text: `VERIFY_ABANDONED: ${reason}` },
    );
  }
}
