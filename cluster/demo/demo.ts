/**
 * The demo: a replicated Redis, a client that writes over one connection, and a primary that is killed.
 *
 * It uses what an operator uses (falcon init, up, status, down) and judges by what the client saw.
 */
import { randomInt } from 'node:crypto';

import type { ClusterPlace } from '../../src/api/lifecycle.js';
import { Random } from '../../src/lib/random.js';
import { demoHelp, demoOptions } from './options.js';
import type { DemoOptions } from './options.js';
import { makeReport, reportLines } from './report.js';
import type { DemoReport, Kill } from './report.js';
import { sharedClockMs } from './key-client.js';
import type { RemoteClient } from './remote-client.js';
import { limits, runProgram, Stage } from './stage.js';

const second = 1000;

class Demo {
  private readonly options: DemoOptions;
  private readonly random: Random;
  private readonly stage: Stage;
  private readonly kills: Kill[] = [];
  private client: RemoteClient | null = null;

  constructor(options: DemoOptions) {
    this.options = options;
    this.random = new Random(options.seed);
    const perKillMs =
      (options.idleS + 2 * options.writeS) * second +
      limits.takeoverMs +
      (options.revive ? limits.reviveMs : 0);
    const limitMs = limits.startMs + options.kills * perKillMs + limits.verifyMs;
    this.stage = new Stage({ name: 'demo', limitMs, logs: options.logs });
  }

  /** Errors: what the cluster reports, INTERRUPTED, START_FAILED when the time is up. */
  async run(): Promise<DemoReport> {
    const { options, stage } = this;
    const { seed, hosts, kills, lan, durability } = options;
    stage.say(`seed ${seed}: ${hosts} hosts, ${kills} kill${kills === 1 ? '' : 's'}, lan ${lan}`);
    const setup = { '--nodes': String(hosts), '--name': 'demo', '--lan': lan, '--durability': durability };
    const place = await stage.start(Object.entries(setup).flat());
    this.client = await stage.connect(place, seed, options.depth);
    for (let i = 0; i < kills; i++) {
      const killed = await this.killOne(place, this.client);
      if (options.revive && i < kills - 1) await stage.bringBack(killed);
    }
    await stage.pause(options.writeS * second, 'writing on');
    await stage.ask(this.client, 'rest', limits.clientMs);
    stage.say('reading everything back');
    return makeReport(options, this.kills, await stage.ask(this.client, 'verify', limits.verifyMs));
  }

  async end(failed: boolean): Promise<void> {
    this.client?.stop();
    await this.stage.end(failed);
  }

  /** Returns the name of the host that was killed. */
  private async killOne(place: ClusterPlace, client: RemoteClient): Promise<string> {
    const { writeS, idleS } = this.options;
    const { stage } = this;
    await stage.ask(client, 'write', limits.clientMs);
    // Seeded, so that a run can be had again; a fraction of a second on top, so that it hits anything.
    await stage.pause(writeS * second + this.random.below(second), 'writing');
    if (idleS > 0) {
      await stage.ask(client, 'rest', limits.clientMs);
      await stage.pause(idleS * second, 'resting');
    }
    const old = await stage.primary(place, 0);
    const atMs = sharedClockMs();
    stage.kill(old);
    if (idleS > 0) await stage.ask(client, 'write', limits.clientMs);
    // Looking at once would take the processor away from those who have to take over.
    await stage.pause(limits.statusEveryMs * 5, 'taking over');
    const next = await stage.primary(place, old.view);
    this.kills.push({ old: old.node, new: next.node, atMs, takeover: next.lastTakeover ?? null });
    const tally = await stage.ask(client, 'tally', limits.clientMs);
    stage.say(`${next.node} is primary of view ${next.view}; ${tally.acked} writes acknowledged`);
    return old.node;
  }
}

await runProgram({
  help: demoHelp,
  options: () => demoOptions(process.env, randomInt(2 ** 32)),
  show: (options) => new Demo(options),
  lines: reportLines,
});
