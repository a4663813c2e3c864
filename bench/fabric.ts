/**
 * make bench-fabric: one-sided writes over each fabric, beside the plainest thing that moves the same bytes,
 * taken in turns in the same run: for `shm` a copy and a spin on shared memory, for `tcp` a socket, for `verbs`
 * perftest's ib_write_lat and ib_write_bw on the same devices (soft-RoCE in a machine of its own).
 *
 * Beside it append to commit of a log in memory over the same fabric (fabric-log.ts), as a ratio to one write:
 * a commit is one write there and one back. Two of its three members are up and both spin: on two processors
 * that is the majority that a commit waits for, and a third that spins would only take turns with them. `3 up`
 * has all three, which sleep when they have nothing to do; each of its commits pays for waking them. In `one
 * thread` a single thread polls all members in turn: what a commit costs where no scheduler has a say.
 *
 * For `verbs` the same twice more, since emulated processors are slow, and quick or slow for seconds at a time: by turns
 * with a plain write there and back in the same threads (write_bench turns), and in instructions (instructions.ts).
 *
 * Of REPEATS runs each the one with the least median counts: what else the machine does only adds (three times as
 * many for the latency of `verbs`, since emulated processors are slow for seconds at a time). The ratio of
 * the first commit is the median of as many pairs, a floor and a commit right behind it. FABRICS="shm tcp"
 * measures some; JSON=1 prints one JSON object on the last line.
 */
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { availableParallelism, loadavg } from 'node:os';
import { join } from 'node:path';

import { messageOf } from '../src/lib/errors.js';
import { repositoryRoot } from '../src/lib/root.js';

import { countInstructions, printInstructions, type Instructions } from './instructions.js';
import { logCases, logEntryBytes } from './log-cases.js';
import { median } from './statistics.js';

const sizes = [64, 1024, 4096];
const fabrics = ['shm', 'tcp', 'verbs'] as const;
type Fabric = (typeof fabrics)[number];

const repeats = Number(process.env['REPEATS'] ?? 3);
const devices = ['rxe1', 'rxe2', 'rxe3'] as const;
const bedLimitSeconds = 900;
const repeatsOf = (fabric: Fabric, mode: 'lat' | 'rate'): number =>
  fabric === 'verbs' && mode === 'lat' ? 3 * repeats : repeats;
/** Of round trips whose system calls are counted; twice as many are the second count. */
const traced = 200;

/** Of each kind in a run by turns. */
const turns = 3000;

/** A cluster that could not hold together in an emulated machine is told, not waited for. */
const logLimitSeconds = 150;

interface Latency {
  readonly p50Ns: number;
  readonly p99Ns: number;
}
interface Rate {
  readonly perSecond: number;
  readonly posted?: number;
  readonly signaled?: number;
  readonly inlined?: number;
  readonly probes?: number;
}
interface LogRow {
  readonly fabric: Fabric;
  readonly name: string;
  readonly depth: number;
  readonly commit:
    (Latency & { readonly perSecond: number | null; readonly writesPerEntry: number | null }) | null;
  /** To one write of `logEntryBytes` over the fabric, and to its floor. */
  readonly writes: number | null;
  readonly floors: number | null;
}
/** Half of a plain write there and back, and a commit, by turns in the same two threads. */
interface Turns {
  readonly writeP50Ns: number;
  readonly commitP50Ns: number;
  /** Median of the ratios of each commit to the half beside it. */
  readonly commitInWrites: number;
}
interface Measured {
  readonly rows: readonly Row[];
  readonly logs: readonly LogRow[];
  readonly turns: readonly Turns[];
}
interface Row {
  readonly fabric: Fabric;
  readonly bytes: number;
  readonly latency: Latency;
  readonly floor: Latency;
  readonly rate: Rate;
  readonly floorPerSecond: number;
  readonly sendCallsPerWrite: number;
}

const native = process.env['FALCON_NATIVE'] ?? join(repositoryRoot, 'build/native');
const program = join(native, 'fabric_bench');

const logProgram = join(repositoryRoot, 'dist/bench/fabric-log.js');

/** A shell line of one of perftest's programs against itself; its table's only row is printed. */
const perftest = (name: string, bytes: number, count: number): string =>
  `{ ${name} -d ${devices[1]} -x 1 -s ${bytes} -n ${count} >/dev/null 2>&1 & ` +
  // Until it listens, on port 18515.
  `for i in $(seq 250); do grep -q ':4853 .* 0A ' /proc/net/tcp /proc/net/tcp6 && break; sleep 0.02; done; ` +
  `${name} -d ${devices[0]} -x 1 -s ${bytes} -n ${count} 127.0.0.1 | grep -E '^ +[0-9]'; wait; }`;

/** Shell lines that measure; what each prints comes behind its label. */
function script(fabric: Fabric, where: string): string {
  const counts = { shm: [50_000, 200_000], tcp: [5000, 50_000], verbs: [300, 3000] } as const;
  const [rounds, writes] = counts[fabric];
  const lines: string[] = ['set -e'];
  const measure = (label: string, command: string): void => {
    lines.push(`text=$(${command})`, `echo "${label} $text"`);
  };
  const own = (mode: string, bytes: number, count: number): string =>
    `'${program}' ${fabric} ${mode} ${bytes} ${count} ${where}`;
  const floor = (mode: 'lat' | 'rate', bytes: number, count: number): string => {
    if (fabric !== 'verbs') return `'${program}' floor-${fabric} ${mode} ${bytes} ${count}`;
    return perftest(mode === 'lat' ? 'ib_write_lat' : 'ib_write_bw', bytes, count);
  };
  for (const bytes of sizes) {
    for (const mode of ['lat', 'rate'] as const) {
      for (let i = 0; i < repeatsOf(fabric, mode); i++) {
        const count = mode === 'lat' ? rounds : writes;
        measure(`floor-${mode} ${bytes}`, floor(mode, bytes, count));
        measure(`${mode} ${bytes}`, own(mode, bytes, count));
      }
    }
    for (const count of [traced, 2 * traced]) {
      const calls = `strace -f -qq -c -e trace=write,writev,sendto,sendmsg,ioctl -o "$trace" ${own('lat', bytes, count)}`;
      measure(`calls ${bytes}`, `${calls} >/dev/null; awk '$NF == "total" { print $4 }' "$trace"`);
    }
  }
  const log = (cases: readonly number[]): string =>
    `timeout ${logLimitSeconds} node '${logProgram}' ${fabric} ${cases.join(',')} ` +
    `${fabric === 'verbs' ? devices.join(',') : ''} || echo 'bench: the log ended with' $? >&2`;
  for (let i = 0; i < repeats; i++) {
    measure(`pair-floor ${logEntryBytes}`, floor('lat', logEntryBytes, rounds));
    lines.push(`text=$(${log([0])})`, `echo "\${text:-log-0 ${logEntryBytes} null}"`);
  }
  lines.push(log(logCases.map((_, index) => index).slice(1)));
  for (let i = 0; fabric === 'verbs' && i < repeats; i++) {
    const command = `'${native}/write_bench' turns ${logEntryBytes} ${turns} ${where} "$(mktemp -d)"`;
    lines.push(`text=$(${command} || echo null)`, `echo "turns ${logEntryBytes} $text"`);
  }
  return `trace=$(mktemp)\n${lines.join('\n')}\nrm -f "$trace"`;
}

function run(command: string, args: readonly string[], onLine: () => void): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    let stdout = '';
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
      stdout += chunk;
      onLine();
    });
    child.once('error', reject);
    child.once('close', (code, signal) => {
      if (code === 0) resolve(stdout);
      else reject(new Error(`${command} ended with ${code ?? signal ?? 'nothing'}`));
    });
  });
}

function parseLatency(text: string): Latency {
  if (text.startsWith('{')) return JSON.parse(text) as Latency;
  // bytes, iterations, least, most, typical, mean, deviation, 99 %, 99.9 %; in µs
  // Where its clock was disturbed perftest prints "inf".
  const columns = text
    .trim()
    .split(/\s+/)
    .map((each) => (Number.isNaN(Number(each)) ? Infinity : Number(each)));
  return { p50Ns: columns[4]! * 1000, p99Ns: columns[7]! * 1000 };
}

function parseRate(text: string): Rate {
  if (text.startsWith('{')) return JSON.parse(text) as Rate;
  // bytes, iterations, peak, mean, million messages per second
  return { perSecond: Number(text.trim().split(/\s+/)[4]) * 1e6 };
}

const least = <T extends Latency>(all: readonly T[]): T => all.reduce((a, b) => (b.p50Ns < a.p50Ns ? b : a));
const most = (all: readonly Rate[]): Rate => all.reduce((a, b) => (b.perSecond > a.perSecond ? b : a));

function results(fabric: Fabric, output: string): Measured {
  const found = new Map<string, string[]>();
  for (const line of output.trim().split('\n')) {
    const match = /^(\S+ \d+) (.*)$/.exec(line);
    if (match === null) throw new Error(`${fabric}: cannot read: ${line}`);
    found.set(match[1]!, [...(found.get(match[1]!) ?? []), match[2]!]);
  }
  const of = (label: string, bytes: number): string[] => {
    const texts = found.get(`${label} ${bytes}`);
    if (texts === undefined) throw new Error(`${fabric}: nothing for ${label} of ${bytes} bytes`);
    return texts;
  };
  const rows = sizes.map((bytes) => {
    const [once, twice] = of('calls', bytes).map(Number);
    return {
      fabric,
      bytes,
      latency: least(of('lat', bytes).map(parseLatency)),
      floor: least(of('floor-lat', bytes).map(parseLatency)),
      rate: most(of('rate', bytes).map(parseRate)),
      floorPerSecond: most(of('floor-rate', bytes).map(parseRate)).perSecond,
      // Both sides are counted, and both write in every round.
      sendCallsPerWrite: (twice! - once!) / (2 * traced),
    };
  });
  const one = rows.find(({ bytes }) => bytes === logEntryBytes);
  if (one === undefined) throw new Error(`no write of ${logEntryBytes} bytes is measured`);
  const beside = of('pair-floor', logEntryBytes).map(parseLatency);
  const logs = logCases.map(({ name, depth }, index) => {
    const texts = found.get(`log-${index} ${logEntryBytes}`) ?? ['null'];
    const commits = texts.map((text) => JSON.parse(text) as LogRow['commit']);
    const measured = commits.filter((each) => each !== null);
    const commit = measured.length === 0 ? null : least(measured);
    // Of many in flight each waits for those before it: that is no ratio to one write.
    const to = (write: Latency): number | null =>
      commit === null || depth > 1 ? null : commit.p50Ns / write.p50Ns;
    const pairs = commits
      .map((each, i) => (each === null ? 0 : each.p50Ns / (beside[i]?.p50Ns ?? Infinity)))
      .filter((ratio) => ratio > 0);
    return {
      fabric,
      name,
      depth,
      commit,
      writes: to(one.latency),
      floors: index === 0 && pairs.length > 0 ? median(pairs) : to(one.floor),
    };
  });
  const byTurns = (found.get(`turns ${logEntryBytes}`) ?? [])
    .map((text) => JSON.parse(text) as { p50Ns: number; commitP50Ns: number; commitInWrites: number } | null)
    .filter((run) => run !== null)
    .map(({ p50Ns, commitP50Ns, commitInWrites }) => ({ writeP50Ns: p50Ns, commitP50Ns, commitInWrites }));
  return { rows, logs, turns: byTurns };
}

async function measure(fabric: Fabric): Promise<Measured> {
  const runs = 2 * repeatsOf(fabric, 'lat') + 2 * repeatsOf(fabric, 'rate') + 2;
  const total = sizes.length * runs + 2 * repeats + logCases.length - 1 + (fabric === 'verbs' ? repeats : 0);
  let told = 0;
  const onLine = (): void => {
    process.stderr.write(`${fabric}: ${Math.min(++told, total)} of ${total}\n`);
  };
  if (fabric === 'verbs') {
    const bed = join(repositoryRoot, 'cluster/softroce/run');
    const limit = ['--limit', String(bedLimitSeconds), '--devices', String(devices.length)];
    return results(
      fabric,
      await run(bed, [...limit, '--', script(fabric, devices.slice(0, 2).join(','))], onLine),
    );
  }
  const directory = mkdtempSync('/dev/shm/falcon-bench-');
  try {
    return results(fabric, await run('bash', ['-c', script(fabric, directory)], onLine));
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

const us = (nanoseconds: number): string => (nanoseconds / 1000).toFixed(2).padStart(9);
const percent = (part: number, whole: number): string => `${((100 * part) / whole).toFixed(1)} %`.padStart(9);

function print(all: readonly Row[]): void {
  console.log('one-sided writes, one way                floor               ratio           writes/s');
  console.log(
    '              p50 (µs)      p99      p50      p99     p50   of fabric   of floor  signaled   inline  calls/write',
  );
  for (const { fabric, bytes, latency, floor, rate, floorPerSecond, sendCallsPerWrite } of all) {
    const share = (part: number | undefined): string =>
      rate.posted === undefined ? '-'.padStart(9) : percent(part ?? 0, rate.posted);
    console.log(
      `  ${fabric.padEnd(5)} ${String(bytes).padStart(4)} B${us(latency.p50Ns)}${us(latency.p99Ns)}${us(floor.p50Ns)}${us(floor.p99Ns)}` +
        `  ${(latency.p50Ns / floor.p50Ns).toFixed(2).padStart(6)}  ${rate.perSecond.toFixed(0).padStart(10)} ${floorPerSecond.toFixed(0).padStart(10)}` +
        ` ${share(rate.signaled)}${share(rate.inlined)}  ${sendCallsPerWrite.toFixed(2).padStart(11)}`,
    );
  }
}

function printLogs(all: readonly LogRow[]): void {
  console.log(`\nappend to commit, 3 members, in memory, ${logEntryBytes} B`);
  console.log(
    '                         in flight  p50 (µs)      p99  entries/s  writes/entry   p50 in writes  in floors',
  );
  for (const { fabric, name, depth, commit, writes, floors } of all) {
    const figure = (value: number | null, digits = 2): string => value?.toFixed(digits) ?? '-';
    const label = `  ${fabric.padEnd(5)} ${name.padEnd(16)} ${String(depth).padStart(9)} `;
    if (commit === null) console.log(`${label}  not measured: see above`);
    else
      console.log(
        `${label}${us(commit.p50Ns)}${us(commit.p99Ns)} ${figure(commit.perSecond, 0).padStart(10)}  ${figure(commit.writesPerEntry).padStart(12)}` +
          `   ${figure(writes).padStart(13)}  ${figure(floors).padStart(9)}`,
      );
  }
}

function printTurns(all: readonly Turns[]): void {
  if (all.length === 0) return;
  console.log(
    `\na commit (two up, spinning) by turns with a plain write there and back, verbs, ${logEntryBytes} B`,
  );
  console.log(
    '                              half a write p50 (µs)   commit p50   ratio of these, median of each two',
  );
  for (const { writeP50Ns, commitP50Ns, commitInWrites } of all) {
    const ratio = (commitP50Ns / writeP50Ns).toFixed(2).padStart(14);
    console.log(
      `  ${us(writeP50Ns).padStart(49)}    ${us(commitP50Ns)}${ratio}  ${commitInWrites.toFixed(2).padStart(17)}`,
    );
  }
}

async function main(): Promise<void> {
  const wanted = (process.env['FABRICS'] ?? fabrics.join(' ')).split(/\s+/);
  const unknown = wanted.filter((name) => !fabrics.some((fabric) => fabric === name));
  if (unknown.length > 0 || !(repeats >= 1)) {
    process.stderr.write('falcon: USAGE: wrong usage: FABRICS are of "shm tcp verbs", REPEATS is a number\n');
    process.exitCode = 2;
    return;
  }
  const all: Row[] = [];
  const logs: LogRow[] = [];
  const byTurns: Turns[] = [];
  let instructions: Instructions | null = null;
  for (const fabric of fabrics) {
    if (!wanted.includes(fabric)) continue;
    const measured = await measure(fabric);
    all.push(...measured.rows);
    logs.push(...measured.logs);
    byTurns.push(...measured.turns);
    if (fabric !== 'verbs') continue;
    try {
      instructions = countInstructions(sizes, devices);
    } catch (error) {
      process.stderr.write(`bench: no instructions: ${messageOf(error)}\n`);
    }
  }
  print(all);
  printLogs(logs);
  printTurns(byTurns);
  if (instructions !== null) printInstructions(instructions);
  const load = loadavg()[0] ?? 0;
  if (load > 2 * availableParallelism())
    console.log(`not to be believed: the machine was busy with something else (load ${load.toFixed(1)})`);
  if (process.env['JSON'] === '1')
    console.log(JSON.stringify({ rows: all, logs, turns: byTurns, instructions }));
}

await main();
