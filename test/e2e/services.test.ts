/**
 * Services other than Redis in three real guests: what nginx and memcached say is compared without false alarm, while
 * the primary is killed under their clients' connections. The hosts' clocks are years apart, so every answer of
 * nginx differs in its Date header: on the port with the mask nobody minds, on the one without it is found.
 * MINUTES=60 makes the traffic on each service last so long.
 */
import { chmodSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import t from 'tap';

import type { DivergenceReport, OutputStatus } from '../../src/api/status.js';
import { repositoryRoot } from '../../src/lib/root.js';
import { sleep, waitUntil } from '../../src/lib/time.js';
import { temporaryDirectory } from '../support/directory.js';
import { falcon, LiveCluster, runLong } from '../support/live-cluster.js';
import { whyNoNamespaces } from '../support/network.js';
import { trafficMs } from '../support/traffic-time.js';
import { pages } from '../support/web-pages.js';

type Test = Parameters<Parameters<typeof t.test>[0]>[0];

const cannot = whyNoNamespaces();
const skip = cannot === null ? {} : { skip: cannot };
const lastsMs = trafficMs(15_000);
/** Images are downloaded and built the first time. */
const buildMs = 300_000;
const settleMs = 10_000;
t.setTimeout(590_000 + 2 * lastsMs);

async function built(script: string, ...args: string[]): Promise<string> {
  const ran = await runLong(join(repositoryRoot, script), args, {}, buildMs);
  if (ran.status !== 0) throw new Error(`${script} ended with ${ran.status}: ${ran.err}`);
  return ran.out.trim();
}

async function init(t: Test, service: string, ...more: string[]): Promise<LiveCluster> {
  const image = await built('cluster/guest/build', '--service', service, ...more);
  const files = ['--kernel', join(image, 'vmlinux'), '--initrd', join(image, 'initrd')];
  return LiveCluster.init(t, '--nodes', '3', '--name', service, ...files);
}

async function reports(cluster: LiveCluster): Promise<DivergenceReport[]> {
  const ran = await falcon('divergence', cluster.directory, '--json');
  return (JSON.parse(ran.out) as (DivergenceReport | { error: unknown })[]).filter(
    (one): one is DivergenceReport => !('error' in one),
  );
}

const outputOf = (report: DivergenceReport, port: number): OutputStatus | undefined =>
  report.applications.find((one) => one.port === port);

/** Nobody has found anything, nobody was healed, and at least `members` have compared. */
async function expectAgreement(t: Test, cluster: LiveCluster, port: number, members: number): Promise<void> {
  let compared = 0;
  for (const report of await reports(cluster)) {
    const output = outputOf(report, port);
    t.comment(`${report.node} ${report.role} ${JSON.stringify(output)}`);
    t.same(report.divergences, [], `${report.node} knows of no divergence`);
    t.equal(output?.diverged ?? 0, 0, `${report.node} has not diverged`);
    if ((output?.agreed ?? 0) > 0) compared++;
  }
  t.ok(compared >= members, `${compared} have compared`);
  for (const { node, sync } of await cluster.replicas())
    t.notOk(
      sync.last.some(({ reason }) => reason === 'diverged'),
      `${node} has healed nobody`,
    );
}

/** Traffic, and the primary's host dies in the middle of it. The load program fails if a kept connection does. */
async function trafficWithKill(
  t: Test,
  cluster: LiveCluster,
  port: number,
  program: string,
  ...args: string[]
): Promise<Record<string, unknown>> {
  const first = await cluster.primary();
  const traffic = cluster.load(program, args, lastsMs + 120_000);
  // Looked at behind the kill; a failure before that is no unhandled one.
  traffic.catch(() => undefined);
  await sleep(lastsMs / 2);
  await t.test('before the kill', (t) => expectAgreement(t, cluster, port, 2));
  cluster.signalHost(first, 'SIGKILL');
  const next = await cluster.primary(first.view);
  t.not(next.node, first.node, `${next.node} takes over from ${first.node}`);
  const done = await traffic;
  t.comment(JSON.stringify(done));
  return done;
}

/**
 * Gives the last checks their time. Sums of the two guests that are left are only told: whether a connection that its client
 * resets has ended before depends on how fast the guest was, so they can differ where nothing has diverged.
 */
async function settle(t: Test, cluster: LiveCluster, port: number): Promise<void> {
  let last: (OutputStatus | undefined)[] = [];
  const equal = await waitUntil(
    async () => {
      last = (await reports(cluster)).map((report) => outputOf(report, port));
      return last.length === 2 && last[0] !== undefined && last[0].summary === last[1]?.summary;
    },
    { timeoutMs: settleMs, everyMs: 500 },
  );
  const ended = last.map((one) => `${one?.flowsEnded} ended, ${one?.flowsCut} cut`).join('; ');
  t.comment(`sums of ended connections ${equal ? 'are equal' : 'differ'}: ${ended}`);
}

/** A QEMU whose host's clock is years off, another number of years on each host. */
async function clocksApart(t: Test): Promise<string> {
  const real = await built('cluster/qemu/build');
  const directory = temporaryDirectory(t);
  const file = join(directory, 'qemu-system-x86_64');
  symlinkSync(join(dirname(real), 'share'), join(directory, 'share'));
  writeFileSync(
    file,
    `#!/bin/sh
case "$*" in
  */h1/qmp.sock*) year=2031 ;;
  */h2/qmp.sock*) year=2032 ;;
  */h3/qmp.sock*) year=2033 ;;
  *) echo 'no known host' >&2; exit 1 ;;
esac
exec '${real}' "$@" -rtc base=$year-01-02T03:04:05,clock=vm
`,
  );
  chmodSync(file, 0o755);
  return file;
}

t.test('nginx', skip, async (t) => {
  const masked = 80;
  const unmasked = 8080;
  const files = temporaryDirectory(t);
  mkdirSync(join(files, 'srv/www'), { recursive: true });
  for (const [path, bytes] of Object.entries(pages)) writeFileSync(join(files, 'srv/www', path), bytes);
  const cluster = await init(t, 'nginx', '--files', files);
  const qemu = await clocksApart(t);
  cluster.configure((config) => ({
    // A copy would have the clock of the guest that it is a copy of.
    firstBoot: 'each',
    vm: { ...config.vm, port: masked, qemu },
    output: { ...config.output, masks: [{ port: masked, mask: [{ start: '\r\nDate: ', bytes: 29 }] }] },
  }));
  t.match(await cluster.up(), { status: 0 });
  const { vm } = cluster.place.config;

  await t.test('the mask hides what differs in every answer', async (t) => {
    const args = [vm.address, String(masked), 'mixed', String(lastsMs / 1000)];
    const done = await trafficWithKill(t, cluster, masked, 'http-load.js', ...args);
    t.equal((done['years'] as string[]).length, 2, 'the client has seen the clocks of two guests');
    for (const key of ['pipelined', 'large', 'short']) t.ok((done[key] as number) > 3, key);
    t.ok(
      (done['kept'] as number[]).every((count) => count > 10),
      'kept connections',
    );
    await settle(t, cluster, masked);
    await expectAgreement(t, cluster, masked, 1);
  });

  await t.test('without the mask the same header is found', async (t) => {
    const done = await cluster.load('http-load.js', [vm.address, String(unmasked), 'small', '20']);
    let all: DivergenceReport['divergences'] = [];
    await waitUntil(
      async () => (all = (await reports(cluster)).flatMap(({ divergences }) => divergences)).length > 0,
      { timeoutMs: 30_000, everyMs: 200 },
    );
    t.comment((await falcon('divergence', cluster.directory)).out);
    const one = all.find(({ expected }) => expected !== null);
    t.match(one, { port: unmasked, client: new RegExp(`:${String(done['port'])}$`) });
    t.ok(
      all.every(({ port }) => port === unmasked),
      'nothing is found on the masked port',
    );
    const said = Buffer.from(one?.expected ?? '', 'hex').toString('latin1');
    const differs = (one?.firstDifferent ?? 0) - (one?.from ?? 0);
    const header = said.lastIndexOf('\r\nDate: ', differs);
    t.ok(
      header >= 0 && differs - header < '\r\nDate: '.length + 29,
      `byte ${differs} of ${JSON.stringify(said)}`,
    );
  });
  t.match(await cluster.down(), { status: 0 });
  t.same(cluster.leftovers(), []);
});

t.test('memcached', skip, async (t) => {
  const port = 11211;
  const cluster = await init(t, 'memcached');
  cluster.configure((config) => ({ vm: { ...config.vm, port } }));
  t.match(await cluster.up(), { status: 0 });
  const args = [cluster.place.config.vm.address, String(port), String(lastsMs / 1000)];
  const done = await trafficWithKill(t, cluster, port, 'memcached-load.js', ...args);
  for (const key of ['pipelined', 'large', 'short', 'gets']) t.ok((done[key] as number) > 3, key);
  t.ok(
    (done['kept'] as number[]).every((count) => count > 10),
    'kept connections',
  );
  await settle(t, cluster, port);
  await expectAgreement(t, cluster, port, 1);
  t.match(await cluster.down(), { status: 0 });
  t.same(cluster.leftovers(), []);
});
