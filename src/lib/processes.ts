/**
 * Other processes, looked at through /proc.
 *
 * A pid in a file proves nothing: the process may be gone and its number may be another's. So a process is
 * known by what it was started with, and nothing is signalled that does not match.
 */
import { readdirSync, readFileSync } from 'node:fs';

import { errnoOf } from './errors.js';

/** The arguments of a live process; null if there is none, or only its remains. */
export function commandLine(pid: number): string[] | null {
  if (!Number.isInteger(pid) || pid <= 1) return null;
  try {
    const text = readFileSync(`/proc/${pid}/cmdline`, 'utf8');
    // A zombie has no command line left.
    return text === '' ? null : text.replace(/\0$/, '').split('\0');
  } catch {
    return null;
  }
}

/** True if the arguments of `pid` contain `words`, in this order and next to each other. */
export function runsWith(pid: number, words: readonly string[]): boolean {
  const args = commandLine(pid);
  if (args === null) return false;
  return args.some((_, start) => words.every((word, i) => args[start + i] === word));
}

/** Pids of all live processes of which one argument contains `text` and whose program's name starts with `program`. */
export function findProcesses(program: string, text: string): number[] {
  const found: number[] = [];
  for (const name of readdirSync('/proc')) {
    if (!/^[0-9]+$/.test(name)) continue;
    const args = commandLine(Number(name));
    if (args === null) continue;
    const base = (args[0] ?? '').split('/').at(-1) ?? '';
    if (base.startsWith(program) && args.some((arg) => arg.includes(text))) found.push(Number(name));
  }
  return found;
}

/** Sends a signal; false if the process is gone. */
export function signal(pid: number, name: NodeJS.Signals): boolean {
  try {
    process.kill(pid, name);
    return true;
  } catch (error) {
    if (errnoOf(error) === 'ESRCH') return false;
    throw error;
  }
}

/** The pid in a file, or null if the file is missing or holds no pid. */
export function readPidFile(path: string): number | null {
  try {
    const text = readFileSync(path, 'utf8').trim();
    return /^[1-9][0-9]{0,9}$/.test(text) ? Number(text) : null;
  } catch {
    return null;
  }
}
