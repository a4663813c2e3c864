/** What a replica tells about itself. */
import { bounds } from '../lib/bounds.js';
import type { Refusals } from '../adapters/bootstrap.js';
import type { NativeLink } from '../adapters/native.js';
import { readRdmaRetries } from '../adapters/rdma-retries.js';
import type { Cluster } from '../api/cluster.js';
import type { NodeConfig } from '../api/config.js';
import type {
  DivergenceReport,
  LinkStatus,
  PeerStatus,
  RdmaStatus,
  ReplicaStatus,
  SyncRecord,
  SyncStatus,
  TakeoverStatus,
  VerifyResult,
} from '../api/status.js';
import type { ReplicaEngine } from '../engine/replica.js';
import type { StateTransfer } from '../engine/state-transfer.js';
import type { Takeover } from '../engine/takeover-clock.js';
import type { DataPlane } from '../ports/data-plane.js';
import type { GuestRunner } from '../ports/guest.js';
import type { Verification } from '../engine/verification.js';
import type { TransferRecord } from '../transfer/types.js';
import type { VerifyRecord } from '../transfer/verify-types.js';

export const softwareVersion = '0.1.0';

export interface StatusSources {
  readonly cluster: Cluster;
  readonly node: NodeConfig;
  readonly self: number;
  readonly engine: ReplicaEngine;
  readonly plane: DataPlane;
  readonly link: NativeLink | null;
  readonly guest: GuestRunner | null;
  /** performance.now() at the start. */
  readonly startedAt: number;
  readonly refused: Refusals;
}

export function replicaStatus(sources: StatusSources): ReplicaStatus {
  const { cluster, node, self, engine, plane, guest } = sources;
  const { config } = cluster;
  const progress = plane.progress();
  const now = clockMs();
  const remainingMs =
    progress.leaseEndsAt === null ? null : Math.max(0, Math.round(progress.leaseEndsAt - now));
  const primary = engine.primary === null ? null : (config.nodes[engine.primary]?.name ?? null);
  const takeover = engine.lastTakeover;
  const counters = plane.counters();
  return {
    node: node.name,
    index: self,
    pid: process.pid,
    uptimeMs: Math.round(performance.now() - sources.startedAt),
    version: softwareVersion,
    cluster: config.cluster,
    role: engine.role === 'backup' && !node.vm ? 'witness' : engine.role,
    view: engine.core.status.view,
    primary,
    firstOp: progress.base.op + 1,
    lastOp: progress.lastOp,
    durableOp: progress.durableOp,
    commitOp: progress.commitOp,
    deliveredOp: progress.deliveredOp,
    lagOps: Math.max(0, progress.commitOp - progress.deliveredOp),
    lease: { held: progress.role === 'leading' && remainingMs !== null && remainingMs > 0, remainingMs },
    gate: progress.gate,
    admitted: engine.guest.admitted,
    guest: { state: engine.guest.state, epoch: engine.guest.boots, pid: guest?.pid ?? null },
    durability: config.durability,
    fabric: config.fabric,
    link: linkStatus(counters, sources.link),
    refused: { ...sources.refused },
    lan: config.lan,
    recovering: engine.core.status.recovering,
    peers: config.nodes.flatMap((peer, index) =>
      index === self ? [] : [peerStatus(engine, peer.name, index, progress.acked[index] ?? null, now)],
    ),
    sync: syncStatus(engine.stateTransfer, node.name, (index) => config.nodes[index]?.name ?? String(index)),
    outputs: plane.outputs(),
    counters,
    ...(takeover === null ? {} : { lastTakeover: takeoverStatus(takeover, now) }),
  };
}

function syncStatus(transfer: StateTransfer, self: string, name: (index: number) => string): SyncStatus {
  const { sending, receiving, records, verification } = transfer;
  const last = records.slice(-bounds.statusSyncsMax).map((record) => syncRecord(record, name));
  const verified = verification.records
    .slice(-bounds.statusSyncsMax)
    .map((record) => verifyResult(record, self, name));
  const rest = { last, verified, verifying: verifyingNow(verification, name) };
  if (sending !== null) {
    const { phase, rounds, pages, sent } = sending;
    return { active: { role: 'source', peer: name(sending.peer), phase, rounds, pages, sent }, ...rest };
  }
  if (receiving !== null) {
    const { peer, phase } = receiving;
    return { active: { role: 'target', peer: name(peer), phase, rounds: 0, pages: 0, sent: 0 }, ...rest };
  }
  return { active: null, ...rest };
}

function verifyingNow(
  { sending, receiving }: Verification,
  name: (index: number) => string,
): SyncStatus['verifying'] {
  if (sending !== null) return { role: 'source', peer: name(sending.peer), phase: sending.phase };
  return receiving === null ? null : { role: 'target', peer: name(receiving.peer), phase: receiving.phase };
}

export function verifyResult(
  record: VerifyRecord,
  source: string,
  name: (index: number) => string,
): VerifyResult {
  const { peer, reason, ok, why, view, op, findings } = record;
  const ms = (value: number): number => Math.round(value * 10) / 10;
  return {
    ...{ source, target: name(peer), reason, ok, why, view, op },
    durationMs: ms(record.durationMs),
    pauseMs: ms(record.pauseMs),
    findings:
      findings === null
        ? null
        : {
            ...findings,
            equal: findings.pages - findings.differing,
            targetPauseMs: ms(findings.targetPauseMs),
          },
  };
}

export function syncRecord(record: TransferRecord, name: (index: number) => string): SyncRecord {
  const { reason, ok, why, op, based, rounds, pages, equal, sent } = record;
  const {
    partial,
    found,
    bytes,
    overheadBytes,
    finalPages,
    finalSent,
    stateBytes,
    pauseParts: parts,
  } = record;
  const ms = (value: number): number => Math.round(value * 10) / 10;
  return {
    ...{ target: name(record.peer), at: wallTime(record.startedAt, clockMs()) },
    ...{ reason, ok, why, op, based, rounds, pages, equal, sent },
    ...{ partial, found, bytes, overheadBytes, finalPages, finalSent, stateBytes },
    digestMs: ms(record.digestNs / 1e6),
    waitMs: ms(record.waitNs / 1e6),
    refineMs: ms(record.refineNs / 1e6),
    moveMs: ms(record.moveNs / 1e6),
    durationMs: ms(record.durationMs),
    pauseMs: ms(record.pauseMs),
    pauseParts: {
      stopMs: ms(parts.stopMs),
      collectMs: ms(parts.collectMs),
      roundMs: ms(parts.roundMs),
      saveMs: ms(parts.saveMs),
      sendMs: ms(parts.sendMs),
      resumeMs: ms(parts.resumeMs),
    },
  };
}

function peerStatus(
  engine: ReplicaEngine,
  name: string,
  index: number,
  ackedOp: number | null,
  now: number,
): PeerStatus {
  const { trouble, breaks } = engine.peers.link(index);
  return {
    name,
    connected: engine.peers.connected.has(index),
    state: engine.peerState(index),
    trouble:
      trouble === null ? null : { code: trouble.code, detail: trouble.detail, at: wallTime(trouble.at, now) },
    breaks,
    ackedOp,
    anewFromOp: engine.core.status.anew.get(index) ?? null,
    guest: engine.peers.report(index).ready,
  };
}

function linkStatus(counters: Record<string, number>, link: NativeLink | null): LinkStatus {
  const of = (name: string): number => counters[`fabric.${name}`] ?? 0;
  return {
    writes: of('writes'),
    writtenBytes: of('writtenBytes'),
    reads: of('reads'),
    wakesSent: of('wakesSent'),
    wakesReceived: of('wakesReceived'),
    errors: of('errors'),
    rdma: link === null ? null : rdmaStatus(of, link),
  };
}

function rdmaStatus(of: (name: string) => number, link: NativeLink): RdmaStatus {
  const part = (count: number, all: number): number =>
    all === 0 ? 0 : Math.round((count / all) * 1000) / 1000;
  const operations = of('writes') + of('reads');
  return {
    device: link.device,
    port: link.port,
    gid: link.gid === '' ? null : link.gid,
    gidIndex: link.gidIndex < 0 ? null : link.gidIndex,
    linkLayer: link.linkLayer,
    mtuBytes: link.mtuBytes,
    inlineBytes: link.inlineBytes,
    posted: of('posted'),
    signaled: of('signaled'),
    signaledFraction: part(of('signaled'), of('posted')),
    inlined: of('inlined'),
    inlineFraction: part(of('inlined'), operations),
    staged: of('staged'),
    stagedFraction: part(of('staged'), operations),
    probes: of('probes'),
    retries: readRdmaRetries(link.device, link.port),
  };
}

/** The clock of the engine and of the records. */
function clockMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

/** A time on the monotonic clock as people read it. */
function wallTime(at: number, now: number): string {
  return new Date(Date.now() - (now - at)).toISOString();
}

export function divergenceReport(sources: StatusSources): DivergenceReport {
  const { cluster, node, engine, plane } = sources;
  const { ledger, healsWanted } = engine.outputs;
  const nameOf = (member: number): string => cluster.config.nodes[member]?.name ?? String(member);
  return {
    node: node.name,
    role: engine.role === 'backup' && !node.vm ? 'witness' : engine.role,
    checks: ledger.checks,
    applications: plane.outputs(),
    members: [...ledger.members].map(([member, { agree, ...counts }]) => ({
      node: nameOf(member),
      agreed: agree,
      ...counts,
    })),
    healsWanted,
    divergences: ledger.divergences.map((one) => ({ ...one, member: nameOf(one.member) })),
  };
}

function takeoverStatus(takeover: Takeover, now: number): TakeoverStatus {
  const { view, detectMs, electMs, catchUpMs, gateMs } = takeover;
  const rounded = (ms: number): number => Math.round(ms * 10) / 10;
  return {
    view,
    at: wallTime(takeover.openedAt, now),
    detectMs: rounded(detectMs),
    electMs: rounded(electMs),
    catchUpMs: rounded(catchUpMs),
    gateMs: rounded(gateMs),
  };
}
