/**
 * A model of one replica's data plane round a real consensus core: log, rings, acknowledgements, heartbeats, lease.
 * Simple on purpose; it keeps the rules of types.ts and nothing more, and tells `Checkers` what it does.
 */
import { Core } from '../../src/consensus/core.js';
import type { CoreOptions, Effect, Event, HardState, Message, NodeId } from '../../src/consensus/types.js';
import { assert } from '../../src/lib/assert.js';
import type { Random } from '../../src/lib/random.js';
import { noBase } from '../../src/wire/view-table.js';
import type { LogBase, LogTail, ViewTableRow } from '../../src/wire/view-table.js';

export interface Entry {
  readonly view: number;
  readonly op: number;
  readonly value: string;
}

/** What one data plane writes to another; in order per connection. */
export type Packet =
  | { readonly kind: 'entry'; readonly view: number; readonly feed: number; readonly entry: Entry }
  | { readonly kind: 'heartbeat'; readonly view: number; readonly round: number; readonly commitOp: number }
  | { readonly kind: 'heartbeat-ack'; readonly view: number; readonly round: number }
  | { readonly kind: 'ack'; readonly view: number; readonly op: number };

/** Deliberate faults, each of which a checker must catch. */
export interface Faults {
  /** Voters forget which heartbeats they acknowledged. */
  readonly forgetHeartbeats?: boolean;
  /** `promise` fences nothing: old primaries are still fed from. */
  readonly noFence?: boolean;
  /** Entries of older views are counted as committed (Raft figure 8). */
  readonly commitOldViews?: boolean;
  /** Entries are acknowledged before they are forced to disk. */
  readonly ackUnforced?: boolean;
  /** Entries are released before they are committed. */
  readonly releaseUncommitted?: boolean;
}

export interface Surroundings {
  readonly faults: Faults;
  /** True time; each replica has a clock of its own. */
  readonly now: number;
  readonly lazyDisk: boolean;
  sendPacket(from: NodeId, to: NodeId, packet: Packet): void;
  sendMail(from: NodeId, to: NodeId, message: Message): void;
  isUp(a: NodeId, b: NodeId): boolean;
  onEffect(node: NodeId, effect: Effect): void;
  onCommit(replica: Replica, op: number): void;
  onLead(replica: Replica, view: number): void;
  /** What the peer still had to be sent has been released: their connection is made anew. */
  onFeedLost(replica: Replica, peer: NodeId): void;
  /** What was committed up to an op. */
  history(op: number): Entry[];
}

interface Leading {
  readonly view: number;
  readonly startOp: number;
  held: boolean;
  surrendered: boolean;
  readonly sentAt: Map<number, number>;
  round: number;
  floorRound: number;
  readonly ackedRound: Map<NodeId, number>;
  readonly ackedOp: Map<NodeId, number>;
  readonly feeds: Map<NodeId, { id: number; next: number }>;
  leaseEndsAt: number | null;
}

interface Ring {
  readonly view: number;
  readonly feed: number;
  readonly entries: Entry[];
}

const heartbeatEveryMs = 5;
const heartbeatsStopAfterMs = 30;

export class Replica {
  readonly id: NodeId;
  readonly options: CoreOptions;
  private readonly world: Surroundings;
  private readonly random: Random;
  /** Local clock: offset + rate * true time. */
  readonly rate: number;
  readonly offset: number;

  hard: HardState = { view: 0, votedFor: null, recovering: false };
  /** From op 1 on; what stands up to the base is there for the checkers, and is never shown, sent or read. */
  log: Entry[] = [];
  base: LogBase = noBase;
  /** Entries up to here cannot be read any more, though nobody has released them. */
  unreadableOp = 0;
  durable = 0;
  commitOp = 0;
  /** What the checkers have compared since the last start. */
  checkedOp = 0;

  alive = false;
  pausedUntil = 0;
  jsStalledUntil = 0;
  core!: Core;
  private inbox: Event[] = [];
  private fence = 0;
  leading: Leading | null = null;
  private following: { view: number; primary: NodeId; cursor: number } | null = null;
  private readonly rings = new Map<NodeId, Ring>();
  private heartbeatAcks: { view: number; at: number }[] = [];
  private heardReport: { view: number; from: NodeId; at: number } | null = null;
  private lastJsTick = 0;
  private lastHeartbeat = 0;
  private feedCount = 0;

  constructor(options: CoreOptions, world: Surroundings, random: Random, rate: number, offset: number) {
    this.id = options.self;
    this.options = options;
    this.world = world;
    this.random = random;
    this.rate = rate;
    this.offset = offset;
  }

  get local(): number {
    return this.offset + this.rate * this.world.now;
  }

  get lastOp(): number {
    return this.log.length;
  }

  tail(): LogTail {
    const table: ViewTableRow[] = [];
    for (const entry of this.log.slice(Math.max(this.base.op - 1, 0), this.durable)) {
      if (table.at(-1)?.view !== entry.view) table.push({ view: entry.view, firstOp: entry.op });
    }
    const last = this.log[this.durable - 1];
    return {
      last: last === undefined ? { view: 0, op: 0 } : { view: last.view, op: last.op },
      commitOp: Math.min(this.commitOp, this.durable),
      table,
    };
  }

  start(): void {
    this.alive = true;
    this.checkedOp = 0;
    this.durable = this.log.length;
    this.fence = this.hard.view;
    this.lastJsTick = this.local;
    this.core = new Core(this.options, this.hard, this.local, this.tail());
  }

  /** Unforced entries may or may not survive. `keep`: the disk lost all behind this op, and the scan says so. */
  crash(keep?: number): void {
    this.alive = false;
    const survive = this.durable + this.random.below(this.lastOp - this.durable + 1);
    this.log.length = survive;
    if (keep !== undefined && keep < this.durable) {
      this.log.length = keep < this.base.op ? 0 : keep;
      if (keep < this.base.op) this.base = noBase;
      this.hard = { ...this.hard, recovering: true };
    }
    this.durable = this.log.length;
    // Nobody writes down what is committed, but for the base.
    this.commitOp = this.random.chance(0.5) ? this.base.op : Math.min(this.commitOp, this.log.length);
    this.leading = null;
    this.following = null;
    this.inbox = [];
    this.rings.clear();
    this.heartbeatAcks = [];
    this.heardReport = null;
    this.pausedUntil = 0;
    this.jsStalledUntil = 0;
  }

  /** An empty host takes this one's place. */
  replace(): void {
    assert(!this.alive, 'a live replica is not replaced');
    this.log = [];
    this.base = noBase;
    this.durable = 0;
    this.commitOp = 0;
    this.hard = { view: 0, votedFor: null, recovering: true };
  }

  /** Entries up to `op` are kept no longer, if they are committed. */
  release(op: number): void {
    const committed = this.world.faults.releaseUncommitted === true ? this.durable : this.commitOp;
    const at = Math.min(op, committed, this.durable);
    if (at > this.base.op) this.base = { op: at, view: this.log[at - 1]!.view, checksum: at };
  }

  running(): boolean {
    return this.alive && this.world.now >= this.pausedUntil;
  }

  /** An event for the core; handled when JS runs. */
  post(event: Event): void {
    this.inbox.push(event);
  }

  drainEvents(): void {
    if (!this.running() || this.world.now < this.jsStalledUntil) return;
    while (this.inbox.length > 0 && this.alive) this.step({ ...this.inbox.shift()!, now: this.local });
  }

  tick(): void {
    if (!this.running() || this.world.now < this.jsStalledUntil) return;
    this.lastJsTick = this.local;
    this.drainEvents();
    this.report();
    this.drainEvents();
    this.step({ type: 'tick', now: this.local });
  }

  private report(): void {
    if (this.heardReport !== null) this.post({ type: 'heard', now: 0, ...this.heardReport });
    this.heardReport = null;
    this.post({
      type: 'progress',
      now: 0,
      lastOp: this.lastOp,
      durableOp: this.durable,
      commitOp: this.commitOp,
      acked: new Map(this.leading?.ackedOp ?? []),
      base: this.base,
      committed: { op: this.commitOp, view: this.log[this.commitOp - 1]?.view ?? 0, checksum: this.commitOp },
      leaseEndsAt: this.leading?.leaseEndsAt ?? null,
    });
  }

  step(event: Event): void {
    const effects: Effect[] = [];
    this.core.step(event, effects);
    for (const effect of effects) {
      this.world.onEffect(this.id, effect);
      this.carryOut(effect);
    }
  }

  private carryOut(effect: Effect): void {
    switch (effect.type) {
      case 'send':
        return this.world.sendMail(this.id, effect.to, effect.message);
      case 'persist': {
        this.hard = effect.state;
        return;
      }
      case 'promise':
        return this.promise(effect.view);
      case 'lead':
        return this.lead(effect.view);
      case 'feed':
        return this.feed(effect.peer, effect.view, effect.agreeOp);
      case 'follow':
        return this.follow(effect.view, effect.primary, effect.agreeOp, effect.base);
      case 'resign': {
        this.leading = null;
        return;
      }
      case 'hold-input': {
        this.leading!.held = true;
        return this.post({ type: 'input-held', now: 0, view: effect.view, lastOp: this.lastOp });
      }
      case 'release-input': {
        if (this.leading?.view === effect.view) this.leading.held = false;
        return;
      }
      case 'surrender': {
        this.leading!.surrendered = true;
        this.leading!.leaseEndsAt = null;
        return this.post({ type: 'surrendered', now: 0, view: effect.view });
      }
      case 'reclaim': {
        this.leading!.surrendered = false;
        this.leading!.floorRound = this.leading!.round;
        return;
      }
      case 'role':
      case 'trace':
      case 'transfer-result':
        return;
    }
  }

  private promise(view: number): void {
    assert(view >= this.fence, 'a promise below the fence');
    this.leading = null;
    if (this.world.faults.noFence !== true) this.following = null;
    this.fence = view;
    this.durable = this.log.length;
    const lower = this.heartbeatAcks.filter((ack) => ack.view < view).map((ack) => ack.at);
    const ackedAt =
      lower.length === 0 || this.world.faults.forgetHeartbeats === true ? null : Math.max(...lower);
    this.post({ type: 'promised', now: 0, view, tail: this.tail(), heartbeatAckedAt: ackedAt });
  }

  private lead(view: number): void {
    assert(
      view === this.fence && this.hard.view === view && this.hard.votedFor === this.id,
      'leads a view it has not persisted',
    );
    this.world.onLead(this, view);
    this.leading = {
      view,
      startOp: this.lastOp + 1,
      held: false,
      surrendered: false,
      sentAt: new Map(),
      round: 0,
      floorRound: 0,
      ackedRound: new Map(),
      ackedOp: new Map(),
      feeds: new Map(),
      leaseEndsAt: null,
    };
    this.append({ view, op: this.lastOp + 1, value: `start ${view}` });
    this.post({ type: 'leading', now: 0, view, startOp: this.lastOp });
  }

  propose(value: string): boolean {
    const leading = this.leading;
    if (leading === null || leading.held || leading.surrendered || !this.running()) return false;
    this.append({ view: leading.view, op: this.lastOp + 1, value });
    return true;
  }

  private append(entry: Entry): void {
    assert(entry.op === this.lastOp + 1, 'a hole in the log');
    this.log.push(entry);
    if (!this.world.lazyDisk) this.durable = this.log.length;
  }

  private feed(peer: NodeId, view: number, agreeOp: number): void {
    assert(this.leading?.view === view, 'feeds without leading');
    assert(agreeOp <= this.lastOp, 'feeds from behind its log');
    if (agreeOp < this.base.op || agreeOp < this.unreadableOp) {
      this.post({ type: 'feed-lost', now: 0, view, node: peer, released: agreeOp < this.base.op });
      return this.world.onFeedLost(this, peer);
    }
    this.feedCount++;
    this.leading.feeds.set(peer, { id: this.feedCount, next: agreeOp + 1 });
  }

  private follow(view: number, primary: NodeId, agreeOp: number, base: LogBase | null): void {
    assert(view === this.fence && this.hard.view === view, 'follows a view it has not persisted');
    assert(
      agreeOp >= this.commitOp,
      `replica ${this.id} cuts behind op ${agreeOp}, committed is ${this.commitOp}`,
    );
    if (base === null) {
      assert(agreeOp >= this.base.op, 'cuts behind what its log stands behind');
      assert(agreeOp <= this.lastOp, 'follows from behind its log');
      this.log.length = agreeOp;
      this.durable = Math.min(this.durable, agreeOp);
    } else {
      assert(base.op === agreeOp && base.checksum === base.op, 'a base of another op');
      this.log = this.world.history(base.op);
      assert(this.log.at(-1)?.view === base.view, `op ${base.op} of view ${base.view} is not committed`);
      this.base = base;
      this.durable = this.commitOp = base.op;
      this.checkedOp = base.op;
    }
    this.following = { view, primary, cursor: 0 };
    this.post({ type: 'following', now: 0, view });
    this.world.sendPacket(this.id, primary, { kind: 'ack', view, op: this.durable });
  }

  /** The old connection's ring is worth nothing on a new one. */
  connectionChanged(peer: NodeId, up: boolean): void {
    this.rings.delete(peer);
    this.leading?.feeds.delete(peer);
    if (this.following?.primary === peer) this.following = { ...this.following, cursor: 0 };
    this.post({ type: up ? 'peer-up' : 'peer-down', now: 0, node: peer });
  }

  receive(from: NodeId, packet: Packet): void {
    if (!this.alive) return;
    switch (packet.kind) {
      case 'entry': {
        let ring = this.rings.get(from);
        if (ring?.feed !== packet.feed) {
          ring = { view: packet.view, feed: packet.feed, entries: [] };
          this.rings.set(from, ring);
          if (this.following?.primary === from) this.following.cursor = 0;
        }
        ring.entries.push(packet.entry);
        return;
      }
      case 'heartbeat':
        return this.heartbeat(from, packet.view, packet.round, packet.commitOp);
      case 'heartbeat-ack': {
        const leading = this.leading;
        if (leading?.view === packet.view)
          leading.ackedRound.set(from, Math.max(leading.ackedRound.get(from) ?? 0, packet.round));
        return;
      }
      case 'ack': {
        const leading = this.leading;
        if (leading?.view === packet.view)
          leading.ackedOp.set(from, Math.max(leading.ackedOp.get(from) ?? 0, packet.op));
        return;
      }
    }
  }

  private heartbeat(from: NodeId, view: number, round: number, commitOp: number): void {
    const accepted = this.world.faults.noFence === true ? view >= this.fence - 1 : view === this.fence;
    if (!accepted || this.leading !== null) return;
    const known = this.heartbeatAcks.find((ack) => ack.view === view);
    if (known === undefined) this.heartbeatAcks.push({ view, at: this.local });
    else known.at = this.local;
    if (this.world.faults.forgetHeartbeats !== true) this.heardReport = { view, from, at: this.local };
    else if (this.heardReport === null && this.core.status.primary === null)
      this.heardReport = { view, from, at: 1 };
    this.world.sendPacket(this.id, from, { kind: 'heartbeat-ack', view, round });
    if (this.following?.view === view) this.learnCommit(Math.min(commitOp, this.lastOp));
  }

  private learnCommit(op: number): void {
    if (op <= this.commitOp) return;
    this.commitOp = op;
    this.world.onCommit(this, op);
  }

  /** One round of the reactor. */
  poll(): void {
    if (!this.running()) return;
    if (this.world.lazyDisk && this.random.chance(0.5)) this.force();
    this.takeFromRing();
    if (this.leading !== null) this.leadOn(this.leading);
  }

  private force(): void {
    const before = this.durable;
    this.durable += this.random.below(this.lastOp - this.durable + 1);
    if (this.durable !== before) this.acknowledge();
  }

  private acknowledge(): void {
    const following = this.following;
    const op = this.world.faults.ackUnforced === true ? this.lastOp : this.durable;
    if (following !== null)
      this.world.sendPacket(this.id, following.primary, { kind: 'ack', view: following.view, op });
  }

  private takeFromRing(): void {
    const following = this.following;
    if (following === null) return;
    const ring = this.rings.get(following.primary);
    if (ring?.view !== following.view) return;
    const before = this.lastOp;
    for (
      let entry = ring.entries[following.cursor];
      entry !== undefined;
      entry = ring.entries[following.cursor]
    ) {
      // An entry that does not fit is not taken, and nothing behind it either.
      if (entry.op !== this.lastOp + 1) break;
      this.append(entry);
      following.cursor++;
    }
    if (this.lastOp !== before) this.acknowledge();
  }

  private leadOn(leading: Leading): void {
    for (const [peer, feed] of leading.feeds) {
      if (feed.next <= Math.min(this.base.op, this.lastOp)) {
        this.world.onFeedLost(this, peer);
        continue;
      }
      for (; feed.next <= this.lastOp; feed.next++) {
        this.world.sendPacket(this.id, peer, {
          kind: 'entry',
          view: leading.view,
          feed: feed.id,
          entry: this.log[feed.next - 1]!,
        });
      }
    }
    const jsLives = this.local - this.lastJsTick < heartbeatsStopAfterMs;
    if (this.local >= this.lastHeartbeat + heartbeatEveryMs && jsLives && !leading.surrendered) {
      this.lastHeartbeat = this.local;
      leading.round++;
      leading.sentAt.set(leading.round, this.local);
      for (const peer of this.options.members) {
        if (peer !== this.id)
          this.world.sendPacket(this.id, peer, {
            kind: 'heartbeat',
            view: leading.view,
            round: leading.round,
            commitOp: this.commitOp,
          });
      }
    }
    this.renewLease(leading);
    this.countCommit(leading);
  }

  private renewLease(leading: Leading): void {
    if (leading.surrendered) return;
    const f = (this.options.members.length - 1) / 2;
    const rounds = [...leading.ackedRound.values()].sort((a, b) => b - a);
    const round = f === 0 ? leading.round : (rounds[f - 1] ?? 0);
    const sentAt = leading.sentAt.get(round);
    if (sentAt !== undefined && round > leading.floorRound)
      leading.leaseEndsAt = sentAt + this.options.leaseMs;
  }

  private countCommit(leading: Leading): void {
    const ownOp = this.world.faults.ackUnforced === true ? this.lastOp : this.durable;
    const ops = [ownOp, ...leading.ackedOp.values()].sort((a, b) => b - a);
    const op = Math.min(ops[(this.options.members.length - 1) / 2] ?? 0, this.lastOp);
    if (op < leading.startOp && this.world.faults.commitOldViews !== true) return;
    if (op > this.commitOp)
      assert(this.log[op - 1]!.view === leading.view, 'counts an entry of an older view');
    this.learnCommit(op);
  }

  /** May output leave at this instant? */
  gateOpen(): boolean {
    const leading = this.leading;
    return (
      this.alive &&
      leading !== null &&
      !leading.surrendered &&
      leading.leaseEndsAt !== null &&
      this.local < leading.leaseEndsAt
    );
  }
}
