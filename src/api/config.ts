/**
 * The configuration of a cluster: what `falcon.json` holds, checked to the last field.
 *
 * Everything that has a sensible value has a default, so that a short file works; everything that is there
 * is checked, and an error names the path of the wrong value. Relations between fields (a lease must end
 * before anybody may stand for election) are checked here as well: they are what the promises rest on.
 */
import { bounds } from '../lib/bounds.js';
import {
  boolean,
  integer,
  invalid,
  isRecord,
  list,
  nullable,
  object,
  oneOf,
  text,
  withDefault,
} from './schema.js';
import type { Check } from './schema.js';

/** Which RDMA port a node uses; of no meaning with another fabric. */
export interface RdmaConfig {
  /** As ibv_devices lists it; null: the first with an active port. */
  readonly device: string | null;
  readonly port: number;
  /** Row of the port's GID table; null: on Ethernet the first RoCE v2 address with IPv4, else any RoCE v2. */
  readonly gidIndex: number | null;
}

export interface NodeConfig {
  readonly name: string;
  readonly address: string;
  readonly port: number;
  /** Grows when another host takes this member's place: an earlier one is let in no more. */
  readonly incarnation: number;
  /** Network namespace of this host on the operator's machine; null: none. */
  readonly netns: string | null;
  /** False: a witness. It votes and stores, and runs no guest. */
  readonly vm: boolean;
  readonly rdma: RdmaConfig;
}

export interface QemuVmConfig {
  readonly kind: 'qemu';
  readonly name: string;
  /** Path of the patched QEMU; null: the one that `cluster/qemu/build` prints. */
  readonly qemu: string | null;
  /** Paths of the guest's kernel and initrd; null: those that `cluster/guest/build` prints. */
  readonly kernel: string | null;
  readonly initrd: string | null;
  readonly append: string;
  readonly memoryMiB: number;
  readonly mac: string;
  /** The guest's static address, and the length of its network prefix in bits. */
  readonly address: string;
  readonly prefix: number;
  readonly tap: string;
  /** The TCP port of the service inside. */
  readonly port: number;
  readonly readyTimeoutMs: number;
  /** How long a primary waits for a quorum of ready guests before it serves with those that are. */
  readonly quorumReadyWaitMs: number;
}

export interface NoVmConfig {
  readonly kind: 'none';
  readonly mac: string;
  readonly address: string;
  /** null: frames come from tests only. */
  readonly tap: string | null;
}

export type VmConfig = QemuVmConfig | NoVmConfig;

export interface TimingConfig {
  readonly heartbeatMs: number;
  readonly leaseMs: number;
  /** Added to a lease before another replica trusts that it has ended. */
  readonly driftMarginMs: number;
  readonly electionTimeoutMinMs: number;
  readonly electionTimeoutMaxMs: number;
  readonly retryMs: number;
  /** Heartbeats stop when the deciding thread has not ticked for this long. */
  readonly stallMs: number;
}

export interface LogConfig {
  readonly memoryBytes: number;
  readonly ringBytes: number;
  readonly segmentBytes: number;
  readonly retainBytes: number;
}

/**
 * How queue pairs behave, the same on all nodes. Times are the exponents that InfiniBand defines. Nothing but speed
 * depends on them: a queue pair that is given up too early is made anew, one that is given up late delays
 * nobody but its own peer.
 */
export interface VerbsConfig {
  /** A write that is not acknowledged is repeated after 4.096 us * 2^timeout. */
  readonly timeout: number;
  /** ... so often, then the connection counts as broken. */
  readonly retry: number;
  readonly rnrRetry: number;
  readonly minRnrTimer: number;
  /** Writes posted and not completed, for each peer. */
  readonly sendQueue: number;
  /** Writes up to this size are copied into the work request. */
  readonly inlineBytes: number;
}

/** Bytes that guests may say differently: `bytes` of them behind each `start`. */
export interface MaskConfig {
  readonly start: string;
  readonly bytes: number;
}

/** How the guests' outputs are compared. */
export interface OutputConfig {
  /** Bytes of a connection's output that go into one hash. */
  readonly queueBytes: number;
  /** Hashes of a connection between two checks. */
  readonly compareEvery: number;
  /** New output waits no longer than this for a check. */
  readonly checkMs: number;
  /** How long a check waits for a guest that has not come so far. */
  readonly waitMs: number;
  readonly masks: readonly { readonly port: number; readonly mask: readonly MaskConfig[] }[];
  /** What a primary does that is alone against a majority. */
  readonly primaryDiverged: 'heal-backups' | 'transfer-leadership';
}

export interface ClusterConfig {
  readonly version: 1;
  /** `<name>-<8 hex digits>`: no two clusters share it. */
  readonly cluster: string;
  readonly fabric: (typeof fabrics)[number];
  readonly verbs: VerbsConfig;
  readonly durability: 'disk' | 'memory';
  readonly lan: 'flood' | 'learn';
  /** Whether every replica boots its guest, or the primary alone and the others become copies of it. */
  readonly firstBoot: 'clone' | 'each';
  readonly poll: { readonly mode: 'adaptive' | 'busy'; readonly spinUs: number; readonly realtime: boolean };
  readonly timing: TimingConfig;
  readonly log: LogConfig;
  readonly output: OutputConfig;
  readonly nodes: readonly NodeConfig[];
  readonly vm: VmConfig;
}

export const fabrics = ['shm', 'tcp', 'verbs'] as const;

export const clusterSizes = [1, 3, 5, 7] as const;

export const defaultTiming: TimingConfig = {
  heartbeatMs: 5,
  leaseMs: 40,
  driftMarginMs: 2,
  electionTimeoutMinMs: 60,
  electionTimeoutMaxMs: 120,
  retryMs: 10,
  stallMs: 1000,
};

export const defaultLog: LogConfig = {
  memoryBytes: 64 * 1024 * 1024,
  ringBytes: 8 * 1024 * 1024,
  segmentBytes: 64 * 1024 * 1024,
  retainBytes: 1024 * 1024 * 1024,
};

/** The defaults of VerbsOptions, native/fabric/verbs.h; a test compares. */
export const defaultVerbs: VerbsConfig = {
  timeout: 14,
  retry: 3,
  rnrRetry: 6,
  minRnrTimer: 12,
  sendQueue: 512,
  inlineBytes: 256,
};

export const defaultRdma: RdmaConfig = { device: null, port: 1, gidIndex: null };

export const defaultOutput: OutputConfig = {
  queueBytes: 4096,
  compareEvery: 16,
  checkMs: 1000,
  waitMs: 2000,
  masks: [],
  primaryDiverged: 'heal-backups',
};

const KiB = 1024;
const GiB = 1024 * 1024 * 1024;
const second = 1000;

const address = text(/^((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(\.(?!$)|$)){4}$/, 'an IPv4 address', 15);
const mac = text(/^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$/, 'a unicast MAC address like 52:54:00:fa:1c:01', 17);
const nodeName = text(
  /^[a-z0-9]([a-z0-9-]*[a-z0-9])?$/,
  'a name of lower-case letters, digits and inner hyphens',
  bounds.nodeNameMaxChars,
);
const tapName = text(
  /^[A-Za-z0-9][A-Za-z0-9_.-]*$/,
  'the name of a network interface',
  bounds.interfaceNameMaxChars,
);
const file = text(/^\/[^\0\n]*$/, 'an absolute path', 4096);
const tcpPort = integer({ min: 1, max: 65535 });

export const checkClusterName = text(
  /^[a-z0-9]([a-z0-9-]*[a-z0-9])?-[0-9a-f]{8}$/,
  'a name, a hyphen and 8 hex digits, like demo-0a1b2c3d',
  bounds.clusterNameMaxChars,
);

const rdmaFields = object({
  device: withDefault(
    nullable(text(/^[A-Za-z0-9][A-Za-z0-9_.-]*$/, 'the name of an RDMA device', bounds.rdmaDeviceMaxChars)),
    defaultRdma.device,
  ),
  port: withDefault(integer({ min: 1, max: 254 }), defaultRdma.port),
  gidIndex: withDefault(nullable(integer({ min: 0, max: 255 })), defaultRdma.gidIndex),
});

const verbsFields = object({
  // Below 8 (1 ms) a scheduling hiccup of the peer looks like its death; above 20 (4.3 s) a lost peer holds its
  // queue for half a minute.
  timeout: withDefault(integer({ min: 8, max: 20 }), defaultVerbs.timeout),
  retry: withDefault(integer({ min: 0, max: 7 }), defaultVerbs.retry),
  // 7 would be for ever: a stopped process would hold its peers' queues.
  rnrRetry: withDefault(integer({ min: 0, max: 6 }), defaultVerbs.rnrRetry),
  // 0 would be the longest, 655 ms.
  minRnrTimer: withDefault(integer({ min: 1, max: 31 }), defaultVerbs.minRnrTimer),
  // Completions come once a quarter, and what waits for them (kWordsSlab in peer_link.h) has room for 256.
  sendQueue: withDefault(integer({ min: 64, max: 512 }), defaultVerbs.sendQueue),
  inlineBytes: withDefault(integer({ min: 0, max: 1024, unit: 'bytes' }), defaultVerbs.inlineBytes),
});

const checkNode = object({
  name: nodeName,
  address,
  port: withDefault(tcpPort, 7400),
  incarnation: withDefault(integer({ min: 1, max: 2 ** 31 - 1 }), 1),
  netns: withDefault(
    nullable(text(/^[A-Za-z0-9][A-Za-z0-9_.-]*$/, 'the name of a network namespace', 64)),
    null,
  ),
  vm: withDefault(boolean(), true),
  rdma: withDefault(rdmaFields, defaultRdma),
});

const timingFields = object({
  heartbeatMs: withDefault(integer({ min: 1, max: second, unit: 'ms' }), defaultTiming.heartbeatMs),
  leaseMs: withDefault(integer({ min: 5, max: 30 * second, unit: 'ms' }), defaultTiming.leaseMs),
  driftMarginMs: withDefault(integer({ min: 1, max: 10 * second, unit: 'ms' }), defaultTiming.driftMarginMs),
  electionTimeoutMinMs: withDefault(
    integer({ min: 10, max: 60 * second, unit: 'ms' }),
    defaultTiming.electionTimeoutMinMs,
  ),
  electionTimeoutMaxMs: withDefault(
    integer({ min: 11, max: 120 * second, unit: 'ms' }),
    defaultTiming.electionTimeoutMaxMs,
  ),
  retryMs: withDefault(integer({ min: 1, max: 10 * second, unit: 'ms' }), defaultTiming.retryMs),
  stallMs: withDefault(integer({ min: 10, max: 60 * second, unit: 'ms' }), defaultTiming.stallMs),
});

const logFields = object({
  memoryBytes: withDefault(
    integer({ min: 1024 * KiB, max: 64 * GiB, unit: 'bytes' }),
    defaultLog.memoryBytes,
  ),
  ringBytes: withDefault(integer({ min: 512 * KiB, max: GiB, unit: 'bytes' }), defaultLog.ringBytes),
  // A segment holds the largest batch of the log writer, 1 MiB, and its own header.
  segmentBytes: withDefault(
    integer({ min: 2048 * KiB, max: 4 * GiB, unit: 'bytes' }),
    defaultLog.segmentBytes,
  ),
  retainBytes: withDefault(
    integer({ min: 1024 * KiB, max: 4096 * GiB, unit: 'bytes' }),
    defaultLog.retainBytes,
  ),
});

const checkMask = object({
  start: text(/^[\s\S]+$/, 'some text', bounds.outputMaskStartMaxBytes),
  bytes: integer({ min: 1, max: bounds.outputMaskMaxBytes, unit: 'bytes' }),
});

const outputFields = object({
  queueBytes: withDefault(integer({ min: 64, max: 16 * KiB, unit: 'bytes' }), defaultOutput.queueBytes),
  compareEvery: withDefault(integer({ min: 1, max: 1024, unit: 'hashes' }), defaultOutput.compareEvery),
  checkMs: withDefault(integer({ min: 10, max: 3600 * second, unit: 'ms' }), defaultOutput.checkMs),
  waitMs: withDefault(integer({ min: 10, max: 30 * second, unit: 'ms' }), defaultOutput.waitMs),
  masks: withDefault(
    list(object({ port: tcpPort, mask: list(checkMask, { min: 1, max: bounds.outputMasksMax }) }), {
      min: 0,
      max: 64,
    }),
    [],
  ),
  primaryDiverged: withDefault(oneOf(['heal-backups', 'transfer-leadership']), defaultOutput.primaryDiverged),
});

const checkQemu = object({
  kind: oneOf(['qemu']),
  name: withDefault(nodeName, 'vm'),
  qemu: withDefault(nullable(file), null),
  kernel: withDefault(nullable(file), null),
  initrd: withDefault(nullable(file), null),
  append: withDefault(text(/^[\x20-\x7e]*$/, 'printable ASCII', bounds.kernelAppendMaxChars), ''),
  memoryMiB: withDefault(integer({ min: 32, max: 1024 * KiB, unit: 'MiB' }), 256),
  mac: withDefault(mac, '52:54:00:fa:1c:01'),
  address: withDefault(address, '10.77.1.10'),
  prefix: withDefault(integer({ min: 1, max: 30, unit: 'bits' }), 24),
  tap: withDefault(tapName, 'vm0'),
  port: withDefault(tcpPort, 6379),
  readyTimeoutMs: withDefault(integer({ min: second, max: 3600 * second, unit: 'ms' }), 120 * second),
  quorumReadyWaitMs: withDefault(integer({ min: 0, max: 3600 * second, unit: 'ms' }), 15 * second),
});

const checkNoVm = object({
  kind: oneOf(['none']),
  mac: withDefault(mac, '52:54:00:fa:1c:01'),
  address: withDefault(address, '10.77.1.10'),
  tap: withDefault(nullable(tapName), null),
});

const kindOnly = oneOf(['qemu', 'none']);

const checkVm: Check<VmConfig> = (value, path) => {
  if (!isRecord(value)) return invalid(path, 'must be an object', value);
  return kindOnly(value['kind'], `${path}.kind`) === 'qemu' ? checkQemu(value, path) : checkNoVm(value, path);
};

const checkShape = object({
  version: oneOf([1]),
  cluster: checkClusterName,
  fabric: withDefault(oneOf(fabrics), 'shm'),
  verbs: withDefault(verbsFields, defaultVerbs),
  durability: withDefault(oneOf(['disk', 'memory']), 'disk'),
  lan: withDefault(oneOf(['flood', 'learn']), 'flood'),
  firstBoot: withDefault(oneOf(['clone', 'each']), 'clone'),
  poll: withDefault(
    object({
      mode: withDefault(oneOf(['adaptive', 'busy']), 'adaptive'),
      spinUs: withDefault(integer({ min: 0, max: 10_000, unit: 'us' }), 10),
      realtime: withDefault(boolean(), true),
    }),
    { mode: 'adaptive', spinUs: 10, realtime: true },
  ),
  timing: withDefault(timingFields, defaultTiming),
  log: withDefault(logFields, defaultLog),
  output: withDefault(outputFields, defaultOutput),
  nodes: list(checkNode, { min: 1, max: bounds.nodesMax }),
  vm: withDefault(checkVm, checkNoVm({ kind: 'none' }, 'vm')),
});

/**
 * Checks a parsed `falcon.json` and fills in what it leaves out. Errors: CONFIG_INVALID with the path of
 * the wrong value.
 */
export function parseConfig(value: unknown): ClusterConfig {
  const config: ClusterConfig = checkShape(value, '');
  checkTiming(config.timing);
  checkLog(config.log);
  checkMasks(config.output);
  checkNodes(config.nodes);
  checkTaps(config);
  return config;
}

function checkTiming(t: TimingConfig): void {
  // A lease that one lost heartbeat ends would close the gate all the time.
  if (t.leaseMs < 3 * t.heartbeatMs)
    invalid('timing.leaseMs', 'must be at least 3 times timing.heartbeatMs', t.leaseMs);
  // Nobody may stand for election while the old primary may still hold its lease.
  if (t.leaseMs + t.driftMarginMs >= t.electionTimeoutMinMs) {
    invalid(
      'timing.electionTimeoutMinMs',
      'must be more than timing.leaseMs + timing.driftMarginMs',
      t.electionTimeoutMinMs,
    );
  }
  // Equal timeouts would let the votes split again and again.
  if (t.electionTimeoutMaxMs < t.electionTimeoutMinMs + 2 * t.heartbeatMs) {
    invalid(
      'timing.electionTimeoutMaxMs',
      'must exceed timing.electionTimeoutMinMs by at least 2 times timing.heartbeatMs',
      t.electionTimeoutMaxMs,
    );
  }
  if (t.retryMs > t.electionTimeoutMinMs)
    invalid('timing.retryMs', 'must not exceed timing.electionTimeoutMinMs', t.retryMs);
  if (t.stallMs < t.leaseMs) invalid('timing.stallMs', 'must be at least timing.leaseMs', t.stallMs);
}

function checkLog(log: LogConfig): void {
  for (const key of ['memoryBytes', 'ringBytes', 'segmentBytes', 'retainBytes'] as const) {
    if (log[key] % 4096 !== 0) invalid(`log.${key}`, 'must be a multiple of 4096', log[key]);
  }
  if (!Number.isInteger(Math.log2(log.ringBytes)))
    invalid('log.ringBytes', 'must be a power of two', log.ringBytes);
  if (log.ringBytes > log.memoryBytes)
    invalid('log.ringBytes', 'must not exceed log.memoryBytes', log.ringBytes);
  if (log.retainBytes < log.segmentBytes) {
    invalid('log.retainBytes', 'must be at least log.segmentBytes', log.retainBytes);
  }
}

function checkMasks(output: OutputConfig): void {
  const ports = new Map<number, number>();
  for (const [i, { port, mask }] of output.masks.entries()) {
    const other = ports.get(port);
    if (other !== undefined)
      invalid(`output.masks[${i}].port`, `is the same as in output.masks[${other}]`, port);
    ports.set(port, i);
    for (const [j, { start }] of mask.entries()) {
      if (Buffer.byteLength(start) > bounds.outputMaskStartMaxBytes)
        invalid(
          `output.masks[${i}].mask[${j}].start`,
          `must have at most ${bounds.outputMaskStartMaxBytes} bytes`,
          start,
        );
    }
  }
}

function checkNodes(nodes: readonly NodeConfig[]): void {
  if (!clusterSizes.some((size) => size === nodes.length)) {
    invalid('nodes', `must be ${clusterSizes.join(', ')} nodes`, nodes.length);
  }
  unique(nodes, 'name', (node) => node.name);
  unique(nodes, 'address', (node) => `${node.address}:${node.port}`);
  unique(nodes, 'netns', (node) => node.netns);
  if (!nodes.some((node) => node.vm)) invalid('nodes', 'must have at least one node with "vm": true');
}

/** Two replicas on one host, without namespaces of their own, would open the same tap. */
function checkTaps(config: ClusterConfig): void {
  if (config.vm.tap === null) return;
  const hosts = new Map<string, number>();
  for (const [i, node] of config.nodes.entries()) {
    if (config.vm.address === node.address)
      invalid('vm.address', `is the address of nodes[${i}]`, node.address);
    if (!node.vm) continue;
    const host = node.netns ?? node.address;
    const other = hosts.get(host);
    if (other !== undefined)
      invalid(
        `nodes[${i}].netns`,
        `must differ from nodes[${other}]: they would share the tap ${config.vm.tap}`,
      );
    hosts.set(host, i);
  }
}

function unique(nodes: readonly NodeConfig[], field: string, key: (node: NodeConfig) => string | null): void {
  const seen = new Map<string, number>();
  for (const [i, node] of nodes.entries()) {
    const value = key(node);
    if (value === null) continue;
    const other = seen.get(value);
    if (other !== undefined) invalid(`nodes[${i}].${field}`, `is the same as in nodes[${other}]`, value);
    seen.set(value, i);
  }
}
