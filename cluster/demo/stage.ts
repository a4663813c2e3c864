/**
 * What every demonstration stands on: a cluster in a directory of its own, the operator's commands, a client, and a
 * clock that ends it. Whatever happens, ctrl-C included, end() takes the cluster down and removes its directory.
 */
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';

import { loadConfig, nodePaths } from '../../src/api/cluster.js';
import { lastLogLine } from '../../src/api/lifecycle.js';
import type { ClusterPlace } from '../../src/api/lifecycle.js';
import type { ReplicaStatus } from '../../src/api/status.js';
import { fetchAll, primaryOf } from '../../src/cli/replicas.js';
import { asFalconError, FalconError, formatError, messageOf } from '../../src/lib/errors.js';
import { Interrupt } from '../../src/lib/interrupt.js';
import { signal } from '../../src/lib/processes.js';
import { repositoryRoot } from '../../src/lib/root.js';
import { monotonicMs } from '../../src/lib/time.js';
import type { Tally } from './key-client.js';
import { RemoteClient } from './remote-client.js';
import type { ClientWord } from './remote-client.js';

const second = 1000;
export const limits = {
  startMs: 240 * second,
  takeoverMs: 30 * second,
  reviveMs: 120 * second,
  stopMs: 60 * second,
  verifyMs: 120 * second,
  /** For a reply of the client's process; its own silence bound is shorter. */
  clientMs: 40 * second,
  statusEveryMs: 100,
  progressMs: 2 * second,
} as const;

export interface StageOptions {
  /** What its lines begin with. */
  readonly name: string;
  /** How long all may take. */
  readonly limitMs: number;
  /** Where the logs of daemons and guests are left; null: nowhere. */
  readonly logs: string | null;
}

export class Stage {
  readonly interrupt = new Interrupt();
  private readonly options: StageOptions;
  private readonly directory: string;
  private readonly cluster: string;
  private readonly deadline: number;
  private running: ChildProcess | null = null;
  private made = false;

  constructor(options: StageOptions) {
    this.options = options;
    this.directory = realpathSync(mkdtempSync(join(tmpdir(), 'falcon-demo-')));
    this.cluster = join(this.directory, 'c');
    this.deadline = monotonicMs() + options.limitMs;
  }

  say(line: string): void {
    process.stderr.write(`${this.options.name}: ${line}\n`);
  }

  /** Takes everything away again; says what it could not. */
  async end(failed: boolean): Promise<void> {
    this.running?.kill('SIGTERM');
    if (this.made) {
      if (failed && this.interrupt.signal === null) this.tellLogs();
      const status = await this.falcon(['down', this.cluster], limits.stopMs).catch(messageOf);
      if (status !== 0) this.say(`falcon down: ${status}`);
      if (this.options.logs !== null) this.keepLogs(this.options.logs);
    }
    rmSync(this.directory, { recursive: true, force: true });
    this.interrupt.dispose();
  }

  /** `falcon init` with `args`, and `falcon up`; `prepare` may edit the configuration between them. */
  async start(args: readonly string[], prepare?: (directory: string) => void): Promise<ClusterPlace> {
    await this.checked(['init', this.cluster, ...args, ...guestArguments()]);
    this.made = true;
    prepare?.(this.cluster);
    this.say('starting the cluster');
    const started = monotonicMs();
    await this.checked(['up', this.cluster]);
    this.say(`the cluster serves after ${seconds(monotonicMs() - started)} s`);
    return { directory: this.cluster, config: loadConfig(this.cluster) };
  }

  connect(place: ClusterPlace, seed: number, depth: number, thinkMs = 0): Promise<RemoteClient> {
    const { vm, cluster } = place.config;
    if (vm.kind !== 'qemu') throw new FalconError('INTERNAL', 'a guest is needed');
    const netns = `falcon-${cluster.slice(-8)}-client`;
    return RemoteClient.start({ netns, host: vm.address, port: vm.port, seed, depth, thinkMs });
  }

  /** Both at once, as a host dies: neither may tell the other, or the network, anything. */
  kill(replica: ReplicaStatus): void {
    signal(replica.pid, 'SIGKILL');
    if (replica.guest.pid !== null) signal(replica.guest.pid, 'SIGKILL');
    this.say(`killed ${replica.node}, ${replica.role} of view ${replica.view}`);
  }

  /** The host is repaired: it is made a full copy while the client writes on. */
  async bringBack(node: string): Promise<void> {
    const started = monotonicMs();
    await this.checked(['up', this.cluster, '--node', node]);
    this.say(`${node} is a full copy again after ${seconds(monotonicMs() - started)} s`);
  }

  /** A word to the client, unless a signal comes first. Errors: INTERRUPTED. */
  ask(client: RemoteClient, word: ClientWord, timeoutMs: number): Promise<Tally> {
    const answer = client.say(word, timeoutMs);
    const stopped = this.interrupt.pause(timeoutMs).then(() => {
      this.interrupt.check();
      return answer;
    });
    return Promise.race([answer, stopped]);
  }

  /** The primary of a view above `view` whose gate is open. Errors: START_FAILED, INTERRUPTED. */
  async primary(place: ClusterPlace, view: number): Promise<ReplicaStatus> {
    const end = monotonicMs() + limits.takeoverMs;
    while (monotonicMs() < end) {
      const primary = primaryOf(await fetchAll(place));
      const serves = primary?.gate === 'open' && primary.admitted;
      if (serves && primary.view > view) return primary;
      await this.pause(limits.statusEveryMs, 'waiting for a primary');
    }
    throw new FalconError(
      'START_FAILED',
      `no primary above view ${view} after ${limits.takeoverMs / second} s`,
    );
  }

  /** Errors: INTERRUPTED, START_FAILED when the demo's time is up. */
  async pause(milliseconds: number, what: string): Promise<void> {
    const end = monotonicMs() + milliseconds;
    for (;;) {
      this.interrupt.check();
      const now = monotonicMs();
      if (now >= this.deadline) throw new FalconError('START_FAILED', 'the time is up');
      if (now >= end) return;
      if (end - now > limits.progressMs) this.say(`${what}, ${seconds(end - now)} s to go`);
      await this.interrupt.pause(Math.min(end - now, limits.progressMs));
    }
  }

  async checked(args: readonly string[]): Promise<void> {
    const status = await this.falcon(args, limits.startMs);
    this.interrupt.check();
    if (status !== 0) throw new FalconError('START_FAILED', `falcon ${args[0]} ended with ${status}`);
  }

  /** Runs the operator's command; returns how it ended. */
  private falcon(args: readonly string[], timeoutMs: number): Promise<number | string> {
    const program = join(repositoryRoot, 'dist/src/cli/main.js');
    const child = spawn(process.execPath, [program, ...args], {
      stdio: ['ignore', 2, 2],
      timeout: timeoutMs,
      killSignal: 'SIGTERM',
    });
    this.running = child;
    const ended = new Promise<number | string>((resolve, reject) => {
      child.once('error', reject);
      child.once('close', (code, by) => resolve(code ?? by ?? 'nothing'));
    });
    void this.passOn(child);
    return ended.finally(() => (this.running = null));
  }

  /** A signal to this process alone has to reach the command that it waits for. */
  private async passOn(child: ChildProcess): Promise<void> {
    while (child.exitCode === null && child.signalCode === null) {
      await this.interrupt.pause(limits.progressMs);
      if (this.interrupt.signal === null) continue;
      if (child.spawnargs.includes('up')) child.kill('SIGTERM');
      return;
    }
  }

  private tellLogs(): void {
    for (const { name } of loadConfig(this.cluster).nodes) {
      this.say(`${name}: ${lastLogLine(nodePaths(this.cluster, name).log) ?? 'no log'}`);
    }
  }

  private keepLogs(to: string): void {
    for (const { name } of loadConfig(this.cluster).nodes) {
      const paths = nodePaths(this.cluster, name);
      for (const log of [paths.log, join(paths.directory, 'console.log')]) {
        if (!existsSync(log)) continue;
        mkdirSync(join(to, name), { recursive: true });
        cpSync(log, join(to, name, basename(log)));
      }
    }
    this.say(`logs are in ${to}`);
  }
}

/** Replaces fields of a cluster's configuration. */
export function editConfig(directory: string, fields: object): void {
  const path = join(directory, 'falcon.json');
  const config = JSON.parse(readFileSync(path, 'utf8')) as object;
  writeFileSync(path, JSON.stringify({ ...config, ...fields }));
}

/** The guest that cluster/demo/run has built and names in GUEST; without it, what the daemon finds. */
function guestArguments(): string[] {
  const image = process.env['GUEST'] ?? '';
  const qemu = process.env['QEMU'] ?? '';
  const args = qemu === '' ? [] : ['--qemu', qemu];
  if (image === '') return args;
  return [...args, '--kernel', join(image, 'vmlinux'), '--initrd', join(image, 'initrd')];
}

export function seconds(milliseconds: number): string {
  return (milliseconds / second).toFixed(1);
}

interface Show<Report> {
  run(): Promise<Report>;
  /** Takes everything away again. */
  end(failed: boolean): Promise<void>;
}

interface Program<Options, Report> {
  readonly help: string;
  /** Errors: USAGE. */
  readonly options: () => Options;
  readonly show: (options: Options) => Show<Report>;
  readonly lines: (report: Report) => readonly string[];
}

/** What a demo is as a program: help, report and exit code. */
export async function runProgram<
  Options extends { readonly json: boolean },
  Report extends { readonly ok: boolean },
>(program: Program<Options, Report>): Promise<void> {
  try {
    process.exitCode = await present(program);
  } catch (error) {
    const line = formatError(error, 'demo');
    process.stderr.write(`${line}\n`);
    // Whoever reads the last line as JSON is to find an answer there, whatever happened.
    if (process.env['JSON'] === '1') process.stdout.write(`${JSON.stringify({ ok: false, error: line })}\n`);
    process.exitCode = asFalconError(error).exit;
  }
}

async function present<Options extends { readonly json: boolean }, Report extends { readonly ok: boolean }>(
  program: Program<Options, Report>,
): Promise<number> {
  if (process.argv[2] === '--help') {
    process.stdout.write(`${program.help}\n`);
    return 0;
  }
  const options = program.options();
  const show = program.show(options);
  let report: Report | null = null;
  try {
    report = await show.run();
  } finally {
    await show.end(report?.ok !== true);
  }
  const lines = [...program.lines(report), ...(options.json ? [JSON.stringify(report)] : [])];
  process.stdout.write(`${lines.join('\n')}\n`);
  return report.ok ? 0 : 1;
}
