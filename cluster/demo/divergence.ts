/**
 * The other demo: a bit flips in the memory of one backup's guest, which then answers otherwise. That is found by
 * comparing outputs, healed by a state transfer, and no client sees any of it. In the end the primary is killed, the
 * healed guest serves, and everything is read back from it.
 */
import { randomInt } from 'node:crypto';

import { callDaemon } from '../../src/api/client.js';
import { nodePaths } from '../../src/api/cluster.js';
import type { ClusterPlace } from '../../src/api/lifecycle.js';
import type { DivergenceReport, DivergenceStatus, ReplicaStatus, SyncRecord } from '../../src/api/status.js';
import { answered, fetchAll } from '../../src/cli/replicas.js';
import { asFalconError, FalconError } from '../../src/lib/errors.js';
import { Random } from '../../src/lib/random.js';
import { divergenceLines, judgeDivergence } from './divergence-report.js';
import type { DivergenceDemoReport } from './divergence-report.js';
import { sharedClockMs, valueOf } from './key-client.js';
import { findValue, flipBit, guestMemory } from './memory-fault.js';
import type { MemoryFault } from './memory-fault.js';
import { divergenceDemoHelp, divergenceDemoOptions } from './options.js';
import type { DivergenceDemoOptions } from './options.js';
import type { RemoteClient } from './remote-client.js';
import { editConfig, limits, runProgram, Stage } from './stage.js';

const second = 1000;
const findMs = 15 * second;
const healMs = 60 * second;
/** Often enough to tell when, seldom enough to leave the processor to the guests. */
const lookEveryMs = 25;
/** An operator would try again, too. */
const transferAttempts = 5;
const checkMs = 100;
/** A guest that lags answers later. */
const compareMs = 1500;

class DivergenceDemo {
  private readonly options: DivergenceDemoOptions;
  private readonly random: Random;
  private readonly stage: Stage;
  private client: RemoteClient | null = null;

  constructor(options: DivergenceDemoOptions) {
    this.options = options;
    this.random = new Random(options.seed);
    const limitMs =
      limits.startMs +
      findMs +
      healMs +
      4 * options.writeS * second +
      2 * limits.takeoverMs +
      limits.verifyMs;
    this.stage = new Stage({ name: 'demo', limitMs, logs: options.logs });
  }

  /** Errors: what the cluster reports, INTERRUPTED, START_FAILED when something does not come in time. */
  async run(): Promise<DivergenceDemoReport> {
    const { options, stage, random } = this;
    const { seed, writeS, durability } = options;
    stage.say(`seed ${seed}: 3 hosts, a bit flips in the memory of a backup's guest`);
    const setup = { '--nodes': '3', '--name': 'demo', '--durability': durability };
    const place = await stage.start(Object.entries(setup).flat(), configure);
    const { output, cluster } = place.config;
    const client = (this.client = await stage.connect(place, seed, options.depth));
    await stage.ask(client, 'write', limits.clientMs);
    await stage.pause(writeS * second, 'writing');
    const primary = await stage.primary(place, 0);
    const before = await this.divergence(place, primary.node);
    if (before.divergences.length > 0)
      throw new FalconError('START_FAILED', 'guests had parted before anything was done to them');

    const backups = place.config.nodes.filter(({ name }) => name !== primary.node);
    const faulty = random.pick(backups).name;
    const key = this.pickKey((await stage.ask(client, 'tally', limits.clientMs)).acked);
    const value = valueOf(seed, key);
    const fault = flipBit(guestMemory(cluster, faulty), value, random.below(value.length), random.below(3));
    const injectedMs = sharedClockMs();
    stage.say(`${faulty}, a backup: key:${key} is ${fault.to} in its guest's memory, no more ${fault.from}`);

    const askedMs = sharedClockMs();
    await stage.ask(client, `read:${key}`, limits.clientMs);
    const found = await this.whenFound(place, primary.node, faulty);
    const foundMs = sharedClockMs();
    stage.say(`found ${(foundMs - askedMs).toFixed(0)} ms after the key was read`);
    const heal = await this.whenHealed(place, primary.node, faulty);
    const healedMs = sharedClockMs();
    stage.say(`${faulty} healed: ${heal.pages} pages looked at, ${heal.sent} sent, pause ${heal.pauseMs} ms`);

    const atHeal = await this.divergence(place, primary.node);
    await stage.pause(writeS * second, 'writing on');
    await stage.ask(client, `read:${key}`, limits.clientMs);
    await stage.pause(compareMs, 'comparing');
    const after = await this.divergence(place, primary.node);
    const mended = this.isMended(cluster, faulty, fault);

    const killedMs = sharedClockMs();
    stage.kill(await stage.primary(place, 0));
    await stage.pause(limits.statusEveryMs * 5, 'taking over');
    const served = await this.serveFrom(place, faulty, primary.view);
    await stage.pause(writeS * second, 'writing on');
    await stage.ask(client, 'rest', limits.clientMs);
    stage.say(`reading everything back from ${served.node}`);
    const tally = await stage.ask(client, 'verify', limits.verifyMs);
    return judgeDivergence({
      seed,
      fault: { node: faulty, key, memory: fault, atMs: injectedMs },
      askedMs,
      foundMs,
      found,
      checkMs: output.checkMs,
      checkBytes: output.queueBytes * output.compareEvery,
      heal,
      healedMs,
      mended,
      agreedAtHeal: agreedOf(atHeal, faulty),
      agreedAfter: agreedOf(after, faulty),
      divergencesAtHeal: atHeal.divergences.length,
      divergencesAfter: after.divergences.length,
      killed: primary.node,
      killedMs,
      served: served.node,
      tally,
    });
  }

  async end(failed: boolean): Promise<void> {
    this.client?.stop();
    await this.stage.end(failed);
  }

  /** One of the older keys, so that no buffer still holds it. Every 16th is no key: the client reads instead. */
  private pickKey(acked: number): number {
    if (acked < 64) throw new FalconError('START_FAILED', `only ${acked} writes were acknowledged`);
    const key = 1 + this.random.below(acked >> 1);
    return key % 16 === 0 ? key + 1 : key;
  }

  private async divergence(place: ClusterPlace, node: string): Promise<DivergenceReport> {
    const { adminSocket } = nodePaths(place.directory, node);
    return (await callDaemon(adminSocket, 'divergence')) as DivergenceReport;
  }

  private async whenFound(place: ClusterPlace, primary: string, member: string): Promise<DivergenceStatus> {
    const look = async (): Promise<DivergenceStatus | undefined> =>
      (await this.divergence(place, primary)).divergences.find((one) => one.member === member);
    return this.wait(look, findMs, 'nobody has found the fault');
  }

  private async whenHealed(place: ClusterPlace, primary: string, member: string): Promise<SyncRecord> {
    const look = async (): Promise<SyncRecord | undefined> => {
      const source = answered(await fetchAll(place)).find(({ node }) => node === primary);
      return source?.sync.last.find(
        ({ target, reason, ok }) => ok && target === member && reason === 'diverged',
      );
    };
    return this.wait(look, healMs, `${member} was not healed`);
  }

  private async wait<T>(look: () => Promise<T | undefined>, timeoutMs: number, failed: string): Promise<T> {
    const end = sharedClockMs() + timeoutMs;
    while (sharedClockMs() < end) {
      const seen = await look();
      if (seen !== undefined) return seen;
      await this.stage.pause(lookEveryMs, 'looking');
    }
    throw new FalconError('START_FAILED', `${failed} after ${timeoutMs / second} s`);
  }

  /** The memory of the guest holds the right value again, and nowhere the wrong one. */
  private isMended(cluster: string, node: string, { from, to }: MemoryFault): boolean {
    const memory = guestMemory(cluster, node);
    return findValue(memory, from).length > 0 && findValue(memory, to).length === 0;
  }

  /** Whoever took over, the healed guest is the one that is to be heard. */
  private async serveFrom(place: ClusterPlace, node: string, view: number): Promise<ReplicaStatus> {
    const { stage } = this;
    for (let attempt = 1; ; attempt++) {
      const next = await stage.primary(place, view);
      stage.say(`${next.node} is primary of view ${next.view}`);
      if (next.node === node) return next;
      try {
        await stage.checked(['transfer-leader', place.directory, '--to', node]);
      } catch (error) {
        // One that cannot finish within an election timeout is abandoned; on a busy machine that happens.
        if (attempt === transferAttempts || asFalconError(error).code !== 'START_FAILED') throw error;
        await stage.pause(1000, 'the transfer was abandoned: once more');
      }
    }
  }
}

/**
 * Replicas keep the last 512 bytes of what they said: checked seldom, the bytes that differ would be out of sight.
 * Guests that begin as copies of one have a common point, so what the heal finds it does not owe to the lack of one.
 */
function configure(directory: string): void {
  editConfig(directory, { output: { checkMs }, firstBoot: 'clone' });
}

function agreedOf(report: DivergenceReport, member: string): number {
  return report.members.find(({ node }) => node === member)?.agreed ?? 0;
}

await runProgram({
  help: divergenceDemoHelp,
  options: () => divergenceDemoOptions(process.env, randomInt(2 ** 32)),
  show: (options) => new DivergenceDemo(options),
  lines: divergenceLines,
});
