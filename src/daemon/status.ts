/** What a replica tells about itself. */
import type { Cluster } from '../api/cluster.js';
import type { NodeConfig } from '../api/config.js';
import type { DivergenceReport, ReplicaStatus, TakeoverStatus } from '../api/status.js';
import type { ReplicaEngine } from '../engine/replica.js';
import type { Takeover } from '../engine/takeover-clock.js';
import type { DataPlane } from '../ports/data-plane.js';
import type { GuestRunner } from '../ports/guest.js';

export const softwareVersion = '0.1.0';

export interface StatusSources {
  readonly cluster: Cluster;
  readonly node: NodeConfig;
  readonly self: number;
  readonly engine: ReplicaEngine;
  readonly plane: DataPlane;
  readonly guest: GuestRunner | null;
  /** performance.now() at the start. */
  readonly startedAt: number;
}

export function replicaStatus(sources: StatusSources): ReplicaStatus {
  const { cluster, node, self, engine, plane, guest } = sources;
  const { config } = cluster;
  const progress = plane.progress();
  const now = Number(process.hrtime.bigint()) / 1e6;
  const remainingMs =
    progress.leaseEndsAt === null ? null : Math.max(0, Math.round(progress.leaseEndsAt - now));
  const primary = engine.primary === null ? null : (config.nodes[engine.primary]?.name ?? null);
  const takeover = engine.lastTakeover;
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
    lastOp: progress.lastOp,
    durableOp: progress.durableOp,
    commitOp: progress.commitOp,
    deliveredOp: progress.deliveredOp,
    lagOps: Math.max(0, progress.commitOp - progress.deliveredOp),
    lease: { held: progress.role === 'leading' && remainingMs !== null && remainingMs > 0, remainingMs },
    gate: progress.gate,
    admitted: engine.admitted,
    guest: { state: engine.guestState, epoch: engine.boots, pid: guest?.pid ?? null },
    durability: config.durability,
    fabric: config.fabric,
    lan: config.lan,
    recovering: engine.core.status.recovering,
    peers: config.nodes.flatMap((peer, index) =>
      index === self
        ? []
        : [
            {
              name: peer.name,
              connected: engine.connectedPeers.has(index),
              ackedOp: progress.acked[index] ?? null,
              guest: engine.reportOf(index).ready,
            },
          ],
    ),
    outputs: plane.outputs(),
    counters: plane.counters(),
    ...(takeover === null ? {} : { lastTakeover: takeoverStatus(takeover, now) }),
  };
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
  const at = new Date(Date.now() - (now - takeover.openedAt)).toISOString();
  const rounded = (ms: number): number => Math.round(ms * 10) / 10;
  return {
    view,
    at,
    detectMs: rounded(detectMs),
    electMs: rounded(electMs),
    catchUpMs: rounded(catchUpMs),
    gateMs: rounded(gateMs),
  };
}
