// The project's guest with Redis in a patched QEMU of its own network: its memory is a file, its monitor is ours.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { Duplex } from 'node:stream';

import { qemuArguments } from '../../src/adapters/qemu-arguments.js';
import { QmpClient } from '../../src/adapters/qmp.js';
import { makeRamFile } from '../../src/adapters/ram-file.js';
import { repositoryRoot } from '../../src/lib/root.js';
import { testLan, type TestLan } from '../support/network.js';
import { qemuBinary } from './lab.js';
import { until } from './lines.js';
import { DIES_WITH_US, PREFIX, remember } from './remains.js';

const ADDRESS = '10.77.1.10';
const BOOT_MS = 120_000;
const RAM_DIRECTORY = '/dev/shm';

interface Test {
  teardown(handler: () => void): void;
}

export interface GuestImage {
  readonly kernel: string;
  readonly initrd: string;
  readonly append: string;
  readonly memoryMiB: number;
}

/** Builds the image if the cache does not have it. */
export function guestImage(): GuestImage {
  const build = join(repositoryRoot, 'cluster/guest/build');
  const folder = execFileSync(build, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] }).trim();
  const manifest = JSON.parse(readFileSync(join(folder, 'manifest.json'), 'utf8')) as {
    append: string;
    memoryMiB: number;
  };
  return { kernel: join(folder, 'vmlinux'), initrd: join(folder, 'initrd'), ...manifest };
}

let guests = 0;

export class RedisGuest {
  readonly lan: TestLan;
  readonly qmp: QmpClient;
  readonly ramPath: string;
  readonly ramBytes: number;
  readonly process: ChildProcess;
  readonly statePath: string;
  readonly dirtyPath: string;
  /** All that came from the guest's readiness port. */
  said = '';
  /** The readiness port is connected. */
  listening = false;

  private constructor(t: Test, lan: TestLan, socket: string, more: readonly string[]) {
    this.lan = lan;
    const image = guestImage();
    const name = `${PREFIX}${process.pid}-redis${guests++}`;
    this.ramBytes = image.memoryMiB * 1024 * 1024;
    this.ramPath = makeRamFile({ directory: RAM_DIRECTORY, name, bytes: this.ramBytes });
    this.statePath = join(lan.directory, 'state');
    this.dirtyPath = join(lan.directory, 'dirty');
    const qemu = qemuBinary();
    const args = qemuArguments({
      binary: qemu,
      ...image,
      mac: '52:54:00:fa:1c:01',
      address: `${ADDRESS}/24`,
      netdev: 'ifname=vm0,script=no,downscript=no,vhost=off,vnet_hdr=off',
      ramPath: this.ramPath,
      console: `file,path=${join(lan.directory, 'console.log')}`,
      qmpSocket: join(lan.directory, 'qmp.sock'),
      readySocket: socket,
    });
    const monitor = ['-chardev', 'socket,id=monitor,fd=3', '-mon', 'chardev=monitor,mode=control'];
    const [setpriv, ...words] = [
      ...DIES_WITH_US,
      ...['ip', 'netns', 'exec', lan.netns('h1'), qemu, ...args, ...monitor, ...more],
    ];
    this.process = spawn(setpriv, words, { stdio: ['ignore', 'ignore', 'inherit', 'pipe'] });
    const stream = this.process.stdio[3];
    if (!(stream instanceof Duplex)) throw new Error('no monitor');
    this.qmp = new QmpClient(stream);
    t.teardown(
      remember(() => {
        this.process.kill('SIGKILL');
        this.qmp.close();
        rmSync(this.ramPath, { force: true });
      }),
    );
  }

  /** Boots at once, or with `-S` in `more` stands before its first instruction. */
  static async start(t: Test, more: readonly string[] = []): Promise<RedisGuest> {
    const lan = testLan(t, { hosts: 1, lan: 'flood' });
    const { status, err } = lan.net('up', lan.directory);
    if (status !== 0) throw new Error(`no network: ${err}`);
    const socket = join(lan.directory, 'ready.sock');
    const server = createServer((connection) => {
      guest.listening = true;
      connection.on('error', () => connection.destroy());
      connection.on('data', (part) => (guest.said += part.toString('latin1')));
      connection.on('close', () => (guest.listening = false));
    });
    server.listen(socket);
    await once(server, 'listening');
    t.teardown(() => void server.close());
    const guest = new RedisGuest(t, lan, socket, more);
    return guest;
  }

  ready(): Promise<void> {
    return until('the guest is ready', async () => this.said.includes('ready\n'), BOOT_MS);
  }

  /** What redis-cli prints. */
  redis(...words: string[]): string {
    const { status, out, err } = this.lan.exec('client', 'redis-cli', '-h', ADDRESS, ...words);
    if (status !== 0) throw new Error(`redis-cli ${words.join(' ')}: ${status} ${err}`);
    return out.trim();
  }

  /** A line of INFO. */
  info(key: string): string {
    return new RegExp(`^${key}:(.*?)\\r?$`, 'm').exec(this.redis('INFO'))?.[1] ?? `no ${key}`;
  }

  /** SETs of one client until it is killed or has done `requests`. */
  load(requests: number): ChildProcess {
    const words = ['redis-benchmark', '-h', ADDRESS, '-t', 'set', '-r', '10000', '-d', '2000', '-c', '8'];
    const command = ['netns', 'exec', this.lan.netns('client'), ...words, '-n', String(requests)];
    const [setpriv, ...all] = [...DIES_WITH_US, 'ip', ...command];
    return spawn(setpriv, all, { stdio: 'ignore' });
  }

  /** Milliseconds that each of `count` requests takes, one after the other on one new connection. */
  latencies(count: number): number[] {
    // A guest that was loaded knows the client of another LAN by that one's MAC address, until it is asked for its own.
    this.lan.exec('client', 'ip', 'neigh', 'flush', 'all');
    const script = join(this.lan.directory, 'latency.mjs');
    writeFileSync(script, latencyScript(count));
    const { status, out, err } = this.lan.exec('client', process.execPath, script);
    if (status !== 0) throw new Error(`latencies: ${err}`);
    return JSON.parse(out) as number[];
  }
}

function latencyScript(count: number): string {
  return `
import { connect } from 'node:net';
const socket = connect(6379, '${ADDRESS}');
const took = [];
let began = performance.now();
const ask = () => { began = performance.now(); socket.write('INCR latency\\r\\n'); };
socket.setNoDelay(true);
socket.on('connect', ask);
socket.on('data', () => {
  took.push(performance.now() - began);
  if (took.length < ${count}) ask();
  else { console.log(JSON.stringify(took)); socket.destroy(); }
});
`;
}
