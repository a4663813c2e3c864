/** The addon's one declaration file: what native/addon exports, as it is. Times are nanoseconds. */
import { createRequire } from 'node:module';
import { existsSync } from 'node:fs';
import { join } from 'node:path';

import { FalconError, messageOf, remoteError } from '../lib/errors.js';
import { repositoryRoot } from '../lib/root.js';
import type { OutputApplication } from '../ports/data-plane.js';

export interface NativeEvent {
  readonly type: string;
  readonly peer: number;
  readonly view: number;
  readonly op: number;
  readonly atNs: number;
  readonly bytes?: Uint8Array;
  readonly entryKind?: number;
  readonly lastView?: number;
  readonly commitOp?: number;
  readonly table?: { view: number; firstOp: number }[];
  readonly numbers?: number[];
}

export interface NativeLoad {
  /** As startLoad was given it. */
  readonly number: number;
  readonly done: boolean;
  readonly leadershipLost: boolean;
  readonly entries: number;
  readonly elapsedNs: number;
  readonly p50Ns: number;
  readonly p90Ns: number;
  readonly p99Ns: number;
  readonly p999Ns: number;
  readonly maxNs: number;
}

/** Output of the application on `port`: `bytes` behind each `start` are not compared. */
export interface NativeMask {
  readonly port: number;
  readonly start: Uint8Array;
  readonly bytes: number;
}

/** For replicas whose output nobody compares. */
export const uncomparedOutput = {
  outputQueueBytes: 4096,
  outputCompareEvery: 16,
  outputCheckNs: 1e9,
  outputWaitNs: 2e9,
  outputMasks: [],
} as const satisfies Partial<NativePlaneOptions>;

/** Totals and gauges; those of a part are one level down. */
export type NativeCounters = Record<string, number | Record<string, number>>;

export interface NativePlaneOptions {
  readonly self: number;
  /** From the hard state: nothing below it is accepted. */
  readonly promisedView: number;
  readonly members: number;
  readonly force: boolean;
  readonly logBytes: number;
  readonly logEntries: number;
  readonly ringBytes: number;
  readonly inflightEntries: number;
  readonly heartbeatNs: number;
  readonly leaseNs: number;
  readonly deciderStallNs: number;
  readonly keepUnproposed: boolean;
  /** How often the log on disk is looked at for what may go; a second if it is not said. */
  readonly releaseNs?: number;
  /** Below 2^48, random: nobody outside may choose where a table keeps its flow. */
  readonly hashSeed: number;
  readonly outputQueueBytes: number;
  readonly outputCompareEvery: number;
  readonly outputCheckNs: number;
  readonly outputWaitNs: number;
  readonly outputMasks: readonly NativeMask[];
  /** For tests: in input for this guest a text is replaced by another, which is as long. */
  readonly faults?: readonly { readonly from: Uint8Array; readonly to: Uint8Array }[];
  readonly vmMac: Uint8Array;
  /** IPv4 address, 4 bytes, or empty. */
  readonly vmAddress: Uint8Array;
}

/** Empty device: the first with an active port. gidIndex -1: chosen. */
export interface NativeVerbsOptions {
  readonly device: string;
  readonly port: number;
  readonly gidIndex: number;
  readonly timeout: number;
  readonly retry: number;
  readonly rnrRetry: number;
  readonly minRnrTimer: number;
  readonly sendQueue: number;
  readonly inlineBytes: number;
}

/** The RDMA port that is used. An empty GID: the LID is the address. */
export interface NativeLink {
  readonly device: string;
  readonly gid: string;
  readonly linkLayer: string;
  readonly port: number;
  readonly gidIndex: number;
  readonly mtuBytes: number;
  readonly inlineBytes: number;
}

export interface NativeReplicaOptions extends NativePlaneOptions {
  readonly cluster: string;
  readonly walDirectory: string;
  /** Makes batch headers unguessable, so that no frame can look like one. */
  readonly walSalt: number;
  readonly segmentBytes: number;
  readonly retainBytes: number;
  readonly fabric: string;
  /** tcp: the address that peers dial. */
  readonly fabricAddress: string;
  /** null: another fabric. */
  readonly verbs: NativeVerbsOptions | null;
  readonly shmDirectory: string;
  readonly shmName: string;
  readonly vm: boolean;
  readonly builtin: boolean;
  readonly vmSocket: string;
  readonly tap: string;
  readonly busy: boolean;
  readonly spinNs: number;
  /** Threads of the data path run with realtime priority, if that is permitted. */
  readonly realtime: boolean;
}

export interface NativeRecovered {
  /** The first op that is kept, and the view and checksum of the one before. */
  readonly firstOp: number;
  readonly baseView: number;
  readonly baseChecksum: number;
  readonly lastOp: number;
  readonly lastView: number;
  readonly table: { view: number; firstOp: number }[];
  readonly tornBytes: number;
  readonly damaged: boolean;
  readonly damagedAfterOp: number;
  readonly damageDetail: string;
}

export interface NativeReplica {
  start(onEvents: (events: NativeEvent[]) => void): void;
  command(name: string, ...args: (number | Uint8Array)[]): boolean;
  connect(peer: number, connection: Uint8Array, descriptor: Uint8Array): void;
  tick(): void;
  /** Fills `into`: see native-plane.ts for the order. */
  progress(into: Float64Array): void;
  counters(): NativeCounters;
  outputs(): OutputApplication[];
  load(): NativeLoad;
  recovered(): NativeRecovered;
  descriptor(): Uint8Array;
  /** null: not verbs. */
  link(): NativeLink | null;
  tapFd(): number;
  expectVm(): void;
  startLoad(load: {
    number: number;
    entryBytes: number;
    depth: number;
    entries: number;
    warmUp: number;
  }): void;
  close(): void;
}

export interface NativeAddon {
  readonly Replica: new (options: NativeReplicaOptions) => NativeReplica;
  readonly Simulation: new (options: Record<string, unknown>) => unknown;
  readonly progressFields: readonly string[];
  readonly progressMembers: number;
  readonly monotonicNs: () => number;
  /** For the calling thread; false: not permitted. */
  readonly makeRealtime: () => boolean;
}

/** Opens log, fabric, tap and guest link. Errors: those of the native code, with their codes. */
export function openReplica(addon: NativeAddon, options: NativeReplicaOptions): NativeReplica {
  try {
    return new addon.Replica(options);
  } catch (error) {
    throw isRecord(error) ? remoteError(error['code'], messageOf(error)) : error;
  }
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null;
}

let loaded: NativeAddon | null = null;

/**
 * Loads the addon from the folder FALCON_NATIVE, or from build/native, which the build links to its result.
 * Errors: ADDON_MISSING.
 */
export function loadNative(): NativeAddon {
  if (loaded !== null) return loaded;
  const file = join(process.env['FALCON_NATIVE'] ?? join(repositoryRoot, 'build/native'), 'falcon.node');
  if (!existsSync(file)) throw new FalconError('ADDON_MISSING', `no ${file}; run make build`);
  loaded = createRequire(import.meta.url)(file) as NativeAddon;
  return loaded;
}
