/**
 * A cluster directory: where its files are, and how they are read.
 *
 *   <dir>/falcon.json, secret             configuration, and what lets a node join
 *   <dir>/<node>/wal/, hard-state*        log and votes
 *   <dir>/<node>/falcond.{log,pid}, *.sock     the running daemon and its QEMU
 */
import {
  closeSync,
  fstatSync,
  fsyncSync,
  openSync,
  readFileSync,
  readSync,
  realpathSync,
  renameSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';

import { bounds } from '../lib/bounds.js';
import { errnoOf, FalconError, messageOf } from '../lib/errors.js';
import { parseConfig } from './config.js';
import type { ClusterConfig, NodeConfig } from './config.js';
import { invalid } from './schema.js';

export interface NodePaths {
  readonly directory: string;
  readonly wal: string;
  readonly log: string;
  readonly pidFile: string;
  readonly adminSocket: string;
  readonly vmSocket: string;
  readonly qmpSocket: string;
  readonly readySocket: string;
}

export interface Cluster {
  /** Absolute, with symbolic links resolved: processes are recognised by it. */
  readonly directory: string;
  readonly config: ClusterConfig;
  /** bounds.secretBytes random bytes. */
  readonly secret: Uint8Array;
}

export function nodePaths(clusterDirectory: string, node: string): NodePaths {
  const directory = join(clusterDirectory, node);
  return {
    directory,
    wal: join(directory, 'wal'),
    log: join(directory, 'falcond.log'),
    pidFile: join(directory, 'falcond.pid'),
    adminSocket: join(directory, 'admin.sock'),
    vmSocket: join(directory, 'vm.sock'),
    qmpSocket: join(directory, 'qmp.sock'),
    readySocket: join(directory, 'ready.sock'),
  };
}

/** Where the `shm` fabric and the guest's memory of a cluster live. */
export function shmDirectory(cluster: string): string {
  return `/dev/shm/falcon-${cluster}`;
}

/**
 * Reads configuration and secret. Errors: NOT_INITIALISED, CONFIG_UNREADABLE, CONFIG_INVALID, SECRET_WRONG,
 * SECRET_MODE.
 */
export function loadCluster(directory: string): Cluster {
  const config = loadConfig(directory);
  const real = realpathSync(directory);
  for (const [i, node] of config.nodes.entries()) checkSocketPath(real, node, `nodes[${i}].name`);
  return { directory: real, config, secret: readSecret(join(real, 'secret')) };
}

/** The configuration alone, for what needs no secret. */
export function loadConfig(directory: string): ClusterConfig {
  const path = join(directory, 'falcon.json');
  const text = readBounded(path);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new FalconError('CONFIG_UNREADABLE', `${path}: ${messageOf(error)}`, { cause: error });
  }
  return parseConfig(value);
}

/**
 * The configuration with another host in a member's place. Errors: CONFIG_INVALID, USAGE, MEMBER_REFUSED if the incarnation is
 * no newer one.
 */
export function replacedConfig(
  config: ClusterConfig,
  name: string,
  address: string,
  incarnation: number,
): ClusterConfig {
  const before = nodeNamed(config, name);
  const same = before.incarnation === incarnation && before.address === address;
  if (incarnation <= before.incarnation && !same)
    throw new FalconError('MEMBER_REFUSED', `${name} is incarnation ${before.incarnation} already`);
  const nodes = config.nodes.map((node) => (node === before ? { ...node, address, incarnation } : node));
  return parseConfig({ ...config, nodes });
}

/** Writes falcon.json so that it is the old one or the new one at any instant. Errors: CONFIG_UNREADABLE. */
export function writeConfig(directory: string, config: ClusterConfig): void {
  const path = join(directory, 'falcon.json');
  const unfinished = `${path}.new`;
  try {
    const file = openSync(unfinished, 'w', 0o600);
    try {
      writeFileSync(file, `${JSON.stringify(config, null, 2)}\n`);
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
    renameSync(unfinished, path);
  } catch (error) {
    throw new FalconError('CONFIG_UNREADABLE', messageOf(error), { cause: error });
  }
}

/** The node called `name`. Errors: USAGE. */
export function nodeNamed(config: ClusterConfig, name: string): NodeConfig {
  const node = config.nodes.find((candidate) => candidate.name === name);
  if (node === undefined) {
    throw new FalconError(
      'USAGE',
      `no node ${name}; there are ${config.nodes.map((n) => n.name).join(', ')}`,
    );
  }
  return node;
}

function checkSocketPath(directory: string, node: NodeConfig, path: string): void {
  const socket = nodePaths(directory, node.name).adminSocket;
  const length = Buffer.byteLength(socket);
  if (length > bounds.socketPathMaxBytes) {
    invalid(
      path,
      `makes a socket path of ${length} bytes, ${bounds.socketPathMaxBytes} at most: use a shorter directory`,
    );
  }
}

function readBounded(path: string): string {
  let file: number;
  try {
    file = openSync(path, 'r');
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === 'ENOENT' || errno === 'ENOTDIR')
      throw new FalconError('NOT_INITIALISED', `no ${path}`, { cause: error });
    throw new FalconError('CONFIG_UNREADABLE', messageOf(error), { cause: error });
  }
  try {
    const buffer = new Uint8Array(bounds.configMaxBytes + 1);
    const length = readSync(file, buffer, 0, buffer.length, 0);
    if (length > bounds.configMaxBytes)
      throw new FalconError('CONFIG_UNREADABLE', `${path}: more than ${bounds.configMaxBytes} bytes`);
    return new TextDecoder().decode(buffer.subarray(0, length));
  } catch (error) {
    if (error instanceof FalconError) throw error;
    throw new FalconError('CONFIG_UNREADABLE', `${path}: ${messageOf(error)}`, { cause: error });
  } finally {
    closeSync(file);
  }
}

function readSecret(path: string): Uint8Array {
  let file: number;
  try {
    file = openSync(path, 'r');
  } catch (error) {
    throw new FalconError('SECRET_WRONG', messageOf(error), { cause: error });
  }
  try {
    const { mode } = fstatSync(file);
    if ((mode & 0o7777) !== 0o600)
      throw new FalconError('SECRET_MODE', `${path} has mode 0${(mode & 0o7777).toString(8)}`);
    const text = readFileSync(file, 'utf8').trim();
    if (!/^[0-9a-f]+$/.test(text) || text.length !== 2 * bounds.secretBytes) {
      throw new FalconError('SECRET_WRONG', `${path} must hold ${bounds.secretBytes} bytes as hex digits`);
    }
    return Uint8Array.from(Buffer.from(text, 'hex'));
  } finally {
    closeSync(file);
  }
}
