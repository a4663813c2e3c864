/**
 * The engine of one replica: it joins the consensus core to the data plane, the guest and the disk.
 *
 * Events of the data plane and of the bootstrap become events of the core; the core's effects are carried out
 * here in their order, each finished before the next one starts. What the core does not decide, the guest's
 * boot, the admission of input and the opening of the gate, is decided here with the pure rules of
 * boot-policy. The engine has no clock, no timer and no file of its own: all comes through ports, so that the
 * simulator runs the very same code.
 */
import { Core } from '../consensus/core.js';
import type { CoreOptions, Effect, Event, HardState, Message, NodeId, Role } from '../consensus/types.js';
import { assert } from '../lib/assert.js';
import { messageOf } from '../lib/errors.js';
import type { Clock } from '../ports/clock.js';
import { entryKinds } from '../ports/data-plane.js';
import type { DataPlane, PlaneEvent, PlaneProgress } from '../ports/data-plane.js';
import type { GuestRunner } from '../ports/guest.js';
import type { HardStateStore } from '../ports/hard-state-store.js';
import { decodeGuestReport, encodeGuestReport, mailTags } from '../wire/engine-mail.js';
import type { GuestReport } from '../wire/engine-mail.js';
import type { LedgerOptions } from '../output/types.js';
import type { LogTail } from '../wire/view-table.js';
import { decodeMessage, encodeMessage } from '../wire/messages.js';
import { decideBoot } from './boot-policy.js';
import type { BootPolicyOptions } from './boot-policy.js';
import { OutputChecks } from './outputs.js';
import { TakeoverClock } from './takeover-clock.js';
import type { Takeover } from './takeover-clock.js';

export interface EngineOptions {
  readonly core: CoreOptions;
  readonly hardState: HardState;
  /** The log as the scan at start found it. The data plane starts with hardState.view promised. */
  readonly tail: LogTail;
  readonly boot: BootPolicyOptions;
  /** This member runs a guest. */
  readonly canRunGuest: boolean;
  readonly reportIntervalMs: number;
  readonly outputs: Omit<LedgerOptions, 'self'>;
}

export interface EnginePorts {
  readonly plane: DataPlane;
  readonly store: HardStateStore;
  readonly guest: GuestRunner | null;
  readonly clock: Clock;
  /** Asks the bootstrap to make the connection to a peer anew. */
  reconnect(peer: NodeId, why: string): void;
  /** The replica must stop: `why` begins with a code. */
  fail(why: string): void;
  log(level: 'debug' | 'info' | 'warn' | 'error', text: string, fields?: Record<string, unknown>): void;
  /** This primary's outputs show that a member's guest is not a copy any more. */
  heal?(member: NodeId, reason: string): void;
}

export type GuestState = 'none' | 'booting' | 'ready' | 'lost';

export interface TransferOutcome {
  readonly ok: boolean;
  readonly to: NodeId | null;
  readonly reason: string;
  /** Refused: nothing was begun. Abandoned: it was begun, and this replica serves on or stands again. */
  readonly code: 'TRANSFER_REFUSED' | 'TRANSFER_ABANDONED' | null;
}

interface TransferWaiter {
  readonly resolve: (outcome: TransferOutcome) => void;
  begun: boolean;
}

const noGuest: GuestReport = { bootOp: 0, ready: false, admittedBootOp: 0 };

export class ReplicaEngine {
  readonly core: Core;
  readonly takeovers = new TakeoverClock();
  readonly outputs: OutputChecks;
  guestState: GuestState = 'none';
  boots = 0;
  /** Frames from the network are proposed when this replica leads. */
  admitted = false;
  role: Role = 'backup';
  primary: NodeId | null = null;

  private readonly options: EngineOptions;
  private readonly ports: EnginePorts;
  private readonly reports = new Map<NodeId, GuestReport>();
  private readonly connected = new Set<NodeId>();
  /** Connections made to each peer, counted as the data plane counts them. */
  private readonly generations = new Map<NodeId, number>();
  private own: GuestReport = noGuest;
  private lastBootOp = 0;
  private leadingView = 0;
  private leadingSince = 0;
  private viewStartOp = 0;
  /** The newest view-start that has come through the log. */
  private viewStartTold = 0;
  private guestAttached = false;
  private bootProposed = false;
  private quorumReadyAt: number | null = null;
  private nextReportAt = 0;
  private heardAt = -1;
  private transferWaiter: TransferWaiter | null = null;
  private stopped = false;

  constructor(options: EngineOptions, ports: EnginePorts) {
    this.options = options;
    this.ports = ports;
    this.core = new Core(options.core, options.hardState, ports.clock.now(), options.tail);
    this.outputs = new OutputChecks(
      { ...options.outputs, self: options.core.self },
      {
        plane: ports.plane,
        clock: ports.clock,
        log: (level, text, fields) => ports.log(level, text, fields),
        fail: (why) => this.fail(why),
        heal: (member, reason) => ports.heal?.(member, reason),
        transferTo: (member) => void this.transfer(member),
      },
    );
  }

  get connectedPeers(): ReadonlySet<NodeId> {
    return this.connected;
  }

  reportOf(peer: NodeId): GuestReport {
    return this.reports.get(peer) ?? noGuest;
  }

  get lastTakeover(): Takeover | null {
    return this.takeovers.last;
  }

  stop(): void {
    this.stopped = true;
    this.settleTransfer({ ok: false, to: null, reason: 'the replica stops' });
  }

  // ---- what comes in

  onPeerUp(peer: NodeId, connection: Uint8Array, descriptor: Uint8Array): void {
    this.generations.set(peer, (this.generations.get(peer) ?? 0) + 1);
    this.ports.plane.connect(peer, connection, descriptor);
    this.connected.add(peer);
    this.step({ type: 'peer-up', now: this.ports.clock.now(), node: peer });
    this.nextReportAt = 0;
  }

  onPeerDown(peer: NodeId): void {
    this.connected.delete(peer);
    // Whatever was to be healed went with it; if it comes back as it was, that will show again.
    this.outputs.healed(peer);
    this.reports.delete(peer);
    const now = this.ports.clock.now();
    this.takeovers.suspect(peer === this.primary, now);
    this.step({ type: 'peer-down', now, node: peer });
    this.step({ type: 'peer-guest', now, node: peer, whole: false });
  }

  onPlaneEvents(events: readonly PlaneEvent[]): void {
    for (const event of events) {
      if (this.stopped) return;
      this.onPlaneEvent(event);
    }
    this.decide();
  }

  /** Every few milliseconds. */
  tick(): void {
    if (this.stopped) return;
    const now = this.ports.clock.now();
    this.ports.plane.tick();
    const progress = this.ports.plane.progress();
    this.observe(progress, now);
    this.step({ type: 'tick', now });
    this.decide();
    if (now >= this.nextReportAt) this.report(now);
    this.outputs.tick(this.guestMembers());
  }

  /** Asks for a leadership transfer and waits for its outcome. */
  transfer(to: NodeId | null): Promise<TransferOutcome> {
    if (this.transferWaiter !== null) {
      const reason = 'a transfer is under way';
      return Promise.resolve({ ok: false, to, reason, code: 'TRANSFER_REFUSED' });
    }
    return new Promise((resolve) => {
      const waiter = { resolve, begun: false };
      this.transferWaiter = waiter;
      this.step({ type: 'transfer', now: this.ports.clock.now(), to });
      waiter.begun = true;
    });
  }

  private observe(progress: PlaneProgress, now: number): void {
    const { heard } = progress;
    if (heard !== null && heard.at !== this.heardAt) {
      this.heardAt = heard.at;
      this.takeovers.heard(heard.at);
      this.step({ type: 'heard', now, view: heard.view, from: heard.from, at: heard.at });
    }
    const acked = new Map<NodeId, number>();
    progress.acked.forEach((op, node) => {
      if (op !== null) acked.set(node, op);
    });
    const { lastOp, durableOp, commitOp, leaseEndsAt } = progress;
    this.step({ type: 'progress', now, lastOp, durableOp, commitOp, acked, leaseEndsAt });
  }

  private onPlaneEvent(event: PlaneEvent): void {
    const now = this.ports.clock.now();
    switch (event.type) {
      case 'promised':
        return this.step({ ...event, now });
      case 'following':
        return this.step({ ...event, now });
      case 'leading':
        this.leadingView = event.view;
        this.leadingSince = now;
        this.viewStartOp = event.startOp;
        this.bootProposed = false;
        this.quorumReadyAt = null;
        this.takeovers.leading(now);
        return this.step({ ...event, now });
      case 'mail':
        // What an earlier incarnation of the peer said must not be taken for this one's word.
        if (event.generation !== this.generations.get(event.from)) return;
        return this.onMail(event.from, event.bytes, now);
      case 'control':
        if (event.kind === entryKinds.outputCheck)
          return this.outputs.onCheck(event.view, event.op, event.payload);
        return this.onControl(event.kind, event.op);
      case 'check-due':
        return this.outputs.onDue(event.bytes);
      case 'verdicts':
        return this.outputs.onVerdicts(event.bytes);
      case 'caught-up':
        this.takeovers.caughtUp(event.at);
        return this.ports.plane.openGate(event.view);
      case 'gate-opened':
        this.takeovers.gateOpened(event.view, event.at);
        return this.ports.log('info', 'the gate is open', { view: event.view });
      case 'input-held':
        return this.step({ ...event, now });
      case 'surrendered':
        return this.step({ ...event, now });
      case 'stream-broken':
        if (event.generation !== this.generations.get(event.peer)) return;
        this.ports.log('warn', 'connection dropped', { peer: event.peer, why: event.why });
        this.onPeerDown(event.peer);
        return this.ports.reconnect(event.peer, event.why);
      case 'feed-lost':
        return this.ports.log('error', 'WAL_RELEASED: the peer needs entries that are not kept any more', {
          peer: event.peer,
        });
      case 'failed':
        return this.fail(event.why);
      case 'guest-attached':
        this.guestAttached = true;
        return this.ports.log('debug', 'the guest has attached');
      case 'guest-refused':
        return this.ports.log('warn', 'VM_LINK: a guest was refused');
      case 'guest-detached':
        // One that was stopped for a new boot leaves too.
        if (this.guestAttached && (this.guestState === 'booting' || this.guestState === 'ready'))
          this.fail('QEMU_LOST the guest is gone');
        return;
    }
  }

  private onMail(from: NodeId, bytes: Uint8Array, now: number): void {
    if (bytes[0] === mailTags.consensus) {
      const message = decodeMessage(bytes.subarray(1));
      if (message.type === 'malformed') {
        this.ports.log('warn', 'malformed mail', { from });
        return;
      }
      return this.step({ type: 'mail', now, from, message });
    }
    if (bytes[0] === mailTags.output) return this.outputs.onMail(from, bytes);
    const report = decodeGuestReport(bytes);
    if (report === null) {
      this.ports.log('warn', 'malformed mail', { from });
      return;
    }
    const before = this.reports.get(from);
    this.reports.set(from, report);
    if (before?.ready !== report.ready)
      this.step({ type: 'peer-guest', now, node: from, whole: report.ready });
    if (this.own.ready && report.admittedBootOp === this.own.bootOp) this.admit();
  }

  // ---- the guest

  private onControl(kind: number, op: number): void {
    if (kind === entryKinds.viewStart) this.viewStartTold = op;
    if (kind !== entryKinds.vmBoot) return;
    this.lastBootOp = op;
    const { guest, plane } = this.ports;
    if (guest === null || !this.options.canRunGuest) return;
    this.own = { bootOp: op, ready: false, admittedBootOp: 0 };
    this.admitted = false;
    this.guestState = 'booting';
    this.boots++;
    this.nextReportAt = 0;
    plane.admitInput(false);
    this.guestAttached = false;
    this.ports.log('info', 'the guest boots', { bootOp: op });
    const started = guest.start({
      // Only when the guest of an earlier boot has left the rings are they made empty.
      onEmpty: () => plane.expectGuest(),
      onReady: () => this.onGuestReady(op),
      onExit: (reason) => this.onGuestExit(op, reason),
    });
    started.catch((error: unknown) => this.fail(`QEMU_FAILED ${messageOf(error)}`));
  }

  private onGuestReady(bootOp: number): void {
    if (this.stopped || this.own.bootOp !== bootOp || this.guestState !== 'booting') return;
    this.guestState = 'ready';
    this.own = { ...this.own, ready: true };
    this.ports.log('info', 'the guest is ready', { bootOp });
    this.ports.plane.setGuest('running', bootOp);
    this.step({ type: 'guest', now: this.ports.clock.now(), whole: true });
    if ([...this.reports.values()].some((report) => report.admittedBootOp === bootOp)) this.admit();
    this.nextReportAt = 0;
    this.decide();
  }

  private onGuestExit(bootOp: number, reason: string): void {
    if (this.stopped || this.own.bootOp !== bootOp) return;
    this.guestState = 'lost';
    this.fail(reason);
  }

  private admit(): void {
    if (this.admitted) return;
    this.admitted = true;
    this.own = { ...this.own, admittedBootOp: this.own.bootOp };
    this.ports.plane.admitInput(true);
    this.ports.log('info', 'input is admitted', { bootOp: this.own.bootOp });
    this.nextReportAt = 0;
  }

  /** What only a primary decides. */
  private decide(): void {
    if (this.stopped || this.role !== 'primary' || this.leadingView !== this.core.status.view) return;
    const progress = this.ports.plane.progress();
    if (progress.role !== 'leading') return;
    const now = this.ports.clock.now();
    const { members, witnesses } = this.options.core;
    const decision = decideBoot(
      {
        now,
        leadingSince: this.leadingSince,
        // By what has come through the log in its order: a vm-boot of an earlier view has then been seen too.
        viewCommitted: this.viewStartTold >= this.viewStartOp,
        members: members.length,
        guestMembers: members.length - witnesses.length,
        selfCanRun: this.options.canRunGuest,
        own: this.own,
        peers: [...this.reports.values()],
        lastBootOp: this.lastBootOp,
        bootProposed: this.bootProposed,
        quorumReadyAt: this.quorumReadyAt,
      },
      this.options.boot,
    );
    if (decision.quorumReady) this.quorumReadyAt ??= now;
    if (decision.boot) {
      this.bootProposed = true;
      this.ports.log('info', 'guests are booted', { reason: decision.reason });
      this.ports.plane.propose(entryKinds.vmBoot, new Uint8Array(8));
    }
    if (decision.admit) this.admit();
  }

  private guestMembers(): NodeId[] {
    const peers = [...this.reports].filter(([peer, report]) => report.ready && this.connected.has(peer));
    const own = this.own.ready ? [this.options.core.self] : [];
    return [...own, ...peers.map(([peer]) => peer)];
  }

  private report(now: number): void {
    this.nextReportAt = now + this.options.reportIntervalMs;
    const bytes = encodeGuestReport(this.own);
    for (const peer of this.connected) this.ports.plane.sendMail(peer, bytes);
  }

  // ---- the core and its effects

  private step(event: Event): void {
    if (this.stopped) return;
    const effects: Effect[] = [];
    try {
      this.core.step(event, effects);
    } catch (error) {
      // Whoever called must not go on with a core that is broken.
      return this.fail(`INVARIANT_BROKEN ${messageOf(error)}`);
    }
    for (const effect of effects) {
      if (this.stopped) return;
      this.carryOut(effect);
    }
  }

  /** The one place where effects become deeds. Each returns only when what must come before the next is done. */
  private carryOut(effect: Effect): void {
    const { plane } = this.ports;
    switch (effect.type) {
      case 'promise':
        return plane.promise(effect.view);
      case 'persist':
        return this.persist(effect.state);
      case 'send':
        return this.send(effect.to, effect.message);
      case 'lead':
        return plane.lead(effect.view);
      case 'feed':
        return plane.feed(effect.peer, effect.view, effect.agreeOp);
      case 'follow':
        return plane.follow(effect.view, effect.primary, effect.agreeOp);
      case 'resign':
        this.ports.log('warn', 'LEADERSHIP_LOST: steps down', { view: effect.view, reason: effect.reason });
        return plane.resign(effect.view);
      case 'hold-input':
        return plane.holdInput(effect.view);
      case 'release-input':
        return plane.releaseInput(effect.view);
      case 'surrender':
        return plane.surrender(effect.view);
      case 'reclaim':
        return plane.reclaim(effect.view);
      case 'transfer-result':
        return this.settleTransfer(effect);
      case 'role':
        return this.setRole(effect);
      case 'trace':
        return this.ports.log('debug', effect.text);
    }
  }

  private persist(state: HardState): void {
    try {
      this.ports.store.write(state);
    } catch (error) {
      this.fail(`HARD_STATE_FAILED ${String(error)}`);
    }
  }

  private send(to: NodeId, message: Message): void {
    const body = encodeMessage(message);
    assert(body.length > 0, 'a message has bytes');
    const bytes = new Uint8Array(1 + body.length);
    bytes[0] = mailTags.consensus;
    bytes.set(body, 1);
    this.ports.plane.sendMail(to, bytes);
  }

  private setRole(effect: Extract<Effect, { type: 'role' }>): void {
    const { role, view, primary, reason } = effect;
    if (role === 'candidate' && this.role !== 'candidate') this.takeovers.candidate(this.ports.clock.now());
    if (role !== this.role || primary !== this.primary)
      this.ports.log('info', `role ${role}`, { view, primary, reason });
    this.role = role;
    this.primary = primary;
    this.outputs.setPrimary(view, role === 'primary' ? this.options.core.self : primary);
  }

  private settleTransfer({ ok, to, reason }: Omit<TransferOutcome, 'code'>): void {
    const waiter = this.transferWaiter;
    if (waiter === null) return;
    this.transferWaiter = null;
    const failure = waiter.begun ? 'TRANSFER_ABANDONED' : 'TRANSFER_REFUSED';
    waiter.resolve({ ok, to, reason, code: ok ? null : failure });
  }

  private fail(why: string): void {
    if (this.stopped) return;
    this.stop();
    this.ports.fail(why);
  }
}
