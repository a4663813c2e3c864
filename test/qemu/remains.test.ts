// A run that is broken off leaves nothing; one that is killed leaves nothing after the next run's start.
import { type ChildProcess, spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import t from 'tap';

import { findProcesses } from '../../src/lib/processes.js';
import { cannotRun, makeLab } from './lab.js';
import { Lines, until } from './lines.js';
import { PREFIX, remainsOf } from './remains.js';

t.setTimeout(1_200_000);
const skip = cannotRun();

async function waitingRun(): Promise<ChildProcess & { pid: number }> {
  const script = fileURLToPath(new URL('waiting-run.js', import.meta.url));
  const child = spawn(process.execPath, [script], { stdio: ['pipe', 'pipe', 'inherit'] });
  await new Lines(child.stdout, child.stdin).next();
  return child as ChildProcess & { pid: number };
}

const processesOf = (pid: number): number =>
  ['peer', 'qemu-system'].flatMap((program) => findProcesses(program, `${PREFIX}${pid}-`)).length;

void t.test('a run that is asked to end takes everything with it', { skip }, async (t) => {
  const run = await waitingRun();
  t.equal(remainsOf(run.pid).length, 2, 'a namespace and a folder');
  t.equal(processesOf(run.pid), 2);
  run.kill('SIGTERM');
  await until('everything is gone', async () => remainsOf(run.pid).length + processesOf(run.pid) === 0);
});

void t.test(
  'a run that is killed leaves no process, and the next run removes the rest',
  { skip },
  async (t) => {
    const run = await waitingRun();
    const ended = new Promise((resolve) => run.once('exit', resolve));
    run.kill('SIGKILL');
    await ended;
    await until('its processes are gone', async () => processesOf(run.pid) === 0);
    t.equal(remainsOf(run.pid).length, 2, 'a namespace and a folder');
    makeLab(t);
    t.same(remainsOf(run.pid), []);
  },
);
