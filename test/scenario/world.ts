/**
 * A cluster of model replicas on one true clock, its network, and the checkers that stand outside and judge.
 */
import { assert } from '../../src/lib/assert.js';
import type { Effect, Message, NodeId } from '../../src/consensus/types.js';
import { Random } from '../../src/lib/random.js';
import { Replica } from './model.js';
import type { Entry, Faults, Packet, Surroundings } from './model.js';

export interface WorldOptions {
  readonly members: number;
  readonly witnesses?: readonly NodeId[];
  readonly seed: number;
  readonly faults?: Faults;
  readonly lazyDisk?: boolean;
  /** Clock rates differ by this much at most, 0.01: one per cent. */
  readonly drift?: number;
  /** Mail waits for `deliver`. */
  readonly manualMail?: boolean;
  /** Latest arrival of a packet or mail, milliseconds; 0: at once. */
  readonly delayMs?: number;
  readonly dropMail?: number;
  readonly repeatMail?: number;
  readonly onEffect?: (node: NodeId, effect: Effect) => void;
}

interface Flying {
  readonly from: NodeId;
  readonly to: NodeId;
  readonly connection: number;
  readonly at: number;
  readonly packet: Packet | null;
  readonly message: Message | null;
}

interface Link {
  up: boolean;
  connection: number;
  /** Per direction, low index first: packets wait. */
  cut: [boolean, boolean];
}

export interface WaitingMail {
  readonly from: NodeId;
  readonly to: NodeId;
  readonly message: Message;
}

export const times = {
  electionTimeoutMinMs: 150,
  electionTimeoutMaxMs: 300,
  leaseMs: 60,
  driftMarginMs: 4,
  retryMs: 20,
  tickMs: 5,
} as const;

export class World implements Surroundings {
  readonly options: WorldOptions;
  readonly faults: Faults;
  readonly lazyDisk: boolean;
  readonly replicas: Replica[] = [];
  readonly random: Random;
  now = 0;
  readonly mail: WaitingMail[] = [];
  quiesced = false;
  /** Logs that began anew. */
  rebases = 0;
  private renew: [NodeId, NodeId][] = [];
  private flying: Flying[] = [];
  /** By low index * 8 + high index. */
  private readonly links: Link[] = [];
  // ---- what the checkers know
  readonly committed: Entry[] = [];
  /** By op - 1, the view in which it was committed: not that of the entry, which may be older. */
  private readonly committedIn: number[] = [];
  private readonly leaders = new Map<number, NodeId>();
  private readonly votes = new Map<string, NodeId>();
  private readonly views = new Map<NodeId, number>();

  constructor(options: WorldOptions) {
    this.options = options;
    this.faults = options.faults ?? {};
    this.lazyDisk = options.lazyDisk ?? false;
    this.random = new Random(options.seed);
    const members = Array.from({ length: options.members }, (_, i) => i);
    const drift = options.drift ?? 0;
    for (const self of members) {
      const draws = this.random.fork();
      this.replicas.push(
        new Replica(
          { self, members, witnesses: options.witnesses ?? [], ...times, random: () => draws.float() },
          this,
          this.random.fork(),
          1 + drift * (2 * this.random.float() - 1),
          drift === 0 ? 0 : this.random.below(100000),
        ),
      );
      for (let other = 0; other < self; other++)
        this.links[other * 8 + self] = { up: false, connection: 0, cut: [false, false] };
    }
  }

  begin(): void {
    for (const replica of this.replicas) replica.start();
    for (const a of this.replicas) for (const b of this.replicas) if (a.id < b.id) this.connect(a.id, b.id);
  }

  // ---- network

  private link(a: NodeId, b: NodeId): Link {
    const link = this.links[a < b ? a * 8 + b : b * 8 + a];
    assert(link !== undefined, `no link between ${a} and ${b}`);
    return link;
  }

  isUp(a: NodeId, b: NodeId): boolean {
    return this.link(a, b).up;
  }

  isCut(from: NodeId, to: NodeId): boolean {
    return this.link(from, to).cut[from < to ? 0 : 1];
  }

  cut(from: NodeId, to: NodeId, cut: boolean): void {
    this.link(from, to).cut[from < to ? 0 : 1] = cut;
  }

  connect(a: NodeId, b: NodeId): void {
    const link = this.link(a, b);
    if (!this.replicas[a]!.alive || !this.replicas[b]!.alive) return;
    link.up = true;
    link.connection++;
    this.replicas[a]!.connectionChanged(b, true);
    this.replicas[b]!.connectionChanged(a, true);
  }

  disconnect(a: NodeId, b: NodeId): void {
    const link = this.link(a, b);
    if (!link.up) return;
    link.up = false;
    this.flying = this.flying.filter(
      (item) =>
        !(Math.min(item.from, item.to) === Math.min(a, b) && Math.max(item.from, item.to) === Math.max(a, b)),
    );
    for (let i = this.mail.length - 1; i >= 0; i--) {
      const item = this.mail[i]!;
      if ((item.from === a && item.to === b) || (item.from === b && item.to === a)) this.mail.splice(i, 1);
    }
    if (this.replicas[a]!.alive) this.replicas[a]!.connectionChanged(b, false);
    if (this.replicas[b]!.alive) this.replicas[b]!.connectionChanged(a, false);
  }

  sendPacket(from: NodeId, to: NodeId, packet: Packet): void {
    this.launch(from, to, packet, null);
  }

  sendMail(from: NodeId, to: NodeId, message: Message): void {
    if (!this.isUp(from, to)) return;
    if (this.options.manualMail === true) {
      this.mail.push({ from, to, message });
      return;
    }
    if (!this.quiesced && this.random.chance(this.options.dropMail ?? 0)) return;
    this.launch(from, to, null, message);
    if (this.random.chance(this.options.repeatMail ?? 0)) this.launch(from, to, null, message);
  }

  private launch(from: NodeId, to: NodeId, packet: Packet | null, message: Message | null): void {
    const link = this.link(from, to);
    if (!link.up) return;
    const delay = this.options.delayMs ?? 0;
    // Mail may overtake mail; packets of one connection keep their order (see `deliverDue`).
    const at =
      this.now +
      (delay === 0
        ? 0
        : this.random.below(message !== null && this.random.chance(0.1) ? delay * 8 : delay) + 1);
    this.flying.push({ from, to, connection: link.connection, at, packet, message });
  }

  private deliverDue(): void {
    const flying = this.flying;
    if (flying.length === 0) return;
    this.flying = [];
    const blocked = new Set<number>();
    for (const item of flying) {
      const lane = item.from * 8 + item.to;
      const held =
        item.at > this.now || this.isCut(item.from, item.to) || (item.packet !== null && blocked.has(lane));
      const target = this.replicas[item.to]!;
      if (this.link(item.from, item.to).connection !== item.connection) continue;
      if (held) {
        if (item.packet !== null) blocked.add(lane);
        this.flying.push(item);
      } else if (item.packet !== null) {
        if (target.running()) target.receive(item.from, item.packet);
        else {
          blocked.add(lane);
          this.flying.push(item);
        }
      } else target.post({ type: 'mail', now: 0, from: item.from, message: item.message! });
    }
  }

  // ---- faults

  crash(node: NodeId, keep?: number): void {
    this.replicas[node]!.crash(keep);
    for (const other of this.replicas) if (other.id !== node) this.disconnect(node, other.id);
  }

  replace(node: NodeId): void {
    this.replicas[node]!.replace();
  }

  restart(node: NodeId): void {
    this.replicas[node]!.start();
    this.views.set(node, this.replicas[node]!.hard.view);
    for (const other of this.replicas) if (other.id !== node && other.alive) this.connect(node, other.id);
  }

  // ---- time

  /** One millisecond. */
  advance(): void {
    this.now++;
    this.deliverDue();
    for (const [a, b] of this.renew.splice(0)) {
      this.disconnect(a, b);
      this.connect(a, b);
    }
    for (const replica of this.replicas) {
      replica.poll();
      if ((this.now + replica.id) % times.tickMs === 0) replica.tick();
      else replica.drainEvents();
    }
    this.deliverDue();
    for (const replica of this.replicas) replica.drainEvents();
    this.checkGates();
  }

  run(ms: number): void {
    for (let i = 0; i < ms; i++) this.advance();
  }

  // ---- checkers

  private checkGates(): void {
    let open: NodeId | null = null;
    for (const replica of this.replicas) {
      if (!replica.gateOpen()) continue;
      assert(open === null, `two gates open: replicas ${open} and ${replica.id}`);
      open = replica.id;
    }
  }

  onLead(replica: Replica, view: number): void {
    const other = this.leaders.get(view);
    assert(other === undefined, `view ${view} has two leaders: ${other} and ${replica.id}`);
    this.leaders.set(view, replica.id);
    // A late winner may find that a later view has begun; it holds what was committed before its own view.
    for (const entry of this.committed) {
      if (this.committedIn[entry.op - 1]! >= view) break;
      const own = replica.log[entry.op - 1];
      assert(
        own !== undefined && own.view === entry.view && own.value === entry.value,
        `committed op ${entry.op} is lost in view ${view}`,
      );
    }
  }

  onFeedLost(replica: Replica, peer: NodeId): void {
    this.renew.push([replica.id, peer]);
  }

  history(op: number): Entry[] {
    assert(op <= this.committed.length, `op ${op} is not committed`);
    return this.committed.slice(0, op);
  }

  onCommit(replica: Replica, op: number): void {
    // Everything up to what was compared before stays as it is: the model never cuts behind its commit op.
    const from = replica.checkedOp;
    replica.checkedOp = op;
    for (let i = from; i < op; i++) {
      const own = replica.log[i];
      assert(own !== undefined, `replica ${replica.id} commits op ${i + 1}, which it does not hold`);
      const known = this.committed[i];
      if (known === undefined) {
        const before = this.committed[i - 1];
        assert(before === undefined || before.view <= own.view, 'viewstamps go back');
        this.committed.push(own);
        this.committedIn.push(replica.leading?.view ?? replica.hard.view);
      } else
        assert(
          known.view === own.view && known.value === own.value,
          `op ${i + 1} is committed twice, differently`,
        );
    }
  }

  onEffect(node: NodeId, effect: Effect): void {
    if (effect.type === 'persist') {
      const { view, votedFor } = effect.state;
      assert(view >= (this.views.get(node) ?? 0), `replica ${node} persists an older view`);
      this.views.set(node, view);
      if (votedFor !== null) {
        const key = `${node} in ${view}`;
        const before = this.votes.get(key);
        assert(before === undefined || before === votedFor, `two votes of ${key}`);
        this.votes.set(key, votedFor);
      }
    }
    if (effect.type === 'send' && effect.message.type === 'vote-reply' && effect.message.granted) {
      const replica = this.replicas[node]!;
      assert(
        replica.hard.view === effect.message.view && replica.hard.votedFor === effect.to,
        'a vote left before it was on disk',
      );
    }
    if (effect.type === 'follow' && effect.base !== null) this.rebases++;
    this.options.onEffect?.(node, effect);
  }

  /** The replica that leads the highest view, if its data plane says so. */
  primary(): Replica | null {
    let best: Replica | null = null;
    for (const replica of this.replicas) {
      if (
        replica.alive &&
        replica.leading !== null &&
        (best === null || replica.leading.view > best.leading!.view)
      )
        best = replica;
    }
    return best;
  }
}
