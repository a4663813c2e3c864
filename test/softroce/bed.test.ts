/** The test bed itself: what it passes through, what it keeps away, what is left of it. */
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';

import { bedScript, inBed, runBed } from './bed.js';

/** The first run of all downloads a kernel. */
const timeoutMs = 300_000;
/** Side by side: a machine that starts uses one processor. */
t.jobs = 2;
const bed = { ...inBed(timeoutMs), buffered: true };

void t.test('a command, its output, its exit code and its files', bed, async (t) => {
  const out = mkdtempSync(join(tmpdir(), 'falcon-bed-'));
  t.teardown(() => {
    rmSync(out, { recursive: true });
  });
  const forbidden = join(out, 'not-from-inside');
  const command = [
    'echo "value: $VALUE"',
    'echo complaint >&2',
    'ls /sys/class/infiniband | tr "\\n" " "',
    'cat /sys/class/infiniband/rxe2/ports/1/gids/1',
    'echo written >$SOFTROCE_OUT/file',
    `echo lost >${forbidden}`,
    'exit 7',
  ].join('; ');
  const run = await runBed(['--devices', '2', '--out', out, '--env', 'VALUE=a b', command], { timeoutMs });
  t.equal(run.ended, 7, run.stderr);
  t.equal(run.stdout, 'value: a b\nrxe1 rxe2 0000:0000:0000:0000:0000:ffff:0a09:0102\n');
  t.match(run.stderr, /complaint\n/);
  t.equal(readFileSync(join(out, 'file'), 'utf8'), 'written\n');
  t.notOk(existsSync(forbidden), 'the file system of the host stays as it is');
});

void t.test('arguments are passed as they are', bed, async (t) => {
  const run = await runBed(['--devices', '1', '--', 'printf', '%s|', 'a b', '$HOME', "it's", ''], {
    timeoutMs,
  });
  t.equal(run.stdout, "a b|$HOME|it's||");
  t.equal(run.ended, 0, run.stderr);
});

void t.test('a run that takes too long is ended', bed, async (t) => {
  const run = await runBed(['--limit', '1', 'sleep 100'], { timeoutMs });
  t.equal(run.ended, 124);
  t.match(run.stderr, /^falcon: START_FAILED: .*out of time after 1 seconds$/m);
});

for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
  void t.test(`nothing is left after ${signal}`, bed, async (t) => {
    const child = spawn(bedScript, ['--devices', '1', 'echo up; sleep 100'], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    const closed = new Promise((resolve) => child.once('exit', resolve));
    await new Promise((resolve) => child.stdout.once('data', resolve));
    const pid = child.pid ?? 0;
    const machines = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8')
      .trim()
      .split(' ')
      .filter((each) => /^qemu-system/.test(readFileSync(`/proc/${each}/comm`, 'utf8')));
    t.equal(machines.length, 1, 'one machine runs');
    child.kill(signal);
    await closed;
    const gone = (): boolean => machines.every((each) => !existsSync(`/proc/${each}`));
    for (let i = 0; i < 100 && !gone(); i++) await new Promise((resolve) => setTimeout(resolve, 50));
    t.ok(gone(), 'the machine is gone');
  });
}

void t.test('wrong usage', bed, async (t) => {
  for (const args of [[], ['--nothing'], ['--devices', '9', 'true'], ['--devices'], ['--env', '1', 'true']]) {
    const run = await runBed(args, { timeoutMs });
    t.equal(run.ended, 2, args.join(' '));
    t.match(run.stderr, /^falcon: USAGE: wrong usage: .*\n$/);
  }
  const help = await runBed(['--help'], { timeoutMs });
  t.match(help.stdout, /^Usage: cluster\/softroce\/run /);
  t.equal(help.ended, 0);
});
