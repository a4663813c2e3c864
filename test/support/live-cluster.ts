/**
 * A real cluster for tests, driven by what an operator uses: the command line, the launch script, the hosts'
 * network script, and signals to the processes of that cluster alone.
 */
import { spawn } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';

import { RemoteClient } from '../../cluster/demo/remote-client.js';
import { loadConfig, shmDirectory, writeConfig } from '../../src/api/cluster.js';
import { parseConfig } from '../../src/api/config.js';
import type { ClusterConfig } from '../../src/api/config.js';
import type { ClusterPlace } from '../../src/api/lifecycle.js';
import type { ReplicaStatus } from '../../src/api/status.js';
import { answered, fetchAll } from '../../src/cli/replicas.js';
import { findProcesses, signal } from '../../src/lib/processes.js';
import { repositoryRoot } from '../../src/lib/root.js';
import { waitUntil } from '../../src/lib/time.js';
import { temporaryDirectory } from './directory.js';
import { netScript, run } from './network.js';
import type { Ran } from './network.js';

interface Test {
  teardown(handler: () => void): void;
}

const cli = join(repositoryRoot, 'dist/src/cli/main.js');
const launchScript = join(repositoryRoot, 'cluster/launch');
const commandMs = 240_000;

/** Runs a program to its end without stopping this process's event loop. */
export function runLong(
  file: string,
  args: readonly string[],
  env: NodeJS.ProcessEnv = {},
  timeout = commandMs,
): Promise<Ran> {
  return new Promise((resolve, reject) => {
    const child = spawn(file, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout,
      env: { ...process.env, ...env },
    });
    let out = '';
    let err = '';
    child.stdout.on('data', (chunk: Buffer) => (out += chunk.toString()));
    child.stderr.on('data', (chunk: Buffer) => (err += chunk.toString()));
    child.once('error', reject);
    child.once('close', (status) => resolve({ status, out, err }));
  });
}

export const falcon = (...args: string[]): Promise<Ran> => runLong(process.execPath, [cli, ...args]);

export class LiveCluster {
  private at: ClusterPlace;

  private constructor(place: ClusterPlace) {
    this.at = place;
  }

  get place(): ClusterPlace {
    return this.at;
  }

  /** `falcon init` with `args`; taken down when the test ends, however it ends. */
  static async init(t: Test, ...args: string[]): Promise<LiveCluster> {
    const directory = join(temporaryDirectory(t), 'c');
    const made = await falcon('init', directory, ...args);
    if (made.status !== 0) throw new Error(`falcon init: ${made.err}`);
    const cluster = new LiveCluster({ directory, config: loadConfig(directory) });
    t.teardown(() => cluster.clear());
    return cluster;
  }

  get directory(): string {
    return this.place.directory;
  }

  /** Edits falcon.json, as an operator does before the first start. */
  configure(change: (config: ClusterConfig) => object): void {
    const { directory, config } = this.place;
    this.at = { directory, config: parseConfig({ ...config, ...change(config) }) };
    writeConfig(directory, this.at.config);
  }

  /** A program of the tests with its arguments, in the client's namespace; it prints one JSON object. */
  async load(
    program: string,
    args: readonly string[],
    timeoutMs = commandMs,
  ): Promise<Record<string, unknown>> {
    const netns = `falcon-${this.place.config.cluster.slice(-8)}-client`;
    const file = join(repositoryRoot, 'dist/test/support', program);
    const node = [process.execPath, file, ...args];
    const ran = await runLong('ip', ['netns', 'exec', netns, ...node], {}, timeoutMs);
    if (ran.status !== 0) throw new Error(`${program} ended with ${ran.status}: ${ran.err}`);
    return JSON.parse(ran.out) as Record<string, unknown>;
  }

  up(...args: string[]): Promise<Ran> {
    return falcon('up', this.directory, ...args);
  }

  /** Starts one node that is down. */
  launch(node: string): Promise<Ran> {
    return runLong(launchScript, [this.directory, '--only', node]);
  }

  down(): Promise<Ran> {
    return falcon('down', this.directory);
  }

  async replicas(): Promise<ReplicaStatus[]> {
    return answered(await fetchAll(this.place));
  }

  async replica(node: string): Promise<ReplicaStatus> {
    const found = (await this.replicas()).find((replica) => replica.node === node);
    if (found === undefined) throw new Error(`${node} does not answer`);
    return found;
  }

  /** The replica that says it serves in a view above `view`. Throws after `timeoutMs`. */
  async primary(view = 0, timeoutMs = 30_000): Promise<ReplicaStatus> {
    let found: ReplicaStatus | undefined;
    const seen = await waitUntil(
      async () => {
        const serving = (await this.replicas()).filter(
          ({ role, gate, admitted }) => role === 'primary' && gate === 'open' && admitted,
        );
        found = serving.sort((a, b) => b.view - a.view)[0];
        return found !== undefined && found.view > view;
      },
      { timeoutMs, everyMs: 50 },
    );
    if (!seen || found === undefined) throw new Error(`no primary above view ${view} after ${timeoutMs} ms`);
    return found;
  }

  /** Waits until `holds` says true of a node's status; returns whether it did. */
  becomes(node: string, holds: (replica: ReplicaStatus) => boolean, timeoutMs = 20_000): Promise<boolean> {
    return waitUntil(async () => (await this.replicas()).some((one) => one.node === node && holds(one)), {
      timeoutMs,
      everyMs: 50,
    });
  }

  /** To falcond and QEMU at once, as if the host did it. */
  signalHost(replica: ReplicaStatus, name: NodeJS.Signals): void {
    signal(replica.pid, name);
    if (replica.guest.pid !== null) signal(replica.guest.pid, name);
  }

  net(...args: string[]): Ran {
    return run(netScript, args[0] ?? '', this.directory, ...args.slice(1));
  }

  client(seed: number, depth = 4): Promise<RemoteClient> {
    const { vm, cluster } = this.place.config;
    if (vm.kind !== 'qemu') throw new Error('there is no guest to talk to');
    const netns = `falcon-${cluster.slice(-8)}-client`;
    return RemoteClient.start({ netns, host: vm.address, port: vm.port, seed, depth });
  }

  /** Processes that belong to this cluster. */
  processes(): number[] {
    return [...findProcesses('node', this.directory), ...findProcesses('qemu', this.directory)].filter(
      (pid) => pid !== process.pid,
    );
  }

  /** Whatever a stopped cluster must not leave behind. */
  leftovers(): string[] {
    const { cluster } = this.place.config;
    const netns = existsSync('/run/netns') ? readdirSync('/run/netns') : [];
    const links = readdirSync('/sys/class/net');
    const id = cluster.slice(-8);
    return [
      ...this.processes().map((pid) => `process ${pid}`),
      ...netns.filter((name) => name.includes(id)).map((name) => `namespace ${name}`),
      ...links.filter((name) => name.includes(id)).map((name) => `interface ${name}`),
      ...(existsSync(shmDirectory(cluster)) ? [shmDirectory(cluster)] : []),
      ...this.place.config.nodes.flatMap(({ name }) =>
        readdirSync(join(this.directory, name))
          .filter((file) => /\.(sock|pid)$/.test(file))
          .map((file) => `${name}/${file}`),
      ),
    ];
  }

  private clear(): void {
    for (const pid of this.processes()) signal(pid, 'SIGCONT');
    run(process.execPath, cli, 'down', this.directory);
    for (const pid of this.processes()) signal(pid, 'SIGKILL');
  }
}
