/**
 * Seeded random clusters of real cores round model data planes, judged from outside: one open gate, one leader a view,
 * one vote a view, a committed prefix that never changes and is never lost, progress once healed.
 *
 * SEED=n plays one seed again, SEEDS=n more of them. Planted faults prove that each checker catches what it is there for.
 */
import t, { type Test } from 'tap';
import { Random } from '../../src/lib/random.js';
import type { Faults } from '../scenario/model.js';
import { World, times } from '../scenario/world.js';

const seeds = Number(process.env['SEEDS'] ?? 300);

interface Outcome {
  readonly error: Error | null;
  readonly committed: number;
  readonly views: number;
  readonly rebases: number;
}

class Storm {
  readonly world: World;
  private readonly random: Random;
  private readonly members: number;
  private readonly releases: number;
  private proposals = 0;
  private downUntil = new Map<number, number>();

  constructor(seed: number, faults: Faults) {
    this.random = new Random(seed);
    this.members = this.random.chance(0.3) ? 5 : 3;
    this.world = new World({
      members: this.members,
      witnesses: this.random.chance(0.2) ? [this.random.below(this.members)] : [],
      seed: seed + 1,
      faults,
      lazyDisk: true,
      drift: 0.01,
      delayMs: this.random.pick([1, 3, 8]),
      dropMail: this.random.pick([0, 0.05, 0.3]),
      repeatMail: this.random.pick([0, 0.1]),
    });
    this.releases = this.random.pick([0, 0.01, 0.1]);
    this.world.begin();
    for (const replica of this.world.replicas) {
      const whole = this.random.chance(0.7) && !replica.options.witnesses.includes(replica.id);
      this.guest(replica.id, whole);
    }
  }

  private guest(node: number, whole: boolean): void {
    for (const other of this.world.replicas) {
      if (other.id === node) other.post({ type: 'guest', now: 0, whole });
      else other.post({ type: 'peer-guest', now: 0, node, whole });
    }
  }

  /** Milliseconds of trouble, then healing. */
  run(ms: number): void {
    for (let i = 0; i < ms; i++) {
      this.trouble();
      this.world.advance();
    }
    this.heal();
  }

  private trouble(): void {
    const { world, random } = this;
    if (random.chance(0.3)) this.propose();
    if (random.chance(this.releases)) {
      const replica = random.pick(world.replicas);
      if (replica.alive) replica.release(random.below(replica.lastOp + 1));
    }
    for (const [node, until] of this.downUntil) {
      if (world.now < until) continue;
      this.downUntil.delete(node);
      world.restart(node);
    }
    this.reconnect(0.01);
    if (!random.chance(0.012)) return;
    const node = random.below(this.members);
    const other = (node + 1 + random.below(this.members - 1)) % this.members;
    switch (random.below(19)) {
      default:
        return this.oneFault(random.below(9), node, other);
      // The power fails everywhere at once.
      case 0:
        for (let i = 0; i < this.members; i++) this.crash(i, false);
    }
  }

  private oneFault(kind: number, node: number, other: number): void {
    const { world, random } = this;
    switch (kind) {
      case 0:
      case 1:
        return this.crash(random.chance(0.6) ? (world.primary()?.id ?? node) : node);
      case 2:
        return world.cut(node, other, true);
      case 3:
        return this.isolate(node, random.below(3));
      case 4:
        return this.uncut();
      case 5:
        return world.disconnect(node, other);
      case 6: {
        if (world.replicas[node]!.alive) world.replicas[node]!.pausedUntil = world.now + random.below(400);
        return;
      }
      case 7: {
        if (world.replicas[node]!.alive) world.replicas[node]!.jsStalledUntil = world.now + random.below(200);
        return;
      }
      case 8: {
        const primary = world.primary();
        primary?.post({ type: 'transfer', now: 0, to: random.chance(0.5) ? null : node });
        if (random.chance(0.5)) this.guest(node, random.chance(0.7));
        return;
      }
    }
  }

  private propose(): void {
    const primary = this.random.chance(0.9)
      ? this.world.primary()
      : this.world.replicas[this.random.below(this.members)]!;
    if (primary?.alive === true) primary.propose(`p${this.proposals++}`);
  }

  private crash(node: number, mayDamage = true): void {
    const { world, random } = this;
    const replica = world.replicas[node]!;
    if (!replica.alive || replica.pausedUntil > world.now) return;
    // One damaged log at a time: two can lose what both acknowledged, and nothing can help that.
    const damage = mayDamage && random.chance(0.15) && world.replicas.every((r) => !r.hard.recovering);
    world.crash(node, damage ? random.below(replica.durable + 1) : undefined);
    this.downUntil.set(node, world.now + 1 + random.below(random.chance(0.5) ? 30 : 500));
  }

  /** Cuts a node off: both ways, what it says, or what it hears. */
  private isolate(node: number, mode: number): void {
    for (let other = 0; other < this.members; other++) {
      if (other === node) continue;
      if (mode !== 1) this.world.cut(node, other, true);
      if (mode !== 2) this.world.cut(other, node, true);
    }
  }

  private uncut(): void {
    for (let a = 0; a < this.members; a++)
      for (let b = 0; b < this.members; b++) if (a !== b) this.world.cut(a, b, false);
  }

  private reconnect(chance: number): void {
    for (let a = 0; a < this.members; a++) {
      for (let b = a + 1; b < this.members; b++) {
        const up = this.world.isUp(a, b);
        const cut = this.world.isCut(a, b) || this.world.isCut(b, a);
        if (up && cut && this.random.chance(0.004)) this.world.disconnect(a, b);
        if (!up && !cut && this.random.chance(chance)) this.world.connect(a, b);
      }
    }
  }

  private heal(): void {
    const { world } = this;
    world.quiesced = true;
    this.uncut();
    for (const replica of world.replicas) {
      replica.pausedUntil = 0;
      replica.jsStalledUntil = 0;
      if (!replica.alive) world.restart(replica.id);
    }
    for (let i = 0; i < 6000; i++) {
      this.reconnect(0.05);
      world.advance();
      if (i % 100 === 99 && this.settled()) return;
    }
    throw new Error(
      `no progress after healing: ${world.replicas.map((r) => JSON.stringify(r.core.status)).join(' ')}`,
    );
  }

  /** A probe proposed in this view is committed at every replica. */
  private settled(): boolean {
    const primary = this.world.primary();
    if (primary === null || !primary.gateOpen()) return false;
    const probe = primary.log.findLast((entry) => entry.value === `probe ${primary.leading!.view}`);
    if (probe === undefined) {
      primary.propose(`probe ${primary.leading!.view}`);
      return false;
    }
    return this.world.replicas.every((replica) => replica.commitOp >= probe.op && !replica.hard.recovering);
  }
}

function play(seed: number, faults: Faults = {}, ms = 2500): Outcome {
  const storm = new Storm(seed, faults);
  try {
    storm.run(ms);
    return {
      error: null,
      committed: storm.world.committed.length,
      rebases: storm.world.rebases,
      views: Math.max(...storm.world.replicas.map((r) => r.hard.view)),
    };
  } catch (error) {
    return { error: error as Error, committed: storm.world.committed.length, rebases: 0, views: 0 };
  }
}

t.test('random clusters keep every promise', async (t) => {
  const only = process.env['SEED'];
  const list = only === undefined ? Array.from({ length: seeds }, (_, i) => i + 1) : [Number(only)];
  let committed = 0;
  let views = 0;
  let rebases = 0;
  for (const seed of list) {
    const outcome = play(seed);
    committed += outcome.committed;
    views += outcome.views;
    rebases += outcome.rebases;
    if (outcome.error !== null) {
      t.fail(`SEED=${seed}: ${outcome.error.message}`, { stack: outcome.error.stack ?? '' });
      break;
    }
  }
  t.comment(
    `${list.length} seeds, ${committed} entries committed, ${views} views, ${rebases} logs begun anew, lease ${times.leaseMs} ms`,
  );
  t.ok(only !== undefined || committed > 20 * seeds, `the storms let work through: ${committed} entries`);
  t.ok(only !== undefined || views > 4 * seeds, `the storms force elections: ${views} views`);
  t.ok(only !== undefined || rebases > seeds / 4, `and logs to begin anew: ${rebases}`);
});

/** Seeds until the fault shows; the error it shows as must be one of `expected`. */
function plant(t: Test, faults: Faults, expected: RegExp): void {
  const found: string[] = [];
  for (let seed = 1; seed <= 150; seed++) {
    const { error } = play(seed, faults);
    if (error === null) continue;
    found.push(`seed ${seed}: ${error.message}`);
    if (expected.test(error.message)) {
      t.pass(found.at(-1)!);
      return;
    }
  }
  t.fail(`not caught; seen: ${found.join('; ')}`);
}

t.test('a planted fault is caught: votes forget acknowledged heartbeats', async (t) =>
  plant(t, { forgetHeartbeats: true }, /two gates open/),
);
t.test('a planted fault is caught: a promise fences nothing', async (t) =>
  plant(t, { noFence: true }, /committed|lost|two gates/),
);
t.test('a planted fault is caught: entries of old views are counted', async (t) =>
  plant(t, { commitOldViews: true }, /older view/),
);
t.test('a planted fault is caught: entries acknowledged before they are forced', async (t) =>
  plant(t, { ackUnforced: true }, /lost|committed/),
);
t.test('a planted fault is caught: entries released before they are committed', async (t) =>
  plant(t, { releaseUncommitted: true }, /not committed|is lost|committed twice/),
);
