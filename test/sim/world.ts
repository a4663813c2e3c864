/**
 * A simulated world: whole replicas (the real engine, the real consensus core, the real native log, rings and
 * gates) on a simulated network and simulated disks, all from one seed.
 *
 * Time moves in steps. In each step every process that is alive and not paused runs a little, by its own
 * drifting clock, disks force when the seed says so, and the network delivers some of what is under way, whole or
 * torn. The world itself injects no faults (nemesis.ts does) and judges nothing (checkers.ts does).
 */
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';

import { convertEvent, NativePlane, progressBuffer, readProgress } from '../../src/adapters/native-plane.js';
import { loadNative, uncomparedOutput } from '../../src/adapters/native.js';
import type {
  NativeCounters,
  NativeEvent,
  NativePlaneOptions,
  NativeRecovered,
} from '../../src/adapters/native.js';
import type { HardState, NodeId } from '../../src/consensus/types.js';
import { ReplicaEngine } from '../../src/engine/replica.js';
import { assert } from '../../src/lib/assert.js';
import { Random } from '../../src/lib/random.js';
import type { PlaneProgress } from '../../src/ports/data-plane.js';
import { transferOptions } from '../../src/transfer/defaults.js';
import { SimGuest } from './guest.js';
import type { GuestMemoryImage } from './guest.js';

export const stepNs = 500_000;
const nsPerMs = 1e6;
const tickMs = 5;
const capturesMax = 16;
const flippedBit = 0x40;

const longLog = { segmentBytes: 4 << 20, retainBytes: 1 << 28, batchBytes: 1 << 20, releaseNs: 1e9 };
/** The smallest segments that hold the largest entry, and only the newest one kept. */
const shortLog = { segmentBytes: 136 << 10, retainBytes: 1, batchBytes: 129 << 10, releaseNs: 10e6 };

export interface SimOutput {
  readonly atNs: number;
  readonly frame: Uint8Array;
}

export interface SimEntry {
  readonly view: number;
  readonly op: number;
  readonly kind: number;
  readonly checksum: number;
}

export interface NativeSimulation {
  start(
    node: number,
    options: NativePlaneOptions & {
      segmentBytes: number;
      retainBytes: number;
      batchBytes: number;
      vm: boolean;
    },
  ): NativeRecovered;
  kill(node: number, losePower: boolean, keepWire: boolean): void;
  loseDisk(node: number): void;
  poll(node: number, nowNs: number): number;
  stepWal(node: number): number;
  events(node: number): NativeEvent[];
  command(node: number, name: string, ...args: (number | Uint8Array)[]): boolean;
  connect(node: number, peer: number, connection: Uint8Array, descriptor: Uint8Array): void;
  descriptor(node: number): Uint8Array;
  tick(node: number, nowNs: number): void;
  progress(node: number, into: Float64Array): void;
  counters(node: number): NativeCounters;
  mayRelease(node: number, nowNs: number): boolean;
  expectVm(node: number): void;
  inject(node: number, frame: Uint8Array): boolean;
  outputs(node: number): SimOutput[];
  service(node: number): { frames: number; digest: number };
  startGuest(node: number, path: string, pages: number, seed: number): void;
  stopGuest(node: number): void;
  runGuest(node: number, run: boolean): void;
  logDirty(node: number): void;
  takeDirty(node: number): { pages: number; set: Uint8Array };
  entries(node: number, from: number, until: number): SimEntry[];
  pending(from: number, to: number): number;
  deliver(from: number, to: number, bytes: number): boolean;
  deliverStale(from: number, to: number): boolean;
  cut(from: number, to: number, cut: boolean): void;
  break(from: number, to: number, known: boolean, keepStale: boolean): void;
}

export interface WorldOptions {
  readonly members: number;
  readonly seed: number;
  readonly durability: 'disk' | 'memory';
  /** Relative drift of each clock, at most. */
  readonly drift: number;
  /** The last member votes and stores, and runs no guest. */
  readonly witness: boolean;
  /** Logs keep so little that whoever is away for a while begins anew. */
  readonly shortLogs: boolean;
}

export interface SimNode {
  readonly id: NodeId;
  alive: boolean;
  paused: boolean;
  /** Local time = offsetNs + rate * world time. */
  readonly offsetNs: number;
  readonly rate: number;
  /** What survives the process. */
  hard: HardState;
  started: boolean;
  engine: ReplicaEngine | null;
  nextTickNs: number;
  /** Probability that the disk finishes a force in a step. */
  diskSpeed: number;
  /** Op of the vm-boot that the running guest was started by; 0: none. */
  bootOp: number;
  guest: SimGuest | null;
  failure: string | null;
  /** World time of its death. */
  diedAtNs: number;
}

/** A guest that stood still while it was copied. */
export interface Capture {
  readonly node: NodeId;
  readonly image: GuestMemoryImage;
  readonly frames: number;
  readonly digest: number;
}

/** One byte of a guest's memory that is another for a while, as a failing memory module would have it. */
interface Flipped {
  readonly path: string;
  readonly at: number;
  readonly was: number;
}

interface Link {
  /** World time at which the two are connected (again); null: they are. */
  connectAtNs: number | null;
}

export const vmMac = Uint8Array.from([0x52, 0x54, 0, 0xfa, 0x1c, 1]);

export class World {
  readonly options: WorldOptions;
  readonly random: Random;
  readonly sim: NativeSimulation;
  readonly nodes: SimNode[] = [];
  nowNs = 1_000_000_000;
  /** Probability that a channel delivers its next operation in a step, and that it is torn when it does. */
  deliveryChance = 0.9;
  tearChance = 0.02;
  readonly trace: string[] = [];
  private readonly numbers = progressBuffer();
  private readonly links = new Map<string, Link>();
  private readonly directory = mkdtempSync('/dev/shm/falcon-sim-');
  private readonly clone: boolean;
  /** Of every guest's memory. */
  private readonly pages: number;
  private memories = 0;
  /** Logs that began anew behind what the primary keeps. */
  rebases = 0;
  private synced = 0;
  private based = 0;
  private abandoned = 0;

  constructor(options: WorldOptions) {
    this.options = options;
    this.random = new Random(options.seed);
    this.clone = this.random.chance(0.5);
    this.pages = 64 + this.random.below(193);
    const Simulation = loadNative().Simulation as unknown as new (
      members: number,
      seed: number,
    ) => NativeSimulation;
    this.sim = new Simulation(options.members, this.random.uint32());
    for (let id = 0; id < options.members; id++) {
      this.nodes.push({
        id,
        alive: false,
        paused: false,
        offsetNs: this.random.below(1_000_000_000),
        rate: 1 + (this.random.float() * 2 - 1) * options.drift,
        hard: { view: 0, votedFor: null, recovering: false },
        started: false,
        engine: null,
        nextTickNs: 0,
        diskSpeed: 0.7,
        bootOp: 0,
        guest: null,
        failure: null,
        diedAtNs: 0,
      });
    }
    for (const node of this.nodes) this.start(node);
  }

  progress(node: SimNode): PlaneProgress {
    this.sim.progress(node.id, this.numbers);
    return readProgress(this.numbers);
  }

  log(text: string): void {
    this.trace.push(`${(this.nowNs / nsPerMs).toFixed(1)} ${text}`);
    if (this.trace.length > 5000) this.trace.splice(0, 1000);
  }

  runsGuest(id: NodeId): boolean {
    return !this.options.witness || id !== this.options.members - 1;
  }

  localNs(node: SimNode): number {
    return Math.floor(node.offsetNs + node.rate * this.nowNs);
  }

  // ---- processes

  start(node: SimNode): void {
    assert(!node.alive, 'a live process is not started');
    const { members, durability } = this.options;
    const recovered = this.sim.start(node.id, {
      self: node.id,
      promisedView: node.hard.view,
      members,
      force: durability === 'disk',
      logBytes: 1 << 20,
      logEntries: 1 << 12,
      // Small, so that every ring goes round many times and torn records meet bytes of earlier laps.
      ringBytes: 1 << 13,
      inflightEntries: 512,
      heartbeatNs: 5 * nsPerMs,
      leaseNs: 40 * nsPerMs,
      deciderStallNs: 250 * nsPerMs,
      keepUnproposed: true,
      hashSeed: 1 + this.options.seed,
      ...uncomparedOutput,
      vmMac,
      vmAddress: new Uint8Array(),
      ...(this.options.shortLogs ? shortLog : longLog),
      vm: this.runsGuest(node.id),
    });
    assert(
      !recovered.damaged || durability === 'memory',
      `the log of ${node.id} is damaged: ${recovered.damageDetail}`,
    );
    const recovering = node.hard.recovering || (node.started && durability === 'memory');
    node.hard = { ...node.hard, recovering };
    node.alive = true;
    node.paused = false;
    node.started = true;
    node.bootOp = 0;
    node.guest = this.runsGuest(node.id) ? this.makeGuest(node) : null;
    node.failure = null;
    node.nextTickNs = this.localNs(node);
    node.engine = this.makeEngine(node, recovered);
    this.log(`start ${node.id} view ${node.hard.view} last ${recovered.lastOp}`);
    for (const peer of this.nodes) {
      if (peer !== node && peer.alive) this.scheduleConnect(node.id, peer.id);
    }
  }

  /** An empty host takes the place of a dead one: the configuration names it, its log is empty and it does not vote yet. */
  replace(node: SimNode, view: number): void {
    assert(!node.alive, 'a live process is not replaced');
    this.log(`replace ${node.id}`);
    this.sim.loseDisk(node.id);
    node.hard = { view, votedFor: null, recovering: true };
  }

  /** SIGKILL, or with `losePower` the machine under it. */
  kill(node: SimNode, losePower: boolean): void {
    assert(node.alive, 'a dead process is not killed');
    this.log(`kill ${node.id}${losePower ? ' with its power' : ''}`);
    this.countSyncs(node);
    node.engine?.stop();
    node.engine = null;
    node.guest?.end();
    this.standing.delete(node.id);
    this.flipped.delete(node.id);
    node.guest = null;
    node.alive = false;
    node.diedAtNs = this.nowNs;
    node.bootOp = 0;
    this.sim.kill(node.id, losePower, this.random.chance(0.5));
    for (const peer of this.nodes) {
      if (peer === node) continue;
      this.links.delete(linkKey(node.id, peer.id));
      // The hint of a closed connection; a host that loses power sends none.
      if (peer.alive && !losePower && this.random.chance(0.7)) peer.engine?.onPeerDown(node.id);
    }
  }

  private makeEngine(node: SimNode, recovered: NativeRecovered): ReplicaEngine {
    const { sim } = this;
    const { id } = node;
    const plane = new NativePlane({
      command: (name, ...args) => sim.command(id, name, ...args),
      connect: (peer, connection, descriptor) => sim.connect(id, peer, connection, descriptor),
      tick: () => sim.tick(id, this.localNs(node)),
      progress: (into) => sim.progress(id, into),
      counters: () => sim.counters(id),
      outputs: () => [],
      expectVm: () => sim.expectVm(id),
    });
    const random = this.random.fork();
    const members = Array.from({ length: this.options.members }, (_unused, index) => index);
    return new ReplicaEngine(
      {
        core: {
          self: id,
          members,
          witnesses: members.filter((member) => !this.runsGuest(member)),
          electionTimeoutMinMs: 60,
          electionTimeoutMaxMs: 120,
          leaseMs: 40,
          driftMarginMs: 2,
          retryMs: 10,
          random: () => random.float(),
        },
        hardState: node.hard,
        tail: {
          last: { view: recovered.lastView, op: recovered.lastOp },
          commitOp: 0,
          table: recovered.table,
        },
        boot: {
          mode: this.clone ? 'clone' : 'each',
          firstBootWaitMs: 300,
          rebootWaitMs: 600,
          quorumReadyWaitMs: 50,
          fillWaitMs: 1500,
        },
        transfer: {
          core: {
            ...transferOptions(id),
            offerRetryMs: 10,
            offerWaitMs: 400,
            progressWaitMs: 400,
            pauseMaxMs: 200,
            confirmWaitMs: 400,
            backOffMinMs: 20,
            backOffMaxMs: 200,
            settledPages: 4,
            roundsMax: 6,
          },
          machine: 'sim',
          files: this.files(id),
          key: () => Uint8Array.from({ length: 32 }, () => random.below(256)),
          recordsMax: 16,
        },
        canRunGuest: this.runsGuest(id),
        reportIntervalMs: 20,
        mailSilenceMs: 500,
        outputs: { waitMs: 500, primaryDiverged: 'heal-backups' },
      },
      {
        plane,
        store: {
          write: (state) => {
            node.hard = state;
          },
        },
        guest: node.guest,
        clock: { now: () => this.localNs(node) / nsPerMs },
        reconnect: (peer) => this.scheduleConnect(id, peer),
        fail: (why) => {
          node.failure = why;
        },
        log: (level, text, fields) => {
          if (text.endsWith('it begins anew')) this.rebases++;
          if (level !== 'debug' || process.env['SIM_TRACE'] === '1')
            this.log(`${id} ${text} ${JSON.stringify(fields ?? {})}`);
        },
      },
    );
  }

  private makeGuest(node: SimNode): SimGuest {
    const { sim } = this;
    const { id } = node;
    const now = (): number => this.nowNs;
    return new SimGuest(
      {
        get nowNs() {
          return now();
        },
        pages: this.pages,
        startGuest: (path, pages, seed) => sim.startGuest(id, path, pages, seed),
        stopGuest: () => sim.stopGuest(id),
        runGuest: (run) => sim.runGuest(id, run),
        logDirty: () => sim.logDirty(id),
        takeDirty: () => sim.takeDirty(id),
        ramPath: () => join(this.directory, `${id}.ram.${++this.memories}`),
        collecting: (path) => this.flip(node, path),
        captured: (image) => this.capture(node, image),
        goesOn: (image) => this.goOn(node, image),
      },
      this.random.fork(),
    );
  }

  /** What a guest held that stood still behind a vm-sync entry, by the entry's op. */
  readonly captures = new Map<number, Capture>();

  /** What both guests of a verification held, by the op of its vm-sync, then by node. */
  readonly stood = new Map<number, Map<NodeId, Capture>>();
  private readonly flipped = new Map<NodeId, Flipped>();
  flips = 0;
  /** Of guests that stand still to be compared: a hash of what they held. */
  private readonly standing = new Map<NodeId, string>();

  /** Of a guest that is about to be compared: now and then one byte of it is another until that is over. */
  private flip(node: SimNode, path: string): void {
    if (node.engine?.stateTransfer.verification.receiving?.phase !== 'looking') return;
    if (this.flipped.has(node.id) || !this.random.chance(0.5)) return;
    const at = this.random.below(this.pages * 4096);
    const was = exchangeByte(path, at, (value) => value ^ flippedBit);
    this.flipped.set(node.id, { path, at, was });
    this.flips++;
  }

  private unflip(node: SimNode): void {
    const flipped = this.flipped.get(node.id);
    this.flipped.delete(node.id);
    if (flipped === undefined || !existsSync(flipped.path)) return;
    const { path, at, was } = flipped;
    // Unless the guest has written there meanwhile.
    exchangeByte(path, at, (value) => (value === (was ^ flippedBit) ? was : value));
  }

  /** Comparing has changed nothing. */
  private goOn(node: SimNode, image: () => GuestMemoryImage): void {
    const before = this.standing.get(node.id);
    this.standing.delete(node.id);
    assert(
      before === undefined || before === image().hash,
      `comparing the guest of ${node.id} has changed its memory`,
    );
    this.unflip(node);
  }

  private capture(node: SimNode, image: GuestMemoryImage): void {
    const op = this.progress(node).deliveredOp;
    if (node.engine?.stateTransfer.verification.active === true) return this.captureOfTwo(op, node, image);
    this.captures.set(op, { node: node.id, image, ...this.sim.service(node.id) });
    for (const old of this.captures.keys()) {
      if (this.captures.size <= capturesMax) break;
      this.captures.delete(old);
    }
  }

  private misjudged: Error | null = null;

  /** What a judge throws where nobody hears it ends the run with the next step. */
  judge(verdict: () => void): void {
    try {
      verdict();
    } catch (error) {
      this.misjudged ??= error instanceof Error ? error : new Error(String(error));
    }
  }

  private captureOfTwo(op: number, node: SimNode, image: GuestMemoryImage): void {
    this.standing.set(node.id, image.hash);
    const both = this.stood.get(op) ?? new Map<NodeId, Capture>();
    both.set(node.id, { node: node.id, image, ...this.sim.service(node.id) });
    this.stood.set(op, both);
    for (const old of this.stood.keys()) {
      if (this.stood.size <= capturesMax) break;
      this.stood.delete(old);
    }
  }

  private files(id: NodeId): { inbox: string; dirty: string; state: string } {
    const file = (kind: string): string => join(this.directory, `${id}.${kind}`);
    return { inbox: file('inbox'), dirty: file('dirty'), state: file('state') };
  }

  /** No inbox can be made on this host until what is returned is called; null: there is something already. */
  blockInbox(node: SimNode): (() => void) | null {
    const { inbox } = this.files(node.id);
    if (existsSync(inbox)) return null;
    this.log(`no inbox on ${node.id}`);
    mkdirSync(join(inbox, 'in-the-way'), { recursive: true });
    return () => rmSync(inbox, { recursive: true });
  }

  /** Sessions of state transfer so far, those of processes that are gone included. */
  syncs(): { syncs: number; syncsBased: number; syncsAbandoned: number } {
    for (const node of this.nodes) this.countSyncs(node);
    return { syncs: this.synced, syncsBased: this.based, syncsAbandoned: this.abandoned };
  }

  private countSyncs(node: SimNode): void {
    const records = node.engine?.stateTransfer.records.splice(0) ?? [];
    this.synced += records.filter((record) => record.ok).length;
    this.based += records.filter((record) => record.ok && record.based).length;
    this.abandoned += records.filter((record) => !record.ok).length;
  }

  /** Files of sessions go with the world. */
  close(): void {
    for (const node of this.nodes) if (node.alive) this.kill(node, false);
    rmSync(this.directory, { recursive: true, force: true });
  }

  // ---- connections

  scheduleConnect(a: NodeId, b: NodeId): void {
    const link = this.links.get(linkKey(a, b)) ?? { connectAtNs: null };
    link.connectAtNs ??= this.nowNs + (1 + this.random.below(20)) * nsPerMs;
    this.links.set(linkKey(a, b), link);
  }

  private connectDue(): void {
    for (let a = 0; a < this.nodes.length; a++) {
      for (let b = a + 1; b < this.nodes.length; b++) {
        const link = this.links.get(linkKey(a, b));
        const [left, right] = [this.nodes[a]!, this.nodes[b]!];
        if (link === undefined || link.connectAtNs === null || link.connectAtNs > this.nowNs) continue;
        if (!left.alive || !right.alive || left.paused || right.paused) continue;
        // The bootstrap runs over the same network.
        if (this.isCut(a, b) || this.isCut(b, a)) continue;
        link.connectAtNs = null;
        const connection = new Uint8Array(
          new Uint32Array([this.random.uint32(), this.random.uint32()]).buffer,
        );
        left.engine?.onPeerUp(b, connection, this.sim.descriptor(b));
        right.engine?.onPeerUp(a, connection, this.sim.descriptor(a));
      }
    }
  }

  private readonly cuts = new Set<string>();

  isCut(from: NodeId, to: NodeId): boolean {
    return this.cuts.has(`${from}>${to}`);
  }

  cut(from: NodeId, to: NodeId, on: boolean): void {
    this.log(`${on ? 'cut' : 'heal'} ${from}>${to}`);
    if (on) this.cuts.add(`${from}>${to}`);
    else this.cuts.delete(`${from}>${to}`);
    this.sim.cut(from, to, on);
  }

  /** The connection from `from` to `to` breaks; the sender finds out at once, stale packets may stay behind. */
  break(from: NodeId, to: NodeId, keepStale: boolean): void {
    this.log(`break ${from}>${to}`);
    this.sim.break(from, to, true, keepStale);
  }

  // ---- time

  /** One step, and whatever its promises lead to. */
  async step(): Promise<void> {
    if (this.misjudged !== null) throw this.misjudged;
    this.nowNs += stepNs;
    this.connectDue();
    const order = [...this.nodes.keys()];
    for (let i = order.length - 1; i > 0; i--) {
      const j = this.random.below(i + 1);
      [order[i], order[j]] = [order[j]!, order[i]!];
    }
    for (const index of order) this.run(this.nodes[index]!);
    this.deliver();
    if (this.nodes.some((node) => node.engine?.stateTransfer.active === true)) await nextTurn();
  }

  private run(node: SimNode): void {
    if (!node.alive || node.paused || node.engine === null) return;
    const localNs = this.localNs(node);
    this.sim.poll(node.id, localNs);
    if (this.random.chance(node.diskSpeed)) this.sim.stepWal(node.id);
    const events = this.sim.events(node.id);
    if (events.length > 0) node.engine.onPlaneEvents(events.map(convertEvent));
    if (localNs >= node.nextTickNs) {
      node.nextTickNs = localNs + tickMs * nsPerMs;
      node.engine.tick();
    }
    // A session that ended early ends what was flipped for it, before the guest does anything else.
    if (this.flipped.has(node.id) && node.engine.stateTransfer.verification.receiving === null)
      this.unflip(node);
    node.guest?.step();
    // While it boots, what the service says is of the guest before.
    const { ready, bootOp } = node.engine.guest.own;
    node.bootOp = ready ? bootOp : 0;
    assert(node.failure === null, `node ${node.id} failed: ${node.failure ?? ''}`);
  }

  private deliver(): void {
    const { sim, random } = this;
    for (const from of this.nodes) {
      for (const to of this.nodes) {
        if (from === to) continue;
        for (let n = 0; n < 8 && random.chance(this.deliveryChance); n++) {
          const bytes = random.chance(this.tearChance) ? 1 + random.below(200) : 0;
          if (!sim.deliver(from.id, to.id, bytes)) break;
        }
        if (random.chance(0.2)) sim.deliverStale(from.id, to.id);
      }
    }
  }
}

function linkKey(a: NodeId, b: NodeId): string {
  return a < b ? `${a}-${b}` : `${b}-${a}`;
}

/** The byte that was there. */
function exchangeByte(path: string, at: number, change: (was: number) => number): number {
  const file = openSync(path, 'r+');
  try {
    const byte = new Uint8Array(1);
    readSync(file, byte, 0, 1, at);
    const was = byte[0]!;
    writeSync(file, Uint8Array.of(change(was)), 0, 1, at);
    return was;
  } finally {
    closeSync(file);
  }
}
