/**
 * The demo: a replicated Redis, a client that writes over one connection, and a primary that is killed.
 *
 * It uses what an operator uses (falcon init, up, status, down) and judges by what the client saw. Whatever
 * happens, ctrl-C included, it takes the cluster down and removes its directory.
 */
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { cpSync, existsSync, mkdirSync, mkdtempSync, realpathSync, rmSync } from 'node:fs';
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
import { Random } from '../../src/lib/random.js';
import { repositoryRoot } from '../../src/lib/root.js';
import { monotonicMs } from '../../src/lib/time.js';
import { demoHelp, demoOptions } from './options.js';
import type { DemoOptions } from './options.js';
import { makeReport, reportLines } from './report.js';
import type { DemoReport, Kill } from './report.js';
import { sharedClockMs } from './key-client.js';
import type { Tally } from './key-client.js';
import { RemoteClient } from './remote-client.js';
import type { ClientWord } from './remote-client.js';

const second = 1000;
const limits = {
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

const say = (line: string): void => void process.stderr.write(`demo: ${line}\n`);

class Demo {
  private readonly options: DemoOptions;
  private readonly random: Random;
  private readonly interrupt = new Interrupt();
  private readonly directory = realpathSync(mkdtempSync(join(tmpdir(), 'falcon-demo-')));
  private readonly cluster = join(this.directory, 'c');
  private readonly kills: Kill[] = [];
  private readonly deadline: number;
  private client: RemoteClient | null = null;
  private running: ChildProcess | null = null;
  private made = false;

  constructor(options: DemoOptions) {
    this.options = options;
    this.random = new Random(options.seed);
    const perKillMs =
      (options.idleS + 2 * options.writeS) * second +
      limits.takeoverMs +
      (options.revive ? limits.reviveMs : 0);
    this.deadline = monotonicMs() + limits.startMs + options.kills * perKillMs + limits.verifyMs;
  }

  /** Errors: what the cluster reports, INTERRUPTED, START_FAILED when the time is up. */
  async run(): Promise<DemoReport> {
    const { options } = this;
    say(
      `seed ${options.seed}: ${options.hosts} hosts, ${options.kills} kill${options.kills === 1 ? '' : 's'}, lan ${options.lan}`,
    );
    const place = await this.start();
    this.client = await this.connect(place);
    for (let i = 0; i < options.kills; i++) {
      const killed = await this.killOne(place, this.client);
      if (options.revive && i < options.kills - 1) await this.bringBack(killed);
    }
    await this.pause(options.writeS * second, 'writing on');
    await this.ask(this.client, 'rest', limits.clientMs);
    say('reading everything back');
    return makeReport(options, this.kills, await this.ask(this.client, 'verify', limits.verifyMs));
  }

  /** Takes everything away again; says what it could not. */
  async end(failed: boolean): Promise<void> {
    this.client?.stop();
    this.running?.kill('SIGTERM');
    if (this.made) {
      if (failed && this.interrupt.signal === null) this.tellLogs();
      const status = await this.falcon(['down', this.cluster], limits.stopMs).catch(messageOf);
      if (status !== 0) say(`falcon down: ${status}`);
      if (this.options.logs !== null) this.keepLogs(this.options.logs);
    }
    rmSync(this.directory, { recursive: true, force: true });
    this.interrupt.dispose();
  }

  private async start(): Promise<ClusterPlace> {
    const { hosts, lan, durability } = this.options;
    await this.checked([
      'init',
      this.cluster,
      '--nodes',
      String(hosts),
      '--name',
      'demo',
      '--lan',
      lan,
      '--durability',
      durability,
      ...guestArguments(),
    ]);
    this.made = true;
    say('starting the cluster');
    const started = monotonicMs();
    await this.checked(['up', this.cluster]);
    say(`the cluster serves after ${seconds(monotonicMs() - started)} s`);
    return { directory: this.cluster, config: loadConfig(this.cluster) };
  }

  private connect(place: ClusterPlace): Promise<RemoteClient> {
    const { vm, cluster } = place.config;
    if (vm.kind !== 'qemu') throw new FalconError('INTERNAL', 'the demo needs a guest');
    const netns = `falcon-${cluster.slice(-8)}-client`;
    const { seed, depth } = this.options;
    return RemoteClient.start({ netns, host: vm.address, port: vm.port, seed, depth });
  }

  /** Returns the name of the host that was killed. */
  private async killOne(place: ClusterPlace, client: RemoteClient): Promise<string> {
    const { writeS, idleS } = this.options;
    await this.ask(client, 'write', limits.clientMs);
    // Seeded, so that a run can be had again; a fraction of a second on top, so that it hits anything.
    await this.pause(writeS * second + this.random.below(second), 'writing');
    if (idleS > 0) {
      await this.ask(client, 'rest', limits.clientMs);
      await this.pause(idleS * second, 'resting');
    }
    const old = await this.primary(place, 0);
    const atMs = sharedClockMs();
    // Both at once, as a host dies: neither may tell the other, or the network, anything.
    signal(old.pid, 'SIGKILL');
    if (old.guest.pid !== null) signal(old.guest.pid, 'SIGKILL');
    say(`killed ${old.node}, primary of view ${old.view}`);
    if (idleS > 0) await this.ask(client, 'write', limits.clientMs);
    // Looking at once would take the processor away from those who have to take over.
    await this.pause(limits.statusEveryMs * 5, 'taking over');
    const next = await this.primary(place, old.view);
    this.kills.push({ old: old.node, new: next.node, atMs, takeover: next.lastTakeover ?? null });
    const tally = await this.ask(client, 'tally', limits.clientMs);
    say(`${next.node} is primary of view ${next.view}; ${tally.acked} writes acknowledged`);
    return old.node;
  }

  /** The host is repaired: it is made a full copy while the client writes on. */
  private async bringBack(node: string): Promise<void> {
    const started = monotonicMs();
    await this.checked(['up', this.cluster, '--node', node]);
    say(`${node} is a full copy again after ${seconds(monotonicMs() - started)} s`);
  }

  /** A word to the client, unless a signal comes first. Errors: INTERRUPTED. */
  private ask(client: RemoteClient, word: ClientWord, timeoutMs: number): Promise<Tally> {
    const answer = client.say(word, timeoutMs);
    const stopped = this.interrupt.pause(timeoutMs).then(() => {
      this.interrupt.check();
      return answer;
    });
    return Promise.race([answer, stopped]);
  }

  /** The primary of a view above `view` whose gate is open. Errors: START_FAILED, INTERRUPTED. */
  private async primary(place: ClusterPlace, view: number): Promise<ReplicaStatus> {
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
  private async pause(milliseconds: number, what: string): Promise<void> {
    const end = monotonicMs() + milliseconds;
    for (;;) {
      this.interrupt.check();
      const now = monotonicMs();
      if (now >= this.deadline) throw new FalconError('START_FAILED', 'the demo ran out of time');
      if (now >= end) return;
      if (end - now > limits.progressMs) say(`${what}, ${seconds(end - now)} s to go`);
      await this.interrupt.pause(Math.min(end - now, limits.progressMs));
    }
  }

  private async checked(args: readonly string[]): Promise<void> {
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
      say(`${name}: ${lastLogLine(nodePaths(this.cluster, name).log) ?? 'no log'}`);
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
    say(`logs are in ${to}`);
  }
}

/** The guest that cluster/demo/run has built and names in GUEST; without it, what the daemon finds. */
function guestArguments(): string[] {
  const image = process.env['GUEST'] ?? '';
  const qemu = process.env['QEMU'] ?? '';
  const args = qemu === '' ? [] : ['--qemu', qemu];
  if (image === '') return args;
  return [...args, '--kernel', join(image, 'vmlinux'), '--initrd', join(image, 'initrd')];
}

function seconds(milliseconds: number): string {
  return (milliseconds / second).toFixed(1);
}

async function main(): Promise<number> {
  if (process.argv[2] === '--help') {
    process.stdout.write(`${demoHelp}\n`);
    return 0;
  }
  const options = demoOptions(process.env, randomInt(2 ** 32));
  const demo = new Demo(options);
  let report: DemoReport | null = null;
  try {
    report = await demo.run();
  } finally {
    await demo.end(report?.ok !== true);
  }
  const lines = reportLines(report);
  if (options.json) lines.push(JSON.stringify(report));
  process.stdout.write(`${lines.join('\n')}\n`);
  return report.ok ? 0 : 1;
}

try {
  process.exitCode = await main();
} catch (error) {
  const line = formatError(error, 'demo');
  process.stderr.write(`${line}\n`);
  // Whoever reads the last line as JSON is to find an answer there, whatever happened.
  if (process.env['JSON'] === '1') process.stdout.write(`${JSON.stringify({ ok: false, error: line })}\n`);
  process.exitCode = asFalconError(error).exit;
}
