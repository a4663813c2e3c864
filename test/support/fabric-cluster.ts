/**
 * What a cluster of three must do, whatever carries its log: the same steps over shm, tcp and verbs. The guests
 * are built-in services on taps, the clients real frames on a LAN of network namespaces, and the judges stand
 * outside: what was heard on the cables, and what the files of the logs hold in the end.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { callDaemon } from '../../src/api/client.js';
import { nodePaths, loadConfig } from '../../src/api/cluster.js';
import type { ClusterConfig, TimingConfig } from '../../src/api/config.js';
import { daemonCommand } from '../../src/api/lifecycle.js';
import type { ReplicaStatus, SyncRecord, VerifyResult } from '../../src/api/status.js';
import { bounds } from '../../src/lib/bounds.js';
import { signal } from '../../src/lib/processes.js';
import { repositoryRoot } from '../../src/lib/root.js';
import { sleep, waitUntil } from '../../src/lib/time.js';
import { FrameLan, judgeAnswers, servicePayload } from './frame-lan.js';
import { LiveCluster } from './live-cluster.js';
import { readLogFiles } from './log-files.js';

export interface FabricBed {
  readonly fabric: ClusterConfig['fabric'];
  readonly timing: TimingConfig;
  /** How long an election, a join or an answer may take. */
  readonly patienceMs: number;
  /** Takes a host off all networks and puts it back; a text: why this bed cannot. */
  readonly cut: string | { readonly off: (node: number) => void; readonly on: (node: number) => void };
  /** What a node's daemon finds in its environment besides the test's own. */
  readonly environment?: (node: string) => Record<string, string>;
  /** Changes the configuration before the first start. */
  readonly configure?: (config: Record<string, unknown>, directory: string) => void;
  /** Called with the cluster while it serves, before anything is broken. */
  readonly extra?: (step: Step, cluster: FabricCluster) => Promise<void>;
  comment(text: string): void;
  skip(name: string, why: string): void;
}

/** Runs one named part; what it throws is its failure, and nothing comes after it. */
export type Step = (name: string, body: () => Promise<void>) => Promise<void>;

export class FabricCluster {
  readonly live: LiveCluster;
  readonly lan: FrameLan;
  readonly patienceMs: number;
  private readonly bed: FabricBed;
  private asking: Promise<void> | null = null;
  private stopAsking = false;

  private constructor(live: LiveCluster, lan: FrameLan, bed: FabricBed) {
    this.live = live;
    this.lan = lan;
    this.patienceMs = bed.patienceMs;
    this.bed = bed;
  }

  static async start(t: { teardown(handler: () => void): void }, bed: FabricBed): Promise<FabricCluster> {
    const live = await LiveCluster.init(t, '--nodes', '3', '--fabric', bed.fabric, '--vm', 'none');
    const file = join(live.directory, 'falcon.json');
    const config = JSON.parse(readFileSync(file, 'utf8')) as Record<string, unknown>;
    config['timing'] = bed.timing;
    config['log'] = {
      memoryBytes: 4 << 20,
      ringBytes: 1 << 20,
      segmentBytes: 4 << 20,
      retainBytes: 64 << 20,
    };
    bed.configure?.(config, live.directory);
    writeFileSync(file, JSON.stringify(config));
    const { cluster, vm } = loadConfig(live.directory);
    const made = live.net('up');
    assert.equal(made.status, 0, made.err);
    for (const { name } of live.place.config.nodes) startDaemon(live, name, bed);
    const lan = await FrameLan.start(cluster.slice(-8), 3, vm.mac);
    t.teardown(() => lan.stop());
    return new FabricCluster(live, lan, bed);
  }

  index(node: string): number {
    return this.live.place.config.nodes.findIndex(({ name }) => name === node);
  }

  launch(node: string): void {
    startDaemon(this.live, node, this.bed);
  }

  primary(aboveView = 0): Promise<ReplicaStatus> {
    return this.live.primary(aboveView, this.patienceMs);
  }

  async becomes(node: string, what: string, holds: (replica: ReplicaStatus) => boolean): Promise<void> {
    const reached = await this.live.becomes(node, holds, this.patienceMs);
    if (reached) return;
    const now = (await this.live.replicas()).find((one) => one.node === node);
    assert.fail(`${node} does not become ${what}: ${JSON.stringify(now)}`);
  }

  /** Asks one request after the other until `rest` is called. */
  keepAsking(): void {
    this.stopAsking = false;
    this.asking = (async () => {
      while (!this.stopAsking) {
        const answer = await this.lan.ask(2 * this.patienceMs);
        assert.ok(answer !== null, `no answer to request ${this.lan.asked}`);
        await sleep(5);
      }
    })();
    this.asking.catch(() => undefined);
  }

  async rest(): Promise<void> {
    this.stopAsking = true;
    await this.asking;
  }

  /** More requests are answered from now on. */
  async goesOn(count = 10): Promise<void> {
    const before = this.lan.answered.length;
    const more = (): boolean => this.lan.answered.length >= before + count;
    const failed = this.asking?.then(
      () => false,
      () => true,
    );
    await Promise.race([failed, waitUntil(more, { timeoutMs: 2 * this.patienceMs, everyMs: 10 })]);
    assert.ok(more(), `${this.lan.answered.length - before} of ${count} requests answered`);
  }
}

/** As an init system does; `falcon up` waits for its own bounds, which an emulated machine does not keep. */
function startDaemon({ directory, place }: LiveCluster, name: string, { environment }: FabricBed): void {
  const node = place.config.nodes.find((one) => one.name === name);
  assert.ok(node?.netns != null, `${name} has a namespace`);
  const { log, directory: own } = nodePaths(directory, name);
  mkdirSync(own, { recursive: true });
  const out = openSync(log, 'a', 0o600);
  const daemon = join(repositoryRoot, 'dist/src/daemon/main.js');
  spawn('ip', ['netns', 'exec', node.netns, ...daemonCommand(daemon, directory, name)], {
    stdio: ['ignore', out, out],
    detached: true,
    cwd: directory,
    env: { ...process.env, ...environment?.(name) },
  }).unref();
  closeSync(out);
}

/** The steps, in an order that leaves a guest alive until the end: a daemon that dies takes its guest along. */
export async function fabricSteps(
  step: Step,
  t: { teardown(handler: () => void): void },
  bed: FabricBed,
): Promise<void> {
  let cluster!: FabricCluster;
  await step('it serves', async () => {
    cluster = await FabricCluster.start(t, bed);
    const primary = await cluster.primary();
    cluster.keepAsking();
    await cluster.goesOn(30);
    assert.deepEqual(cluster.lan.speakers(), [`lan${primary.index + 1}`], 'one replica speaks');
    for (const replica of await cluster.live.replicas()) {
      assert.equal(replica.durability, 'disk');
      assert.ok(replica.link.writes > 0 && replica.link.writtenBytes > 0);
      assert.deepEqual(
        replica.peers.map(({ state }) => state),
        ['up', 'up'],
      );
    }
  });
  await bed.extra?.(step, cluster);

  await step('a guest is compared, made a copy, and compared again', async () => {
    const { node, index } = await cluster.primary();
    const { adminSocket } = nodePaths(cluster.live.directory, node);
    const backup = (await cluster.live.replicas()).find((one) => one.index !== index)!.node;
    const ask = (command: 'sync' | 'verify'): Promise<unknown> =>
      callDaemon(adminSocket, command, { node: backup }, { timeoutMs: bounds.adminSyncMs });
    for (const command of ['verify', 'sync', 'verify'] as const) {
      const done = (await ask(command)) as SyncRecord | VerifyResult;
      assert.ok(done.ok);
      if ('findings' in done)
        assert.deepEqual([done.findings?.service, done.findings?.flowsDiffering], ['equal', 0]);
      bed.comment(`${command}: ${done.durationMs} ms, ${done.pauseMs} of them of pause`);
      await cluster.goesOn();
    }
  });

  const { cut } = bed;
  const cutName = 'the primary is cut off, and joined again';
  if (typeof cut === 'string') bed.skip(cutName, cut);
  else {
    await step(cutName, async () => {
      const old = await cluster.primary();
      cut.off(old.index);
      const next = await cluster.primary(old.view);
      assert.notEqual(next.node, old.node);
      await cluster.goesOn();
      await cluster.becomes(old.node, 'silent', ({ gate, role }) => gate === 'closed' && role !== 'primary');
      cut.on(old.index);
      await follows(cluster, old.node);
      await cluster.goesOn();
    });
  }

  await step('the primary is stopped beyond its lease, and goes on', async () => {
    const old = await cluster.primary();
    signal(old.pid, 'SIGSTOP');
    const next = await cluster.primary(old.view);
    assert.notEqual(next.node, old.node);
    await cluster.goesOn();
    signal(old.pid, 'SIGCONT');
    await follows(cluster, old.node);
    await cluster.goesOn();
  });

  await step('the primary dies, and comes back', async () => {
    const old = await cluster.primary();
    signal(old.pid, 'SIGKILL');
    const next = await cluster.primary(old.view);
    assert.notEqual(next.node, old.node);
    await cluster.goesOn();
    cluster.launch(old.node);
    await follows(cluster, old.node);
    await cluster.goesOn();
  });

  await step('the judges', async () => {
    await cluster.rest();
    await judge(cluster, bed);
  });
}

/** It takes entries of the primary there is, and has caught up with it. */
async function follows(cluster: FabricCluster, node: string): Promise<void> {
  const { commitOp } = await cluster.primary();
  await cluster.becomes(
    node,
    'a backup that follows',
    (one) => one.role === 'backup' && one.primary !== null && one.commitOp >= commitOp && !one.recovering,
  );
}

async function judge(cluster: FabricCluster, bed: FabricBed): Promise<void> {
  const { lan, live } = cluster;
  let replicas: ReplicaStatus[] = [];
  const settled = await waitUntil(
    async () => {
      replicas = await live.replicas();
      const guests = replicas.filter(({ guest }) => guest.state === 'ready');
      return (
        replicas.length === 3 &&
        replicas.every(({ commitOp, lastOp }) => commitOp === lastOp && lastOp === replicas[0]?.lastOp) &&
        guests.every(({ counters }) => counters['serviceFrames'] === guests[0]?.counters['serviceFrames'])
      );
    },
    { timeoutMs: cluster.patienceMs, everyMs: 100 },
  );
  assert.ok(
    settled,
    JSON.stringify(replicas.map(({ node, lastOp, commitOp }) => ({ node, lastOp, commitOp }))),
  );
  const guests = replicas.filter(({ guest }) => guest.state === 'ready');
  assert.ok(guests.length >= 2, 'two guests have lived through it all');
  assert.equal(
    new Set(guests.map(({ counters }) => counters['serviceDigest'])).size,
    1,
    'the same frames in one order',
  );
  for (const { node, link } of replicas) bed.comment(`${node}: ${JSON.stringify(link)}`);

  for (const { pid } of replicas) signal(pid, 'SIGTERM');
  assert.ok(
    await waitUntil(() => live.processes().length === 0, { timeoutMs: cluster.patienceMs, everyMs: 50 }),
    'all daemons stop when they are asked to',
  );
  const logs = replicas.map(({ node }) => readLogFiles(nodePaths(live.directory, node).wal));
  const committed = replicas[0]?.commitOp ?? 0;
  for (const log of logs) {
    assert.equal(log[0]?.op, 1, 'nothing was released yet');
    assert.ok(
      (log.at(-1)?.op ?? 0) >= committed,
      `a log ends at ${log.at(-1)?.op}, ${committed} is committed`,
    );
  }
  const chain = (log: (typeof logs)[number]): string =>
    log
      .slice(0, committed)
      .map(({ view, op, checksum }) => `${view}.${op} ${checksum}`)
      .join('\n');
  for (const log of logs.slice(1)) assert.equal(chain(log), chain(logs[0]!), 'one committed order');
  assert.equal(logs[0]?.filter(({ kind }) => kind === 'vm-boot').length, 1, 'no guest was booted anew');
  const payloads = logs[0]
    .slice(0, committed)
    .filter(({ kind }) => kind === 'frame')
    .flatMap(({ payload }) => servicePayload(payload) ?? []);
  assert.equal(guests[0]?.counters['serviceFrames'], payloads.length, 'each was delivered once');
  assert.ok(lan.answered.length > 50);
  assert.deepEqual(judgeAnswers(payloads, lan.answered), [], 'nothing that was answered is lost');
  assert.deepEqual(lan.late(), [], 'nothing was let out beside or after a newer primary');
  bed.comment(
    `${lan.answered.length} requests answered, ${payloads.length} frames in the log, spoke: ${lan.speakers().join(' ')}`,
  );
}
