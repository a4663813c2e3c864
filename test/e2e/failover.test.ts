/**
 * One long life of a replicated Redis: its primary is handed over, paused, cut off and killed under a client that
 * writes over one connection. After every trouble the client must be served again, and in the end have lost nothing.
 */
import { rmSync } from 'node:fs';
import { join } from 'node:path';

import t from 'tap';

import type { ReplicaStatus, SyncRecord } from '../../src/api/status.js';
import { runsWith, signal } from '../../src/lib/processes.js';
import { sleep, waitUntil } from '../../src/lib/time.js';
import { LiveCluster, falcon } from '../support/live-cluster.js';
import { whyNoNamespaces } from '../support/network.js';
import { expectServed, served } from '../support/serving.js';

type Test = Parameters<Parameters<typeof t.test>[0]>[0];

const cannot = whyNoNamespaces();
const skip = cannot === null ? {} : { skip: cannot };
const answerMs = 40_000;
const fillMs = 60_000;
const full = (one: ReplicaStatus): boolean => one.guest.state === 'ready';
t.setTimeout(590_000);

t.test('a life with troubles', skip, async (t) => {
  const cluster = await LiveCluster.init(t, '--nodes', '3', '--name', 'life');
  t.match(await cluster.up(), { status: 0 });
  const client = await cluster.client(11);
  t.teardown(() => client.stop());
  let tally = await client.say('write', answerMs);
  let primary = await cluster.primary();

  const goesOn = async (t: Test): Promise<void> => {
    tally = await expectServed(t, client);
  };

  await t.test('serves', goesOn);

  await t.test('leadership is handed over and back under load', async (t) => {
    for (let i = 0; i < 3; i++) {
      t.match(await falcon('transfer-leader', cluster.directory), { status: 0 });
      const next = await cluster.primary(primary.view);
      t.not(next.node, primary.node);
      primary = next;
    }
    await goesOn(t);
  });

  await t.test('the primary pauses for longer than its lease', async (t) => {
    cluster.signalHost(primary, 'SIGSTOP');
    const next = await cluster.primary(primary.view);
    t.not(next.node, primary.node);
    await goesOn(t);
    cluster.signalHost(primary, 'SIGCONT');
    t.ok(
      await cluster.becomes(primary.node, (one) => one.role === 'backup' && one.view >= next.view),
      'it steps down when it goes on',
    );
    await goesOn(t);
    primary = await cluster.primary();
  });

  await t.test('QEMU of the primary dies alone', async (t) => {
    const { pid, guest, node } = primary;
    t.ok(guest.pid !== null && signal(guest.pid, 'SIGKILL'));
    const next = await cluster.primary(primary.view);
    t.not(next.node, node);
    await goesOn(t);
    t.ok(await cluster.becomes(node, full, fillMs), 'its replica is made a full copy again');
    const back = await cluster.replica(node);
    t.equal(back.pid, pid, 'and its falcond has never stopped');
    t.ok(back.guest.pid !== null && back.guest.pid !== guest.pid);
    primary = next;
    await goesOn(t);
  });

  await t.test('falcond of the primary dies alone, again and again', async (t) => {
    for (let i = 0; i < 3; i++) {
      const { pid, guest, node } = primary;
      t.ok(signal(pid, 'SIGKILL'));
      const next = await cluster.primary(primary.view);
      t.not(next.node, node);
      t.equal(next.guest.state, 'ready');
      t.ok(await gone(guest.pid!, 'qemu', cluster), 'its QEMU ends with it');
      await goesOn(t);
      t.match(await cluster.up('--node', node), { status: 0, out: /is back: its guest is a full copy/ });
      await goesOn(t);
      primary = await cluster.primary();
    }
  });

  await t.test('an operator makes a replica a copy though it is one', async (t) => {
    const other = (await cluster.replicas()).find(({ node }) => node !== primary.node)!.node;
    const ran = await falcon('sync', cluster.directory, '--node', other, '--json');
    t.match(ran, { status: 0 });
    const record = JSON.parse(ran.out) as SyncRecord;
    t.match(record, { target: other, reason: 'asked', ok: true });
    t.equal(record.equal + record.sent + record.found, record.pages);
    t.match(await falcon('sync', cluster.directory, '--node', primary.node), {
      status: 8,
      err: /SYNC_REFUSED/,
    });
    t.match(await falcon('sync', cluster.directory, '--node', 'h9'), { status: 2, err: /USAGE/ });
    await goesOn(t);
  });

  await t.test('a host is lost with its disk, and an empty one takes its place', async (t) => {
    const other = (await cluster.replicas()).find(({ node }) => node !== primary.node)!;
    const name = other.node;
    const replace = (): ReturnType<typeof falcon> =>
      falcon('member', 'replace', cluster.directory, '--node', name);
    t.match(await replace(), { status: 5, err: /ALREADY_RUNNING/ });
    cluster.signalHost(other, 'SIGKILL');
    t.ok(await gone(other.pid, 'falcond', cluster));
    rmSync(join(cluster.directory, name), { recursive: true });
    t.match(
      await cluster.up('--node', name),
      { status: 1, err: /HARD_STATE_LOST/ },
      'an empty vote is no vote',
    );
    t.match(await replace(), { status: 0, out: /is incarnation 2/ });
    t.match(await cluster.up('--node', name), { status: 0, out: /is back: its guest is a full copy/ });
    t.ok(await cluster.becomes(name, (one) => !one.recovering, fillMs), 'it votes again');
    await goesOn(t);
    cluster.signalHost(primary, 'SIGKILL');
    primary = await cluster.primary(primary.view);
    await goesOn(t);
  });

  await t.test('everything is there', async (t) => {
    await client.say('rest', answerMs);
    tally = await client.say('verify', answerMs);
    t.match(tally, { wrong: 0, lost: 0, alive: true, trouble: [] });
    t.ok(tally.readBack >= tally.acked, `${tally.readBack} of ${tally.acked} read back`);
  });

  await t.test('down leaves nothing', async (t) => {
    t.match(await cluster.down(), { status: 0 });
    t.same(cluster.leftovers(), []);
  });
});

t.test('a cluster that was killed as a whole starts again', skip, async (t) => {
  const cluster = await LiveCluster.init(t, '--nodes', '3', '--name', 'again');
  t.match(await cluster.up(), { status: 0 });
  for (const replica of await cluster.replicas()) cluster.signalHost(replica, 'SIGKILL');
  t.match(await cluster.up(), { status: 0 });
  const client = await cluster.client(12);
  t.teardown(() => client.stop());
  const before = await client.say('write', answerMs);
  await sleep(500);
  const { after } = await served(client, before);
  t.ok(after.acked > before.acked, `${after.acked} writes acknowledged`);
  t.match(await cluster.down(), { status: 0 });
  t.same(cluster.leftovers(), []);
});

t.test('a start that fails, and one that is interrupted, leave nothing', skip, async (t) => {
  const wrong = await LiveCluster.init(t, '--nodes', '3', '--name', 'wrong', '--qemu', '/bin/false');
  t.match(await wrong.up(), { status: 1, err: /QEMU_LOST|QEMU_FAILED|START_FAILED/ });
  t.same(wrong.leftovers(), []);

  const cluster = await LiveCluster.init(t, '--nodes', '3', '--name', 'broken');
  const started = cluster.up();
  t.ok(
    await waitUntil(() => cluster.processes().some((pid) => runsWith(pid, ['-display'])), {
      timeoutMs: 60_000,
      everyMs: 20,
    }),
    'guests are starting',
  );
  for (const pid of cluster.processes()) if (runsWith(pid, ['up', cluster.directory])) signal(pid, 'SIGINT');
  t.match(await started, { status: 130 });
  t.same(cluster.leftovers(), []);
});

/** A process of the cluster has ended. */
function gone(pid: number, what: string, cluster: LiveCluster): Promise<boolean> {
  return waitUntil(() => !cluster.processes().includes(pid), { timeoutMs: 5000, everyMs: 20 }).then(
    (ended) => {
      if (!ended) process.stderr.write(`${what} ${pid} is still there\n`);
      return ended;
    },
  );
}
