/** One falcond: the ports of a real replica, joined to the engine, until it is told to stop or must. */
import { execFileSync } from 'node:child_process';
import { randomBytes, randomInt } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

import type { Logger } from 'pino';

import { Bootstrap, noRefusals } from '../adapters/bootstrap.js';
import type { BootstrapMember } from '../adapters/bootstrap.js';
import { BuiltinGuest } from '../adapters/builtin-guest.js';
import { realFileSystem } from '../adapters/file-system.js';
import { openHardState } from '../adapters/hard-state.js';
import { convertEvent, NativePlane } from '../adapters/native-plane.js';
import { loadNative, openReplica } from '../adapters/native.js';
import type { NativeReplica, NativeReplicaOptions, NativeVerbsOptions } from '../adapters/native.js';
import { QemuGuest } from '../adapters/qemu.js';
import { loadConfig, nodePaths, replacedConfig, shmDirectory, writeConfig } from '../api/cluster.js';
import type { Cluster } from '../api/cluster.js';
import type { ClusterConfig, NodeConfig } from '../api/config.js';
import { ownGarbage } from '../api/lifecycle.js';
import { startAdminServer } from '../api/server.js';
import type { AdminServer } from '../api/server.js';
import type { NodeId } from '../consensus/types.js';
import { ReplicaEngine } from '../engine/replica.js';
import { bounds } from '../lib/bounds.js';
import { FalconError, remoteError } from '../lib/errors.js';
import { takeLock } from '../lib/lock.js';
import { Random } from '../lib/random.js';
import { repositoryRoot } from '../lib/root.js';
import type { GuestRunner } from '../ports/guest.js';
import { transferOptions } from '../transfer/defaults.js';
import { sessionKeyBytes } from '../wire/transfer-messages.js';
import { noteCleanStop, takeCleanStop } from './clean-stop.js';
import { logIdentity } from './log-identity.js';
import { divergenceReport, replicaStatus, syncRecord, verifyResult } from './status.js';
import type { StatusSources } from './status.js';

const nsPerMs = 1e6;

export interface Daemon {
  /** Settles when the daemon has stopped; the code is what ended it, null after a stop that was asked for. */
  readonly ended: Promise<FalconError | null>;
  stop(): void;
}

export async function startDaemon(cluster: Cluster, node: NodeConfig, logger: Logger): Promise<Daemon> {
  const { config } = cluster;
  const self = config.nodes.indexOf(node);
  const paths = nodePaths(cluster.directory, node.name);
  mkdirSync(paths.directory, { recursive: true, mode: 0o700 });
  // Before anything of the node's is read: a second daemon must not so much as tidy up.
  const lock = await takeLock(`node ${paths.directory}`);
  if (lock === null) throw new FalconError('ALREADY_RUNNING', `another daemon has ${paths.directory}`);
  mkdirSync(paths.wal, { recursive: true, mode: 0o700 });
  const startedAt = performance.now();

  let end: (error: FalconError | null) => void = () => undefined;
  const ended = new Promise<FalconError | null>((resolve) => (end = resolve));

  const store = openHardState(realFileSystem, paths.directory, { cluster: config.cluster, node: node.name });
  const native = loadNative();
  if (realtime(config) && !native.makeRealtime())
    logger.warn('no realtime scheduling: not permitted; a busy host can cost this replica its leadership');
  else if (realtime(config) && !process.execArgv.includes(ownGarbage))
    logger.warn(
      `node was started without ${ownGarbage}: the event loop can hold a processor for 0.1 s at a time`,
    );
  const replica = openReplica(native, nativeOptions(cluster, node, self, store.state.view));
  const recovered = replica.recovered();
  logger.info({ ...recovered, table: undefined }, 'log recovered');
  const identity = logIdentity(paths.directory, paths.wal, store.state.view > 0);
  if (!identity.same)
    logger.error('LOG_DAMAGED: the log is not the one this node wrote; rejoins by fetching from peers');
  const cleanStop = takeCleanStop(paths.directory);
  const lostEntries =
    !identity.same ||
    recovered.damaged ||
    (config.durability === 'memory' && store.state.view > 0 && !cleanStop);
  if (recovered.damaged)
    logger.error({ detail: recovered.damageDetail }, 'LOG_DAMAGED: rejoins by fetching from peers');
  const hardState = { ...store.state, recovering: store.state.recovering || lostEntries };
  if (hardState.recovering !== store.state.recovering) store.write(hardState);
  identity.settle();

  const guest = node.vm ? makeGuest(cluster, node, replica) : null;
  const plane = new NativePlane(replica);
  const link = replica.link();
  if (link !== null) logger.info(link, 'RDMA port opened');
  let bootstrap: Bootstrap | null = null;
  const random = new Random(randomInt(2 ** 47));
  const engine = new ReplicaEngine(
    {
      core: {
        self,
        members: config.nodes.map((_node, index) => index),
        witnesses: config.nodes.flatMap((candidate, index) => (candidate.vm ? [] : [index])),
        electionTimeoutMinMs: config.timing.electionTimeoutMinMs,
        electionTimeoutMaxMs: config.timing.electionTimeoutMaxMs,
        leaseMs: config.timing.leaseMs,
        driftMarginMs: config.timing.driftMarginMs,
        retryMs: config.timing.retryMs,
        random: () => random.float(),
      },
      hardState,
      tail: { last: { view: recovered.lastView, op: recovered.lastOp }, commitOp: 0, table: recovered.table },
      transfer: {
        core: transferOptions(self),
        machine: machineOf(config),
        files: sessionFiles(config, node),
        key: () => randomBytes(sessionKeyBytes),
        recordsMax: bounds.transferRecordsMax,
      },
      boot: {
        mode: config.firstBoot,
        firstBootWaitMs: bounds.firstBootWaitMs,
        fillWaitMs: bounds.fillWaitMs,
        rebootWaitMs: bounds.rebootWaitMs,
        quorumReadyWaitMs: config.vm.kind === 'qemu' ? config.vm.quorumReadyWaitMs : 0,
      },
      canRunGuest: node.vm,
      reportIntervalMs: bounds.guestReportMs,
      mailSilenceMs: bounds.mailSilenceMs,
      outputs: { waitMs: config.output.waitMs, primaryDiverged: config.output.primaryDiverged },
    },
    {
      plane,
      store,
      guest,
      clock: { now: () => native.monotonicNs() / nsPerMs },
      reconnect: (peer, why) => {
        logger.debug({ peer, why }, 'reconnects');
        bootstrap?.reset(peer);
      },
      fail: (why) => end(failure(why)),
      log: (level, text, fields) => logger[level](named(config.nodes, fields ?? {}), text),
    },
  );

  const stopping: (() => Promise<void> | void)[] = [];
  let admin: AdminServer | null = null;
  try {
    const sources = (): StatusSources => {
      const refused = bootstrap?.refused ?? noRefusals;
      return { cluster, node, self, engine, plane, link, guest, startedAt, refused };
    };
    admin = await startAdminServer(paths.adminSocket, {
      status: () => replicaStatus(sources()),
      shutdown: () => {
        setImmediate(() => end(null));
        return { stopping: true };
      },
      divergence: () => divergenceReport(sources()),
      'transfer-leader': (params) => transferLeader(cluster, engine, params),
      sync: (params) => sync(cluster, engine, params),
      verify: (params) => verify(cluster, node, engine, params),
      member: (params) => replaceMember(cluster, node, params, (member) => bootstrap?.replace(member)),
    });
    replica.start((events) => engine.onPlaneEvents(events.map(convertEvent)));
    const members = config.nodes.map(memberOf);
    bootstrap = await Bootstrap.start({
      cluster: config.cluster,
      secret: cluster.secret,
      self: members[self]!,
      members,
      fabric: config.fabric,
      descriptor: () => replica.descriptor(),
      onPeerUp: (peer, connection, descriptor) => {
        logger.info({ peer: config.nodes[peer]?.name }, 'peer connected');
        engine.onPeerUp(peer, connection, descriptor);
      },
      onPeerDown: (peer) => {
        logger.info({ peer: config.nodes[peer]?.name }, 'peer disconnected');
        engine.onPeerDown(peer);
      },
      onRefused: (code, text) => logger.warn(`${code}: ${text}`),
    });
  } catch (error) {
    await bootstrap?.close();
    replica.close();
    await admin?.close();
    throw error;
  }
  const timer = setInterval(() => engine.tick(), bounds.tickMs);
  writeFileSync(paths.pidFile, `${process.pid}\n`, { mode: 0o600 });
  logger.info({ pid: process.pid, view: hardState.view }, 'falcond runs');

  stopping.push(
    () => clearInterval(timer),
    () => engine.stop(),
    () => bootstrap?.close(),
    () => guest?.stop(),
    () => replica.close(),
    () => admin?.close(),
    () => rmSync(paths.pidFile, { force: true }),
  );
  const finished = ended.then(async (error) => {
    for (const step of stopping) await step();
    if (error === null) noteCleanStop(paths.directory, paths.wal);
    return error;
  });
  return { ended: finished, stop: () => end(null) };
}

function memberOf({ name, address, port, incarnation }: NodeConfig, index: number): BootstrapMember {
  return { index, name, address, port, incarnation };
}

/** What the guests of two replicas must have in common for one to become the other. */
function machineOf({ vm }: ClusterConfig): string {
  return vm.kind === 'none' ? 'none' : `pc ${vm.memoryMiB} MiB ${vm.mac}`;
}

/** In shared memory: they live for one session, and a disk would make guests wait. */
function sessionFiles(
  config: ClusterConfig,
  node: NodeConfig,
): { inbox: string; dirty: string; state: string } {
  // Only the fabric `shm` and QEMU make it by themselves.
  mkdirSync(shmDirectory(config.cluster), { recursive: true, mode: 0o700 });
  const file = (kind: string): string => join(shmDirectory(config.cluster), `${node.name}.${kind}`);
  return { inbox: file('inbox'), dirty: file('dirty'), state: file('state') };
}

/** A thread that never sleeps must not keep everything else from running. */
function realtime(config: ClusterConfig): boolean {
  return config.poll.realtime && config.poll.mode !== 'busy';
}

function nativeOptions(
  cluster: Cluster,
  node: NodeConfig,
  self: number,
  promisedView: number,
): NativeReplicaOptions {
  const { config, directory } = cluster;
  const { timing, log, vm, poll } = config;
  const paths = nodePaths(directory, node.name);
  return {
    self,
    promisedView,
    members: config.nodes.length,
    force: config.durability === 'disk',
    logBytes: 2 ** Math.floor(Math.log2(log.memoryBytes)),
    logEntries: bounds.logEntriesMax,
    ringBytes: log.ringBytes,
    inflightEntries: bounds.inflightEntriesMax,
    heartbeatNs: timing.heartbeatMs * nsPerMs,
    leaseNs: timing.leaseMs * nsPerMs,
    deciderStallNs: timing.stallMs * nsPerMs,
    keepUnproposed: config.lan === 'flood',
    hashSeed: randomInt(1, 2 ** 48 - 1),
    outputQueueBytes: config.output.queueBytes,
    outputCompareEvery: config.output.compareEvery,
    outputCheckNs: config.output.checkMs * nsPerMs,
    outputWaitNs: config.output.waitMs * nsPerMs,
    outputMasks: config.output.masks.flatMap(({ port, mask }) =>
      mask.map(({ start, bytes }) => ({ port, start: Buffer.from(start), bytes })),
    ),
    faults: testFaults(node.name),
    vmMac: Uint8Array.from(vm.mac.split(':').map((part) => parseInt(part, 16))),
    vmAddress: Uint8Array.from(vm.address.split('.').map(Number)),
    cluster: config.cluster,
    walDirectory: paths.wal,
    walSalt: randomInt(1, 2 ** 32),
    segmentBytes: log.segmentBytes,
    retainBytes: log.retainBytes,
    fabric: config.fabric,
    fabricAddress: config.nodes[self]?.address ?? '',
    verbs: config.fabric === 'verbs' ? verbsOptions(config, node) : null,
    shmDirectory: shmDirectory(config.cluster),
    shmName: node.name,
    vm: node.vm,
    builtin: vm.kind === 'none',
    vmSocket: paths.vmSocket,
    tap: node.vm ? (vm.tap ?? '') : '',
    busy: poll.mode === 'busy',
    spinNs: poll.spinUs * 1000,
    realtime: realtime(config),
  };
}

function verbsOptions(config: ClusterConfig, { rdma }: NodeConfig): NativeVerbsOptions {
  return { ...config.verbs, device: rdma.device ?? '', port: rdma.port, gidIndex: rdma.gidIndex ?? -1 };
}

/**
 * For tests: FALCON_TEST_FAULT = {"node": "h2", "replace": [["...", "..."]]} replaces a text in the input of one
 * node's guest by another of the same length, so that this guest, and no other, answers otherwise.
 */
function testFaults(node: string): NonNullable<NativeReplicaOptions['faults']> {
  const given = process.env['FALCON_TEST_FAULT'];
  if (given === undefined) return [];
  const fault = JSON.parse(given) as { node: string; replace: [from: string, to: string][] };
  if (fault.node !== node) return [];
  return fault.replace.map(([from, to]) => ({ from: Buffer.from(from), to: Buffer.from(to) }));
}

function makeGuest(cluster: Cluster, node: NodeConfig, replica: NativeReplica): GuestRunner {
  const { vm } = cluster.config;
  if (vm.kind === 'none') return new BuiltinGuest();
  const built = (script: string): string =>
    execFileSync(join(repositoryRoot, script), {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim();
  const image = vm.kernel === null || vm.initrd === null ? built('cluster/guest/build') : '';
  const kernel = vm.kernel ?? join(image, 'vmlinux');
  const paths = nodePaths(cluster.directory, node.name);
  return new QemuGuest({
    binary: vm.qemu ?? built('cluster/qemu/build'),
    kernel,
    initrd: vm.initrd ?? join(image, 'initrd'),
    append: [baseAppend(kernel), vm.append].filter((part) => part !== '').join(' '),
    memoryMiB: vm.memoryMiB,
    mac: vm.mac,
    address: `${vm.address}/${vm.prefix}`,
    tapFd: replica.tapFd(),
    vmSocket: paths.vmSocket,
    qmpSocket: paths.qmpSocket,
    readySocket: paths.readySocket,
    directory: paths.directory,
    ramDirectory: shmDirectory(cluster.config.cluster),
    ramName: node.name,
    readyTimeoutMs: vm.readyTimeoutMs,
  });
}

const defaultAppend = 'console=ttyS0 quiet panic=-1 oops=panic net.ifnames=0 ipv6.disable=1';

/** What the image says its kernel wants (manifest.json beside it), or what any needs. */
function baseAppend(kernel: string): string {
  const manifest = join(dirname(kernel), 'manifest.json');
  if (!existsSync(manifest)) return defaultAppend;
  const { append } = JSON.parse(readFileSync(manifest, 'utf8')) as { append?: unknown };
  return typeof append === 'string' ? append : defaultAppend;
}

async function transferLeader(cluster: Cluster, engine: ReplicaEngine, params: unknown): Promise<unknown> {
  const to = (params as { to?: unknown } | null)?.to ?? null;
  if (to !== null && typeof to !== 'string')
    throw new FalconError('REQUEST_INVALID', 'a node by its name', { path: 'to' });
  let target: NodeId | null = null;
  if (to !== null) {
    target = cluster.config.nodes.findIndex((node) => node.name === to);
    if (target < 0) throw new FalconError('USAGE', `no node ${to}`);
  }
  if (engine.role !== 'primary') throw new FalconError('NOT_PRIMARY', 'this node is not the primary');
  const outcome = await engine.transfer(target);
  if (outcome.code !== null) throw new FalconError(outcome.code, outcome.reason);
  return { to: outcome.to === null ? null : (cluster.config.nodes[outcome.to]?.name ?? null) };
}

/** Brings a member to a full copy of this primary's guest, and says what that took. */
async function sync(cluster: Cluster, engine: ReplicaEngine, params: unknown): Promise<unknown> {
  const { nodes } = cluster.config;
  const name = (params as { node?: unknown } | null)?.node;
  const node = nodes.findIndex((candidate) => candidate.name === name);
  if (node < 0) throw new FalconError('REQUEST_INVALID', 'a node by its name', { path: 'node' });
  if (nodes[node]?.vm !== true) throw new FalconError('SYNC_REFUSED', `${String(name)} runs no guest`);
  if (engine.role !== 'primary') throw new FalconError('NOT_PRIMARY', 'this node is not the primary');
  const record = await engine.sync(node);
  if (record === null) throw new FalconError('LEADERSHIP_LOST', 'the request is forgotten with it');
  if (!record.ok) throw new FalconError('SYNC_ABANDONED', record.why);
  return syncRecord(record, (index) => nodes[index]?.name ?? String(index));
}

/** Compares a member's guest with this primary's, and says how much of them differs. */
async function verify(
  cluster: Cluster,
  self: NodeConfig,
  engine: ReplicaEngine,
  params: unknown,
): Promise<unknown> {
  const { nodes } = cluster.config;
  const name = (params as { node?: unknown } | null)?.node;
  const node = nodes.findIndex((candidate) => candidate.name === name);
  if (node < 0) throw new FalconError('REQUEST_INVALID', 'a node by its name', { path: 'node' });
  if (engine.role !== 'primary') throw new FalconError('NOT_PRIMARY', 'this node is not the primary');
  if (name === self.name) throw new FalconError('VERIFY_REFUSED', `${self.name} is the primary`);
  if (nodes[node]?.vm !== true) throw new FalconError('VERIFY_REFUSED', `${String(name)} runs no guest`);
  const outcome = await engine.stateTransfer.verification.request(node);
  if (outcome === null) throw new FalconError('LEADERSHIP_LOST', 'the request is forgotten with it');
  if ('refused' in outcome) throw new FalconError('VERIFY_REFUSED', outcome.refused);
  if (!outcome.ok) throw new FalconError('VERIFY_ABANDONED', outcome.why);
  return verifyResult(outcome, self.name, (index) => nodes[index]?.name ?? String(index));
}

/** Another host takes a member's place: known here at once, and after a restart. */
function replaceMember(
  cluster: Cluster,
  self: NodeConfig,
  params: unknown,
  tell: (member: BootstrapMember) => void,
): unknown {
  const given = (params ?? {}) as { node?: unknown; address?: unknown; incarnation?: unknown };
  const { node: name, address, incarnation } = given;
  if (typeof name !== 'string' || typeof address !== 'string' || typeof incarnation !== 'number')
    throw new FalconError('REQUEST_INVALID', 'node, address and incarnation');
  if (name === self.name) throw new FalconError('MEMBER_REFUSED', `${name} runs`);
  const config = replacedConfig(loadConfig(cluster.directory), name, address, incarnation);
  writeConfig(cluster.directory, config);
  const index = config.nodes.findIndex((candidate) => candidate.name === name);
  tell(memberOf(config.nodes[index]!, index));
  return { node: name, incarnation };
}

/** Member indices in log fields become names. */
function named(nodes: readonly NodeConfig[], fields: Record<string, unknown>): Record<string, unknown> {
  const result: Record<string, unknown> = { ...fields };
  for (const key of ['peer', 'primary', 'from', 'to']) {
    const value = result[key];
    if (typeof value === 'number') result[key] = nodes[value]?.name ?? value;
  }
  return result;
}

/** "CODE detail", as the data plane and the engine say why a replica must stop. */
function failure(why: string): FalconError {
  const space = why.indexOf(' ');
  const [code, detail] = space < 0 ? [why, ''] : [why.slice(0, space), why.slice(space + 1)];
  return remoteError(code, detail);
}
