/**
 * The native test programs: every case of every program is a test here. A program that crashes, or ends
 * before it has said how many cases it has, fails.
 */
import { spawn } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';

import { repositoryRoot } from '../../src/lib/root.js';

interface Case {
  readonly name: string;
  readonly ok: boolean;
  /** Why it did not run; empty: it ran. */
  readonly skipped: string;
  readonly comments: readonly string[];
}

interface Run {
  readonly cases: readonly Case[];
  readonly planned: number | null;
  readonly ended: string;
  readonly stderr: string;
}

const directory = process.env['FALCON_NATIVE'] ?? join(repositoryRoot, 'build/native');
const runMs = 300_000;
const stderrMaxChars = 20_000;

function runProgram(path: string): Promise<Run> {
  return new Promise((resolve, reject) => {
    const child = spawn(path, [], { stdio: ['ignore', 'pipe', 'pipe'], timeout: runMs, killSignal: 'SIGKILL' });
    let stdout = '';
    let stderr = '';
    child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()));
    child.stderr.on('data', (chunk: Buffer) => (stderr = (stderr + chunk.toString()).slice(-stderrMaxChars)));
    child.once('error', reject);
    child.once('close', (code, by) => resolve({ ...parseTap(stdout), ended: by ?? String(code), stderr }));
  });
}

function parseTap(output: string): Pick<Run, 'cases' | 'planned'> {
  const cases: Case[] = [];
  let comments: string[] = [];
  let planned: number | null = null;
  for (const line of output.split('\n')) {
    const point = /^(not )?ok \d+ - (.*?)(?: # SKIP (.*))?$/.exec(line);
    const plan = /^1\.\.(\d+)$/.exec(line);
    if (point !== null) {
      cases.push({ name: point[2] ?? '', ok: point[1] === undefined, skipped: point[3] ?? '', comments });
      comments = [];
    } else if (plan !== null) {
      planned = Number(plan[1]);
    } else if (line.startsWith('# ')) {
      comments.push(line.slice(2));
    }
  }
  return { cases, planned };
}

void t.test('a program that breaks off is a failure', (t) => {
  t.same(parseTap('TAP version 14\n# x.cc:1: a == b\nnot ok 1 - a\nok 2 - b # SKIP no disk\n'), {
    cases: [
      { name: 'a', ok: false, skipped: '', comments: ['x.cc:1: a == b'] },
      { name: 'b', ok: true, skipped: 'no disk', comments: [] },
    ],
    planned: null,
  });
  t.end();
});

const programs = readdirSync(directory).filter((name) => name.endsWith('_test'));
t.ok(programs.length > 0, `${directory} holds test programs`);
for (const name of programs.sort()) {
  await t.test(name, { timeout: runMs + 10_000 }, async (t) => {
    const run = await runProgram(join(directory, name));
    for (const one of run.cases) {
      if (one.ok && one.skipped !== '') {
        await t.test(one.name, { skip: one.skipped }, () => undefined);
      } else {
        await t.test(one.name, (t) => {
          t.ok(one.ok, one.comments.join('; '));
          t.end();
        });
      }
    }
    const allOk = run.cases.every(({ ok }) => ok);
    await t.test('runs to its end', (t) => {
      t.equal(run.planned, run.cases.length, run.stderr);
      t.equal(run.ended, allOk ? '0' : '1', run.stderr);
      t.end();
    });
  });
}
