/** Clusters of plain processes around the built-in service: what an operator can do to them without a guest. */
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import t from 'tap';

import { nodePaths } from '../../src/api/cluster.js';
import { signal } from '../../src/lib/processes.js';
import { waitUntil } from '../../src/lib/time.js';
import { repositoryRoot } from '../../src/lib/root.js';
import { falcon, LiveCluster, runLong } from '../support/live-cluster.js';

const local = ['--vm', 'none', '--hosts', 'local'];
t.setTimeout(300_000);

t.test('up, status, transfer-leader, down', async (t) => {
  const cluster = await LiveCluster.init(t, '--nodes', '3', ...local);
  t.match(await cluster.up(), { status: 0, out: /serves: h\d is primary of view \d/ });
  t.match(await cluster.up(), { status: 5, err: /^falcon: ALREADY_RUNNING: / });
  const first = await cluster.primary();
  t.match(readFileSync(`/proc/${first.pid}/cmdline`, 'utf8'), '--single-threaded-gc');
  const { log } = nodePaths(cluster.directory, first.node);
  t.notMatch(readFileSync(log, 'utf8'), /started without/);

  const status = await falcon('status', cluster.directory, '--json');
  t.equal(status.status, 0);
  const rows = JSON.parse(status.out) as Record<string, unknown>[];
  t.equal(rows.length, 3);
  t.match(rows[0], {
    view: Number,
    commitOp: Number,
    lagOps: Number,
    lease: { held: Boolean },
    durability: 'disk',
    guest: { state: String },
  });

  t.match(await falcon('transfer-leader', cluster.directory, '--to', first.node), {
    status: 0,
    out: /primary already/,
  });
  t.match(await falcon('transfer-leader', cluster.directory, '--to', 'h9'), { status: 2, err: /USAGE/ });
  const to = first.node === 'h3' ? 'h2' : 'h3';
  t.match(await falcon('transfer-leader', cluster.directory, '--to', to), { status: 0 });
  const second = await cluster.primary(first.view);
  t.equal(second.node, to);

  t.match(await cluster.down(), { status: 0 });
  t.same(cluster.leftovers(), []);
  t.match(await falcon('status', cluster.directory), { status: 4, err: /DAEMON_UNREACHABLE/ });
});

t.test('what was committed is there after all were killed', async (t) => {
  const cluster = await LiveCluster.init(t, '--nodes', '3', ...local);
  t.match(await cluster.up(), { status: 0 });
  const before = await cluster.primary();
  for (const { pid } of await cluster.replicas()) signal(pid, 'SIGKILL');
  t.match(await cluster.up(), { status: 0 }, 'a start after an unclean stop');
  const after = await cluster.primary();
  t.ok(after.view > before.view, `view ${after.view} after ${before.view}`);
  t.ok(after.commitOp > before.commitOp, `op ${after.commitOp} after ${before.commitOp}`);
  t.match(await cluster.down(), { status: 0 });
  t.same(cluster.leftovers(), []);
});

t.test('a minority makes no progress, a majority does, and who comes back follows', async (t) => {
  const cluster = await LiveCluster.init(t, '--nodes', '3', ...local);
  t.match(await cluster.up(), { status: 0 });
  const first = await cluster.primary();
  signal(first.pid, 'SIGKILL');
  const second = await cluster.primary(first.view);
  signal(second.pid, 'SIGKILL');
  const last = (await cluster.replicas())[0]!;
  t.notOk(
    await cluster.becomes(last.node, ({ gate, role }) => gate === 'open' || role === 'primary', 1500),
    'one of three does not serve',
  );
  t.match(await cluster.launch(first.node), { status: 0 });
  const third = await cluster.primary(second.view);
  t.match(await cluster.launch(second.node), { status: 0 });
  t.ok(
    await cluster.becomes(second.node, (one) => one.view === third.view && one.commitOp >= third.commitOp),
    'it follows',
  );
  t.match(await cluster.launch(second.node), { status: 5, err: /ALREADY_RUNNING/ });
  t.match(await cluster.down(), { status: 0 });
  t.same(cluster.leftovers(), []);
});

t.test('a damaged log is reported, and fetched from the peers', async (t) => {
  const cluster = await LiveCluster.init(t, '--nodes', '3', ...local);
  t.match(await cluster.up(), { status: 0 });
  const primary = await cluster.primary();
  const victim = (await cluster.replicas()).find(({ node }) => node !== primary.node)!;
  signal(victim.pid, 'SIGKILL');
  await waitUntil(async () => (await cluster.replicas()).length === 2, { timeoutMs: 5000, everyMs: 20 });
  const paths = nodePaths(cluster.directory, victim.node);
  const [segment = ''] = readdirSync(paths.wal).sort();
  const bytes = readFileSync(join(paths.wal, segment));
  // The first entries, below what the file itself knows to be durable.
  const at = bytes.indexOf(0) >= 0 ? 4096 + 20 : 20;
  bytes[at] = (bytes[at] ?? 0) ^ 0xff;
  writeFileSync(join(paths.wal, segment), bytes);
  t.match(await cluster.launch(victim.node), { status: 0 });
  t.ok(
    await cluster.becomes(victim.node, (one) => one.commitOp >= primary.commitOp && !one.recovering),
    'it has fetched what it lost and may vote again',
  );
  t.match(readFileSync(paths.log, 'utf8'), /LOG_DAMAGED/);
  t.match(await cluster.down(), { status: 0 });
});

t.test('a replica that has lost its log does not vote before it has fetched it', async (t) => {
  const cluster = await LiveCluster.init(t, '--nodes', '3', ...local);
  t.match(await cluster.up(), { status: 0 });
  t.match(await cluster.down(), { status: 0 });
  rmSync(join(cluster.directory, 'h1', 'wal'), { recursive: true });
  t.match(await cluster.launch('h1'), { status: 0 });
  t.match(await cluster.replica('h1'), { recovering: true });
  t.match(await cluster.launch('h2'), { status: 0 });
  t.notOk(await cluster.becomes('h2', ({ role }) => role === 'primary', 1500), 'an empty log elects nobody');
  t.match(await cluster.launch('h3'), { status: 0 });
  const primary = await cluster.primary();
  t.ok(
    await cluster.becomes('h1', ({ recovering, commitOp }) => !recovering && commitOp >= primary.commitOp),
  );
  t.match(readFileSync(nodePaths(cluster.directory, 'h1').log, 'utf8'), /LOG_DAMAGED/);
  t.match(await cluster.down(), { status: 0 });
});

t.test('durability memory: a clean stop is no loss, a crash is', async (t) => {
  const cluster = await LiveCluster.init(t, '--nodes', '3', '--durability', 'memory', ...local);
  t.match(await cluster.up(), { status: 0 });
  const before = await cluster.primary();
  t.match(await cluster.down(), { status: 0 });
  t.match(await cluster.up(), { status: 0 }, 'all of them may be stopped and started');
  const after = await cluster.primary();
  t.ok(after.commitOp > before.commitOp, `op ${after.commitOp} after ${before.commitOp}`);
  signal(after.pid, 'SIGKILL');
  const next = await cluster.primary(after.view);
  t.match(await cluster.launch(after.node), { status: 0 });
  t.ok(await cluster.becomes(after.node, (one) => !one.recovering && one.commitOp >= next.commitOp));
  t.match(readFileSync(nodePaths(cluster.directory, after.node).log, 'utf8'), /recovering|peer connected/);
  t.match(await cluster.down(), { status: 0 });
});

t.test('a second daemon of a node touches nothing', async (t) => {
  const cluster = await LiveCluster.init(t, '--nodes', '1', ...local);
  t.match(await cluster.up(), { status: 0 });
  const vote = readFileSync(join(cluster.directory, 'h1', 'hard-state'));
  const daemon = join(repositoryRoot, 'dist/src/daemon/main.js');
  const second = await runLong(process.execPath, [daemon, '--dir', cluster.directory, '--node', 'h1']);
  t.match(second, { status: 5, err: /ALREADY_RUNNING/ });
  t.same(readFileSync(join(cluster.directory, 'h1', 'hard-state')), vote);
  t.equal((await cluster.primary()).node, 'h1');
  t.match(await cluster.down(), { status: 0 });
});

t.test('a node that has lost its vote file does not start', async (t) => {
  const cluster = await LiveCluster.init(t, '--nodes', '3', ...local);
  t.match(await cluster.up(), { status: 0 });
  t.match(await cluster.down(), { status: 0 });
  rmSync(join(cluster.directory, 'h1', 'hard-state'));
  const lost = await cluster.up();
  t.match(lost, { status: 1, err: /HARD_STATE_LOST/ });
  t.same(cluster.leftovers(), [], 'a failed start leaves nothing');
});

t.test('a node with another secret is refused, and the cluster serves without it', async (t) => {
  const cluster = await LiveCluster.init(t, '--nodes', '3', ...local);
  t.match(await cluster.up(), { status: 0 });
  const primary = await cluster.primary();
  const victim = (await cluster.replicas()).find(({ node }) => node !== primary.node)!;
  signal(victim.pid, 'SIGKILL');
  await waitUntil(async () => (await cluster.replicas()).length === 2, { timeoutMs: 5000, everyMs: 20 });
  const secret = join(cluster.directory, 'secret');
  const right = readFileSync(secret, 'utf8');
  writeFileSync(
    secret,
    right.replace(/./g, (digit) => (digit === '\n' ? digit : digit === 'a' ? 'b' : 'a')),
  );
  t.match(await cluster.launch(victim.node), { status: 0 });
  const refused = await waitUntil(
    () => /SECRET_WRONG/.test(readFileSync(nodePaths(cluster.directory, primary.node).log, 'utf8')),
    { timeoutMs: 10_000, everyMs: 100 },
  );
  t.ok(refused, 'the primary logs who was refused and why');
  t.match(await cluster.replica(victim.node), { peers: [{ connected: false }, { connected: false }] });
  t.equal((await cluster.primary()).node, primary.node);
  writeFileSync(secret, right);
  t.match(await cluster.down(), { status: 0 });
  t.same(cluster.leftovers(), []);
});
