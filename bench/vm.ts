/**
 * make bench-vm: Redis in a VM, as clients see it. One guest without Falcon and a Falcon of one replica; then
 * three guests without Falcon, all under the same load at once, and a Falcon of three replicas. So what three
 * guests cost on the processors of this machine is not blamed on replication.
 *
 * All guests run on the same patched QEMU with the same arguments, apart from `falcon=`. The load is
 * redis-benchmark in the client's namespace. JSON=1 prints one JSON object on the last line; ROUNDS= repeats.
 */
import { execFileSync, spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { qemuArguments } from '../src/adapters/qemu-arguments.js';
import { loadConfig } from '../src/api/cluster.js';
import { Interrupt } from '../src/lib/interrupt.js';
import { repositoryRoot } from '../src/lib/root.js';
import { sleep } from '../src/lib/time.js';

import { mean, median } from './statistics.js';

interface Load {
  readonly name: string;
  readonly clients: number;
  readonly requests: number;
}

/** As one client process saw it. */
interface Figures {
  readonly perSecond: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
}

interface Row extends Figures {
  readonly setup: string;
  readonly guests: number;
  readonly load: string;
}

const loads: readonly Load[] = [
  { name: 'SET, 1 connection', clients: 1, requests: 1500 },
  { name: 'SET, 16 connections', clients: 16, requests: 6000 },
];
const rounds = Number(process.env['ROUNDS'] ?? '3');
const bootMs = 120_000;
const loadMs = 180_000;
const cli = join(repositoryRoot, 'dist/src/cli/main.js');
const netScript = join(repositoryRoot, 'cluster/hosts/net');
const say = (line: string): void => void process.stderr.write(`bench-vm: ${line}\n`);
const interrupt = new Interrupt();

function built(script: string): string {
  return execFileSync(join(repositoryRoot, script), {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  }).trim();
}

/** A cluster directory; its namespaces and processes go with it. */
class Place {
  readonly directory = join(mkdtempSync(join(tmpdir(), 'falcon-bench-')), 'c');
  private readonly children: ChildProcess[] = [];

  constructor(nodes: number, lan: string) {
    this.run(
      process.execPath,
      cli,
      'init',
      this.directory,
      '--nodes',
      String(nodes),
      '--name',
      'bench',
      '--lan',
      lan,
    );
  }

  run(file: string, ...args: string[]): void {
    execFileSync(file, args, { stdio: ['ignore', 'ignore', 'inherit'] });
  }

  netns(name: string): string {
    return `falcon-${loadConfig(this.directory).cluster.slice(-8)}-${name}`;
  }

  /** The guest of one host without Falcon; returns when its service answers. */
  async bootPlain(node: string, address: string, mac: string): Promise<void> {
    const image = built('cluster/guest/build');
    const { append, memoryMiB } = JSON.parse(readFileSync(join(image, 'manifest.json'), 'utf8')) as {
      append: string;
      memoryMiB: number;
    };
    const directory = join(this.directory, `plain-${node}`);
    mkdirSync(directory);
    const binary = built('cluster/qemu/build');
    const readySocket = join(directory, 'ready.sock');
    const args = qemuArguments({
      binary,
      kernel: join(image, 'vmlinux'),
      initrd: join(image, 'initrd'),
      append,
      memoryMiB,
      mac,
      address: `${address}/24`,
      netdev: 'ifname=vm0,script=no,downscript=no,vhost=off,vnet_hdr=off',
      qmpSocket: join(directory, 'qmp.sock'),
      readySocket,
      ramPath: null,
      console: `file,path=${join(directory, 'console.log')}`,
    });
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`${node}: not ready within ${bootMs} ms`)), bootMs);
      const server = createServer((socket) => {
        socket.on('error', () => socket.destroy());
        socket.once('data', () => {
          clearTimeout(timer);
          server.close();
          resolve();
        });
      });
      server.listen(readySocket, () => {
        const command = ['netns', 'exec', this.netns(node), binary, ...args];
        this.children.push(spawn('ip', command, { stdio: ['ignore', 'ignore', 'inherit'] }));
      });
    });
  }

  async end(): Promise<void> {
    for (const child of this.children) child.kill('SIGKILL');
    await sleep(200);
    this.run(process.execPath, cli, 'down', this.directory);
    this.run(netScript, 'down', this.directory);
    rmSync(join(this.directory, '..'), { recursive: true, force: true });
  }
}

/** redis-benchmark against one guest. */
function benchmark(netns: string, address: string, load: Load): Promise<Figures> {
  const { clients, requests } = load;
  const program = ['redis-benchmark', '-h', address, '-t', 'set', '-d', '64', '-r', '100000', '--csv'];
  const args = ['netns', 'exec', netns, ...program, '-c', String(clients), '-n', String(requests)];
  return new Promise((resolve, reject) => {
    const child = spawn('ip', args, { stdio: ['ignore', 'pipe', 'inherit'], timeout: loadMs });
    let out = '';
    child.stdout.on('data', (chunk: Buffer) => (out += chunk.toString()));
    child.once('error', reject);
    child.once('close', (code) => {
      const line = out.split('\n').find((one) => one.startsWith('"SET"'));
      if (code !== 0 || line === undefined)
        return reject(new Error(`redis-benchmark ended with ${code}: ${out}`));
      const [, perSecond = 0, , , p50Ms = 0, , p99Ms = 0] = line
        .split(',')
        .map((cell) => Number(cell.replaceAll('"', '')));
      resolve({ perSecond, p50Ms, p99Ms });
    });
  });
}

/** The median round; in a round, the mean over the guests under load. */
async function measure(
  place: Place,
  setup: string,
  guests: number,
  addresses: readonly string[],
): Promise<Row[]> {
  const rows: Row[] = [];
  const netns = place.netns('client');
  for (const load of loads) {
    const seen: Figures[] = [];
    for (let round = 0; round <= rounds; round++) {
      interrupt.check();
      const all = await Promise.all(addresses.map((address) => benchmark(netns, address, load)));
      // The first round warms up: translated code, neighbours, page cache.
      if (round === 0) continue;
      seen.push({
        perSecond: mean(all.map((one) => one.perSecond)),
        p50Ms: mean(all.map((one) => one.p50Ms)),
        p99Ms: mean(all.map((one) => one.p99Ms)),
      });
    }
    const row = {
      setup,
      guests,
      load: load.name,
      perSecond: median(seen.map((one) => one.perSecond)),
      p50Ms: median(seen.map((one) => one.p50Ms)),
      p99Ms: median(seen.map((one) => one.p99Ms)),
    };
    rows.push(row);
    say(`${setup}, ${load.name}: ${Math.round(row.perSecond)}/s, p50 ${row.p50Ms} ms, p99 ${row.p99Ms} ms`);
  }
  return rows;
}

async function plain(guests: number): Promise<Row[]> {
  const place = new Place(guests, 'learn');
  try {
    place.run(netScript, 'up', place.directory);
    const hosts = Array.from({ length: guests }, (_unused, i) => i + 1);
    say(`${guests} plain guest${guests === 1 ? '' : 's'} boot`);
    await Promise.all(
      hosts.map((i) => place.bootPlain(`h${i}`, `10.77.1.${20 + i}`, `52:54:00:fa:1c:${20 + i}`)),
    );
    await sleep(1000);
    return await measure(
      place,
      'unreplicated',
      guests,
      hosts.map((i) => `10.77.1.${20 + i}`),
    );
  } finally {
    await place.end();
  }
}

async function replicated(replicas: number): Promise<Row[]> {
  const place = new Place(replicas, 'flood');
  try {
    say(`a Falcon of ${replicas} starts`);
    place.run(process.execPath, cli, 'up', place.directory);
    await sleep(1000);
    const { vm } = loadConfig(place.directory);
    return await measure(place, 'Falcon', replicas, [vm.address]);
  } finally {
    await place.end();
  }
}

function table(rows: readonly Row[]): string[] {
  const lines = [
    'guests  load                  setup         requests/s  of unreplicated    p50 ms    p99 ms',
  ];
  for (const row of rows) {
    const peer = rows.find(
      (one) => one.setup === 'unreplicated' && one.guests === row.guests && one.load === row.load,
    );
    const ratio = peer === undefined ? '' : `${((100 * row.perSecond) / peer.perSecond).toFixed(0)} %`;
    lines.push(
      [
        String(row.guests).padStart(6),
        `  ${row.load.padEnd(20)}`,
        `  ${row.setup.padEnd(12)}`,
        row.perSecond.toFixed(0).padStart(12),
        ratio.padStart(17),
        row.p50Ms.toFixed(2).padStart(10),
        row.p99Ms.toFixed(2).padStart(10),
      ].join(''),
    );
  }
  return lines;
}

const rows: Row[] = [];
for (const guests of [1, 3]) {
  rows.push(...(await plain(guests)));
  rows.push(...(await replicated(guests)));
}
rows.sort((a, b) => a.guests - b.guests || a.load.localeCompare(b.load));
process.stdout.write(`${table(rows).join('\n')}\n`);
if (process.env['JSON'] === '1') process.stdout.write(`${JSON.stringify({ rows })}\n`);
interrupt.dispose();
