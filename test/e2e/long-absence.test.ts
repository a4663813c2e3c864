/**
 * A host that is away for longer than the log reaches back, and one that is replaced by an empty host after the log's
 * beginning is gone: both get their guest by state transfer, vote, and lead, while a client goes on over its one connection.
 */
import { rmSync } from 'node:fs';
import { join } from 'node:path';

import t from 'tap';

import type { RemoteClient } from '../../cluster/demo/remote-client.js';
import type { ReplicaStatus } from '../../src/api/status.js';
import { waitUntil } from '../../src/lib/time.js';
import { LiveCluster, falcon } from '../support/live-cluster.js';
import { whyNoNamespaces } from '../support/network.js';
import { expectServed } from '../support/serving.js';

type Test = Parameters<Parameters<typeof t.test>[0]>[0];

const cannot = whyNoNamespaces();
const skip = cannot === null ? {} : { skip: cannot };
const answerMs = 40_000;
const fillMs = 60_000;
const fillRounds = 12;
const mebibyte = 1024 * 1024;
t.setTimeout(590_000);

/** Traffic until none of the replicas that are up keeps the entry behind `op`. */
async function releaseBeyond(t: Test, cluster: LiveCluster, op: number): Promise<void> {
  const { vm } = cluster.place.config;
  if (vm.kind !== 'qemu') throw new Error('there is no guest');
  const beyond = async (): Promise<boolean> =>
    (await cluster.replicas()).every((one) => one.firstOp > op + 1);
  for (let i = 0; i < fillRounds && !(await beyond()); i++)
    await cluster.load('udp-load.js', [vm.address, '3']);
  const firstOps = (await cluster.replicas()).map(({ node, firstOp }) => `${node} from op ${firstOp}`);
  t.ok(await beyond(), `op ${op + 1} is kept by nobody: ${firstOps.join(', ')}`);
}

/** It is whole again, votes, leads and serves. */
async function takesPart(
  t: Test,
  cluster: LiveCluster,
  client: RemoteClient,
  name: string,
  lastOp: number,
): Promise<ReplicaStatus> {
  t.match(await cluster.up('--node', name), { status: 0, out: /is back: its guest is a full copy/ });
  t.ok(
    await cluster.becomes(name, (one) => !one.recovering && one.guest.state === 'ready', fillMs),
    'it votes',
  );
  const { firstOp } = await cluster.replica(name);
  t.ok(firstOp > lastOp + 1, `its log begins at op ${firstOp}, and ended at ${lastOp}`);
  const before = await cluster.primary();
  const told = before.peers.find((peer) => peer.name === name);
  t.match(told, { state: 'up', anewFromOp: Number }, 'the primary says that its log began anew');
  await expectServed(t, client);
  t.match(await falcon('transfer-leader', cluster.directory, '--to', name), { status: 0 });
  const leader = await cluster.primary(before.view);
  t.equal(leader.node, name, 'and leads');
  await expectServed(t, client);
  return leader;
}

t.test('members that missed more than the log keeps', skip, async (t) => {
  const cluster = await LiveCluster.init(t, '--nodes', '3', '--name', 'absence');
  cluster.configure(({ log }) => ({
    log: { ...log, segmentBytes: 2 * mebibyte, retainBytes: 4 * mebibyte },
  }));
  t.match(await cluster.up(), { status: 0 });
  const client = await cluster.client(31);
  t.teardown(() => client.stop());
  await client.say('write', answerMs);
  let primary = await cluster.primary();

  await t.test('a host is dead for long, comes back and leads', async (t) => {
    const away = (await cluster.replicas()).find(({ node }) => node !== primary.node)!;
    cluster.signalHost(away, 'SIGKILL');
    await releaseBeyond(t, cluster, away.lastOp);
    await expectServed(t, client);
    primary = await takesPart(t, cluster, client, away.node, away.lastOp);
  });

  await t.test('an empty host takes the place of one that is lost', async (t) => {
    const lost = (await cluster.replicas()).find(({ node }) => node !== primary.node)!;
    cluster.signalHost(lost, 'SIGKILL');
    await waitUntil(() => !cluster.processes().includes(lost.pid), { timeoutMs: 5000, everyMs: 20 });
    rmSync(join(cluster.directory, lost.node), { recursive: true });
    const kept = Math.min(...(await cluster.replicas()).map(({ firstOp }) => firstOp));
    t.ok(kept > 1, `nobody has op 1 any more: the oldest is ${kept}`);
    t.match(await falcon('member', 'replace', cluster.directory, '--node', lost.node), { status: 0 });
    primary = await takesPart(t, cluster, client, lost.node, 0);
  });

  await t.test('the one that led before is not needed any more', async (t) => {
    const third = (await cluster.replicas()).find(({ node }) => node !== primary.node)!;
    cluster.signalHost(third, 'SIGKILL');
    await expectServed(t, client);
    t.match(await cluster.up('--node', third.node), { status: 0, out: /is back: its guest is a full copy/ });
    await expectServed(t, client);
  });

  await t.test('nothing is lost', async (t) => {
    await client.say('rest', answerMs);
    const tally = await client.say('verify', answerMs);
    t.match(tally, { wrong: 0, lost: 0, alive: true, trouble: [] });
    t.ok(tally.readBack >= tally.acked, `${tally.readBack} of ${tally.acked} read back`);
  });

  t.match(await cluster.down(), { status: 0 });
  t.same(cluster.leftovers(), []);
});
