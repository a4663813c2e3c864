/**
 * The command line as an operator sees it: transcripts with every byte and every exit code. What differs
 * from run to run (directories, pids, ids, times) is replaced by a word. UPDATE=1 writes them anew.
 */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';

import { findDaemon } from '../../src/api/lifecycle.js';
import { nodePaths, shmDirectory } from '../../src/api/cluster.js';
import { repositoryRoot } from '../../src/lib/root.js';
import { waitUntil } from '../../src/lib/time.js';
import { temporaryDirectory } from '../support/directory.js';
import type { FakeBehaviour } from '../support/fake-daemon.js';

const program = join(repositoryRoot, 'dist/src/cli/main.js');
const golden = join(repositoryRoot, 'test/golden/cli.txt');
const fakeDaemon = join(repositoryRoot, 'dist/test/support/fake-daemon.js');

interface Result {
  readonly stdout: string;
  readonly stderr: string;
  readonly code: number | null;
}

const base = temporaryDirectory(t);
t.setTimeout(300_000);

function environment(behaviours: Record<string, FakeBehaviour>): NodeJS.ProcessEnv {
  return {
    ...process.env,
    FALCON_DAEMON: fakeDaemon,
    FAKE_DAEMON: JSON.stringify(behaviours),
    NODE_OPTIONS: '',
  };
}

function run(
  args: readonly string[],
  behaviours: Record<string, FakeBehaviour> = {},
  file = program,
): Result {
  const done = spawnSync(process.execPath, [file, ...args], {
    cwd: base,
    env: environment(behaviours),
    encoding: 'utf8',
    timeout: 60_000,
  });
  return { stdout: done.stdout, stderr: done.stderr, code: done.status };
}

const transcript: string[] = [];

/** Runs a command and writes down what it said. */
function record(line: string, behaviours: Record<string, FakeBehaviour> = {}): Result {
  const result = run(line === '' ? [] : line.split(' '), behaviours);
  const says = [...marked('', result.stdout), ...marked('! ', result.stderr)].map(masked);
  transcript.push(`$ falcon${line === '' ? '' : ` ${line}`}`, ...says, `= ${result.code}`, '');
  return result;
}

function marked(mark: string, text: string): string[] {
  return text
    .split('\n')
    .slice(0, -1)
    .map((line) => `${mark}${line}`.trimEnd());
}

function masked(line: string): string {
  return line
    .replaceAll(base, 'BASE')
    .replaceAll(/process \d+/g, 'process PID')
    .replaceAll(/-[0-9a-f]{8}\b/g, '-ID')
    .replaceAll(/"pid":\d+/g, '"pid":PID')
    .replaceAll(/"uptimeMs":[0-9.]+/g, '"uptimeMs":MS')
    .replaceAll(/\b\d+ s$/g, 'N s');
}

t.teardown(() => run(['down', 'demo']));

void t.test('transcripts', { timeout: 120_000 }, (t) => {
  for (const verb of ['', 'init ', 'up ', 'status ', 'divergence ', 'verify ', 'transfer-leader ', 'down '])
    record(`${verb}--help`);
  record('');
  record('fly');
  record('up');
  record('up a b');
  record('up demo --fast');
  record('init demo --nodes 4');
  record('init demo --nodes=');
  record('init demo --vm qemu --hosts local');
  record('init demo --name Big_Name');
  record('status nowhere');
  record('init demo --hosts local --name demo');
  record('init demo');
  record('status demo');
  record('status demo --json');
  record('transfer-leader demo');
  record('divergence demo');
  record('verify demo');
  record('down demo');
  record('up demo');
  record('up demo');
  record('status demo');
  record('status demo --json');
  record('divergence demo');
  record('divergence demo --node h2 --json');
  record('divergence demo --node h9');
  record('verify demo');
  record('verify demo --node h2 --json');
  record('verify demo --node h1');
  record('verify demo --node h9');
  record('transfer-leader demo --to h9');
  record('transfer-leader demo --to h1');
  record('transfer-leader demo --to h2');
  record('down demo');
  record('down demo');
  record('up demo', {
    h2: { failWith: { code: 'TAP_OPEN', msg: 'the tap cannot be opened: vm0: Device or resource busy' } },
  });
  record('up demo', {
    h1: { passive: true },
    h3: { failWith: { code: 'WAL_FAILED', msg: 'disk gone' }, failAfterMs: 300 },
  });
  record('status demo');
  record('init rdma --hosts local --fabric verbs --name rdma');
  record('up rdma', { h1: { losesPeer: 'h3' } });
  record('status rdma');
  record('down rdma');
  const file = join(base, 'demo/falcon.json');
  const good = readFileSync(file, 'utf8');
  writeFileSync(file, good.replace('"port": 7402', '"port": 0'));
  record('up demo');
  writeFileSync(file, good.replace('"nodes"', '"knots"'));
  record('status demo');
  writeFileSync(file, '{');
  record('down demo');
  writeFileSync(file, good);
  rmSync(join(base, 'demo/secret'));
  record('up demo');
  const found = `${transcript.join('\n')}\n`;
  if (process.env['UPDATE'] === '1') writeFileSync(golden, found);
  t.equal(found, existsSync(golden) ? readFileSync(golden, 'utf8') : '', 'as in test/golden/cli.txt');
  t.end();
});

function expectNothingLeft(t: { same(a: unknown, b: unknown, text: string): unknown }, name: string): void {
  const directory = join(base, name);
  const { cluster } = JSON.parse(readFileSync(join(directory, 'falcon.json'), 'utf8')) as { cluster: string };
  const left = ['h1', 'h2', 'h3'].flatMap((node) => {
    const paths = nodePaths(directory, node);
    const files = [paths.adminSocket, paths.vmSocket, paths.pidFile].filter((path) => existsSync(path));
    const pid = findDaemon(directory, node);
    return pid === null ? files : [...files, `process ${pid}`];
  });
  t.same(
    left.concat(existsSync(shmDirectory(cluster)) ? [shmDirectory(cluster)] : []),
    [],
    'nothing is left behind',
  );
}

void t.test('a failed start, and ctrl-C, leave nothing behind', { timeout: 60_000 }, async (t) => {
  t.equal(run(['init', 'two', '--hosts', 'local']).code, 0);
  t.teardown(() => run(['down', 'two']));
  t.equal(run(['up', 'two'], { h3: { failWith: { code: 'WAL_OPEN', msg: 'x' } } }).code, 1);
  expectNothingLeft(t, 'two');

  for (const name of ['SIGINT', 'SIGTERM'] as const) {
    const child = spawn(process.execPath, [program, 'up', 'two'], {
      cwd: base,
      env: environment({ h1: { passive: true } }),
      stdio: 'ignore',
    });
    const ended = new Promise((resolve) => child.once('close', resolve));
    t.ok(
      await waitUntil(() => findDaemon(join(base, 'two'), 'h3') !== null, { timeoutMs: 20_000, everyMs: 20 }),
    );
    child.kill(name);
    t.equal(await ended, 130, name);
    expectNothingLeft(t, 'two');
  }

  const child = spawn(process.execPath, [program, 'up', 'two', '--foreground'], {
    cwd: base,
    env: environment({}),
  });
  const ended = new Promise((resolve) => child.once('close', resolve));
  await new Promise((resolve) => child.stderr.once('data', resolve));
  t.not(findDaemon(join(base, 'two'), 'h1'), null);
  child.kill('SIGINT');
  t.equal(await ended, 0, 'the end of --foreground is no failure');
  expectNothingLeft(t, 'two');
});

void t.test('a start after an unclean stop works', { timeout: 60_000 }, (t) => {
  t.equal(run(['init', 'three', '--hosts', 'local']).code, 0);
  t.teardown(() => run(['down', 'three']));
  t.equal(run(['up', 'three']).code, 0);
  const first = ['h1', 'h2', 'h3'].map((node) => findDaemon(join(base, 'three'), node));
  for (const pid of first) if (pid !== null) process.kill(pid, 'SIGKILL');
  t.ok(existsSync(join(base, 'three/h1/admin.sock')), 'a socket is left');
  t.equal(run(['up', 'three', '--no-wait']).code, 0);
  t.equal(run(['up', 'three']).code, 5);
  t.equal(run(['down', 'three']).code, 0);
  expectNothingLeft(t, 'three');
  t.end();
});

void t.test('a daemon that does not want to stop is killed', { timeout: 60_000 }, (t) => {
  t.equal(run(['init', 'four', '--hosts', 'local']).code, 0);
  t.teardown(() => run(['down', 'four']));
  t.equal(run(['up', 'four'], { h2: { stubborn: true } }).code, 0);
  const down = run(['down', 'four']);
  t.match(down, { code: 0, stderr: /h2: process \d+ is still there, sending SIGKILL/ });
  expectNothingLeft(t, 'four');
  t.end();
});

void t.test('a pid file is not believed', (t) => {
  t.equal(run(['init', 'five', '--hosts', 'local']).code, 0);
  const other = spawn('sleep', ['60'], { stdio: 'ignore' });
  t.teardown(() => other.kill('SIGKILL'));
  writeFileSync(nodePaths(join(base, 'five'), 'h1').pidFile, `${other.pid}\n`);
  t.match(run(['down', 'five']), { code: 0, stdout: 'nothing was running\n' });
  t.equal(other.exitCode, null);
  t.ok(other.kill(0), 'the process lives on');
  t.end();
});

void t.test('the launch script by itself', { timeout: 60_000 }, (t) => {
  const launch = join(repositoryRoot, 'dist/cluster/launch.js');
  t.equal(run(['init', 'six', '--hosts', 'local']).code, 0);
  t.teardown(() => run(['down', 'six']));
  t.match(run(['--help'], {}, launch), { code: 0, stdout: 'Usage: cluster/launch DIR [options]' });
  t.match(run(['six', '--only', 'h2'], {}, launch), { code: 0, stdout: /^h2: process \d+\n$/ });
  t.match(run(['six'], {}, launch), { code: 5, stderr: 'falcon: ALREADY_RUNNING' });
  t.match(run(['six', '--only', 'h1'], {}, launch), { code: 0 });
  t.match(run(['six', '--only', 'h9'], {}, launch), { code: 2, stderr: 'falcon: USAGE' });
  t.match(run(['status', 'six']), { code: 0, stdout: /h3\s+DAEMON_UNREACHABLE/ });
  t.equal(run(['down', 'six']).code, 0);
  expectNothingLeft(t, 'six');
  t.end();
});

void t.test('init takes back what it made when it fails', (t) => {
  t.equal(run(['init', `deep/${'d'.repeat(90)}`, '--hosts', 'local']).code, 3, 'sockets would not fit');
  t.notOk(existsSync(join(base, 'deep')));
  t.match(run(['init', 'file/x']).code, 0);
  t.same(readdirSync(join(base, 'file')), ['x']);
  writeFileSync(join(base, 'plain'), '');
  t.match(run(['init', 'plain/x']), { code: 2, stderr: 'ENOTDIR' });
  t.end();
});
