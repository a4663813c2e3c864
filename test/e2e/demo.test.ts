/** The demo, as its users run it: what it prints, what it exits with, what it leaves. */
import { spawn } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import t from 'tap';

import { findProcesses } from '../../src/lib/processes.js';
import { repositoryRoot } from '../../src/lib/root.js';
import { runLong } from '../support/live-cluster.js';
import { whyNoNamespaces } from '../support/network.js';

const cannot = whyNoNamespaces();
const skip = cannot === null ? {} : { skip: cannot };
const demo = join(repositoryRoot, 'cluster/demo/run');
t.setTimeout(590_000);

/** What demos have left on this machine: directories, shared memory, namespaces, processes. */
function leftovers(): string[] {
  const named = (directory: string, pattern: RegExp): string[] => {
    try {
      return readdirSync(directory).filter((name) => pattern.test(name));
    } catch {
      return [];
    }
  };
  return [
    ...named(tmpdir(), /^falcon-demo-/),
    ...named('/dev/shm', /^falcon-demo-/),
    ...named('/run/netns', /^falcon-[0-9a-f]{8}-/),
    ...findProcesses('qemu', 'falcon-demo-').map((pid) => `qemu ${pid}`),
    ...findProcesses('node', 'falcon-demo-').map((pid) => `node ${pid}`),
  ];
}

const before = leftovers();
const runs: readonly (readonly [name: string, env: NodeJS.ProcessEnv, replicas: number, kills: number])[] = [
  ['three hosts, one kill', { SEED: '7' }, 3, 1],
  ['five hosts, two kills', { SEED: '8', HOSTS: '5', KILLS: '2' }, 5, 2],
  ['a LAN that learns, and a client that rests', { SEED: '9', LAN: 'learn', IDLE: '8' }, 3, 1],
];

for (const [name, env, replicas, kills] of runs) {
  t.test(name, skip, async (t) => {
    const { status, out, err } = await runLong(demo, [], { ...env, JSON: '1' });
    t.equal(status, 0, err.slice(-2000));
    const lines = out.trimEnd().split('\n');
    const report = JSON.parse(lines.at(-1) ?? '') as Record<string, unknown>;
    t.match(report, {
      acked: Number,
      lost: 0,
      wrong: 0,
      connection_survived: true,
      outage_ms: Number,
      old_primary: /^h\d$/,
      new_primary: /^h\d$/,
      replicas,
      ok: true,
    });
    t.ok((report['acked'] as number) > 100, `${report['acked'] as number} writes acknowledged`);
    t.not(report['old_primary'], report['new_primary']);
    t.equal((err.match(/^demo: killed h\d/gm) ?? []).length, kills);
    t.match(out, /connection survived +yes/, 'the report for people comes as well');
    t.same(leftovers(), before);
    t.comment(lines.slice(0, -1).join('\n'));
  });
}

t.test('ctrl-C in the middle', skip, async (t) => {
  // A process group of its own, as a terminal makes one: the signal reaches all of it.
  const child = spawn(demo, [], {
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true,
    env: { ...process.env, SEED: '7' },
  });
  const ended = new Promise<number | null>((resolve) => child.once('close', (code) => resolve(code)));
  let said = '';
  child.stdout.resume();
  const writing = new Promise<void>((resolve) => {
    child.stderr.on('data', (chunk: Buffer) => {
      said += chunk.toString();
      if (said.includes('demo: writing')) resolve();
    });
  });
  await Promise.race([writing, ended]);
  process.kill(-child.pid!, 'SIGINT');
  t.equal(await ended, 130, said.slice(-2000));
  t.match(said, /INTERRUPTED/);
  t.same(leftovers(), before);
});

t.test('wrong usage', async (t) => {
  t.match(await runLong(demo, ['--help']), { status: 0, out: /KILLS/ });
  t.match(await runLong(demo, [], { HOSTS: '3', KILLS: '2', REVIVE: '0', JSON: '1' }), {
    status: 2,
    err: /USAGE/,
    out: /"ok":false/,
  });
});
