/**
 * Verification carried out: the two pure cores (src/transfer/verify-source, verify-target), joined to the data plane,
 * the guest and mail. It uses what state transfer has, one session at a time of either kind: the queue of what the guest
 * is told, the files, the data plane's session.
 */
import type { Milliseconds, NodeId } from '../consensus/types.js';
import { messageOf } from '../lib/errors.js';
import type { PlaneEvent } from '../ports/data-plane.js';
import type { GuestRunner } from '../ports/guest.js';
import { compareDeviceStates } from '../transfer/device-state.js';
import type { PeerFacts } from '../transfer/types.js';
import { VerifySource } from '../transfer/verify-source.js';
import type { VerifyStatus } from '../transfer/verify-source.js';
import { VerifyTarget } from '../transfer/verify-target.js';
import type {
  VerifyEffect,
  VerifyFindings,
  VerifyRecord,
  VerifySourceEffect,
  VerifySourceEvent,
  VerifyTargetEffect,
  VerifyTargetEvent,
} from '../transfer/verify-types.js';
import type { SessionId, TransferMessage } from '../wire/transfer-messages.js';
import type { VerifyReport } from '../wire/verify-report.js';
import type { View } from '../wire/viewstamp.js';
import type { GuestQueue } from './guest-queue.js';
import type { StateTransferOptions, StateTransferPorts } from './types.js';

export interface VerificationPorts extends Pick<StateTransferPorts, 'plane' | 'guest' | 'now' | 'log'> {
  send(to: NodeId, message: TransferMessage): void;
  transferring(): boolean;
}

export interface VerificationFacts {
  readonly view: View;
  readonly primary: NodeId | null;
  /** This replica leads `view`, and its guest runs. */
  readonly able: boolean;
  /** The guest here is a whole copy, or the one that the others are copies of. */
  readonly whole: boolean;
  readonly peers: readonly PeerFacts[];
}

/** What became of a request: a record, a refusal, or null: this replica is the source no more. */
export type VerifyOutcome = VerifyRecord | { readonly refused: string } | null;

const nsPerMs = 1e6;

export class Verification {
  /** Sessions of which this replica was the source, newest last. */
  readonly records: VerifyRecord[] = [];
  private readonly options: StateTransferOptions;
  private readonly ports: VerificationPorts;
  private readonly told: GuestQueue;
  private readonly source: VerifySource;
  private readonly target: VerifyTarget;
  /** One session, one waiter. */
  private waiting: ((outcome: VerifyOutcome) => void) | null = null;
  private stopped = false;

  constructor(options: StateTransferOptions, told: GuestQueue, ports: VerificationPorts) {
    this.options = options;
    this.told = told;
    this.ports = ports;
    const { machine, key } = options;
    const ramBytes = (): number => ports.guest?.ramBytes ?? 0;
    this.source = new VerifySource(options.core, { key, machine: () => machine, ramBytes });
    this.target = new VerifyTarget(options.core, {
      machine: () => (ports.guest === null ? null : machine),
      ramBytes,
    });
  }

  get sending(): VerifyStatus | null {
    return this.source.status;
  }

  get receiving(): VerifyStatus | null {
    return this.target.status;
  }

  get active(): boolean {
    return this.source.status !== null || this.target.status !== null;
  }

  /** Compares this guest with the peer's; refused while a session of any kind runs. */
  request(peer: NodeId): Promise<VerifyOutcome> {
    return new Promise((resolve) => {
      if (this.stopped) return resolve(null);
      if (this.waiting !== null) return resolve({ refused: 'another verification runs' });
      this.waiting = resolve;
      const transferring = this.ports.transferring();
      this.toSource({ type: 'request', now: this.ports.now(), peer, transferring });
    });
  }

  tick({ view, primary, able, whole, peers }: VerificationFacts): void {
    const now = this.ports.now();
    this.toSource({ type: 'tick', now, view, able, peers });
    this.toTarget({ type: 'tick', now, view, primary, whole });
  }

  stop(): void {
    this.stopped = true;
    this.settle(null);
  }

  onMail(from: NodeId, message: TransferMessage): void {
    const now = this.ports.now();
    this.toSource({ type: 'mail', now, from, message });
    this.toTarget({ type: 'mail', now, from, message });
  }

  onPeerDown(peer: NodeId): void {
    const now = this.ports.now();
    this.toSource({ type: 'peer-down', now, peer });
    this.toTarget({ type: 'peer-down', now, peer });
  }

  onPlaneEvent(event: Extract<PlaneEvent, { type: `transfer-${string}` }>): void {
    const now = this.ports.now();
    const { session } = event;
    switch (event.type) {
      case 'transfer-opened':
        this.toSource({ type: 'opened', now, session, inbox: event.inbox });
        return this.toTarget({ type: 'opened', now, session });
      case 'transfer-held':
        return this.toBoth({ type: 'held', now, session, op: event.op });
      case 'transfer-taken':
        return this.toBoth({ type: 'taken', now, session });
      case 'transfer-sent':
        return this.toTarget({ type: 'sent', now, session });
      case 'transfer-verified':
        if (this.source.status?.session !== session) return;
        return this.toSource({ type: 'verified', now, session, findings: findingsOf(event.report) });
      case 'transfer-round':
      case 'transfer-progress':
      case 'transfer-arrived':
      case 'transfer-installed':
      case 'transfer-settled':
        return;
      case 'transfer-failed':
        return this.toBoth({ type: 'failed', now, session, why: event.why });
    }
  }

  private toBoth(event: VerifySourceEvent & VerifyTargetEvent): void {
    this.toSource(event);
    this.toTarget(event);
  }

  private toSource(event: VerifySourceEvent): void {
    if (this.stopped) return;
    const out: VerifySourceEffect[] = [];
    this.source.step(event, out);
    for (const effect of out) this.carryOutSource(effect);
  }

  private toTarget(event: VerifyTargetEvent): void {
    if (this.stopped) return;
    const out: VerifyTargetEffect[] = [];
    this.target.step(event, out);
    for (const effect of out) {
      if (effect.type === 'trace') this.ports.log('info', effect.text);
      else this.carryOut(effect);
    }
  }

  private carryOutSource(effect: VerifySourceEffect): void {
    switch (effect.type) {
      case 'propose':
        return this.ports.plane.transferSync(effect.session);
      case 'refuse':
        return this.settle({ refused: effect.why });
      case 'record':
        return this.note(effect.record);
      default:
        return this.carryOut(effect);
    }
  }

  private carryOut(effect: VerifyEffect): void {
    const { plane } = this.ports;
    const { inbox, state } = this.options.files;
    switch (effect.type) {
      case 'send':
        return this.ports.send(effect.to, effect.message);
      case 'open': {
        const { guest } = this.ports;
        const { session, peer, role, key, grant } = effect;
        const [ram, ramBytes] = [guest?.ramPath ?? '', guest?.ramBytes ?? 0];
        const what = { ram, ramBytes, inbox, state, based: false, verify: true };
        return plane.transferOpen({ session, peer, role, key, grant, ...what });
      }
      case 'collect':
        return this.guestDo(effect.session, 'collected', async (guest) => {
          await this.told.collect(guest, effect.session);
        });
      case 'look':
        return plane.transferLook(effect.session);
      case 'pause':
        return this.guestDo(effect.session, 'paused', (guest) => guest.pause());
      case 'save':
        return this.guestDo(effect.session, 'saved', async (guest) => {
          await guest.saveState(state);
        });
      case 'take':
        return plane.transferTake(effect.session, state);
      case 'resume':
        return this.guestDo(effect.session, 'resumed', async (guest) => {
          await this.told.resume(guest);
          // What the data plane tells of the rest of the session comes behind this, and must not come before the answer.
          plane.transferRelease(effect.session);
        });
      case 'close':
        return plane.transferClose(effect.session);
    }
  }

  private guestDo(
    session: SessionId,
    type: 'collected' | 'paused' | 'saved' | 'resumed',
    work: (guest: GuestRunner) => Promise<void>,
  ): void {
    this.told.enqueue(async (guest) => {
      try {
        await work(guest);
        this.toBoth({ type, now: this.ports.now(), session });
      } catch (error) {
        this.toBoth({ type: 'failed', now: this.ports.now(), session, why: messageOf(error) });
      }
    });
  }

  private settle(outcome: VerifyOutcome): void {
    const { waiting } = this;
    this.waiting = null;
    waiting?.(outcome);
  }

  private note(record: VerifyRecord): void {
    this.records.push(record);
    if (this.records.length > this.options.recordsMax) this.records.shift();
    const { peer, view, op, findings } = record;
    const [ms, pause] = [tenths(record.durationMs), tenths(record.pauseMs)];
    if (findings === null) this.ports.log('warn', `VERIFY_ABANDONED: ${record.why}`, { peer, op, ms, pause });
    else {
      const { pages, differing, flows, flowsDiffering, devices } = findings;
      const fields = { pages, differing, flows, flowsDiffering, devices: devices.differing.length };
      this.ports.log('info', 'the guests were compared', { peer, view, op, ...fields, ms, pause });
    }
    this.settle(record);
  }
}

function findingsOf({ devices, targetStoodNs, ...report }: VerifyReport): VerifyFindings {
  return {
    ...report,
    devices: compareDeviceStates(devices.source, devices.target),
    targetPauseMs: targetStoodNs / nsPerMs,
  };
}

function tenths(ms: Milliseconds): Milliseconds {
  return Math.round(ms * 10) / 10;
}
