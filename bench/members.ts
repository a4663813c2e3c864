/**
 * A cluster of three members in one process, under a load that the primary makes in its own reactor: each is a
 * real data plane with its own reactor and log writer. What bench-log and bench-fabric measure.
 */
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';

import { convertEvent, NativePlane } from '../src/adapters/native-plane.js';
import { loadNative, uncomparedOutput } from '../src/adapters/native.js';
import type { NativeCounters, NativeLoad, NativeReplica } from '../src/adapters/native.js';
import { defaultRdma, defaultVerbs } from '../src/api/config.js';
import type { fabrics } from '../src/api/config.js';
import { transferOptions } from '../src/transfer/defaults.js';
import { ReplicaEngine } from '../src/engine/replica.js';
import { bounds } from '../src/lib/bounds.js';
import { Random } from '../src/lib/random.js';
import { sleep } from '../src/lib/time.js';

export type FabricName = (typeof fabrics)[number];

/** How a member's reactor waits: it never sleeps, or sleeps after so many nanoseconds. */
export type Poll = 'busy' | number;

export interface LoadCase {
  readonly durability: 'memory' | 'disk';
  /** Of the members that are up, the primary first; of three the others are down. */
  readonly polls: readonly Poll[];
  readonly entryBytes: number;
  readonly depth: number;
  readonly entries: number;
  /** The load is repeated so often, and the round counts that was disturbed least. */
  readonly rounds?: number;
}

export interface Place {
  readonly fabric: FabricName;
  /** verbs: the RDMA device of each member. */
  readonly devices: readonly string[];
  /** Of the logs; emptied after each case. */
  readonly directory: string;
  readonly segmentBytes: number;
  /** shm: of the regions. */
  readonly shm: string;
}

export interface Measured extends NativeLoad {
  readonly perSecond: number;
  /** Of the primary, from the start of the load to its end. */
  readonly counted: { readonly before: NativeCounters; readonly after: NativeCounters };
}

interface Member {
  readonly native: NativeReplica;
  readonly engine: ReplicaEngine;
}

const members = 3;
/** Far below what follows from it, and seldom: under emulation a tick of all members takes milliseconds. */
const tickMs = 20;
const ns = 1e6;
/** 4 s: an emulated machine on a busy host stands still for longer than the default allows, and that says nothing of speed. */
const verbsTimeout = 18;

function startMember(index: number, place: Place, c: LoadCase, broken: (why: string) => void): Member {
  const poll = c.polls[index] ?? 'busy';
  const { Replica, monotonicNs } = loadNative();
  const walDirectory = join(place.directory, `wal-${index}`);
  mkdirSync(walDirectory, { recursive: true });
  const native = new Replica({
    self: index,
    promisedView: 0,
    members,
    force: c.durability === 'disk',
    logBytes: 64 << 20,
    logEntries: bounds.logEntriesMax,
    ringBytes: 8 << 20,
    inflightEntries: bounds.inflightEntriesMax,
    heartbeatNs: 20 * ns,
    leaseNs: 400 * ns,
    deciderStallNs: 5000 * ns,
    keepUnproposed: false,
    hashSeed: 1,
    ...uncomparedOutput,
    vmMac: new Uint8Array(),
    vmAddress: new Uint8Array(),
    cluster: 'bench',
    walDirectory,
    walSalt: 0,
    segmentBytes: place.segmentBytes,
    retainBytes: 4 * place.segmentBytes,
    fabric: place.fabric,
    fabricAddress: '127.0.0.1',
    verbs:
      place.fabric === 'verbs'
        ? {
            ...defaultVerbs,
            timeout: verbsTimeout,
            device: place.devices[index] ?? '',
            port: defaultRdma.port,
            gidIndex: -1,
          }
        : null,
    shmDirectory: place.shm,
    shmName: `m${index}`,
    vm: false,
    builtin: false,
    vmSocket: '',
    tap: '',
    busy: poll === 'busy',
    spinNs: poll === 'busy' ? 0 : poll,
    realtime: false,
  });
  const random = new Random(index + 1);
  const engine = new ReplicaEngine(
    {
      core: {
        self: index,
        members: [0, 1, 2],
        witnesses: [],
        // Only the first stands: the others would wait for minutes.
        electionTimeoutMinMs: index === 0 ? 500 : 60_000,
        electionTimeoutMaxMs: index === 0 ? 600 : 90_000,
        leaseMs: 400,
        driftMarginMs: 10,
        retryMs: 200,
        random: () => random.float(),
      },
      hardState: { view: 0, votedFor: null, recovering: false },
      tail: { last: { view: 0, op: 0 }, commitOp: 0, table: [] },
      transfer: {
        core: transferOptions(index),
        machine: 'none',
        files: { inbox: '', dirty: '', state: '' },
        key: () => new Uint8Array(32),
        recordsMax: 1,
      },
      boot: { mode: 'each', fillWaitMs: 0, firstBootWaitMs: 1e9, rebootWaitMs: 1e9, quorumReadyWaitMs: 0 },
      canRunGuest: false,
      reportIntervalMs: 1000,
      mailSilenceMs: 60_000,
      outputs: { waitMs: 1000, primaryDiverged: 'heal-backups' },
    },
    {
      plane: new NativePlane(native),
      store: { write: () => undefined },
      guest: null,
      clock: { now: () => monotonicNs() / ns },
      reconnect: (_peer, why) => broken(`a connection broke: ${why}`),
      fail: broken,
      log: (level, text, fields) => {
        if (level === 'warn' || level === 'error')
          process.stderr.write(`member ${index}: ${text} ${JSON.stringify(fields ?? {})}\n`);
      },
    },
  );
  native.start((events) => engine.onPlaneEvents(events.map(convertEvent)));
  return { native, engine };
}

/** Every two of them get each other's address, as the bootstrap would give it. */
function connect(started: readonly Member[]): void {
  started.forEach((one, a) => {
    started.forEach((other, b) => {
      if (a === b) return;
      const connection = Uint8Array.from([1, 2, 3, 4, 5, 6, Math.min(a, b), Math.max(a, b)]);
      one.engine.onPeerUp(b, connection, other.native.descriptor());
    });
  });
}

async function until(limitMs: number, done: () => boolean, what: string, everyMs = 5): Promise<void> {
  for (const end = performance.now() + limitMs; !done(); await sleep(everyMs))
    if (performance.now() > end) throw new Error(what);
}

async function roundsOf(c: LoadCase, started: readonly Member[]): Promise<Measured> {
  connect(started);
  const primary = started[0]!.native;
  const plane = new NativePlane(primary);
  const commits = (): boolean => {
    const { role, commitOp } = plane.progress();
    return role === 'leading' && commitOp > 0;
  };
  await until(30_000, commits, 'no primary');
  // Every backup is fed, so that none is brought up to date under the load.
  const fed = started.map(({ native }) => new NativePlane(native));
  await until(30_000, () => fed.every((each) => each.progress().commitOp > 0), 'a backup is not fed');
  const rounds: Measured[] = [];
  for (let number = 1; number <= (c.rounds ?? 1); number++) rounds.push(await load(primary, c, number));
  return rounds.reduce((a, b) => ((c.depth === 1 ? b.p50Ns < a.p50Ns : b.perSecond > a.perSecond) ? b : a));
}

async function load(primary: NativeReplica, c: LoadCase, number: number): Promise<Measured> {
  const before = primary.counters();
  const { entryBytes, depth, entries } = c;
  primary.startLoad({ number, entryBytes, depth, entries, warmUp: Math.ceil(entries / 10) });
  const done = (): boolean => primary.load().number === number && primary.load().done;
  await until(60_000, done, 'the load did not end', 50);
  const result = primary.load();
  if (result.leadershipLost) throw new Error('leadership was lost under the load');
  const perSecond = Math.round((result.entries / result.elapsedNs) * 1e9);
  return { ...result, perSecond, counted: { before, after: primary.counters() } };
}

export async function measure(c: LoadCase, place: Place): Promise<Measured> {
  // What a callback throws would be lost.
  let broken: (why: string) => void = () => undefined;
  const trouble = new Promise<never>((_resolve, reject) => (broken = (why) => reject(new Error(why))));
  const started = c.polls.map((_poll, index) => startMember(index, place, c, (why) => broken(why)));
  const timer = setInterval(() => started.forEach(({ engine }) => engine.tick()), tickMs);
  try {
    return await Promise.race([trouble, roundsOf(c, started)]);
  } finally {
    clearInterval(timer);
    for (const { engine, native } of started) {
      engine.stop();
      native.close();
    }
    rmSync(place.directory, { recursive: true, force: true });
    mkdirSync(place.directory);
  }
}
