/** Host namespaces for tests: a cluster directory of its own, the network script, and what is left of both. */
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { repositoryRoot } from '../../src/lib/root.js';
import { temporaryDirectory } from './directory.js';

interface Teardown {
  teardown(handler: () => void): void;
}

export interface Ran {
  readonly status: number | null;
  readonly out: string;
  readonly err: string;
}

/** Runs a program to its end, a minute at most. */
export function run(file: string, ...args: string[]): Ran {
  const { status, stdout, stderr } = spawnSync(file, args, { encoding: 'utf8', timeout: 60_000 });
  return { status, out: stdout, err: stderr };
}

/** Why this machine cannot make namespaces with taps; null if it can. */
export function whyNoNamespaces(): string | null {
  if (process.getuid?.() !== 0) return 'needs root for network namespaces';
  if (!existsSync('/dev/net/tun')) return 'needs /dev/net/tun';
  if (run('ip', '-V').status !== 0) return 'needs iproute2';
  return null;
}

export const netScript = join(repositoryRoot, 'cluster/hosts/net');

export interface TestLan {
  readonly id: string;
  readonly directory: string;
  /** The namespace of a host, of the `client` or of the `lan`. */
  netns(name: string): string;
  /** `ip netns exec` in one of them. */
  exec(name: string, ...command: string[]): Ran;
  net(...args: string[]): Ran;
  /** What exists now, without the common part of the names. */
  left(): string[];
}

/** A cluster directory with hosts h1..hN; its namespaces go away with the test, made or not. */
export function testLan(
  t: Teardown,
  options: { readonly hosts: number; readonly lan: 'flood' | 'learn' },
): TestLan {
  const directory = temporaryDirectory(t);
  const id = randomBytes(4).toString('hex');
  const names = Array.from({ length: options.hosts }, (_, i) => `h${i + 1}`);
  const nodes = names.map((name, i) => ({
    name,
    address: `10.77.0.${i + 1}`,
    port: 7400,
    netns: `falcon-${id}-${name}`,
    vm: true,
  }));
  const vm = {
    kind: 'qemu',
    mac: '52:54:00:fa:1c:01',
    address: '10.77.1.10',
    prefix: 24,
    tap: 'vm0',
    port: 6379,
  };
  writeFileSync(
    join(directory, 'falcon.json'),
    JSON.stringify({ version: 1, cluster: `test-${id}`, lan: options.lan, nodes, vm }),
  );
  t.teardown(() => void run(netScript, 'down', id));
  const netns = (name: string): string => `falcon-${id}-${name}`;
  return {
    id,
    directory,
    netns,
    exec: (name, ...command) => run('ip', 'netns', 'exec', netns(name), ...command),
    net: (...args) => run(netScript, ...args),
    left: () =>
      (existsSync('/run/netns') ? readdirSync('/run/netns') : [])
        .filter((name) => name.startsWith(`falcon-${id}-`))
        .map((name) => name.slice(`falcon-${id}-`.length))
        .sort(),
  };
}
