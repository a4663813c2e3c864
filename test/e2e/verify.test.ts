/**
 * Two real guests compared: soon after a heal they differ in little, one flipped byte is found at its page, nothing is
 * changed, and whoever dies in the middle, the client goes on over its one connection.
 */
import { closeSync, openSync, readdirSync, readSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';

import { callDaemon, fetchStatus } from '../../src/api/client.js';
import { nodePaths, shmDirectory } from '../../src/api/cluster.js';
import type { ReplicaStatus, SyncRecord, VerifyResult } from '../../src/api/status.js';
import { asFalconError } from '../../src/lib/errors.js';
import { monotonicMs } from '../../src/lib/time.js';
import { LiveCluster, falcon } from '../support/live-cluster.js';
import { whyNoNamespaces } from '../support/network.js';
import { expectServed } from '../support/serving.js';

type Test = Parameters<Parameters<typeof t.test>[0]>[0];

const cannot = whyNoNamespaces();
const answerMs = 40_000;
const fillMs = 60_000;
const pageBytes = 4096;
const full = (one: ReplicaStatus): boolean => one.guest.state === 'ready';
t.setTimeout(300_000);

/** The memory of a node's guest, as falcond maps it. */
class Ram {
  private readonly file: number;

  constructor(cluster: LiveCluster, node: string) {
    const directory = shmDirectory(cluster.place.config.cluster);
    const name = readdirSync(directory).find((one) => one.startsWith(`${node}-`) && one.endsWith('.ram'));
    if (name === undefined) throw new Error(`no memory of ${node} in ${directory}`);
    this.file = openSync(join(directory, name), 'r+');
  }

  /** The middle of the lowest `run` pages of zeros above the first MiB: the guest's kernel has no use for it yet. */
  freePage(run: number): number {
    const page = Buffer.alloc(pageBytes);
    const zero = Buffer.alloc(pageBytes);
    let zeros = 0;
    for (
      let number = 256;
      readSync(this.file, page, 0, pageBytes, number * pageBytes) === pageBytes;
      number++
    ) {
      zeros = page.equals(zero) ? zeros + 1 : 0;
      if (zeros === run) return number - Math.floor(run / 2);
    }
    throw new Error(`no ${run} free pages in a row`);
  }

  flip(page: number): void {
    const byte = new Uint8Array(1);
    const at = page * pageBytes + 1234;
    readSync(this.file, byte, 0, 1, at);
    writeSync(this.file, Uint8Array.of(byte[0]! ^ 0x10), 0, 1, at);
  }

  close(): void {
    closeSync(this.file);
  }
}

/** Asks the primary; what it answers, or the code of its error. */
function verify(cluster: LiveCluster, primary: ReplicaStatus, node: string): Promise<VerifyResult | string> {
  const { adminSocket } = nodePaths(cluster.directory, primary.node);
  return callDaemon(adminSocket, 'verify', { node }, { timeoutMs: fillMs }).then(
    (result) => result as VerifyResult,
    (error: unknown) => asFalconError(error).code,
  );
}

/** Acts as soon as a session is seen: most of it, the digests of all of the memory, is still to come then. */
async function whileComparing(
  cluster: LiveCluster,
  primary: ReplicaStatus,
  act: () => void,
): Promise<string | null> {
  const { adminSocket } = nodePaths(cluster.directory, primary.node);
  const until = monotonicMs() + 10_000;
  while (monotonicMs() < until) {
    const { verifying } = (await fetchStatus(adminSocket)).sync;
    if (verifying === null) continue;
    act();
    return verifying.phase;
  }
  return null;
}

t.test('guests are compared', cannot === null ? {} : { skip: cannot }, async (t) => {
  const cluster = await LiveCluster.init(t, '--nodes', '3', '--name', 'verify');
  t.match(await cluster.up(), { status: 0 });
  const client = await cluster.client(31);
  t.teardown(() => client.stop());
  await client.say('write', answerMs);
  let primary = await cluster.primary();
  const goesOn = async (t: Test): Promise<void> => {
    await expectServed(t, client);
  };
  const others = async (): Promise<string[]> =>
    (await cluster.replicas()).map(({ node }) => node).filter((node) => node !== primary.node);
  for (const node of await others()) t.ok(await cluster.becomes(node, full, fillMs));
  const asked = async (t: Test, node: string): Promise<VerifyResult> => {
    const ran = await falcon('verify', cluster.directory, '--node', node, '--json');
    t.match(ran, { status: 0 }, 'falcon verify');
    const [result] = JSON.parse(ran.out) as VerifyResult[];
    t.match(result, { source: primary.node, target: node, ok: true, why: '', reason: 'verify' });
    return result!;
  };

  await t.test('soon after a heal little differs', async (t) => {
    const node = (await others())[0]!;
    t.match(await falcon('sync', cluster.directory, '--node', node), { status: 0 });
    const { findings, op, pauseMs, durationMs } = await asked(t, node);
    t.ok(op > 0);
    t.ok(findings!.pages > 1000, `${findings!.pages} pages`);
    t.equal(findings!.equal + findings!.differing, findings!.pages);
    t.ok(findings!.differing < findings!.pages / 10, `${findings!.differing} of them differ`);
    t.equal(findings!.devices.trouble, null);
    t.ok(findings!.devices.parts > 20, `${findings!.devices.parts} devices`);
    t.ok(findings!.devices.differing.length < findings!.devices.parts);
    t.comment(findings!.devices.differing.map(({ name, bytes }) => `${name} ${bytes}`).join(', '));
    t.ok(findings!.flows >= 1, `${findings!.flows} connections, ${findings!.flowsDiffering} differ`);
    t.equal(findings!.service, null);
    t.comment(`pause ${pauseMs} and ${findings!.targetPauseMs} ms of ${durationMs} ms`);
    await goesOn(t);
  });

  await t.test('a flipped byte is found at its page, and left there', async (t) => {
    const node = (await others())[0]!;
    const ram = new Ram(cluster, node);
    const page = ram.freePage(64);
    const without = await asked(t, node);
    t.notOk(without.findings!.firstPages.includes(page));
    ram.flip(page);
    for (const again of ['found', 'found again']) {
      const { findings } = await asked(t, node);
      t.ok(findings!.firstPages.includes(page), `page ${page} is ${again}`);
    }
    ram.flip(page);
    const { findings } = await asked(t, node);
    t.notOk(findings!.firstPages.includes(page), 'and not when it is as it was');
    ram.close();
    await goesOn(t);
  });

  await t.test('all backups in turn, and the common points stay', async (t) => {
    const nodes = await others();
    const ran = await falcon('verify', cluster.directory);
    t.match(ran, { status: 0 });
    for (const node of nodes) {
      t.match(ran.out, new RegExp(`${primary.node} and ${node} behind op \\d+ of view ${primary.view}:`));
      t.match(await cluster.replica(node), { guest: { state: 'ready' } });
    }
    const { out } = await falcon('status', cluster.directory);
    t.match(out, new RegExp(`${primary.node} and ${nodes[0]} behind op \\d+ .* pages .*, pause`));
    const healed = await falcon('sync', cluster.directory, '--node', nodes[0]!, '--json');
    t.match(JSON.parse(healed.out) as SyncRecord, { ok: true, based: true });
    await goesOn(t);
  });

  await t.test('refusals', async (t) => {
    const [node = ''] = await others();
    t.match(await falcon('verify', cluster.directory, '--node', primary.node), { err: /VERIFY_REFUSED/ });
    t.match(await falcon('verify', cluster.directory, '--node', 'h9'), { status: 2, err: /USAGE/ });
    const two = await Promise.all([verify(cluster, primary, node), verify(cluster, primary, node)]);
    t.match(two, [{ ok: true }, 'VERIFY_REFUSED'], 'one at a time');
    t.equal(await verify(cluster, await cluster.replica(node), primary.node), 'NOT_PRIMARY');
  });

  await t.test('the target dies in the middle', async (t) => {
    const target = await cluster.replica((await others())[0]!);
    const asked = verify(cluster, primary, target.node);
    const phase = await whileComparing(cluster, primary, () => cluster.signalHost(target, 'SIGKILL'));
    t.ok(phase, `while ${phase}`);
    t.equal(await asked, 'VERIFY_ABANDONED');
    await goesOn(t);
    t.equal((await cluster.primary()).node, primary.node, 'the primary is who it was');
    t.equal(await verify(cluster, primary, target.node), 'VERIFY_REFUSED', 'there is nothing to compare');
    t.match(await cluster.up('--node', target.node), { status: 0, out: /is back: its guest is a full copy/ });
  });

  await t.test('the primary dies in the middle', async (t) => {
    const [node = ''] = await others();
    const dead = primary;
    const asked = verify(cluster, primary, node);
    const phase = await whileComparing(cluster, primary, () => cluster.signalHost(dead, 'SIGKILL'));
    t.ok(phase, `while ${phase}`);
    t.match(await asked, /^(DAEMON_UNREACHABLE|DAEMON_TIMEOUT)$/);
    primary = await cluster.primary(dead.view);
    await goesOn(t);
    t.match(await cluster.up('--node', dead.node), { status: 0, out: /is back: its guest is a full copy/ });
    for (const one of await others()) t.match(await verify(cluster, primary, one), { ok: true });
    await goesOn(t);
  });

  await t.test('everything is there', async (t) => {
    await client.say('rest', answerMs);
    t.match(await client.say('verify', answerMs), { wrong: 0, lost: 0, alive: true, trouble: [] });
    t.match(await cluster.down(), { status: 0 });
    t.same(cluster.leftovers(), []);
  });
});
