/**
 * make bench-transfer: what bringing a replica to a full copy costs, in bytes, in pause, and to a client.
 *
 *   heal     a backup that ran beside the primary is levelled: after 1, 10 and 60 s of SETs since the last session
 *   rejoin   a backup's host is killed and comes back without a guest
 *   clone    all replicas become copies of the first guest when the cluster starts (firstBoot: clone)
 *
 * Figures are the source's own records (falcon sync --json, status). A client asks one thing after the other over
 * one connection meanwhile, and notes its longest gap while the session ran. Beside it: its longest gap in the second
 * before anything was begun, which is what the machine does by itself; what sending every dirty page would take; and how
 * fast pages are digested and copied in the same run. JSON=1 prints one JSON object on the last line; ROUNDS= heals
 * per duration [3], SECONDS= durations of load ["1 10 60"], THINK= how many ms the client waits after each reply, so that
 * it does not keep the processors busy by itself [0].
 *
 * Real hosts do not share processors, so once there is a primary its host and the client have the first one to themselves,
 * and the backups' hosts the others. SHARED=1 leaves it to the scheduler who of them runs where. The client is a realtime
 * process where that is allowed: it is to see the guest's time, not its own.
 */
import { execFile, execFileSync, spawn, spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';

import { longest } from '../cluster/demo/divergence-report.js';
import { notedGapMs, sharedClockMs } from '../cluster/demo/key-client.js';
import type { RemoteClient } from '../cluster/demo/remote-client.js';
import { editConfig, limits, Stage } from '../cluster/demo/stage.js';
import { nodePaths } from '../src/api/cluster.js';
import { callDaemon } from '../src/api/client.js';
import type { ClusterPlace } from '../src/api/lifecycle.js';
import type { SyncRecord } from '../src/api/status.js';
import { answered, fetchAll } from '../src/cli/replicas.js';
import { bounds } from '../src/lib/bounds.js';
import { asFalconError, FalconError, formatError } from '../src/lib/errors.js';
import { repositoryRoot } from '../src/lib/root.js';

interface Row {
  readonly what: string;
  readonly loadS: number;
  readonly record: SyncRecord;
  /** All dirty pages, sent without looking. */
  readonly dirtyBytes: number;
  readonly client: Seen | null;
}

/** What a client saw, in milliseconds. */
interface Seen {
  /** The longest gap that touches the session. */
  readonly gap: number;
  /** The longest gap in the second before anything was begun, and the usual time for a reply in it. */
  readonly quiet: number;
  readonly reply: number;
}

interface Watched {
  readonly record: SyncRecord | undefined;
  readonly seen: Seen;
}

interface Digests {
  readonly copyGBs: number;
  readonly digestGBs: number;
  readonly workersGBs: number;
}

const second = 1000;
/** Whole numbers from the environment. Errors: USAGE. */
function numbers(name: string, otherwise: string, least = 1): number[] {
  const text = process.env[name] ?? otherwise;
  const found = text
    .trim()
    .split(/[\s,]+/)
    .map(Number);
  if (found.every((one) => Number.isInteger(one) && one >= least)) return found;
  throw new FalconError('USAGE', `${name} is made of whole numbers from ${least} on, not "${text}"`);
}

const loadClients = 4;
/** Between a load and a session, so that both guests have taken all of it. */
const settleMs = 500;
const probeMs = 1000;
/** A client that begins or ends to ask has gaps of its own. */
const settledMs = 50;
const cloneWaitMs = 120_000;
const limitMs = 40 * 60 * second;

const tenth = (value: number): number => Math.round(value * 10) / 10;

class TransferBench {
  private readonly stage = new Stage({ name: 'bench-transfer', limitMs, logs: process.env['LOGS'] ?? null });
  private readonly rows: Row[] = [];
  /** Whose host has a processor to itself. */
  private settled = '';
  /** Heals per duration of load, and the durations in seconds. */
  private readonly rounds = numbers('ROUNDS', '3')[0] ?? 3;
  private readonly durations = numbers('SECONDS', '1 10 60');
  private readonly thinkMs = numbers('THINK', '0', 0)[0] ?? 0;
  private readonly processors = processors();
  private readonly apart = this.processors.length > 1 && process.env['SHARED'] !== '1';

  async run(): Promise<Row[]> {
    const { stage } = this;
    const clone = (directory: string): void => editConfig(directory, { firstBoot: 'clone' });
    const place = await stage.start(['--nodes', '3', '--name', 'bench'], clone);
    await this.clones(place);
    for (const loadS of this.durations) {
      for (let i = 0; i < this.rounds; i++) await this.heal(place, loadS);
    }
    for (let i = 0; i < this.rounds; i++) await this.rejoin(place);
    return this.rows;
  }

  async end(failed: boolean): Promise<void> {
    await this.stage.end(failed);
  }

  /** The sessions of the start. */
  private async clones(place: ClusterPlace): Promise<void> {
    const end = sharedClockMs() + cloneWaitMs;
    for (;;) {
      const { node } = await this.stage.primary(place, 0);
      const made = (await this.records(place, node)).filter(({ ok, reason }) => ok && reason === 'fill');
      if (made.length < 2 && sharedClockMs() < end) {
        await this.stage.pause(200, 'cloning');
        continue;
      }
      for (const record of made) this.note('clone', 0, record, null);
      return;
    }
  }

  /** The primary, and who is made its copy. A machine that stands still for longer than an election has another one. */
  private async roles(place: ClusterPlace): Promise<{ primary: string; target: string }> {
    const { node: primary } = await this.stage.primary(place, 0);
    if (this.apart && primary !== this.settled) await this.keepApart(place, primary);
    this.settled = primary;
    return { primary, target: place.config.nodes.find(({ name }) => name !== primary)?.name ?? '' };
  }

  /** A host that is started by this process later on runs where this process does. */
  private async keepApart(place: ClusterPlace, primary: string): Promise<void> {
    const [first = 0, ...others] = this.processors;
    for (const { node, pid, guest } of answered(await fetchAll(place))) {
      for (const one of [pid, guest.pid]) this.runOn(one, node === primary ? [first] : others);
    }
    this.runOn(process.pid, others);
    this.stage.say(`${primary} runs on processor ${first}, the others on ${others.join(', ')}`);
  }

  /** All threads of a process, and those that they will start. */
  private runOn(pid: number | null, on: readonly number[]): void {
    if (pid !== null)
      this.adjust('taskset', ['--all-tasks', '--cpu-list', '--pid', on.join(','), String(pid)]);
  }

  /** What cannot be had leaves figures that are less quiet, and is said. */
  private adjust(program: string, args: readonly string[]): void {
    const { error, status, stderr } = spawnSync(program, args, { encoding: 'utf8' });
    if (status !== 0) this.stage.say(`${program}: ${error?.message ?? stderr.trim()}`);
  }

  private async heal(place: ClusterPlace, loadS: number): Promise<void> {
    await this.roles(place);
    await this.load(place, loadS);
    const { primary, target } = await this.roles(place);
    const { adminSocket } = nodePaths(place.directory, primary);
    const request = async (): Promise<SyncRecord> =>
      (await callDaemon(
        adminSocket,
        'sync',
        { node: target },
        { timeoutMs: bounds.adminSyncMs },
      )) as SyncRecord;
    const { record, seen } = await this.watched(place, request);
    if (record !== undefined) this.note('heal', loadS, record, seen);
  }

  private async rejoin(place: ClusterPlace): Promise<void> {
    const { stage } = this;
    const { primary, target } = await this.roles(place);
    const victim = answered(await fetchAll(place)).find(({ node }) => node === target);
    if (victim !== undefined) stage.kill(victim);
    await this.load(place, 1);
    const { record, seen } = await this.watched(place, async () => {
      await stage.bringBack(target);
      return (await this.records(place, primary)).findLast((one) => one.ok && one.target === target);
    });
    if (record !== undefined) this.note('rejoin', 1, record, seen);
  }

  private async records(place: ClusterPlace, node: string): Promise<readonly SyncRecord[]> {
    return answered(await fetchAll(place)).find((one) => one.node === node)?.sync.last ?? [];
  }

  /** Does something while a client asks one thing after the other. It is a new one each time: one remembers few gaps. */
  private async watched(place: ClusterPlace, work: () => Promise<SyncRecord | undefined>): Promise<Watched> {
    const client = await this.stage.connect(place, 1, 1, this.thinkMs);
    try {
      this.placeClient(client.pid);
      return await this.watch(client, work);
    } finally {
      client.stop();
    }
  }

  /** Only the thread that asks: those that compile for it would take the processor from the guest for 10 ms at a time. */
  private placeClient(pid: number | null): void {
    if (pid === null) return;
    const [first = 0, ...others] = this.processors;
    if (this.apart) {
      this.runOn(pid, others);
      this.adjust('taskset', ['--cpu-list', '--pid', String(first), String(pid)]);
    }
    this.adjust('chrt', ['--rr', '--reset-on-fork', '--pid', '1', String(pid)]);
  }

  private async watch(client: RemoteClient, work: () => Promise<SyncRecord | undefined>): Promise<Watched> {
    const { stage } = this;
    const before = await stage.ask(client, 'write', limits.clientMs);
    await stage.pause(probeMs, 'probing');
    const probed = await stage.ask(client, 'tally', limits.clientMs);
    const askedMs = sharedClockMs();
    const record = await work();
    await stage.pause(settleMs, 'settling');
    const tally = await stage.ask(client, 'rest', limits.clientMs);
    if (!tally.alive || tally.wrong > 0) throw new Error(tally.trouble.join('; '));
    const startMs = record === undefined ? askedMs : onSharedClock(record.at);
    const endMs = startMs + (record?.durationMs ?? 0);
    const seen = {
      gap: longest(tally.gaps, startMs, endMs),
      // Both ends within: what touches the beginning is the client's own.
      quiet: longest(probed.gaps, askedMs - probeMs + settledMs, askedMs - settledMs),
      reply: Math.max(0, probeMs / Math.max(1, probed.acked - before.acked) - this.thinkMs),
    };
    return { record, seen };
  }

  /** redis-benchmark for about so long. */
  private async load(place: ClusterPlace, forS: number): Promise<void> {
    const { vm, cluster } = place.config;
    const netns = `falcon-${cluster.slice(-8)}-client`;
    const program = ['redis-benchmark', '-h', vm.address, '-t', 'set', '-d', '64', '-r', '100000', '-q'];
    const args = ['netns', 'exec', netns, ...program, '-c', String(loadClients), '-l'];
    const child = spawn('ip', args, { stdio: 'ignore' });
    const ended = new Promise<void>((resolve) => child.once('close', () => resolve()));
    try {
      await this.stage.pause(forS * second, `${forS} s of load`);
    } finally {
      child.kill('SIGKILL');
    }
    await ended;
    await this.stage.pause(settleMs, 'settling');
  }

  private note(what: string, loadS: number, record: SyncRecord, client: Seen | null): void {
    const dirtyBytes = record.pages * bounds.guestPageBytes;
    this.rows.push({ what, loadS, record, dirtyBytes, client });
    this.stage.say(
      `${what}, ${loadS} s of load: ${record.pages} pages, ${record.sent} sent, pause ${tenth(record.pauseMs)} ms` +
        (client === null
          ? ''
          : `, the client's longest gap ${tenth(client.gap)} ms (${tenth(client.quiet)} before)`),
    );
  }
}

/** Those that this process may run on. */
function processors(): number[] {
  const list = /^Cpus_allowed_list:\s*(\S+)/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '';
  return list.split(',').flatMap((range) => {
    const [first = 0, last = first] = range.split('-').map(Number);
    return Array.from({ length: last - first + 1 }, (_, i) => first + i);
  });
}

/** How fast pages are digested, and copied, in this run. */
async function digests(): Promise<Digests> {
  const addon = execFileSync(join(repositoryRoot, 'cluster/build/addon'), { encoding: 'utf8' }).trim();
  const { stdout } = await promisify(execFile)(join(addon, 'digest_bench'));
  return JSON.parse(stdout) as Digests;
}

function table(rows: readonly Row[]): string[] {
  const head = [
    ...['what', 'load s', 'rounds', 'pages', 'equal', 'found', 'sent', 'parts', 'KiB', 'of dirty'],
    ...[
      'digest',
      'wait',
      'refine',
      'move',
      'all',
      'pause',
      'stop',
      'collect',
      'round',
      'save',
      'send',
      'resume',
    ],
    ...['gap', 'before', 'reply', 'beyond ms'],
  ];
  const lines = rows.map(({ what, loadS, record: r, dirtyBytes, client }) => [
    ...[what + (r.based ? '' : '*'), loadS, r.rounds, r.pages, percent(r.equal, r.pages)],
    ...[r.found, r.sent, r.partial],
    ...[Math.round(moved(r) / 1024), percent(moved(r), dirtyBytes)],
    ...[
      r.digestMs,
      r.waitMs,
      r.refineMs,
      r.moveMs,
      r.durationMs,
      r.pauseMs,
      ...Object.values(r.pauseParts),
    ].map(tenth),
    ...(client === null
      ? ['-', '-', '-', '-']
      : [client.gap, client.quiet, client.reply, beyond(client, r)].map(tenth)),
  ]);
  const cells = [head, ...lines].map((row) => row.map(String));
  const widths = head.map((_, i) => Math.max(...cells.map((row) => (row[i] ?? '').length)));
  return [
    ...cells.map((row) => row.map((cell, i) => cell.padStart(widths[i] ?? 0)).join('  ')),
    '* without a common point: all pages that are not empty are looked at',
  ];
}

/** All that crossed the network, but for the state of devices. */
function moved(record: SyncRecord): number {
  return record.bytes + record.overheadBytes;
}

/** How much longer the client waited than the pause and one round trip. */
function beyond({ gap, reply }: Seen, record: SyncRecord): number {
  return Math.max(0, gap - record.pauseMs - reply);
}

/**
 * In how many sessions no reply waited longer than for the pause and the slowest reply of the second before (5 ms at
 * least: faster ones are not remembered).
 */
function unnoticed(rows: readonly Row[]): string[] {
  return [...new Set(rows.map(({ what }) => what))].flatMap((kind) => {
    const seen = rows.flatMap(({ what, record, client }) =>
      what === kind && client !== null
        ? [client.gap - record.pauseMs - Math.max(client.quiet, notedGapMs)]
        : [],
    );
    if (seen.length === 0) return [];
    const within = seen.filter((ms) => ms <= 0).length;
    const others = within < seen.length ? `, the others for up to ${tenth(Math.max(...seen))} ms more` : '';
    return [
      `${within} of ${seen.length} ${kind}s: no reply waited for more than the pause and the slowest reply before${others}`,
    ];
  });
}

/** A time that a daemon of this machine told, on the clock of the client's gaps; to a millisecond or two. */
function onSharedClock(at: string): number {
  return sharedClockMs() - (Date.now() - Date.parse(at));
}

function percent(part: number, whole: number): string {
  return whole === 0 ? '-' : `${Math.round((100 * part) / whole)} %`;
}

async function main(): Promise<void> {
  const rate = await digests();
  const bench = new TransferBench();
  let rows: Row[] | null = null;
  try {
    rows = await bench.run();
  } finally {
    await bench.end(rows === null);
  }
  const lines = [...table(rows), ...unnoticed(rows)];
  lines.push(
    `digests ${rate.digestGBs.toFixed(1)} GB/s, by a worker ${rate.workersGBs.toFixed(1)} GB/s; a copy of the same pages ${rate.copyGBs.toFixed(1)} GB/s`,
  );
  process.stdout.write(`${lines.join('\n')}\n`);
  if (process.env['JSON'] === '1') process.stdout.write(`${JSON.stringify({ rows, digests: rate })}\n`);
}

try {
  await main();
} catch (error) {
  process.stderr.write(`${formatError(error, 'bench-transfer')}\n`);
  process.exitCode = asFalconError(error).exit;
}
