/**
 * The target of a state transfer: a replica whose guest is missing, or is to be made equal to the primary's.
 *
 *   idle -> preparing (the guest stands still, or a fresh one waits) -> opening -> filling -> loading -> idle
 *
 * From `preparing` on the guest here is no copy of anything until the state is loaded. A session that is given up
 * before that discards it: memory that a late source may still write to belongs to nobody.
 */
import type { Milliseconds, NodeId } from '../consensus/types.js';
import type { View } from '../wire/viewstamp.js';
import type { SessionId, TransferMessage } from '../wire/transfer-messages.js';
import { memoryDeadline } from './defaults.js';
import type { TargetEffect, TargetEvent, TransferOptions } from './types.js';

type Phase = 'preparing' | 'opening' | 'filling' | 'loading';

interface Session {
  readonly id: SessionId;
  readonly peer: NodeId;
  readonly key: Uint8Array;
  readonly grant: Uint8Array;
  phase: Phase;
  based: boolean;
  deadline: Milliseconds;
  accept: Extract<TransferMessage, { type: 'accept' }> | null;
}

export interface TargetSetting {
  /** What a session must fit; null: no guest can run here. */
  readonly machine: () => string | null;
  readonly ramBytes: () => number;
}

export interface TargetStatus {
  readonly session: SessionId;
  readonly peer: NodeId;
  readonly phase: Phase;
}

export class TransferTarget {
  private readonly options: TransferOptions;
  private readonly setting: TargetSetting;
  private session: Session | null = null;
  /** Sessions that are over here; an offer of one of them that comes late is not taken up again. */
  private newest: SessionId = 0;
  private view: View = 0;
  private primary: NodeId | null = null;
  private guest: 'none' | 'busy' | 'live' = 'none';
  private out: TargetEffect[] = [];

  constructor(options: TransferOptions, setting: TargetSetting) {
    this.options = options;
    this.setting = setting;
  }

  get status(): TargetStatus | null {
    const s = this.session;
    return s === null ? null : { session: s.id, peer: s.peer, phase: s.phase };
  }

  step(event: TargetEvent, out: TargetEffect[]): void {
    this.out = out;
    if (event.type === 'tick') return this.tick(event);
    if (event.type === 'mail') return this.mail(event.now, event.from, event.message);
    const s = this.session;
    if (s === null) return;
    if (event.type === 'peer-down') {
      // What has arrived whole needs its source no more.
      if (event.peer === s.peer && s.phase !== 'loading') this.lose(s, 'the connection to the source broke');
      return;
    }
    if (event.session === s.id) this.progress(s, event);
  }

  private tick(event: Extract<TargetEvent, { type: 'tick' }>): void {
    const { now, view, primary, guest } = event;
    this.view = view;
    this.primary = primary;
    this.guest = guest;
    const s = this.session;
    if (s === null || s.phase === 'loading') return;
    if (primary !== s.peer) return this.lose(s, 'the source leads no more');
    if (now >= s.deadline) this.lose(s, `nothing happened while ${s.phase}`);
  }

  private mail(now: Milliseconds, from: NodeId, message: TransferMessage): void {
    const s = this.session;
    if (s !== null && message.session === s.id && from === s.peer) {
      if (message.type === 'offer' && s.accept !== null)
        this.out.push({ type: 'send', to: from, message: s.accept });
      if (message.type === 'abandon' && s.phase !== 'loading')
        this.lose(s, `the source gave it up: ${message.reason}`);
      return;
    }
    if (message.type === 'offer') this.onOffer(now, from, message);
  }

  private onOffer(now: Milliseconds, from: NodeId, offer: Extract<TransferMessage, { type: 'offer' }>): void {
    // Of an earlier view, or of a view that this replica has not begun to follow: the offer is repeated.
    if (from !== this.primary || offer.view !== this.view || offer.session <= this.newest) return;
    // What has arrived whole is taken over first: the offer is repeated.
    if (this.session?.phase === 'loading') return;
    const { session } = offer;
    const refuse = (reason: string): void => {
      this.out.push({ type: 'send', to: from, message: { type: 'refuse', session, reason } });
    };
    const machine = this.setting.machine();
    if (machine === null) return refuse('no guest runs here');
    if (machine !== offer.machine) return refuse('the machines differ');
    if (this.setting.ramBytes() !== offer.ramBytes) return refuse('the sizes of memory differ');
    if (this.session !== null) this.lose(this.session, 'another session begins');
    // A guest that is being started or stopped is waited for: the offer is repeated.
    if (this.guest === 'busy') return;
    this.newest = session;
    this.session = {
      id: session,
      peer: from,
      key: offer.key,
      grant: offer.inbox,
      phase: 'preparing',
      based: false,
      deadline: now + this.options.offerWaitMs,
      accept: null,
    };
    const keep = this.guest === 'live';
    this.out.push({ type: 'prepare', session, peer: from, keep, baseOp: offer.baseOp });
  }

  private progress(s: Session, event: Exclude<TargetEvent, { type: 'tick' | 'mail' | 'peer-down' }>): void {
    switch (event.type) {
      case 'prepared':
        if (s.phase !== 'preparing') return;
        s.phase = 'opening';
        s.based = event.based;
        this.advance(s, event.now);
        this.out.push({
          type: 'open',
          session: s.id,
          peer: s.peer,
          key: s.key,
          based: s.based,
          grant: s.grant,
        });
        return;
      case 'opened':
        if (s.phase !== 'opening') return;
        s.phase = 'filling';
        s.accept = { type: 'accept', session: s.id, based: s.based, inbox: event.inbox, ram: event.ram };
        this.advance(s, event.now);
        this.out.push({ type: 'send', to: s.peer, message: s.accept });
        return;
      case 'progress':
        return this.advance(s, event.now);
      case 'arrived':
        if (s.phase !== 'filling') return;
        s.phase = 'loading';
        this.out.push({ type: 'load', session: s.id, peer: s.peer, op: event.op });
        return;
      case 'loaded':
        if (s.phase !== 'loading') return;
        this.session = null;
        this.out.push({ type: 'close', session: s.id });
        return;
      case 'failed':
        return this.lose(s, event.why);
    }
  }

  private advance(s: Session, now: Milliseconds): void {
    s.deadline = memoryDeadline(this.options, now, this.setting.ramBytes());
  }

  private lose(s: Session, reason: string): void {
    this.session = null;
    this.out.push(
      { type: 'close', session: s.id },
      { type: 'discard', session: s.id },
      { type: 'send', to: s.peer, message: { type: 'abandon', session: s.id, reason } },
      { type: 'trace', text: reason },
    );
  }
}
