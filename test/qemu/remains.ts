// What a test run has made on this machine and must take away: at the end of each test, when the run is
// broken off by a signal, and, if it was killed outright, when the next run begins.
import { spawnSync } from 'node:child_process';
import { readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { errnoOf } from '../../src/lib/errors.js';

/** Namespaces and folders are called so, with the pid of the run behind it: `falcon-qemu-PID-...` */
export const PREFIX = 'falcon-qemu-';
const NAMESPACES = '/run/netns';

/** In front of a command: the kernel kills it when this process ends, however it ends. */
export const DIES_WITH_US = ['setpriv', '--pdeathsig', 'KILL', '--'] as const;

const open = new Set<() => void>();

/** Calls `cleanUp` at the end of this process unless the returned function, which calls it too, came first. */
export function remember(cleanUp: () => void): () => void {
  if (open.size === 0) watchForTheEnd();
  const once = (): void => {
    if (open.delete(once)) cleanUp();
  };
  open.add(once);
  return once;
}

let watching = false;

function watchForTheEnd(): void {
  if (watching) return;
  watching = true;
  process.once('exit', () => {
    for (const cleanUp of open) cleanUp();
  });
  for (const [signal, number] of [['SIGHUP', 1] as const, ['SIGINT', 2] as const, ['SIGTERM', 15] as const]) {
    process.once(signal, () => process.exit(128 + number));
  }
}

export function deleteNamespace(name: string): void {
  spawnSync('ip', ['netns', 'delete', name], { stdio: 'ignore' });
}

/** Takes away what runs that are over have left. Their processes ended with them. */
export function sweep(): void {
  for (const name of namesOfTheDead(NAMESPACES)) deleteNamespace(name);
  for (const name of namesOfTheDead(tmpdir())) rmSync(join(tmpdir(), name), { recursive: true, force: true });
}

function namesOfTheDead(folder: string): string[] {
  return list(folder).filter((name) => {
    const pid = name.startsWith(PREFIX) ? Number(name.slice(PREFIX.length).split('-')[0]) : NaN;
    return Number.isInteger(pid) && pid > 0 && !isAlive(pid);
  });
}

/** Namespaces and folders that belong to the run of `pid`. */
export function remainsOf(pid: number): string[] {
  const ours = (name: string): boolean => name.startsWith(`${PREFIX}${pid}-`);
  return [...list(NAMESPACES).filter(ours), ...list(tmpdir()).filter(ours)];
}

function list(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return [];
    throw error;
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return errnoOf(error) !== 'ESRCH';
  }
}
