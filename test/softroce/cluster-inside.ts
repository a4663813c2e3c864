/**
 * Runs in the soft-RoCE bed: the steps of test/support/fabric-cluster over verbs, each replica with a device of its
 * own, and what only RDMA can do wrong. Prints TAP; without tap, whose files take longer to read here than the
 * cluster takes to start.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { readRdmaRetries } from '../../src/adapters/rdma-retries.js';
import { nodePaths } from '../../src/api/cluster.js';
import type { TimingConfig } from '../../src/api/config.js';
import type { PeerStatus, ReplicaStatus } from '../../src/api/status.js';
import { messageOf } from '../../src/lib/errors.js';
import { repositoryRoot } from '../../src/lib/root.js';
import { fabricSteps } from '../support/fabric-cluster.js';
import type { FabricBed, FabricCluster, Step } from '../support/fabric-cluster.js';

/** An emulated machine stands still for hundreds of milliseconds when its host is busy. */
const timing: TimingConfig = {
  heartbeatMs: 100,
  leaseMs: 3000,
  driftMarginMs: 50,
  electionTimeoutMinMs: 4000,
  electionTimeoutMaxMs: 7000,
  retryMs: 100,
  stallMs: 10_000,
};
const patienceMs = 120_000;

let points = 0;
function point(ok: boolean, name: string, rest = ''): void {
  process.stdout.write(`${ok ? 'ok' : 'not ok'} ${++points} - ${name}${rest}\n`);
}
const comment = (text: string): void => void process.stdout.write(`# ${text.replaceAll('\n', '\n# ')}\n`);

const step: Step = async (name, body) => {
  const from = performance.now();
  try {
    await body();
  } catch (error) {
    comment(messageOf(error));
    point(false, name);
    throw error;
  }
  comment(`${name}: ${((performance.now() - from) / 1000).toFixed(1)} s`);
  point(true, name);
};

function run(...command: string[]): void {
  const [file = '', ...args] = command;
  const done = spawnSync(file, args, { encoding: 'utf8' });
  assert.equal(done.status, 0, `${command.join(' ')}: ${done.stderr}`);
}

/** A port of the bridge that joins the devices; its carrier stays, so the host cannot see that it is cut off. */
const rdmaPort = (node: number, state: 'on' | 'off'): void =>
  run('bridge', 'link', 'set', 'dev', `p${node + 1}`, 'state', state === 'on' ? '3' : '0');

/** A file here makes test/native/lost_pair.cc lose a queue pair of the node it is named after. */
const orders = mkdtempSync(join(tmpdir(), 'falcon-lost-'));
const native = process.env['FALCON_NATIVE'] ?? join(repositoryRoot, 'build/native');

const running: { directory: string; cluster: FabricCluster | null } = { directory: '', cluster: null };
const bed: FabricBed = {
  fabric: 'verbs',
  timing,
  patienceMs,
  cut: {
    off(node) {
      rdmaPort(node, 'off');
      assert.equal(running.cluster?.live.net('partition', `h${node + 1}`).status, 0);
    },
    on(node) {
      rdmaPort(node, 'on');
      assert.equal(running.cluster?.live.net('heal', `h${node + 1}`).status, 0);
    },
  },
  environment: (node) => ({ LD_PRELOAD: join(native, 'lost_pair.so'), FALCON_LOSE_PAIR: join(orders, node) }),
  configure(config, directory) {
    running.directory = directory;
    config['verbs'] = { timeout: 16, retry: 3 };
    // Where the emulated processors are few, a thread with realtime priority keeps the device's own work waiting.
    config['poll'] = { realtime: false };
    (config['nodes'] as Record<string, unknown>[]).forEach((node, i) => {
      node['rdma'] = { device: `rxe${i + 1}` };
      keepLogOnDisk(join(directory, `h${i + 1}`, 'wal'), `h${i + 1}`);
    });
  },
  async extra(_step, made) {
    running.cluster = made;
    await step('status names the port', () => namesThePort(made));
    await step('a backup whose RDMA link is cut holds nobody up', () => cutOneLink(made));
    await step('a queue pair that its device has lost is replaced', () => loseOnePair(made));
  },
  comment,
  skip: (name, why) => point(true, name, ` # SKIP ${why}`),
};

/** What is written elsewhere here stays in memory. */
function keepLogOnDisk(wal: string, name: string): void {
  const out = process.env['SOFTROCE_OUT'];
  assert.ok(out !== undefined, 'SOFTROCE_OUT names a folder of the host');
  const target = join(out, name);
  mkdirSync(target);
  rmSync(wal, { recursive: true });
  symlinkSync(target, wal);
}

async function namesThePort({ live }: FabricCluster): Promise<void> {
  for (const { index, link } of await live.replicas()) {
    const { rdma } = link;
    assert.ok(rdma !== null);
    assert.equal(rdma.device, `rxe${index + 1}`);
    assert.equal(rdma.gid, `::ffff:10.9.1.${index + 1}`);
    assert.equal(rdma.linkLayer, 'ethernet');
    assert.ok(rdma.mtuBytes >= 1024 && rdma.inlineBytes >= 128);
    assert.ok(rdma.signaled > 0 && rdma.signaled < rdma.posted);
    assert.ok(rdma.inlineFraction > 0.5, `${rdma.inlineFraction} inline`);
    // Devices of another network namespace have no counters in this one's sysfs.
    assert.equal(rdma.retries, null);
  }
  const told = readRdmaRetries('rxe1', 1);
  assert.ok(told !== null && 'completer_retry_err' in told, JSON.stringify(told));
}

/**
 * The bootstrap still reaches it, so its connection is made again and again, and each time the kernel looks for it
 * in vain for a second. The primary serves on meanwhile, in its view.
 */
async function cutOneLink(made: FabricCluster, whileCut?: (victim: ReplicaStatus) => void): Promise<void> {
  const primary = await made.primary();
  const victim = (await made.live.replicas()).find(({ role }) => role === 'backup');
  assert.ok(victim !== undefined);
  const of = ({ peers }: ReplicaStatus): PeerStatus => peers.find(({ name }) => name === victim.node)!;
  const { breaks } = of(primary);
  rdmaPort(victim.index, 'off');
  await made.becomes(primary.node, 'aware of it', (one) => of(one).breaks >= breaks + 2);
  const seen = of(await made.live.replica(primary.node)).trouble;
  assert.match(seen?.code ?? 'none', /^FABRIC_(DOWN|CONNECT)$/);
  comment(`${primary.node} of ${victim.node}: ${seen?.code} ${seen?.detail}`);
  await made.goesOn(20);
  assert.equal((await made.primary()).view, primary.view, 'nobody was elected');
  whileCut?.(victim);
  rdmaPort(victim.index, 'on');
  await made.becomes(victim.node, 'a backup that follows', (one) => one.commitOp > primary.commitOp + 20);
  await made.becomes(primary.node, 'whole again', (one) => of(one).ackedOp !== null);
}

/** Its connection cannot be made with what peers were told of it, so they are told anew. */
async function loseOnePair(made: FabricCluster): Promise<void> {
  let log = '';
  let order = '';
  await cutOneLink(made, ({ node }) => {
    log = nodePaths(made.live.directory, node).log;
    order = join(orders, node);
    writeFileSync(order, '');
  });
  assert.ok(!existsSync(order), 'a queue pair was lost');
  const told = readFileSync(log, 'utf8')
    .split('\n')
    .filter((line) => line.includes('it was replaced'));
  assert.equal(told.length, 1, 'one was replaced, and the log says so');
  comment(told[0]!);
}

const teardowns: (() => void)[] = [];
let failed = false;
try {
  await fabricSteps(step, { teardown: (handler) => teardowns.unshift(handler) }, bed);
} catch (error) {
  failed = true;
  const { cluster, directory } = running;
  comment(error instanceof Error ? (error.stack ?? error.message) : String(error));
  for (const one of (await cluster?.live.replicas()) ?? []) {
    const { node, role, view, gate, lastOp, commitOp, guest, peers } = one;
    comment(JSON.stringify({ node, role, view, gate, lastOp, commitOp, guest, peers }));
  }
  for (const name of ['h1', 'h2', 'h3']) {
    comment(spawnSync('tail', ['-n', '15', join(directory, name, 'falcond.log')]).stdout.toString());
  }
}
process.stdout.write(`1..${points}\n`);
rmSync(orders, { recursive: true });
for (const handler of teardowns) handler();
process.exit(failed ? 1 : 0);
