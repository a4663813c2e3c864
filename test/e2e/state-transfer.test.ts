/**
 * State transfers that meet trouble, with real guests: whoever dies or stands still in the middle of a session, the client
 * goes on over its one connection, and every replica becomes a full copy again.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, rmSync, statfsSync } from 'node:fs';
import { freemem } from 'node:os';
import { join } from 'node:path';
import t from 'tap';

import { callDaemon, fetchStatus } from '../../src/api/client.js';
import { nodePaths, shmDirectory } from '../../src/api/cluster.js';
import type { ReplicaStatus, SyncRecord, VerifyResult } from '../../src/api/status.js';
import { messageOf } from '../../src/lib/errors.js';
import { monotonicMs, sleep } from '../../src/lib/time.js';
import { LiveCluster, falcon } from '../support/live-cluster.js';
import { whyNoNamespaces } from '../support/network.js';
import { expectServed, served } from '../support/serving.js';

type Test = Parameters<Parameters<typeof t.test>[0]>[0];

const cannot = whyNoNamespaces();
const skip = cannot === null ? {} : { skip: cannot };
const answerMs = 40_000;
const fillMs = 60_000;
/** What a guest is made to touch while its host's memory file system is full, more than sixteen times what is left there. */
const touchedBytes = 48 * 2 ** 20;
const leftBytes = 2 ** 20;
/** The guest of the source stands still. */
const stillPhases = ['pausing', 'final', 'sending', 'resuming'];
const full = (one: ReplicaStatus): boolean => one.guest.state === 'ready';
t.setTimeout(300_000);

type Outcome = SyncRecord | { readonly ok: false; readonly why: string };

/** Asks the primary to make `target` a copy; resolves when it is over, one way or the other. */
function sync(cluster: LiveCluster, primary: ReplicaStatus, target: string): Promise<Outcome> {
  const { adminSocket } = nodePaths(cluster.directory, primary.node);
  return callDaemon(adminSocket, 'sync', { node: target }, { timeoutMs: fillMs }).then(
    (record) => record as SyncRecord,
    (error: unknown) => ({ ok: false, why: messageOf(error) }),
  );
}

/** Looks at the source as often as it answers, and acts as soon as a session is in one of `phases` (none: any). */
async function inSession(
  cluster: LiveCluster,
  primary: ReplicaStatus,
  phases: readonly string[],
  act: () => void,
): Promise<string | null> {
  const { adminSocket } = nodePaths(cluster.directory, primary.node);
  const until = monotonicMs() + 10_000;
  let begun = false;
  while (monotonicMs() < until) {
    const { active } = (await fetchStatus(adminSocket)).sync;
    if (active !== null) begun = true;
    if (active !== null && (phases.length === 0 || phases.includes(active.phase))) {
      act();
      return active.phase;
    }
    if (begun && active === null) return null;
  }
  return null;
}

/** Mounts one that can be filled without anybody else's noticing; released at the end of the test at the latest. */
function ownMemoryFileSystem(t: Test, path: string): () => void {
  mkdirSync(path, { recursive: true, mode: 0o700 });
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=2g,mode=700', 'falcon-test', path]);
  let mounted = true;
  const release = (): void => {
    if (mounted) execFileSync('umount', ['--lazy', path]);
    mounted = false;
    rmSync(path, { recursive: true, force: true });
  };
  t.teardown(release);
  return release;
}

t.test('sessions with troubles', skip, async (t) => {
  const cluster = await LiveCluster.init(t, '--nodes', '3', '--name', 'sessions');
  const shared = shmDirectory(cluster.place.config.cluster);
  const release = ownMemoryFileSystem(t, shared);
  t.match(await cluster.up(), { status: 0 });
  const client = await cluster.client(21);
  t.teardown(() => client.stop());
  await client.say('write', answerMs);
  let primary = await cluster.primary();

  const goesOn = async (t: Test): Promise<void> => {
    await expectServed(t, client);
  };
  const becomeFull = async (t: Test): Promise<void> => {
    for (const { name } of cluster.place.config.nodes)
      t.ok(await cluster.becomes(name, full, fillMs), `${name} is a full copy`);
  };
  const others = async (): Promise<ReplicaStatus[]> =>
    (await cluster.replicas()).filter(({ node }) => node !== primary.node);
  await becomeFull(t);

  await t.test('the target is killed in the middle', async (t) => {
    const target = (await others())[0]!;
    const asked = sync(cluster, primary, target.node);
    const phase = await inSession(cluster, primary, [], () => cluster.signalHost(target, 'SIGKILL'));
    t.ok(phase, `while ${phase}`);
    await goesOn(t);
    t.match(await asked, { ok: false });
    t.equal((await cluster.primary()).node, primary.node, 'the primary is who it was');
    t.match(await cluster.up('--node', target.node), { status: 0, out: /is back: its guest is a full copy/ });
    await goesOn(t);
  });

  await t.test('the target stands still in the middle', async (t) => {
    const target = (await others())[0]!;
    const asked = sync(cluster, primary, target.node);
    const phase = await inSession(cluster, primary, [], () => cluster.signalHost(target, 'SIGSTOP'));
    t.ok(phase, `while ${phase}`);
    await goesOn(t);
    await sleep(3000);
    cluster.signalHost(target, 'SIGCONT');
    const { ok } = await asked;
    t.comment(ok ? 'the session went on' : 'the session was given up');
    await goesOn(t);
    await becomeFull(t);
  });

  await t.test('the source is killed in the middle', async (t) => {
    const target = (await others())[0]!;
    const dead = primary;
    const asked = sync(cluster, primary, target.node);
    const phase = await inSession(cluster, primary, [], () => cluster.signalHost(dead, 'SIGKILL'));
    t.ok(phase, `while ${phase}`);
    t.match(await asked, { ok: false });
    primary = await cluster.primary(dead.view);
    t.not(primary.node, dead.node);
    await goesOn(t);
    t.match(await cluster.up('--node', dead.node), { status: 0, out: /is back: its guest is a full copy/ });
    await becomeFull(t);
    await goesOn(t);
  });

  await t.test('the primary stands still past its lease while both guests do', async (t) => {
    const stopped = primary;
    let phase: string | null = null;
    for (let i = 0; i < 12 && phase === null; i++) {
      const target = (await others())[i % 2]!;
      const asked = sync(cluster, primary, target.node);
      phase = await inSession(cluster, primary, stillPhases, () => cluster.signalHost(stopped, 'SIGSTOP'));
      if (phase === null) await asked;
      else void asked;
    }
    t.ok(phase, `while ${phase}`);
    primary = await cluster.primary(stopped.view);
    t.not(primary.node, stopped.node);
    await goesOn(t);
    cluster.signalHost(stopped, 'SIGCONT');
    t.ok(
      await cluster.becomes(stopped.node, (one) => one.role === 'backup' && one.view >= primary.view),
      'it steps down when it goes on',
    );
    await becomeFull(t);
    await goesOn(t);
    primary = await cluster.primary();
  });

  /** It is tried again by itself, until it is done. */
  const madeUpFor = async (t: Test): Promise<void> => {
    const done = ({ sync: { active, last } }: ReplicaStatus): boolean =>
      active === null && last.at(-1)?.ok === true;
    t.ok(await cluster.becomes(primary.node, done, fillMs), 'the session is made up for');
    await becomeFull(t);
  };

  await t.test('files of the session cannot be made', async (t) => {
    const target = (await others())[0]!;
    for (const [node, kind, why] of [
      [primary.node, 'inbox', /SYNC_MEMORY/],
      [target.node, 'inbox', /SYNC_MEMORY/],
      [primary.node, 'dirty', /QEMU refused|SYNC_MEMORY/],
      [primary.node, 'state', /QEMU refused|SYNC_MEMORY/],
      [target.node, 'state', /SYNC_MEMORY/],
    ] as const) {
      // Changes have two files in turn.
      const names = kind === 'dirty' ? ['dirty0', 'dirty1'] : [kind];
      const files = names.map((name) => join(shared, `${node}.${name}`));
      for (const file of files) {
        rmSync(file, { force: true });
        mkdirSync(join(file, 'in-the-way'), { recursive: true });
      }
      const outcome = await sync(cluster, primary, target.node);
      t.match(outcome, { ok: false, why }, `${kind} of ${node}`);
      await goesOn(t);
      for (const file of files) rmSync(file, { recursive: true });
      await madeUpFor(t);
    }
    t.match(await sync(cluster, primary, target.node), { ok: true });
    await goesOn(t);
  });

  await t.test('the memory file system is full', async (t) => {
    const target = (await others())[0]!;
    const { bavail, bsize } = statfsSync(shared);
    const filler = join(shared, 'filler');
    // What guests touch meanwhile has its room; what a session needs does not find any.
    execFileSync('fallocate', ['-l', String(bavail * bsize - leftBytes), filler]);
    const pids = (await cluster.replicas()).map(({ guest }) => guest.pid);
    const { vm } = cluster.place.config;
    if (vm.kind !== 'qemu') throw new Error('a guest is needed');
    const line = `SETRANGE touched ${touchedBytes} x\\r\\n`;
    await cluster.load('redis-load.js', [vm.address, String(vm.port), 'lines', line, 'DEL touched\\r\\n']);
    const outcome = await sync(cluster, primary, target.node);
    t.match(outcome, { ok: false, why: /SYNC_MEMORY.* (room|free)/ });
    await goesOn(t);
    rmSync(filler);
    await madeUpFor(t);
    await goesOn(t);
    t.same(
      (await cluster.replicas()).map(({ guest }) => guest.pid),
      pids,
      'no guest has ended',
    );
  });

  await t.test('everything is there', async (t) => {
    await client.say('rest', answerMs);
    const tally = await client.say('verify', answerMs);
    t.match(tally, { wrong: 0, lost: 0, alive: true, trouble: [] });
    t.ok(tally.readBack >= tally.acked, `${tally.readBack} of ${tally.acked} read back`);
    t.match(await cluster.down(), { status: 0 });
    release();
    t.same(cluster.leftovers(), []);
  });
});

const largeMiB = 2048;
/** Three guests, of which each could touch all of its memory, and as much again for everything else. */
const neededMiB = 4 * largeMiB;

function whyNoLargeGuests(): string | null {
  const freeMiB = Math.floor(freemem() / 2 ** 20);
  const { bavail, bsize } = statfsSync('/dev/shm');
  const roomMiB = Math.floor((bavail * bsize) / 2 ** 20);
  if (roomMiB < neededMiB) return `needs ${neededMiB} MiB of /dev/shm; ${roomMiB} are free`;
  if (freeMiB < neededMiB) return `needs ${neededMiB} MiB of free memory; ${freeMiB} are there`;
  return cannot;
}

const tooSmall = whyNoLargeGuests();
t.test('guests of 2 GiB', tooSmall === null ? {} : { skip: tooSmall }, async (t) => {
  const cluster = await LiveCluster.init(t, '--nodes', '3', '--name', 'large', '--memory', String(largeMiB));
  t.match(await cluster.up(), { status: 0 });
  const client = await cluster.client(22);
  t.teardown(() => client.stop());
  await client.say('write', answerMs);
  const primary = await cluster.primary();
  const backup = (await cluster.replicas()).find(({ node }) => node !== primary.node)!;
  t.ok(await cluster.becomes(backup.node, full, fillMs));
  cluster.signalHost(backup, 'SIGKILL');
  t.match(await cluster.up('--node', backup.node), { status: 0, out: /is back: its guest is a full copy/ });
  const ran = await falcon('sync', cluster.directory, '--node', backup.node, '--json');
  t.match(ran, { status: 0 });
  const record = JSON.parse(ran.out) as SyncRecord;
  t.match(record, { ok: true, based: true });
  t.comment(`healed: ${record.pages} pages looked at, ${record.sent} sent, ${record.pauseMs} ms of pause`);
  const compared = await falcon('verify', cluster.directory, '--node', backup.node, '--json');
  t.match(compared, { status: 0 });
  const [result] = JSON.parse(compared.out) as VerifyResult[];
  t.comment(`compared: ${result?.findings?.pages} pages, ${result?.pauseMs} ms of pause`);
  const { before, after } = await served(client);
  t.ok(after.acked > before.acked);
  t.match(after, { wrong: 0, alive: true });
  await client.say('rest', answerMs);
  t.match(await client.say('verify', answerMs), { wrong: 0, lost: 0, alive: true, trouble: [] });
  t.match(await cluster.down(), { status: 0 });
  t.same(cluster.leftovers(), []);
});
