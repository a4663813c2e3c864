/** The guest image: the builder's manners, and a guest that boots, says that it is ready, and serves. */
import { spawn, spawnSync } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';

import t from 'tap';

import { RemoteClient } from '../../cluster/demo/remote-client.js';
import { qemuArguments } from '../../src/adapters/qemu-arguments.js';
import { repositoryRoot } from '../../src/lib/root.js';
import { monotonicMs } from '../../src/lib/time.js';
import { run, testLan, whyNoNamespaces } from '../support/network.js';
import type { TestLan } from '../support/network.js';

const build = join(repositoryRoot, 'cluster/guest/build');
const buildQemu = join(repositoryRoot, 'cluster/qemu/build');
const bootMs = 60_000;

/** Builders take minutes the first time. */
function built(script: string): string {
  const { status, stdout, stderr } = spawnSync(script, [], { encoding: 'utf8', timeout: 500_000 });
  if (status !== 0) throw new Error(`${script} ended with ${status}: ${stderr}`);
  return stdout.trim();
}

interface Guest {
  readonly qemu: ChildProcess;
  readonly ready: Promise<string>;
  readonly console: string;
}

/** A guest on the first host of `lan`, without Falcon. */
async function boot(
  t: { teardown(handler: () => void): void },
  lan: TestLan,
  image: string,
  binary: string,
  append = '',
): Promise<Guest> {
  const manifest = JSON.parse(readFileSync(join(image, 'manifest.json'), 'utf8')) as {
    append: string;
    memoryMiB: number;
  };
  const socket = join(lan.directory, 'ready.sock');
  const console = join(lan.directory, 'console.log');
  let settle: (text: string) => void = () => undefined;
  const ready = new Promise<string>((resolve) => (settle = resolve));
  const server = createServer((connection) => {
    connection.on('error', () => connection.destroy());
    connection.on('data', (chunk) => settle(chunk.toString('latin1')));
  });
  server.listen(socket);
  await once(server, 'listening');
  t.teardown(() => void server.close());
  const args = qemuArguments({
    binary,
    kernel: join(image, 'vmlinux'),
    initrd: join(image, 'initrd'),
    append: manifest.append + append,
    memoryMiB: manifest.memoryMiB,
    mac: '52:54:00:fa:1c:01',
    address: '10.77.1.10/24',
    netdev: 'ifname=vm0,script=no,downscript=no,vhost=off,vnet_hdr=off',
    qmpSocket: join(lan.directory, 'qmp.sock'),
    readySocket: socket,
    ramPath: null,
    console: `file,path=${console}`,
  });
  const command = ['netns', 'exec', lan.netns('h1'), binary, ...args];
  const qemu = spawn('ip', command, { stdio: ['ignore', 'ignore', 'inherit'] });
  t.teardown(() => void qemu.kill('SIGKILL'));
  return { qemu, ready, console };
}

async function within<T>(what: string, milliseconds: number, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: not after ${milliseconds} ms`)), milliseconds);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

t.setTimeout(590_000);

t.test('the builder says what is wrong and finds what it has built', async (t) => {
  t.match(run(build, '--help'), { status: 0, out: /--package NAME/ });
  t.match(run(build, '--frobnicate'), { status: 2, out: '', err: /unknown option/ });
  t.match(run(build, '--port', '70000'), { status: 2, out: '', err: /--port/ });
  t.match(run(build, '--command', 'redis-server'), { status: 2, err: /absolute/ });
  t.match(run(build, '--service', 'gopher'), { status: 2, err: /gopher is none of memcached nginx redis/ });
  t.match(run(build, '--service', '../services/redis'), { status: 2, err: /--service/ });
  t.match(run(build, '--files', '/nowhere'), { status: 2, err: /no folder \/nowhere/ });
  const image = built(build);
  for (const name of ['vmlinux', 'initrd', 'manifest.json']) t.ok(statSync(join(image, name)).size > 0, name);
  const start = monotonicMs();
  t.equal(built(build), image);
  const tookMs = monotonicMs() - start;
  t.ok(tookMs < 200, `found again in ${Math.round(tookMs)} ms`);
  const manifest = JSON.parse(readFileSync(join(image, 'manifest.json'), 'utf8')) as Record<string, unknown>;
  t.match(manifest, {
    version: 1,
    package: 'redis-server',
    port: 6379,
    append: /console=ttyS0/,
    sha256: { vmlinux: /^[0-9a-f]{64}$/ },
  });
});

const cannot = whyNoNamespaces() ?? (existsSync(buildQemu) ? null : 'needs cluster/qemu/build');
t.test('the guest boots, says ready, and serves', cannot === null ? {} : { skip: cannot }, async (t) => {
  const image = built(build);
  const binary = process.env['FALCON_TEST_QEMU'] ?? built(buildQemu);
  const lan = testLan(t, { hosts: 1, lan: 'flood' });
  t.match(lan.net('up', lan.directory), { status: 0 });
  const start = monotonicMs();
  const guest = await boot(t, lan, image, binary);
  t.equal(await within('ready', bootMs, guest.ready), 'ready\n');
  t.comment(`ready after ${Math.round(monotonicMs() - start)} ms`);

  const client = await RemoteClient.start({
    netns: lan.netns('client'),
    host: '10.77.1.10',
    port: 6379,
    seed: 1,
    depth: 4,
  });
  t.teardown(() => client.stop());
  await client.say('write', 5_000);
  await new Promise((resolve) => setTimeout(resolve, 1_000));
  const tally = await client.say('verify', 30_000);
  t.match(tally, { wrong: 0, lost: 0, alive: true });
  t.ok(
    tally.acked > 0 && tally.readBack >= tally.acked,
    `${tally.acked} written, ${tally.readBack} read back`,
  );

  const exited = once(guest.qemu, 'exit');
  const shutdown =
    "require('node:net').connect(6379, '10.77.1.10').on('error', () => {}).end('SHUTDOWN NOSAVE\\r\\n')";
  t.equal(lan.exec('client', process.execPath, '-e', shutdown).status, 0);
  await within('the end of QEMU', bootMs, exited);
  t.match(
    readFileSync(guest.console, 'latin1'),
    /the service ended with status 0/,
    'a guest whose service has ended ends too',
  );
});

// A wrong measurement comes by itself in one of some twenty boots on a busy machine. What the kernel says of it is given here.
t.test(
  'a guest that measured its TSC wrongly goes by another clock',
  cannot === null ? {} : { skip: cannot },
  async (t) => {
    const binary = process.env['FALCON_TEST_QEMU'] ?? built(buildQemu);
    const lan = testLan(t, { hosts: 1, lan: 'flood' });
    t.match(lan.net('up', lan.directory), { status: 0 });
    const guest = await boot(t, lan, built(build), binary, ' said="PIT calibration deviates from PMTIMER"');
    t.equal(await within('ready', bootMs, guest.ready), 'ready\n');
    t.match(readFileSync(guest.console, 'latin1'), /the TSC was measured wrongly; the clock is acpi_pm/);
  },
);
