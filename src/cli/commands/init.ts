import { randomBytes } from 'node:crypto';
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join, resolve } from 'node:path';

import { realFileSystem } from '../../adapters/file-system.js';
import { createHardState } from '../../adapters/hard-state.js';
import { loadCluster, nodePaths } from '../../api/cluster.js';
import { clusterSizes, fabrics, parseConfig } from '../../api/config.js';
import type { ClusterConfig } from '../../api/config.js';
import { bounds } from '../../lib/bounds.js';
import { asFalconError, errnoOf, exitCodes, FalconError, messageOf } from '../../lib/errors.js';
import type { Command, Options } from '../command.js';

const localPortBase = 7400;

export const init: Command = {
  name: 'init',
  summary: 'make a cluster directory with configuration and secret',
  about:
    'Makes DIR with a configuration (falcon.json, to be edited before the first start), a secret and a directory\n' +
    'per node. The hosts are network namespaces of this machine, or with --hosts local just processes.',
  options: {
    nodes: { type: 'string', choices: clusterSizes.map(String), fallback: '3', help: 'how many replicas' },
    name: {
      type: 'string',
      value: 'NAME',
      fallback: 'falcon',
      help: 'first part of the name of the cluster',
    },
    fabric: {
      type: 'string',
      choices: fabrics,
      fallback: 'shm',
      help: 'what carries the log between replicas',
    },
    durability: {
      type: 'string',
      choices: ['disk', 'memory'],
      fallback: 'disk',
      help: 'what an input must have reached before the guest sees it',
    },
    lan: {
      type: 'string',
      choices: ['flood', 'learn'],
      fallback: 'flood',
      help: "whether every replica's tap sees the frames for the VM",
    },
    hosts: {
      type: 'string',
      choices: ['namespaces', 'local'],
      fallback: 'namespaces',
      help: 'what a host is',
    },
    vm: {
      type: 'string',
      choices: ['qemu', 'none'],
      help: 'what is replicated [qemu; none with --hosts local]',
    },
    kernel: { type: 'string', value: 'FILE', help: "the guest's kernel [what cluster/guest/build made]" },
    initrd: {
      type: 'string',
      value: 'FILE',
      help: "the guest's initial file system [what cluster/guest/build made]",
    },
    append: { type: 'string', value: 'TEXT', help: "added to the guest kernel's command line" },
    memory: { type: 'string', value: 'MIB', fallback: '256', help: "the guest's memory" },
    qemu: { type: 'string', value: 'FILE', help: 'the patched QEMU [what cluster/qemu/build made]' },
  },
  run(directory, options, output) {
    const config = describe(options);
    refuseUsed(directory);
    create(directory, config);
    output.out(`${config.cluster}: ${config.nodes.length} nodes in ${directory}`);
    return Promise.resolve(exitCodes.ok);
  },
};

function describe(options: Options): ClusterConfig {
  const hosts = options.value('hosts');
  const vm = options.value('vm') ?? (hosts === 'local' ? 'none' : 'qemu');
  const count = Number(options.value('nodes'));
  if (vm === 'qemu' && hosts === 'local' && count > 1) {
    throw new FalconError(
      'USAGE',
      '--vm qemu needs --hosts namespaces: on one host the replicas would share a tap',
    );
  }
  const id = randomBytes(4).toString('hex');
  // Checked like a file: an option that makes a wrong configuration is found here.
  return parseConfig({
    version: 1,
    cluster: `${options.value('name')}-${id}`,
    fabric: options.value('fabric'),
    durability: options.value('durability'),
    lan: options.value('lan'),
    nodes: Array.from({ length: count }, (_, i) => describeNode(hosts, id, i + 1)),
    vm: vm === 'qemu' ? describeGuest(options) : { kind: 'none', tap: hosts === 'local' ? null : 'vm0' },
  });
}

function describeNode(hosts: string | null, id: string, number: number): object {
  const name = `h${number}`;
  return hosts === 'local'
    ? { name, address: '127.0.0.1', port: localPortBase + number }
    : { name, address: `10.77.0.${number}`, port: localPortBase, netns: `falcon-${id}-${name}` };
}

function describeGuest(options: Options): object {
  const path = (name: string): string | null => {
    const value = options.value(name);
    return value === null ? null : resolve(value);
  };
  return {
    kind: 'qemu',
    name: 'redis',
    qemu: path('qemu'),
    kernel: path('kernel'),
    initrd: path('initrd'),
    append: options.value('append') ?? '',
    memoryMiB: Number(options.value('memory')),
  };
}

function refuseUsed(directory: string): void {
  if (existsSync(join(directory, 'falcon.json'))) throw new FalconError('CLUSTER_EXISTS', directory);
  try {
    if (readdirSync(directory).length > 0) throw new FalconError('USAGE', `${directory} is not empty`);
  } catch (error) {
    if (error instanceof FalconError) throw error;
    if (errnoOf(error) !== 'ENOENT') throw new FalconError('USAGE', messageOf(error), { cause: error });
  }
}

/** The configuration comes last: what has none is no cluster. What a failure leaves is removed. */
function create(directory: string, config: ClusterConfig): void {
  const made = mkdirOrUsage(directory);
  const real = realpathSync(directory);
  const contents = [...config.nodes.map(({ name }) => name), 'secret', 'falcon.json'];
  try {
    for (const { name } of config.nodes) {
      const paths = nodePaths(real, name);
      mkdirSync(paths.wal, { recursive: true, mode: 0o700 });
      createHardState(realFileSystem, paths.directory, { cluster: config.cluster, node: name });
    }
    write(join(real, 'secret'), `${randomBytes(bounds.secretBytes).toString('hex')}\n`);
    write(join(real, 'falcon.json'), `${JSON.stringify(config, null, 2)}\n`);
    loadCluster(real);
  } catch (error) {
    for (const name of contents) rmSync(join(real, name), { recursive: true, force: true });
    if (made !== undefined) rmSync(made, { recursive: true, force: true });
    throw asFalconError(error);
  }
}

/** Returns the topmost directory that was made. */
function mkdirOrUsage(directory: string): string | undefined {
  try {
    return mkdirSync(directory, { recursive: true, mode: 0o700 });
  } catch (error) {
    throw new FalconError('USAGE', messageOf(error), { cause: error });
  }
}

function write(path: string, text: string): void {
  const file = openSync(path, 'wx', 0o600);
  try {
    writeFileSync(file, text);
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
}
