/** The steps of test/support/fabric-cluster over the fabrics that need no device; verbs: test/softroce. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import t from 'tap';

import { defaultTiming } from '../../src/api/config.js';
import type { PeerStatus, ReplicaStatus } from '../../src/api/status.js';
import { signal } from '../../src/lib/processes.js';
import { FabricCluster, fabricSteps } from '../support/fabric-cluster.js';
import type { FabricBed } from '../support/fabric-cluster.js';
import { falcon, LiveCluster } from '../support/live-cluster.js';
import { netScript, run, whyNoNamespaces } from '../support/network.js';

const cannot = whyNoNamespaces();
const timeoutMs = 300_000;
t.setTimeout(4 * timeoutMs);

for (const fabric of ['shm', 'tcp'] as const) {
  t.test(fabric, { timeout: timeoutMs, ...(cannot === null ? {} : { skip: cannot }) }, async (t) => {
    let directory = '';
    const net = (verb: string, node: number): void => {
      t.equal(run(netScript, verb, directory, `h${node + 1}`).status, 0, verb);
    };
    const bed: FabricBed = {
      fabric,
      timing: defaultTiming,
      patienceMs: 30_000,
      cut:
        fabric === 'shm'
          ? 'shared memory is not a network: nothing to cut'
          : { off: (node) => net('partition', node), on: (node) => net('heal', node) },
      extra: (_step, cluster) => {
        directory = cluster.live.directory;
        return Promise.resolve();
      },
      comment: (text) => t.comment(text),
      skip: (name, why) => void t.test(name, { skip: why }, () => undefined),
    };
    await fabricSteps(
      async (name, body) => {
        const failures: Error[] = [];
        await t.test(name, { timeout: timeoutMs }, async () => {
          try {
            await body();
          } catch (error) {
            failures.push(error instanceof Error ? error : new Error(String(error)));
            throw error;
          }
        });
        for (const failure of failures) throw failure;
      },
      t,
      bed,
    );
  });
}

t.test(
  'a backup that the log has left behind begins anew',
  {
    timeout: timeoutMs,
    ...(cannot === null ? {} : { skip: cannot }),
  },
  async (t) => {
    const cluster = await FabricCluster.start(t, {
      fabric: 'shm',
      timing: defaultTiming,
      patienceMs: 30_000,
      cut: '',
      configure: (config) => {
        config['log'] = {
          memoryBytes: 1 << 20,
          ringBytes: 512 << 10,
          segmentBytes: 2 << 20,
          retainBytes: 2 << 20,
        };
      },
      comment: (text) => t.comment(text),
      skip: () => undefined,
    });
    const primary = await cluster.primary();
    const victim = (await cluster.live.replicas()).find(({ role }) => role === 'backup')!;
    await cluster.becomes(victim.node, 'a backup with a log', ({ commitOp }) => commitOp >= 2);
    signal(victim.pid, 'SIGKILL');
    // Three times what is kept, in memory and in files.
    const target = primary.commitOp + 6000;
    await cluster.becomes(primary.node, 'far ahead', ({ commitOp }) => {
      if (commitOp < target) cluster.lan.flood(100);
      return commitOp >= target;
    });
    await cluster.becomes(
      primary.node,
      'rid of old entries',
      ({ counters }) => counters['wal.segments']! <= 2,
    );
    cluster.launch(victim.node);
    const seenBy = ({ peers }: ReplicaStatus): PeerStatus => peers.find(({ name }) => name === victim.node)!;
    const anew = (one: ReplicaStatus): boolean =>
      (seenBy(one).anewFromOp ?? 0) > victim.lastOp && seenBy(one).guest;
    await cluster.becomes(primary.node, 'followed by it, with a guest', anew);
    const { firstOp } = await cluster.live.replica(victim.node);
    t.ok(firstOp > victim.lastOp + 1, `its log begins with op ${firstOp}; it ended with ${victim.lastOp}`);
    const text = await falcon('status', cluster.live.directory);
    t.match(text.out, new RegExp(`${victim.node}.*anew`));
    t.equal((await cluster.primary()).view, primary.view, 'the others have served on');
    t.match(await falcon('transfer-leader', cluster.live.directory, '--to', victim.node), { status: 0 });
    t.equal((await cluster.primary(primary.view)).node, victim.node, 'it leads');
    cluster.keepAsking();
    await cluster.goesOn();
    await cluster.rest();
  },
);

t.test('verbs where there is no such device', async (t) => {
  const cluster = await LiveCluster.init(t, '--nodes', '1', '--fabric', 'verbs', '--hosts', 'local');
  const file = join(cluster.directory, 'falcon.json');
  const config = JSON.parse(readFileSync(file, 'utf8')) as { nodes: Record<string, unknown>[] };
  config.nodes[0]!['rdma'] = { device: 'none-such' };
  writeFileSync(file, JSON.stringify(config));
  const refused = await cluster.up();
  t.match(refused, { status: 1, err: /START_FAILED: .*VERBS_OPEN: .*(rdma link add|libibverbs-dev)/ });
  t.same(cluster.leftovers(), []);
});
