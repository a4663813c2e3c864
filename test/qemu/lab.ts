// A temporary network namespace with a tap, the compiled peer, and the patched QEMU: what each test here
// stands on. Everything is taken away again when the test ends, however it ends.
import { execFileSync } from 'node:child_process';
import { accessSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { repositoryRoot } from '../../src/lib/root.js';
import { E1000 } from './e1000.js';
import { Machine, type MachineOptions } from './machine.js';
import { Peer } from './peer.js';
import { deleteNamespace, PREFIX, remember, sweep } from './remains.js';

/** The smallest power of two that the ring layout allows. */
export const RING_BYTES = 1 << 19;
export const TAP = 'tap0';
const TAP_QUEUE_FRAMES = 8000;

/** Why these tests cannot run on this machine, or false if they can. */
export function cannotRun(): string | false {
  if (process.getuid?.() !== 0) return 'needs root to make network namespaces and taps';
  try {
    accessSync('/dev/net/tun');
  } catch {
    return 'needs /dev/net/tun';
  }
  return false;
}

/** Builds QEMU if the cache does not have it, which takes minutes. */
export function qemuBinary(): string {
  const given = process.env['FALCON_TEST_QEMU'];
  if (given !== undefined) return given;
  const build = join(repositoryRoot, 'cluster/qemu/build');
  return execFileSync(build, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] }).trim();
}

export interface Lab {
  readonly namespace: string;
  readonly socket: string;
  /** The tap netdev that is attached to `socket`. */
  readonly netdev: string;
  machineOptions(netdev: string, more?: readonly string[]): MachineOptions;
  startPeer(mode?: string): Promise<Peer>;
  startMachine(netdev: string, more?: readonly string[]): Promise<Machine>;
}

interface Teardown {
  teardown(handler: () => void): void;
}

let labs = 0;

export function makeLab(t: Teardown): Lab {
  if (labs === 0) sweep();
  const qemu = qemuBinary();
  const number = labs++;
  const namespace = `${PREFIX}${process.pid}-${number}`;
  const folder = mkdtempSync(join(tmpdir(), `${PREFIX}${process.pid}-`));
  const children: { kill(): void }[] = [];
  t.teardown(
    remember(() => {
      for (const child of children) child.kill();
      deleteNamespace(namespace);
      rmSync(folder, { recursive: true, force: true });
    }),
  );
  execFileSync('ip', ['netns', 'add', namespace]);
  prepareTap(namespace);

  const binary = join(folder, 'peer');
  const source = join(repositoryRoot, 'test/qemu/peer.c');
  execFileSync('gcc', ['-O1', '-Wall', `-I${join(repositoryRoot, 'native/vm')}`, '-o', binary, source]);

  const socket = join(folder, 'falcond.sock');
  const plain = `tap,id=n0,ifname=${TAP},script=no,downscript=no,vnet_hdr=off`;
  let machines = 0;
  const machineOptions = (netdev: string, more: readonly string[] = []): MachineOptions => {
    return { qemu, namespace, netdev, more, qtestSocket: join(folder, `qtest${machines++}.sock`) };
  };
  return {
    namespace,
    socket,
    netdev: `${plain},falcon=${socket}`,
    machineOptions,
    startPeer: async (mode = 'ok') => {
      rmSync(socket, { force: true });
      const peer = await Peer.start({ binary, namespace, socket, mode, tap: TAP, capacity: RING_BYTES });
      children.push({ kill: () => peer.process.kill('SIGKILL') });
      return peer;
    },
    startMachine: async (netdev, more) => {
      const machine = await Machine.start(machineOptions(netdev, more));
      children.push(machine);
      return machine;
    },
  };
}

function prepareTap(namespace: string): void {
  const ip = (...words: string[]): unknown => execFileSync('ip', ['-n', namespace, ...words]);
  // The kernel's own neighbour discovery would put frames between the numbered ones.
  const quiet = 'test ! -d /proc/sys/net/ipv6 || echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6';
  execFileSync('ip', ['netns', 'exec', namespace, 'sh', '-c', quiet]);
  ip('tuntap', 'add', TAP, 'mode', 'tap');
  ip('link', 'set', TAP, 'txqueuelen', `${TAP_QUEUE_FRAMES}`, 'up');
}

export interface Running {
  readonly peer: Peer;
  readonly machine: Machine;
  readonly nic: E1000;
}

/** Peer, QEMU attached to it, and a guest driver with `rxDescriptors` receive descriptors. */
export async function start(lab: Lab, rxDescriptors: number): Promise<Running> {
  const peer = await lab.startPeer();
  const machine = await lab.startMachine(lab.netdev);
  return { peer, machine, nic: await E1000.start(machine, rxDescriptors) };
}
