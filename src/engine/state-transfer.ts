/**
 * State transfer carried out: the two pure cores (src/transfer), joined to the data plane, the guest and mail.
 *
 * The cores decide; here each effect becomes one call, and what takes time comes back as an event with the
 * session's number. Calls to the guest run one after the other, in the order in which they were asked for, also
 * those of a session that has been given up meanwhile: a guest must not be resumed before the stop that is under way.
 */
import type { NodeId } from '../consensus/types.js';
import { assert } from '../lib/assert.js';
import { messageOf } from '../lib/errors.js';
import type { PlaneEvent } from '../ports/data-plane.js';
import type { GuestRunner } from '../ports/guest.js';
import { TransferSource } from '../transfer/source.js';
import type { SourceStatus } from '../transfer/source.js';
import { TransferTarget } from '../transfer/target.js';
import type { TargetStatus } from '../transfer/target.js';
import type {
  PeerFacts,
  SourceEffect,
  SourceEvent,
  TargetEffect,
  TargetEvent,
  TransferReason,
  TransferRecord,
} from '../transfer/types.js';
import { decodeTransfer, encodeTransfer } from '../wire/transfer-messages.js';
import type { SessionId, TransferMessage } from '../wire/transfer-messages.js';
import type { Op, View } from '../wire/viewstamp.js';
import { mailTags } from '../wire/engine-mail.js';
import { GuestQueue } from './guest-queue.js';
import type { Freeze } from './guest-queue.js';
import type { StateTransferOptions, StateTransferPorts } from './types.js';
import { Verification } from './verification.js';

export interface TransferFacts {
  readonly view: View;
  readonly primary: NodeId | null;
  /** This replica leads `view`, and its first entry is committed. */
  readonly leads: boolean;
  readonly peers: readonly PeerFacts[];
}

type TransferPlaneEvent = Extract<PlaneEvent, { type: `transfer-${string}` }>;

interface Waiter {
  readonly peer: NodeId;
  /** null: this replica is the source no more. */
  readonly resolve: (record: TransferRecord | null) => void;
}

export class StateTransfer {
  /** Sessions of which this replica was the source, newest last. */
  readonly records: TransferRecord[] = [];
  readonly verification: Verification;
  private readonly options: StateTransferOptions;
  private readonly ports: StateTransferPorts;
  private readonly source: TransferSource;
  private readonly target: TransferTarget;
  /** The vm-sync at which this guest and a peer's were equal last, and every change since is known. */
  private readonly bases = new Map<NodeId, Op>();
  private readonly told: GuestQueue;
  private bootOp: Op = 0;
  private waiters: Waiter[] = [];
  private stopped = false;

  constructor(options: StateTransferOptions, ports: StateTransferPorts) {
    this.options = options;
    this.ports = ports;
    const ramBytes = (): number => ports.guest?.ramBytes ?? 0;
    this.source = new TransferSource(options.core, {
      key: options.key,
      machine: () => options.machine,
      ramBytes,
      baseOf: (peer) => this.bases.get(peer) ?? 0,
    });
    this.target = new TransferTarget(options.core, {
      machine: () => (ports.guest === null ? null : options.machine),
      ramBytes,
    });
    this.told = new GuestQueue(ports, options.files.dirty, () => this.bases.clear());
    this.verification = new Verification(options, this.told, {
      ...ports,
      now: () => ports.now(),
      log: (...line) => ports.log(...line),
      send: (to, message) => this.send(to, message),
      transferring: () => this.source.status !== null,
    });
  }

  get sending(): SourceStatus | null {
    return this.source.status;
  }

  get receiving(): TargetStatus | null {
    return this.target.status;
  }

  /** A session runs, or the guest is still being told something of one. */
  get active(): boolean {
    const { source, target, verification } = this;
    return source.status !== null || target.status !== null || verification.active || this.told.busy;
  }

  get requested(): ReadonlyMap<NodeId, TransferReason> {
    return this.source.requested;
  }

  stop(): void {
    this.stopped = true;
    this.verification.stop();
  }

  /** Brings a member to a full copy, though it may seem to be one. */
  request(peer: NodeId, reason: TransferReason): Promise<TransferRecord | null> {
    return new Promise((resolve) => {
      this.waiters.push({ peer, resolve });
      if (this.waiters.length > this.options.recordsMax) this.waiters.shift()?.resolve(null);
      this.toSource({ type: 'request', now: this.ports.now(), peer, reason });
    });
  }

  tick(facts: TransferFacts): void {
    const now = this.ports.now();
    const { keeper } = this.ports;
    const { view, primary } = facts;
    const able = facts.leads && keeper.state === 'ready';
    // Nobody else knows of the request.
    if (!able) this.settle(() => true, null);
    const whole = keeper.state === 'ready';
    this.verification.tick({ view, primary: facts.leads ? null : primary, able, whole, peers: facts.peers });
    // One session at a time, of either kind.
    const free = this.verification.sending === null;
    this.toSource({ type: 'tick', now, view, able: able && free, peers: facts.peers });
    this.toTarget({ type: 'tick', now, view, primary: facts.leads ? null : primary, guest: keeper.fillable });
  }

  onMail(from: NodeId, bytes: Uint8Array): void {
    const message = decodeTransfer(bytes);
    const now = this.ports.now();
    if (message === null) return this.ports.log('warn', 'malformed mail', { from });
    // A transfer that begins ends what was compared: that guest goes on before this one stands still.
    this.verification.onMail(from, message);
    this.toSource({ type: 'mail', now, from, message });
    this.toTarget({ type: 'mail', now, from, message });
  }

  onPeerDown(peer: NodeId): void {
    const now = this.ports.now();
    this.verification.onPeerDown(peer);
    this.toSource({ type: 'peer-down', now, peer });
    this.toTarget({ type: 'peer-down', now, peer });
  }

  /** The guest was started anew, or ended: nothing known of its memory holds. */
  onGuestChanged(): void {
    this.bases.clear();
    this.told.tracking = false;
    this.ports.plane.transferForget(null);
  }

  /** Another guest was booted for all: one that lives here is of a life that is over. */
  endGuest(): void {
    const { keeper } = this.ports;
    // The data plane may have taken the vm-boot for one that boots here, and would wait for that guest.
    if (keeper.state === 'none' || keeper.state === 'lost') this.ports.plane.setGuest('none', 0);
    if (keeper.state !== 'ready' && keeper.state !== 'booting') return;
    keeper.leave('none');
    this.told.enqueue((guest) => guest.stop());
  }

  /** The log begins anew, behind entries that the guest here has not taken: a session that fills it is of no use either. */
  endStaleGuest(why: string): void {
    this.onGuestLost(why);
    this.endGuest();
  }

  /** A session fills the guest here with a state that is newer than vm-boot `op`. */
  brings(op: Op): boolean {
    const status = this.target.status;
    if (status === null) return false;
    return status.phase !== 'loading' || (this.loading !== null && op < this.loading.op);
  }

  onGuestLost(why: string): void {
    const session = this.target.status?.session;
    if (session !== undefined) this.toTarget({ type: 'failed', now: this.ports.now(), session, why });
  }

  onPlaneEvent(event: TransferPlaneEvent): void {
    const now = this.ports.now();
    const { session } = event;
    this.verification.onPlaneEvent(event);
    switch (event.type) {
      case 'transfer-opened':
        this.toSource({ type: 'opened', now, session, inbox: event.inbox });
        return this.toTarget({ type: 'opened', now, session, inbox: event.inbox, ram: event.ram });
      case 'transfer-round':
        return this.toSource({ type: 'round-done', now, session, figures: event.figures });
      case 'transfer-settled':
        if (this.settling?.session === session) this.settling.resolve();
        return;
      case 'transfer-held':
        return this.toSource({ type: 'held', now, session, op: event.op });
      case 'transfer-sent':
        if (this.leaving?.session === session) this.leaving = null;
        return this.toSource({ type: 'sent', now, session, bytes: event.bytes });
      case 'transfer-progress':
        return this.toTarget({ type: 'progress', now, session });
      case 'transfer-arrived':
        this.bootOp = event.bootOp;
        return this.toTarget({ type: 'arrived', now, session, op: event.op });
      case 'transfer-installed':
        return this.onInstalled(session);
      case 'transfer-taken':
      case 'transfer-verified':
        return;
      case 'transfer-failed':
        this.toSource({ type: 'failed', now, session, why: event.why });
        return this.toTarget({ type: 'failed', now, session, why: event.why });
    }
  }

  // ---- the source

  private toSource(event: SourceEvent): void {
    if (this.stopped) return;
    const out: SourceEffect[] = [];
    this.source.step(event, out);
    for (const effect of out) this.carryOutSource(effect);
  }

  private carryOutSource(effect: SourceEffect): void {
    const { plane } = this.ports;
    switch (effect.type) {
      case 'send':
        return this.send(effect.to, effect.message);
      case 'open':
        return this.open(effect.session, effect.peer, 'source', effect.key, false, new Uint8Array());
      case 'attach':
        // What becomes of the target is not known until it says that it is whole.
        this.forget(effect.session);
        return plane.transferAttach(effect.session, effect.inbox, effect.ram);
      case 'collect':
        return this.guestDo(effect.session, 'source', async (guest) => {
          const asked = this.freeze?.session === effect.session ? this.freeze.collected : null;
          const pages = await (asked ?? this.told.collect(guest, effect.session));
          return { type: 'collected', pages };
        });
      case 'round':
        return plane.transferRound(effect.session, effect.round, effect.pages, effect.final);
      case 'propose':
        return plane.transferSync(effect.session);
      case 'pause':
        return this.guestDo(effect.session, 'source', async (guest) => {
          this.freeze = this.told.freeze(guest, effect.session, this.options.files.state);
          await this.freeze.paused;
          return { type: 'paused' };
        });
      case 'save':
        return this.guestDo(effect.session, 'source', async () => {
          // Asked for when the guest was made to stand still.
          assert(this.freeze?.session === effect.session, 'a state is saved of a guest that stands still');
          await this.freeze.saved;
          return { type: 'saved' };
        });
      case 'send-state':
        this.bases.set(effect.peer, effect.op);
        this.leaving = { session: effect.session, peer: effect.peer };
        return plane.transferSend(effect.session, this.options.files.state);
      case 'resume':
        this.dropWhatIsLeaving(effect.session);
        return this.guestDo(effect.session, 'source', async (guest) => {
          await this.dropped;
          const resumed = this.told.resume(guest);
          // Frames need not wait for the guest's answer: they are there when it goes on.
          plane.transferRelease(effect.session);
          await resumed;
          return { type: 'resumed' };
        });
      case 'close':
        return plane.transferClose(effect.session);
      case 'record':
        return this.note(effect.record);
    }
  }

  /** Of the session that made the guest stand still last. */
  private freeze: Freeze | null = null;
  /** Of the session whose state was sent last, until all of it has left. */
  private leaving: { readonly session: SessionId; readonly peer: NodeId } | null = null;

  /**
   * The guest goes on though its last pages and its state have not left: a fabric that reads a page later would make the
   * target a copy of no moment, and the target takes over what has arrived whole without asking.
   */
  private dropWhatIsLeaving(session: SessionId): void {
    const { leaving } = this;
    if (leaving?.session !== session) return;
    this.leaving = null;
    this.ports.cutOff(leaving.peer);
    // The guest's monitor is quick; the data plane may have been kept from running.
    this.dropped = new Promise((resolve) => (this.settling = { session, resolve }));
    this.ports.plane.transferSettle(session);
  }

  private dropped: Promise<void> = Promise.resolve();
  private settling: { readonly session: SessionId; readonly resolve: () => void } | null = null;

  private forget(session: SessionId): void {
    const peer = this.source.status?.peer;
    if (this.source.status?.session === session && peer !== undefined) this.bases.delete(peer);
  }

  private settle(whom: (waiter: Waiter) => boolean, record: TransferRecord | null): void {
    const settled = this.waiters.filter(whom);
    this.waiters = this.waiters.filter((waiter) => !settled.includes(waiter));
    for (const { resolve } of settled) resolve(record);
  }

  private note(record: TransferRecord): void {
    this.records.push(record);
    if (this.records.length > this.options.recordsMax) this.records.shift();
    this.settle((waiter) => waiter.peer === record.peer, record);
    const { peer, reason, rounds, pages, equal, sent, op } = record;
    const ms = (value: number): number => Math.round(value * 10) / 10;
    const fields = {
      peer,
      reason,
      rounds,
      pages,
      equal,
      sent,
      op,
      ms: ms(record.durationMs),
      pause: ms(record.pauseMs),
    };
    if (record.ok) {
      this.ports.whole(peer);
      return this.ports.log('info', 'the peer is a whole copy', fields);
    }
    this.bases.delete(peer);
    this.ports.plane.transferForget(peer);
    this.ports.log('warn', `SYNC_ABANDONED: ${record.why}`, fields);
  }

  // ---- the target

  private toTarget(event: TargetEvent): void {
    if (this.stopped) return;
    const out: TargetEffect[] = [];
    this.target.step(event, out);
    for (const effect of out) this.carryOutTarget(effect);
  }

  private carryOutTarget(effect: TargetEffect): void {
    const { plane, keeper } = this.ports;
    switch (effect.type) {
      case 'send':
        return this.send(effect.to, effect.message);
      case 'prepare':
        return this.prepare(effect);
      case 'open':
        return this.open(effect.session, effect.peer, 'target', effect.key, effect.based, effect.grant);
      case 'load':
        return this.load(effect);
      case 'close':
        return plane.transferClose(effect.session);
      case 'discard':
        keeper.leave('none');
        return this.told.enqueue((guest) => guest.stop());
      case 'trace':
        return this.ports.log('info', effect.text);
    }
  }

  /** The guest that runs stands still, or a fresh one is made. */
  private prepare({ session, peer, keep, baseOp }: Extract<TargetEffect, { type: 'prepare' }>): void {
    const { keeper, plane } = this.ports;
    const based = keep && baseOp !== 0 && this.told.tracking && this.bases.get(peer) === baseOp;
    keeper.beginFilling();
    this.kept = keep;
    this.guestDo(session, 'target', async (guest) => {
      if (keep) {
        await guest.pause();
        if (based) await this.told.collect(guest, session);
      } else {
        this.onGuestChanged();
        await guest.prepare({
          onEmpty: () => plane.expectGuest(),
          onReady: () => undefined,
          onExit: (reason) => {
            this.onGuestLost(reason);
            keeper.onExit(reason);
          },
        });
      }
      return { type: 'prepared', based };
    });
  }

  /** The guest had run before the session: its rings hold frames of another life. */
  private kept = false;

  private load({ session, peer, op }: Extract<TargetEffect, { type: 'load' }>): void {
    const { plane } = this.ports;
    this.loading = { peer, op };
    this.guestDo(session, 'target', async (guest) => {
      if (this.kept) {
        plane.transferRings(session);
        await guest.restartRings();
      }
      await guest.loadState(this.options.files.state);
      // From here on changes count against the common point.
      await this.told.collect(guest, 0);
      this.bases.clear();
      plane.transferInstall(session);
      return null;
    });
  }

  private loading: { readonly peer: NodeId; readonly op: Op } | null = null;

  /** Flows and rings are those of the source. */
  private onInstalled(session: SessionId): void {
    // A guest that was begun for another session meanwhile is not this one.
    if (this.target.status?.session !== session) return;
    this.guestDo(session, 'target', async (guest) => {
      const { loading } = this;
      await guest.resume();
      if (loading !== null && this.target.status?.session === session) {
        this.bases.set(loading.peer, loading.op);
        this.ports.keeper.becomeWhole(loading.op, this.bootOp);
      }
      return { type: 'loaded' };
    });
  }

  // ---- both

  private open(
    session: SessionId,
    peer: NodeId,
    role: 'source' | 'target',
    key: Uint8Array,
    based: boolean,
    grant: Uint8Array,
  ): void {
    const { guest, plane } = this.ports;
    const { inbox, state } = this.options.files;
    const [ram, ramBytes] = [guest?.ramPath ?? '', guest?.ramBytes ?? 0];
    const what = { ram, ramBytes, inbox, state, based, verify: false };
    plane.transferOpen({ session, peer, role, key, grant, ...what });
  }

  private send(to: NodeId, message: TransferMessage): void {
    const body = encodeTransfer(message);
    const bytes = new Uint8Array(1 + body.length);
    bytes[0] = mailTags.transfer;
    bytes.set(body, 1);
    this.ports.plane.sendMail(to, bytes);
  }

  /** Does something with the guest, and tells the session of it (unless null) or of its failure. */
  private guestDo<Side extends 'source' | 'target'>(
    session: SessionId,
    side: Side,
    work: (guest: GuestRunner) => Promise<Answer<Side extends 'source' ? SourceEvent : TargetEvent> | null>,
  ): void {
    const tell = (answer: object): void => {
      const event = { ...answer, now: this.ports.now(), session };
      if (side === 'source') this.toSource(event as SourceEvent);
      else this.toTarget(event as TargetEvent);
    };
    this.told.enqueue(async (guest) => {
      try {
        const answer = await work(guest);
        if (answer !== null) tell(answer);
      } catch (error) {
        tell({ type: 'failed', why: messageOf(error) });
      }
    });
  }
}

/** What is told of a deed, but for the time and the session. */
type Answer<Event> = Event extends { readonly session: SessionId } ? Omit<Event, 'now' | 'session'> : never;
