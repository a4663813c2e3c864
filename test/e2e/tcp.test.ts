/** The same clusters over TCP: hosts that share no memory, so that a cut cable really cuts them off. */
import t from 'tap';

import { signal } from '../../src/lib/processes.js';
import { LiveCluster, falcon } from '../support/live-cluster.js';
import { whyNoNamespaces } from '../support/network.js';
import { expectServed } from '../support/serving.js';

const cannot = whyNoNamespaces();
const skip = cannot === null ? {} : { skip: cannot };
const answerMs = 40_000;
t.setTimeout(400_000);

t.test('processes: transfer, death, return', async (t) => {
  const cluster = await LiveCluster.init(
    t,
    '--nodes',
    '3',
    '--vm',
    'none',
    '--hosts',
    'local',
    '--fabric',
    'tcp',
  );
  t.match(await cluster.up(), { status: 0 });
  const first = await cluster.primary();
  t.match(await falcon('transfer-leader', cluster.directory), { status: 0 });
  const second = await cluster.primary(first.view);
  t.not(second.node, first.node);
  signal(second.pid, 'SIGKILL');
  const third = await cluster.primary(second.view);
  t.match(await cluster.launch(second.node), { status: 0 });
  t.ok(
    await cluster.becomes(second.node, (one) => one.view === third.view && one.commitOp >= third.commitOp),
    'who comes back follows',
  );
  t.match(await cluster.down(), { status: 0 });
  t.same(cluster.leftovers(), []);
});

t.test('hosts: the primary is cut off from everybody, and joined again', skip, async (t) => {
  const cluster = await LiveCluster.init(t, '--nodes', '3', '--name', 'cut', '--fabric', 'tcp');
  t.match(await cluster.up(), { status: 0 });
  const client = await cluster.client(21);
  t.teardown(() => client.stop());
  await client.say('write', answerMs);
  const goesOn = async (why: string): Promise<void> => {
    t.comment(why);
    await expectServed(t, client);
  };
  await goesOn('at first');

  const old = await cluster.primary();
  t.equal(cluster.net('partition', old.node).status, 0);
  const next = await cluster.primary(old.view);
  t.not(next.node, old.node);
  await goesOn('cut off');
  t.ok(
    await cluster.becomes(old.node, (one) => one.gate === 'closed' && one.role !== 'primary'),
    'without a majority it closes its gate',
  );
  t.equal(cluster.net('heal', old.node).status, 0);
  t.ok(
    await cluster.becomes(old.node, (one) => one.role === 'backup' && one.primary !== null, 60_000),
    'joined again, it follows',
  );
  await goesOn('joined again');

  const now = await cluster.primary();
  cluster.signalHost(now, 'SIGKILL');
  const last = await cluster.primary(now.view);
  t.equal(last.guest.state, 'ready');
  await goesOn('after a death');

  await client.say('rest', answerMs);
  t.match(await client.say('verify', answerMs), { wrong: 0, lost: 0, alive: true, trouble: [] });
  t.match(await cluster.down(), { status: 0 });
  t.same(cluster.leftovers(), []);
});
