/** Runs commands in the soft-RoCE test bed, and reads the TAP that a native test program prints there. */
import { spawn, spawnSync } from 'node:child_process';
import { join } from 'node:path';

import { repositoryRoot } from '../../src/lib/root.js';

export const bedScript = join(repositoryRoot, 'cluster/softroce/run');

/** How the bed says that it cannot run on this machine at all. */
const notPossible = 123;

/** Why there can be no bed here; empty: there can. With FALCON_SOFTROCE=required the tests run and fail. */
export function bedMissing(): string {
  if (process.env['FALCON_SOFTROCE'] === 'required') return '';
  const prepared = spawnSync(bedScript, ['--prepare'], { encoding: 'utf8' });
  return prepared.status === notPossible ? prepared.stderr.trim().split('\n').slice(-1).join() : '';
}

/** Options of a test that needs the bed. */
export function inBed(timeout: number): { readonly timeout: number; readonly skip?: string } {
  const missing = bedMissing();
  return missing === '' ? { timeout } : { timeout, skip: missing };
}

export interface BedRun {
  /** Exit code, or the signal that ended it. */
  readonly ended: number | string;
  readonly stdout: string;
  readonly stderr: string;
}

export function runBed(
  args: readonly string[],
  options: { readonly timeoutMs: number; readonly onLine?: (line: string) => void },
): Promise<BedRun> {
  return new Promise((resolve, reject) => {
    // SIGTERM, so that it takes the machine down with it.
    const child = spawn(bedScript, args, { stdio: ['ignore', 'pipe', 'pipe'], timeout: options.timeoutMs });
    let stdout = '';
    let stderr = '';
    let lineStart = 0;
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
      stdout += chunk;
      for (let end = stdout.indexOf('\n', lineStart); end >= 0; end = stdout.indexOf('\n', lineStart)) {
        options.onLine?.(stdout.slice(lineStart, end));
        lineStart = end + 1;
      }
    });
    child.stderr.setEncoding('utf8').on('data', (chunk: string) => (stderr += chunk));
    child.once('error', reject);
    child.once('close', (code, signal) => {
      resolve({ ended: code ?? signal ?? 'unknown', stdout, stderr });
    });
  });
}

export interface TapPoint {
  readonly name: string;
  readonly ok: boolean;
  /** Why it did not run; empty: it ran. */
  readonly skipped: string;
  /** What the program said before it: failed checks, numbers to look at. */
  readonly comments: readonly string[];
}

/** Takes a test program's output line by line. */
export class TapReader {
  readonly points: TapPoint[] = [];
  planned: number | null = null;
  #comments: string[] = [];

  /** The test point that `line` completes. */
  take(line: string): TapPoint | null {
    const point = /^(not )?ok \d+ - (.*?)(?: # SKIP (.*))?$/.exec(line);
    const plan = /^1\.\.(\d+)$/.exec(line);
    if (plan !== null) this.planned = Number(plan[1]);
    else if (line.startsWith('# ')) this.#comments.push(line.slice(2));
    if (point === null) return null;
    const one: TapPoint = {
      name: point[2] ?? '',
      ok: point[1] === undefined,
      skipped: point[3] ?? '',
      comments: this.#comments,
    };
    this.#comments = [];
    this.points.push(one);
    return one;
  }
}
