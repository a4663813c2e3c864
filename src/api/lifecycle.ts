/**
 * Starting and stopping the daemons of a cluster on this machine, for the launch script and the command
 * line. Both must leave nothing behind, and must touch nothing that is not theirs: a daemon is recognised by
 * the `--dir` and `--node` that it was started with.
 */
import { spawn } from 'node:child_process';
import {
  closeSync,
  existsSync,
  fstatSync,
  openSync,
  readdirSync,
  readSync,
  rmdirSync,
  rmSync,
} from 'node:fs';
import { join } from 'node:path';

import { bounds } from '../lib/bounds.js';
import { asFalconError, errnoOf, FalconError, messageOf } from '../lib/errors.js';
import { findProcesses, readPidFile, runsWith, signal } from '../lib/processes.js';
import { waitUntil } from '../lib/time.js';
import { callDaemon, someoneListens } from './client.js';
import { nodePaths, shmDirectory } from './cluster.js';
import type { ClusterConfig, NodeConfig } from './config.js';
import { isRecord } from './schema.js';

/** What stopping needs to know; a secret is not part of it. */
export interface ClusterPlace {
  readonly directory: string;
  readonly config: ClusterConfig;
}

export type Say = (line: string) => void;

/** The arguments by which the daemon of a node is started, and recognised. */
function daemonArguments(directory: string, node: string): readonly string[] {
  return ['--dir', directory, '--node', node];
}

/** An option of node. */
export const ownGarbage = '--single-threaded-gc';

/**
 * What starts it. V8 collects garbage on the event loop's thread alone: that is a realtime one, and while it waits for V8's
 * own threads, which are not, it asks in a loop and takes their processor away.
 */
export function daemonCommand(program: string, directory: string, node: string): readonly string[] {
  return [process.execPath, ownGarbage, program, ...daemonArguments(directory, node)];
}

/** The pid of the live daemon of a node, or null. */
export function findDaemon(directory: string, node: string): number | null {
  const words = daemonArguments(directory, node);
  const recorded = readPidFile(nodePaths(directory, node).pidFile);
  if (recorded !== null && runsWith(recorded, words)) return recorded;
  // A daemon that was started and killed around may have left no file: look for it.
  return findProcesses('node', directory).find((pid) => runsWith(pid, words)) ?? null;
}

/** Errors: ALREADY_RUNNING if a daemon of one of `nodes` lives. */
export async function refuseSecondStart(place: ClusterPlace, nodes: readonly NodeConfig[]): Promise<void> {
  for (const { name } of nodes) {
    const pid = findDaemon(place.directory, name);
    if (pid !== null) throw new FalconError('ALREADY_RUNNING', `${name} is process ${pid}`);
    const { adminSocket } = nodePaths(place.directory, name);
    if (existsSync(adminSocket) && (await someoneListens(adminSocket))) {
      throw new FalconError('ALREADY_RUNNING', `a daemon answers on ${adminSocket}`);
    }
  }
}

/**
 * Stops the daemons of `nodes`, asking first and killing at last, with their QEMUs, and removes what they
 * leave in the file system. Errors: STOP_FAILED if a process outlives SIGKILL.
 */
export async function stopDaemons(
  place: ClusterPlace,
  nodes: readonly NodeConfig[],
  say: Say,
): Promise<void> {
  const results = await Promise.allSettled(nodes.map((node) => stopDaemon(place.directory, node.name, say)));
  const failed = results.find((result) => result.status === 'rejected');
  if (failed !== undefined) throw asFalconError(failed.reason);
  if (nodes.length === place.config.nodes.length) {
    removeShared(shmDirectory(place.config.cluster));
  }
}

/** A folder on which an operator has mounted a file system of its own stays, empty. */
function removeShared(directory: string): void {
  if (!existsSync(directory)) return;
  for (const name of readdirSync(directory)) rmSync(join(directory, name), { recursive: true, force: true });
  try {
    rmdirSync(directory);
  } catch (error) {
    if (errnoOf(error) !== 'EBUSY') throw error;
  }
}

async function stopDaemon(directory: string, node: string, say: Say): Promise<void> {
  const paths = nodePaths(directory, node);
  const pid = findDaemon(directory, node);
  if (pid !== null) {
    try {
      await callDaemon(paths.adminSocket, 'shutdown');
    } catch (error) {
      // One that has not come to listening yet is stopped without a word.
      const { code } = asFalconError(error);
      if (code !== 'DAEMON_UNREACHABLE') say(`${node}: ${code}, sending SIGTERM`);
      signal(pid, 'SIGTERM');
    }
    await endProcess(directory, node, pid, say);
  }
  await endGuests(paths.vmSocket, node, say);
  const { adminSocket, vmSocket, qmpSocket, readySocket, pidFile } = paths;
  for (const path of [adminSocket, vmSocket, qmpSocket, readySocket, pidFile]) rmSync(path, { force: true });
}

async function endProcess(directory: string, node: string, pid: number, say: Say): Promise<void> {
  const words = daemonArguments(directory, node);
  const gone = (timeoutMs: number): Promise<boolean> =>
    waitUntil(() => !runsWith(pid, words), { timeoutMs, everyMs: bounds.pollMs });
  if (await gone(bounds.shutdownWaitMs)) return;
  say(`${node}: process ${pid} is still there, sending SIGTERM`);
  signal(pid, 'SIGTERM');
  if (await gone(bounds.terminateWaitMs)) return;
  say(`${node}: process ${pid} is still there, sending SIGKILL`);
  signal(pid, 'SIGKILL');
  if (await gone(bounds.killWaitMs)) return;
  throw new FalconError('STOP_FAILED', `${node}: process ${pid} outlived SIGKILL`);
}

/** QEMU ends with its falcond; one that does not is recognised by the socket it was given. */
async function endGuests(vmSocket: string, node: string, say: Say): Promise<void> {
  const left = (): number[] => findProcesses('qemu', vmSocket);
  const gone = (timeoutMs: number): Promise<boolean> =>
    waitUntil(() => left().length === 0, { timeoutMs, everyMs: bounds.pollMs });
  if (left().length === 0 || (await gone(bounds.terminateWaitMs))) return;
  for (const pid of left()) {
    say(`${node}: QEMU ${pid} is still there, sending SIGKILL`);
    signal(pid, 'SIGKILL');
  }
  if (!(await gone(bounds.killWaitMs)))
    throw new FalconError('STOP_FAILED', `${node}: QEMU outlived SIGKILL`);
}

/** Whether the nodes live in network namespaces of this machine. */
export function usesNamespaces(config: ClusterConfig): boolean {
  return config.nodes.some((node) => node.netns !== null);
}

/**
 * Makes or removes the hosts' network namespaces: `<root>/cluster/hosts/net up|down <directory>`.
 * Errors: START_FAILED, STOP_FAILED with what the script said last.
 */
export async function runHostScript(root: string, verb: 'up' | 'down', directory: string): Promise<void> {
  const script = join(root, 'cluster/hosts/net');
  const child = spawn(script, [verb, directory], {
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: bounds.hostScriptMs,
  });
  let said = '';
  const keep = (chunk: Buffer): void => {
    said = (said + chunk.toString('utf8')).slice(-bounds.logTailMaxBytes);
  };
  child.stdout.on('data', keep);
  child.stderr.on('data', keep);
  const code = verb === 'up' ? 'START_FAILED' : 'STOP_FAILED';
  await new Promise<void>((resolve, reject) => {
    child.once('error', (error) =>
      reject(new FalconError(code, `${script}: ${messageOf(error)}`, { cause: error })),
    );
    child.once('close', (status, by) => {
      if (status === 0) resolve();
      else
        reject(new FalconError(code, `${script} ${verb}: ${lastLine(said) ?? `ended with ${status ?? by}`}`));
    });
  });
}

/** Stops all daemons and takes the host namespaces down; `root` is where Falcon's own files are. */
export async function stopCluster(root: string, place: ClusterPlace, say: Say): Promise<void> {
  try {
    await stopDaemons(place, place.config.nodes, say);
  } finally {
    if (usesNamespaces(place.config)) await runHostScript(root, 'down', place.directory);
  }
}

/**
 * The last line of a daemon's log from byte `from` on, as a person wants to read it; null if there is none.
 */
export function lastLogLine(path: string, from = 0): string | null {
  let file: number;
  try {
    file = openSync(path, 'r');
  } catch {
    return null;
  }
  try {
    const { size } = fstatSync(file);
    const start = Math.max(from, size - bounds.logTailMaxBytes, 0);
    const buffer = new Uint8Array(Math.max(size - start, 0));
    const length = readSync(file, buffer, 0, buffer.length, start);
    return lastLine(new TextDecoder().decode(buffer.subarray(0, length)));
  } finally {
    closeSync(file);
  }
}

function lastLine(text: string): string | null {
  const line = text.split('\n').findLast((candidate) => candidate.trim() !== '');
  if (line === undefined) return null;
  return readableRecord(line.trim()).slice(0, bounds.logLineMaxChars);
}

/** A pino record as "CODE: message"; anything else as it is. */
function readableRecord(line: string): string {
  try {
    const record: unknown = JSON.parse(line);
    if (!isRecord(record) || typeof record['msg'] !== 'string') return line;
    const { code, msg } = record;
    return typeof code === 'string' && !msg.includes(code) ? `${code}: ${msg}` : msg;
  } catch {
    return line;
  }
}
