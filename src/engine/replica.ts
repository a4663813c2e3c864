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
import type { Effect, Event, HardState, Message, NodeId, Role } from '../consensus/types.js';
import { assert } from '../lib/assert.js';
import { messageOf } from '../lib/errors.js';
import { entryKinds } from '../ports/data-plane.js';
import type { PlaneEvent, PlaneProgress } from '../ports/data-plane.js';
import { decodeGuestReport, encodeGuestReport, mailTags } from '../wire/engine-mail.js';
import { decodeMessage, encodeMessage } from '../wire/messages.js';
import { bootModes, decideBoot } from './boot-policy.js';
import { GuestKeeper } from './guest-keeper.js';
import { StateTransfer } from './state-transfer.js';
import type { TransferRecord } from '../transfer/types.js';
import { Handover } from './handover.js';
import type { TransferOutcome } from './handover.js';
import { OutputChecks } from './outputs.js';
import { Peers } from './peers.js';
import type { PeerTrouble } from './peers.js';
import { TakeoverClock } from './takeover-clock.js';
import type { Takeover } from './takeover-clock.js';
import type { EngineOptions, EnginePorts } from './types.js';

export class ReplicaEngine {
  readonly core: Core;
  readonly takeovers = new TakeoverClock();
  readonly guest: GuestKeeper;
  /** Filling other members' guests from this one, and this one from the primary's. */
  readonly stateTransfer: StateTransfer;
  readonly outputs: OutputChecks;
  role: Role = 'backup';
  primary: NodeId | null = null;

  private readonly options: EngineOptions;
  private readonly ports: EnginePorts;
  readonly peers = new Peers();
  private leadingView = 0;
  private leadingSince = 0;
  private viewStartOp = 0;
  /** The newest view-start that has come through the log. */
  private viewStartTold = 0;
  /** Of what any member has said: the newest vm-boot since which input is taken. That outlives whoever said it. */
  private admittedBootOp = 0;
  private bootProposed = false;
  private quorumReadyAt: number | null = null;
  private nextReportAt = 0;
  private heardAt = -1;
  private readonly handover = new Handover();
  private stopped = false;

  constructor(options: EngineOptions, ports: EnginePorts) {
    this.options = options;
    this.ports = ports;
    this.core = new Core(options.core, options.hardState, ports.clock.now(), options.tail);
    const { plane, guest } = ports;
    const log: EnginePorts['log'] = (...line) => ports.log(...line);
    this.guest = new GuestKeeper({
      plane,
      guest: options.canRunGuest ? guest : null,
      log,
      fail: (why) => this.fail(why),
      now: () => ports.clock.now(),
      changed: (whole) => this.onGuestChanged(whole),
    });
    const keeper = this.guest;
    const now = (): number => ports.clock.now();
    this.stateTransfer = new StateTransfer(options.transfer, {
      plane,
      guest: options.canRunGuest ? guest : null,
      keeper,
      now,
      log,
      cutOff: (peer) => this.renew(peer, 'SYNC_ABANDONED', 'the guest goes on before its pages have left'),
      whole: (peer) => this.outputs.healed(peer),
    });
    this.outputs = new OutputChecks(
      { ...options.outputs, self: options.core.self },
      {
        plane: ports.plane,
        clock: ports.clock,
        log: (level, text, fields) => ports.log(level, text, fields),
        fail: (why) => this.fail(why),
        heal: (member) => void this.stateTransfer.request(member, 'diverged'),
        transferTo: (member) => void this.transfer(member),
      },
    );
  }

  peerState(peer: NodeId): 'up' | 'down' | 'lost' {
    if (!this.peers.connected.has(peer)) return 'down';
    return this.core.status.apart.includes(peer) ? 'lost' : 'up';
  }

  get lastTakeover(): Takeover | null {
    return this.takeovers.last;
  }

  stop(): void {
    this.stopped = true;
    this.guest.stop();
    this.stateTransfer.stop();
    this.handover.settle({ ok: false, to: null, reason: 'the replica stops' });
  }

  // ---- what comes in

  onPeerUp(peer: NodeId, connection: Uint8Array, descriptor: Uint8Array): void {
    this.peers.up(peer, this.ports.clock.now());
    this.ports.plane.connect(peer, connection, descriptor);
    this.step({ type: 'peer-up', now: this.ports.clock.now(), node: peer });
    this.nextReportAt = 0;
  }

  onPeerDown(
    peer: NodeId,
    code: PeerTrouble['code'] = 'FABRIC_DOWN',
    detail = 'the bootstrap connection ended',
  ): void {
    const now = this.ports.clock.now();
    this.peers.down(peer, { code, detail, at: now });
    // Whatever was to be healed went with it; if it comes back as it was, that will show again.
    this.outputs.healed(peer);
    this.takeovers.suspect(peer === this.primary, now);
    this.step({ type: 'peer-down', now, node: peer });
    this.step({ type: 'peer-guest', now, node: peer, whole: false });
    this.stateTransfer.onPeerDown(peer);
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
    for (const peer of this.peers.silent(now, this.options.mailSilenceMs, progress)) {
      const why = `the peer lives, and for ${this.options.mailSilenceMs} ms mail or entries did not get through`;
      this.renew(peer, 'FABRIC_DOWN', why);
    }
    this.step({ type: 'tick', now });
    this.decide();
    this.tickTransfer(progress);
    if (now >= this.nextReportAt) this.report(now);
    this.outputs.tick([...(this.guest.own.ready ? [this.options.core.self] : []), ...this.peers.withGuest()]);
  }

  /** A connection over which what is wanted comes no more. */
  private renew(peer: NodeId, code: PeerTrouble['code'], why: string): void {
    this.ports.log('warn', `${code}: connection dropped`, { peer, why });
    this.ports.plane.disconnect(peer);
    this.onPeerDown(peer, code, why);
    this.ports.reconnect(peer, why);
  }

  /** Asks for a leadership transfer and waits for its outcome. */
  transfer(to: NodeId | null): Promise<TransferOutcome> {
    return this.handover.ask(to, () => this.step({ type: 'transfer', now: this.ports.clock.now(), to }));
  }

  /** Makes `peer` a copy of this guest, and waits for the session's end; null: leadership was lost before. */
  sync(peer: NodeId): Promise<TransferRecord | null> {
    return this.stateTransfer.request(peer, 'asked');
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
    const { lastOp, durableOp, commitOp, base, committed, leaseEndsAt } = progress;
    this.step({ type: 'progress', now, lastOp, durableOp, commitOp, base, committed, acked, leaseEndsAt });
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
        if (!this.peers.isCurrent(event.from, event.generation)) return;
        return this.onMail(event.from, event.bytes, now);
      case 'control':
        if (event.kind === entryKinds.outputCheck)
          return this.outputs.onCheck(event.view, event.op, event.payload);
        return this.onControl(event);
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
        if (!this.peers.isCurrent(event.peer, event.generation)) return;
        this.ports.log('warn', `${event.code}: connection dropped`, { peer: event.peer, why: event.why });
        this.onPeerDown(event.peer, event.code, event.why);
        return this.ports.reconnect(event.peer, event.why);
      case 'feed-lost':
        if (!this.peers.isCurrent(event.peer, event.generation)) return;
        this.ports.log('error', `${event.code}: the peer cannot be fed any more`, {
          peer: event.peer,
          why: event.why,
        });
        this.step({
          type: 'feed-lost',
          now,
          view: event.view,
          node: event.peer,
          released: event.code === 'WAL_RELEASED',
        });
        // On a new connection its log begins anew, further on.
        return this.renew(event.peer, event.code, event.why);
      case 'failed':
        return this.fail(event.why);
      case 'guest-attached':
        return this.guest.onAttached();
      case 'guest-refused':
        return this.ports.log('warn', 'VM_LINK: a guest was refused');
      case 'guest-detached':
        return this.guest.onDetached();
      default:
        return this.stateTransfer.onPlaneEvent(event);
    }
  }

  private onMail(from: NodeId, bytes: Uint8Array, now: number): void {
    this.peers.mail(from, now);
    if (bytes[0] === mailTags.consensus) {
      const message = decodeMessage(bytes.subarray(1));
      if (message.type === 'malformed') {
        this.ports.log('warn', 'malformed mail', { from });
        return;
      }
      return this.step({ type: 'mail', now, from, message });
    }
    if (bytes[0] === mailTags.transfer) return this.stateTransfer.onMail(from, bytes.subarray(1));
    if (bytes[0] === mailTags.output) return this.outputs.onMail(from, bytes);
    const report = decodeGuestReport(bytes);
    if (report === null) {
      this.ports.log('warn', 'malformed mail', { from });
      return;
    }
    const before = this.peers.reports.get(from);
    this.peers.reports.set(from, report);
    this.admittedBootOp = Math.max(this.admittedBootOp, report.admittedBootOp);
    if (before?.ready !== report.ready)
      this.step({ type: 'peer-guest', now, node: from, whole: report.ready });
    this.admitAsOthers();
  }

  // ---- the guest

  private onControl({ kind, op, view, payload }: Extract<PlaneEvent, { type: 'control' }>): void {
    if (kind === entryKinds.viewStart) this.viewStartTold = op;
    if (kind !== entryKinds.vmBoot) return;
    this.guest.lastBootOp = op;
    if (!this.options.canRunGuest) return;
    // With `clone` the primary's guest alone boots, and the others are made copies of it.
    if (payload[0] === bootModes.clone && !(this.role === 'primary' && this.leadingView === view))
      return this.stateTransfer.endGuest();
    // Of the past: what the transfer brings is newer. The data plane must not wait for a guest that is not booted.
    if (this.stateTransfer.brings(op)) return this.ports.plane.setGuest('none', 0);
    this.guest.boot(op);
  }

  private onGuestChanged(whole: boolean): void {
    if (this.stopped) return;
    // A guest that is being filled keeps what is known of its memory: that is what makes the filling short.
    if (!whole && this.guest.state !== 'filling') this.stateTransfer.onGuestChanged();
    this.step({ type: 'guest', now: this.ports.clock.now(), whole });
    this.nextReportAt = 0;
    this.admitAsOthers();
    this.decide();
  }

  /** Input that the cluster takes since this very boot is taken here too. */
  private admitAsOthers(): void {
    const { own } = this.guest;
    if (!own.ready) return;
    if (own.bootOp > 0 && own.bootOp === this.admittedBootOp) this.admit();
  }

  private admit(): void {
    if (this.guest.admitted) return;
    this.guest.admit();
    this.nextReportAt = 0;
  }

  private tickTransfer(progress: PlaneProgress): void {
    const { view } = this.core.status;
    const leads =
      this.role === 'primary' &&
      this.leadingView === view &&
      progress.role === 'leading' &&
      this.viewStartTold >= this.viewStartOp &&
      !this.handover.running;
    const { members, witnesses, self } = this.options.core;
    const others = members.filter((node) => node !== self && !witnesses.includes(node));
    const peers = this.peers.facts(others, progress.acked);
    this.stateTransfer.tick({ view, primary: this.primary, leads, peers });
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
        own: this.guest.own,
        ownReadyAt: this.guest.readyAt,
        peers: [...this.peers.reports.values()],
        peersCanRun: [...this.peers.reports.keys()].filter((node) => !witnesses.includes(node)).length,
        lastBootOp: this.guest.lastBootOp,
        historyUnseen: this.options.tail.last.op > 0 || progress.base.op > 0,
        // Whoever is being loaded with a whole state is a guest that is left.
        bootProposed: this.bootProposed || this.guest.state === 'filling',
        quorumReadyAt: this.quorumReadyAt,
      },
      this.options.boot,
    );
    if (decision.quorumReady) this.quorumReadyAt ??= now;
    if (decision.boot) {
      this.bootProposed = true;
      this.ports.log('info', 'guests are booted', { reason: decision.reason });
      this.ports.plane.propose(
        entryKinds.vmBoot,
        Uint8Array.of(bootModes[this.options.boot.mode], 0, 0, 0, 0, 0, 0, 0),
      );
    }
    if (decision.admit) this.admit();
  }

  private report(now: number): void {
    this.nextReportAt = now + this.options.reportIntervalMs;
    const bytes = encodeGuestReport(this.guest.own);
    for (const peer of this.peers.connected) this.ports.plane.sendMail(peer, bytes);
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
        return this.follow(effect);
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
        return this.handover.settle(effect);
      case 'role':
        return this.setRole(effect);
      case 'trace':
        return this.ports.log('debug', effect.text);
    }
  }

  private follow({ view, primary, agreeOp, base }: Extract<Effect, { type: 'follow' }>): void {
    if (base !== null) {
      this.ports.log(
        'warn',
        'WAL_RELEASED: the primary no longer holds what this log lacks, it begins anew',
        {
          primary,
          firstOp: base.op + 1,
        },
      );
      // Its guest has not taken what the log passes over.
      this.stateTransfer.endStaleGuest('the log begins anew');
    }
    this.ports.plane.follow(view, primary, agreeOp, base);
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

  private fail(why: string): void {
    if (this.stopped) return;
    this.stop();
    this.ports.fail(why);
  }
}
