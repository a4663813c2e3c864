/**
 * A daemon that only keeps up appearances: it takes falcond's options, writes its pid file, and answers on
 * the admin socket. FAKE_DAEMON says how it is to behave, as JSON: FakeBehaviour by node name.
 */
import { rmSync, writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';

import { loadCluster, nodePaths } from '../../src/api/cluster.js';
import { startAdminServer } from '../../src/api/server.js';
import type { DivergenceReport, RdmaStatus, ReplicaStatus, VerifyResult } from '../../src/api/status.js';
import { FalconError, formatError } from '../../src/lib/errors.js';

export interface FakeBehaviour {
  /** Ends at once with this record as the last line of its log. */
  readonly failWith?: { readonly code: string; readonly msg: string };
  /** Ends with `failWith` after this time. */
  readonly failAfterMs?: number;
  /** Is never primary, and its gate stays closed. */
  readonly passive?: boolean;
  /** As primary, this peer cannot be fed any more. */
  readonly losesPeer?: string;
  /** Takes no notice of `shutdown` and SIGTERM. */
  readonly stubborn?: boolean;
}

const fakeRdma: RdmaStatus = {
  device: 'mlx5_0',
  port: 1,
  gid: '::ffff:10.77.0.1',
  gidIndex: 3,
  linkLayer: 'ethernet',
  mtuBytes: 4096,
  inlineBytes: 256,
  posted: 2500,
  signaled: 100,
  signaledFraction: 0.04,
  inlined: 2304,
  inlineFraction: 0.96,
  staged: 96,
  stagedFraction: 0.04,
  probes: 7,
  retries: { local_ack_timeout_err: 2, packet_seq_err: 1 },
};
function fakeDivergence(name: string, status: ReplicaStatus): DivergenceReport {
  return {
    node: name,
    role: status.role,
    checks: 33,
    applications: status.outputs,
    members: status.role === 'primary' ? [{ node: 'h3', agreed: 31, late: 2, diverged: 1, skipped: 0 }] : [],
    healsWanted: status.role === 'primary' ? 1 : 0,
    divergences:
      name === 'h2'
        ? []
        : [
            {
              view: 3,
              op: 77,
              index: 0,
              member: 'h3',
              client: '10.77.1.1:40000',
              clientIss: 1,
              port: 6379,
              position: 120,
              agreed: 100,
              cause: '',
              firstDifferent: 103,
              expected: name === 'h1' ? '2b4f4b0d0a' : null,
              found: '2b4e4f0d0a',
              from: 102,
            },
          ],
  };
}

/** h2's guest differs somewhat; comparing with h3's does not come to an end. */
function fakeVerification(source: string, target: string): VerifyResult {
  if (target === 'h3') throw new FalconError('VERIFY_ABANDONED', 'its connection broke');
  return {
    ...{ source, target, reason: 'verify', ok: true, why: '', view: 3, op: 118 },
    durationMs: 180.4,
    pauseMs: 31.2,
    findings: {
      ...{ pages: 24_813, equal: 24_764, differing: 49 },
      firstPages: Array.from({ length: 16 }, (_unused, index) => 7701 + 3 * index),
      devices: {
        parts: 37,
        differing: [
          { name: 'timer', bytes: 6, of: 24 },
          { name: 'cpu', bytes: 2, of: 1976 },
        ],
        trouble: null,
      },
      ...{ service: null, flows: 21, flowsDiffering: 1 },
      framesWaiting: { source: 0, target: 2 },
      targetPauseMs: 33.7,
    },
  };
}

function fail(behaviour: FakeBehaviour): never {
  process.stdout.write(`${JSON.stringify({ level: 60, ...behaviour.failWith })}\n`);
  process.exit(1);
}

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { dir: { type: 'string' }, node: { type: 'string' } } });
  const { dir = '', node: name = '' } = values;
  const behaviours = JSON.parse(process.env['FAKE_DAEMON'] ?? '{}') as Record<string, FakeBehaviour>;
  const behaviour = behaviours[name] ?? {};
  if (behaviour.failWith !== undefined && behaviour.failAfterMs === undefined) fail(behaviour);
  const { config } = loadCluster(dir);
  const paths = nodePaths(dir, name);
  const index = config.nodes.findIndex((node) => node.name === name);
  const primary = index === 0 && behaviour.passive !== true;
  const started = performance.now();

  const status = (): ReplicaStatus => ({
    node: name,
    index,
    pid: process.pid,
    uptimeMs: performance.now() - started,
    version: '0.0.0',
    cluster: config.cluster,
    role: primary ? 'primary' : 'backup',
    view: 3,
    primary: behaviour.passive === true ? null : (config.nodes[0]?.name ?? null),
    firstOp: 1,
    lastOp: 120,
    durableOp: 120,
    commitOp: 119,
    deliveredOp: 118,
    lagOps: 1,
    lease: { held: primary, remainingMs: primary ? 38 : null },
    gate: primary ? 'open' : 'closed',
    admitted: primary,
    guest: { state: config.vm.kind === 'none' ? 'none' : 'ready', epoch: 1, pid: null },
    durability: config.durability,
    fabric: config.fabric,
    lan: config.lan,
    recovering: false,
    peers: config.nodes
      .filter((node) => node.name !== name)
      .map((node) => ({
        name: node.name,
        connected: true,
        state: primary && node.name === behaviour.losesPeer ? 'lost' : 'up',
        trouble:
          primary && node.name === behaviour.losesPeer
            ? { code: 'WAL_READ', detail: 'op 5: Input/output error', at: '2026-01-02T03:04:05.678Z' }
            : null,
        breaks: 0,
        ackedOp: 119,
        // While one member cannot be fed, the others have come back late.
        anewFromOp:
          primary && behaviour.losesPeer !== undefined && node.name !== behaviour.losesPeer ? 17 : null,
        guest: true,
      })),
    sync: { active: null, last: [], verifying: null, verified: [] },
    link: {
      writes: 2400,
      writtenBytes: 307_200,
      reads: 0,
      wakesSent: 12,
      wakesReceived: 11,
      errors: 0,
      rdma: config.fabric === 'verbs' ? fakeRdma : null,
    },
    refused: { secret: index, version: 0, other: 0, unfinished: 2 * index },
    outputs: [
      {
        port: 6379,
        flowsEnded: 4,
        flowsCut: 1,
        bytes: 70_000,
        datagrams: 0,
        datagramBytes: 0,
        agreed: primary ? 0 : 31,
        late: primary ? 0 : 2,
        diverged: name === 'h3' ? 1 : 0,
        skipped: 0,
        unchecked: 0,
        summary: '00',
      },
    ],
    counters: { frames: 7 },
  });
  const server = await startAdminServer(paths.adminSocket, {
    status,
    shutdown: () => {
      if (behaviour.stubborn !== true) setTimeout(stop, 10);
    },
    'transfer-leader': (params) => params,
    sync: (params) => params,
    verify: (params) => fakeVerification(name, (params as { node: string }).node),
    member: (params) => params,
    divergence: () => fakeDivergence(name, status()),
  });
  writeFileSync(paths.pidFile, `${process.pid}\n`);
  if (behaviour.failAfterMs !== undefined) setTimeout(() => fail(behaviour), behaviour.failAfterMs);

  function stop(): void {
    if (behaviour.stubborn === true) return;
    void server.close().then(() => {
      rmSync(paths.pidFile, { force: true });
      process.exit(0);
    });
  }
  process.on('SIGTERM', stop);
}

try {
  await main();
} catch (error) {
  process.stdout.write(`${formatError(error, 'falcond')}\n`);
  process.exit(1);
}
