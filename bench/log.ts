/**
 * make bench-log: append to commit over `shm` with 3 members, one of them down (two processors), beside floors
 * taken in the same run. Each member is a real data plane with its own reactor and WAL thread; the load runs
 * inside the primary's reactor, so that the log is measured and not the caller.
 *
 * JSON=1 prints one JSON object on the last line.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';

import { convertEvent, NativePlane } from '../src/adapters/native-plane.js';
import { loadNative, uncomparedOutput } from '../src/adapters/native.js';
import type { NativeLoad, NativeReplica } from '../src/adapters/native.js';
import { transferOptions } from '../src/transfer/defaults.js';
import { ReplicaEngine } from '../src/engine/replica.js';
import { bounds } from '../src/lib/bounds.js';
import { Random } from '../src/lib/random.js';
import { repositoryRoot } from '../src/lib/root.js';
import { sleep } from '../src/lib/time.js';

interface Case {
  readonly durability: 'memory' | 'disk';
  readonly busy: boolean;
  readonly entryBytes: number;
  readonly depth: number;
  readonly entries: number;
}

/** Thrown from a callback it would be lost. */
function broken(why: string): void {
  process.stderr.write(`bench-log: ${why}\n`);
  process.exit(1);
}

interface Member {
  readonly native: NativeReplica;
  readonly engine: ReplicaEngine;
}

const members = 3;
const live = 2;
const ns = 1e6;

function startMember(index: number, directory: string, shm: string, c: Case): Member {
  const { Replica, monotonicNs } = loadNative();
  const walDirectory = join(directory, `wal-${index}`);
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
    segmentBytes: 64 << 20,
    retainBytes: 256 << 20,
    fabric: 'shm',
    fabricAddress: '',
    verbs: null,
    shmDirectory: shm,
    shmName: `m${index}`,
    vm: false,
    builtin: false,
    vmSocket: '',
    tap: '',
    busy: c.busy,
    spinNs: 20_000,
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
        retryMs: 20,
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
      mailSilenceMs: 5000,
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

async function measure(c: Case, directory: string, shm: string): Promise<NativeLoad> {
  const started = Array.from({ length: live }, (_unused, index) => startMember(index, directory, shm, c));
  const timer = setInterval(() => started.forEach(({ engine }) => engine.tick()), 5);
  try {
    const connection = Uint8Array.from([1, 2, 3, 4, 5, 6, 7, 8]);
    const [a, b] = [started[0]!, started[1]!];
    a.engine.onPeerUp(1, connection, b.native.descriptor());
    b.engine.onPeerUp(0, connection, a.native.descriptor());
    const plane = new NativePlane(a.native);
    const commits = (): boolean => {
      const { role, commitOp } = plane.progress();
      return role === 'leading' && commitOp > 0;
    };
    for (let i = 0; i < 2000 && !commits(); i++) await sleep(5);
    if (!commits()) throw new Error('no primary');
    a.native.startLoad({
      entryBytes: c.entryBytes,
      depth: c.depth,
      entries: c.entries,
      warmUp: Math.ceil(c.entries / 10),
    });
    await sleep(20);
    for (let i = 0; i < 6000 && !a.native.load().done; i++) await sleep(10);
    const load = a.native.load();
    if (!load.done || load.leadershipLost) throw new Error('the load did not end');
    return load;
  } finally {
    clearInterval(timer);
    for (const { engine, native } of started) {
      engine.stop();
      native.close();
    }
    rmSync(directory, { recursive: true, force: true });
    mkdirSync(directory);
  }
}

const us = (nanoseconds: number): string => (nanoseconds / 1000).toFixed(nanoseconds < 10_000 ? 2 : 1);

async function main(): Promise<void> {
  const directory = mkdtempSync(join(process.env['BENCH_DIR'] ?? '/var/tmp', 'falcon-bench-'));
  const shm = mkdtempSync('/dev/shm/falcon-bench-');
  const results: (Case & NativeLoad & { perSecond: number })[] = [];
  try {
    process.stderr.write('floors...\n');
    const program = join(
      process.env['FALCON_NATIVE'] ?? join(repositoryRoot, 'build/native'),
      'floors_bench',
    );
    const floors = JSON.parse(execFileSync(program, [directory], { encoding: 'utf8' })) as Record<
      'spin' | 'wake' | 'force',
      { p50Ns: number; p99Ns: number }
    >;
    console.log('floors, there and back (µs)      p50      p99');
    console.log(
      `  spinning, two processes   ${us(floors.spin.p50Ns).padStart(8)} ${us(floors.spin.p99Ns).padStart(8)}`,
    );
    console.log(
      `  wake-up, two processes    ${us(floors.wake.p50Ns).padStart(8)} ${us(floors.wake.p99Ns).padStart(8)}`,
    );
    console.log(
      `  lone 512 B fdatasync      ${us(floors.force.p50Ns).padStart(8)} ${us(floors.force.p99Ns).padStart(8)}`,
    );
    console.log(
      '\nappend to commit, 3 members, 1 down         depth      p50      p99 (µs)  entries/s  p50/floor',
    );
    for (const durability of ['memory', 'disk'] as const) {
      for (const busy of [true, false]) {
        for (const entryBytes of [64, 1024]) {
          for (const depth of [1, 256]) {
            const slow = durability === 'disk' || !busy;
            const entries = slow ? (depth === 1 ? 4000 : 40_000) : depth === 1 ? 200_000 : 1_000_000;
            const c: Case = { durability, busy, entryBytes, depth, entries };
            const load = await measure(c, directory, shm);
            const perSecond = Math.round((load.entries / load.elapsedNs) * 1e9);
            results.push({ ...c, ...load, perSecond });
            const floor =
              durability === 'disk' ? floors.force.p50Ns : busy ? floors.spin.p50Ns : floors.wake.p50Ns;
            const name = `${durability.padEnd(6)} ${busy ? 'busy    ' : 'adaptive'} ${String(entryBytes).padStart(4)} B`;
            console.log(
              `  ${name.padEnd(40)} ${String(depth).padStart(6)} ${us(load.p50Ns).padStart(8)} ${us(load.p99Ns).padStart(8)}    ` +
                `${String(perSecond).padStart(10)}  ${depth === 1 ? (load.p50Ns / floor).toFixed(1).padStart(8) : '       -'}`,
            );
          }
        }
      }
    }
    if (process.env['JSON'] === '1') console.log(JSON.stringify({ floors, results }));
  } finally {
    rmSync(directory, { recursive: true, force: true });
    rmSync(shm, { recursive: true, force: true });
  }
}

await main();
