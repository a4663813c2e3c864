/**
 * The launch script: one falcond per node of a cluster, on this machine.
 *
 * It makes the hosts' network namespaces if the configuration names some, starts the daemons detached and in
 * sessions of their own, and ends when all of them answer; with --foreground it stays and stops them when it
 * is stopped. Whatever goes wrong on the way, it takes back what it did.
 */
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { closeSync, fstatSync, mkdirSync, openSync, renameSync, statSync } from 'node:fs';
import { join, resolve } from 'node:path';

import { fetchStatus } from '../src/api/client.js';
import { loadCluster, nodeNamed, nodePaths } from '../src/api/cluster.js';
import type { ClusterConfig, NodeConfig } from '../src/api/config.js';
import {
  daemonCommand,
  lastLogLine,
  refuseSecondStart,
  runHostScript,
  stopCluster,
  stopDaemons,
  usesNamespaces,
} from '../src/api/lifecycle.js';
import type { ClusterPlace } from '../src/api/lifecycle.js';
import { commandHelp, helpRequested, parseCommandLine } from '../src/cli/command.js';
import type { Command, Options } from '../src/cli/command.js';
import { bounds } from '../src/lib/bounds.js';
import { asFalconError, errnoOf, exitCodes, FalconError, formatError, messageOf } from '../src/lib/errors.js';
import { Interrupt } from '../src/lib/interrupt.js';
import { takeLock } from '../src/lib/lock.js';
import { repositoryRoot } from '../src/lib/root.js';
import { monotonicMs } from '../src/lib/time.js';

const say = (line: string): void => void process.stderr.write(`${line}\n`);
const out = (line: string): void => void process.stdout.write(`${line}\n`);

interface Started {
  readonly node: NodeConfig;
  readonly child: ChildProcess;
  readonly log: string;
  /** Where this run's part of the log starts. */
  readonly logStart: number;
  /** Why the daemon is no more; null while it runs. */
  ended: string | null;
}

const launch: Command = {
  name: '',
  summary: '',
  about:
    'Starts one falcond per node of the cluster in DIR on this machine, and makes the network namespaces that\n' +
    'its configuration names. Ends when every daemon answers; a failed start is taken back.\n\n' +
    'Environment: FALCON_DAEMON, another program to start in place of dist/src/daemon/main.js.',
  options: {
    foreground: { type: 'boolean', help: 'stay, and stop the daemons on ctrl-C' },
    only: { type: 'string', value: 'NODE', help: 'start this node alone' },
  },
  async run(directory, options) {
    const place = loadCluster(directory);
    const only = options.value('only');
    const nodes = only === null ? place.config.nodes : [nodeNamed(place.config, only)];
    const lock = await takeLock(`launch ${place.directory}`);
    if (lock === null) throw new FalconError('ALREADY_RUNNING', `${place.directory} is being started`);
    try {
      await refuseSecondStart(place, nodes);
      return await start(place, nodes, options);
    } finally {
      await lock.release();
    }
  },
};

async function start(place: ClusterPlace, nodes: readonly NodeConfig[], options: Options): Promise<number> {
  const interrupt = new Interrupt();
  try {
    // What an unclean stop has left: sockets, pid files, shared memory, a QEMU without its falcond.
    await stopDaemons(place, nodes, say);
    if (needsHosts(place.config, nodes)) await runHostScript(repositoryRoot, 'up', place.directory);
    interrupt.check();
    const started = nodes.map((node) => startDaemon(place.directory, node));
    await waitForAnswers(place.directory, started, interrupt);
    for (const { node, child } of started) out(`${node.name}: process ${child.pid ?? 0}`);
    if (!options.flag('foreground')) {
      for (const { child } of started) child.unref();
      return exitCodes.ok;
    }
    await stay(started, interrupt);
    interrupt.check();
    throw new FalconError('START_FAILED', 'all daemons have ended');
  } catch (error) {
    await takeBack(place, nodes);
    throw error;
  } finally {
    interrupt.dispose();
  }
}

function needsHosts(config: ClusterConfig, nodes: readonly NodeConfig[]): boolean {
  if (nodes.length === config.nodes.length) return usesNamespaces(config);
  return nodes.some(
    ({ netns }) => netns !== null && statSync(`/run/netns/${netns}`, { throwIfNoEntry: false }) === undefined,
  );
}

/** One node alone leaves the namespaces and the shared memory to the others. */
async function takeBack(place: ClusterPlace, nodes: readonly NodeConfig[]): Promise<void> {
  if (nodes.length === place.config.nodes.length) await stopCluster(repositoryRoot, place, say);
  else await stopDaemons(place, nodes, say);
}

function startDaemon(directory: string, node: NodeConfig): Started {
  const paths = nodePaths(directory, node.name);
  mkdirSync(paths.directory, { recursive: true, mode: 0o700 });
  rotate(paths.log);
  const program = resolve(process.env['FALCON_DAEMON'] ?? join(repositoryRoot, 'dist/src/daemon/main.js'));
  const daemon = daemonCommand(program, directory, node.name);
  const [file = '', ...args] = node.netns === null ? daemon : ['ip', 'netns', 'exec', node.netns, ...daemon];
  const log = openSync(paths.log, 'a', 0o600);
  const logStart = fstatSync(log).size;
  try {
    const child = spawn(file, args, { stdio: ['ignore', log, log], detached: true, cwd: directory });
    const started: Started = { node, child, log: paths.log, logStart, ended: null };
    child.once('error', (error) => (started.ended = messageOf(error)));
    child.once('exit', (code, by) => (started.ended = `ended with ${code ?? by}`));
    return started;
  } finally {
    closeSync(log);
  }
}

/** One old log is kept, so that restarts do not fill the disk. */
function rotate(log: string): void {
  try {
    if (statSync(log).size > bounds.daemonLogMaxBytes) renameSync(log, `${log}.1`);
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error;
  }
}

/** Until every daemon answers. Errors: START_FAILED, INTERRUPTED. */
async function waitForAnswers(
  directory: string,
  started: readonly Started[],
  interrupt: Interrupt,
): Promise<void> {
  const end = monotonicMs() + bounds.daemonStartMs;
  let waiting = started;
  for (;;) {
    interrupt.check();
    const dead = started.find(({ ended }) => ended !== null);
    if (dead !== undefined) throw new FalconError('START_FAILED', endOf(dead));
    const answers = await Promise.all(waiting.map(({ node }) => answersNow(directory, node)));
    waiting = waiting.filter((_, i) => answers[i] !== true);
    const first = waiting[0];
    if (first === undefined) return;
    if (monotonicMs() >= end)
      throw new FalconError(
        'START_FAILED',
        `${first.node.name} does not answer after ${bounds.daemonStartMs} ms`,
      );
    await interrupt.pause(bounds.pollMs);
  }
}

async function answersNow(directory: string, node: NodeConfig): Promise<boolean> {
  try {
    await fetchStatus(nodePaths(directory, node.name).adminSocket);
    return true;
  } catch {
    return false;
  }
}

function endOf(started: Started): string {
  const line = lastLogLine(started.log, started.logStart) ?? started.ended ?? 'ended';
  return `${started.node.name}: ${line}`;
}

/** Until a signal comes or no daemon is left; says when one ends. */
async function stay(started: readonly Started[], interrupt: Interrupt): Promise<void> {
  const reported = new Set<Started>();
  while (interrupt.signal === null && reported.size < started.length) {
    for (const one of started) {
      if (one.ended === null || reported.has(one)) continue;
      reported.add(one);
      say(`${endOf(one)} (${one.ended})`);
    }
    await interrupt.pause(bounds.pollMs);
  }
}

async function main(args: readonly string[]): Promise<number> {
  const parsed = parseCommandLine(launch, args);
  if (parsed === helpRequested) {
    out(commandHelp(launch, 'cluster/launch'));
    return exitCodes.ok;
  }
  return launch.run(parsed.directory, parsed.options, { out, say });
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  say(formatError(error));
  process.exitCode = asFalconError(error).exit;
}
