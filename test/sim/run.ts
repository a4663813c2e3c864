/** One seeded run: a cluster under load and faults, then a time of peace in which it must serve again. */
import { assert } from '../../src/lib/assert.js';
import { Random } from '../../src/lib/random.js';
import { Checkers } from './checkers.js';
import { stepNs, vmMac, World } from './world.js';
import type { SimNode } from './world.js';

export interface RunResult {
  readonly seed: number;
  readonly members: number;
  readonly commits: number;
  readonly outputs: number;
  readonly views: number;
  readonly kills: number;
  /** State transfers that made a member whole, those of them with a common point, and those that were given up. */
  readonly syncs: number;
  readonly syncsBased: number;
  readonly syncsAbandoned: number;
  /** Copies that were compared with their source, byte by byte. */
  readonly copies: number;
  /** Comparisons of two guests, and bytes that were flipped in one of them for that long. */
  readonly compared: number;
  readonly flips: number;
  /** Logs that began anew, and members that were replaced. */
  readonly rebases: number;
  readonly replaced: number;
}

export class SeedFailure extends Error {
  readonly seed: number;
  readonly trace: readonly string[];
  constructor(seed: number, cause: unknown, trace: readonly string[]) {
    super(`seed ${seed}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
    this.seed = seed;
    this.trace = trace;
  }
}

const stepsPerMs = 1e6 / stepNs;
const clientMac = [0x02, 0, 0, 0, 0, 1];

/** A request frame of the built-in service. */
export function requestFrame(id: number, bytes: number): Uint8Array {
  const frame = new Uint8Array(Math.max(18, bytes));
  frame.set(vmMac, 0);
  frame.set(clientMac, 6);
  frame.set([0x88, 0xb5], 12);
  new DataView(frame.buffer).setUint32(14, id, true);
  return frame;
}

interface Nemesis {
  /** Undo whatever is going on. */
  readonly undo: (() => void)[];
}

export async function runSeed(seed: number): Promise<RunResult> {
  const random = new Random(seed);
  const members = random.chance(0.6) ? 3 : 5;
  const world = new World({
    members,
    seed: random.uint32(),
    durability: random.chance(0.8) ? 'disk' : 'memory',
    drift: 0.01,
    witness: random.chance(0.15),
    shortLogs: random.chance(0.5),
  });
  const checkers = new Checkers(world);
  // Of its own, so that the faults of a seed are the same with and without it.
  const curious = new Random(seed + 1_000_003);
  const nemesis: Nemesis = { undo: [] };
  let request = 0;
  let kills = 0;
  let replaced = 0;
  try {
    const faultSteps = 1200 * stepsPerMs;
    for (let i = 0; i < faultSteps; i++) {
      await world.step();
      checkers.check();
      if (random.chance(0.3)) inject(world, random, ++request);
      if (random.chance(0.012)) kills += disturb(world, checkers, random, nemesis);
      if (curious.chance(0.01)) compare(world, checkers, curious);
      if (random.chance(0.004)) replaced += replace(world, random);
      if (i % 200 === 0) checkers.checkLogs();
    }
    heal(world, checkers, nemesis);
    const views = await awaitService(world, checkers, random, request);
    await awaitCopies(world, checkers);
    checkers.checkLogs();
    const { commits, outputs, copies, compared } = checkers;
    const { flips, rebases } = world;
    const told = { flips, rebases, replaced, views, kills, ...world.syncs() };
    return { seed, members, commits, outputs, copies, compared, ...told };
  } catch (error) {
    throw new SeedFailure(seed, error, world.trace);
  } finally {
    world.close();
  }
}

/** The client's frame comes by every tap, or by most. */
function inject(world: World, random: Random, id: number): void {
  // Short logs are full of long frames, so that they run over.
  const long = random.chance(world.options.shortLogs ? 0.8 : 0.05);
  const frame = requestFrame(id, 18 + random.below(long ? 1400 : 100));
  for (const node of world.nodes) {
    if (node.alive && random.chance(0.97)) world.sim.inject(node.id, frame);
  }
}

function disturb(world: World, checkers: Checkers, random: Random, nemesis: Nemesis): number {
  const alive = world.nodes.filter((node) => node.alive);
  const dead = world.nodes.filter((node) => !node.alive);
  switch (random.below(14)) {
    case 0:
    case 1: {
      if (alive.length <= 1) return 0;
      world.kill(random.pick(alive), random.chance(0.5));
      return 1;
    }
    case 2:
    case 3: {
      if (dead.length === 0) return 0;
      restart(world, checkers, random.pick(dead));
      return 0;
    }
    case 4: {
      const node = random.pick(alive);
      if (node.paused) return 0;
      node.paused = true;
      world.log(`pause ${node.id}`);
      nemesis.undo.push(() => {
        node.paused = false;
      });
      return 0;
    }
    case 5: {
      for (const undo of nemesis.undo.splice(0)) undo();
      return 0;
    }
    case 6: {
      const from = random.pick(world.nodes);
      for (const to of world.nodes) if (to !== from) partition(world, random, nemesis, from, to);
      return 0;
    }
    case 7: {
      const [from, to] = [random.pick(world.nodes), random.pick(world.nodes)];
      if (from !== to && from.alive && to.alive) world.break(from.id, to.id, random.chance(0.7));
      return 0;
    }
    case 8: {
      const primary = alive.find((node) => node.engine?.role === 'primary' && !node.paused);
      if (primary === undefined) return 0;
      const to = random.chance(0.5) ? null : random.pick(world.nodes).id;
      world.log(`transfer from ${primary.id} to ${to ?? 'any'}`);
      void primary.engine?.transfer(to).then(({ ok, reason }) => world.log(`transfer: ${ok} ${reason}`));
      return 0;
    }
    case 9:
    case 10:
    case 11: {
      const primary = alive.find((node) => node.engine?.role === 'primary' && !node.paused);
      if (primary === undefined) return 0;
      // One that is a copy already has a common point with its source.
      const copies = alive.filter((node) => (node.engine?.guest.own.syncOp ?? 0) !== 0);
      const to = random.pick(copies.length > 0 && random.chance(0.6) ? copies : alive);
      if (to === primary || !world.runsGuest(to.id)) return 0;
      world.log(`sync from ${primary.id} to ${to.id}`);
      void primary.engine?.sync(to.id).then((record) => world.log(`sync: ${record?.ok} ${record?.why}`));
      return 0;
    }
    case 12: {
      const node = random.pick(alive);
      const clear = world.blockInbox(node);
      if (clear !== null) nemesis.undo.push(clear);
      return 0;
    }
    default: {
      world.deliveryChance = 0.3 + random.float() * 0.69;
      world.tearChance = random.float() * 0.1;
      for (const node of world.nodes) node.diskSpeed = 0.1 + random.float() * 0.9;
      return 0;
    }
  }
}

/** The primary compares its guest with another's. */
function compare(world: World, checkers: Checkers, random: Random): void {
  const alive = world.nodes.filter((node) => node.alive && !node.paused);
  const primary = alive.find((node) => node.engine?.role === 'primary');
  const to = random.pick(world.nodes);
  if (primary === undefined || to === primary || !world.runsGuest(to.id)) return;
  void primary.engine?.stateTransfer.verification.request(to.id).then((outcome) => {
    world.log(`verify from ${primary.id} to ${to.id}: ${JSON.stringify(outcome)}`);
    if (outcome !== null && 'findings' in outcome) world.judge(() => checkers.comparison(primary, outcome));
  });
}

/** As old as anything that a dead member has said, or that is waited for in its name, can be. */
const forgottenMs = 300;

/**
 * What `falcon member replace` does: while a primary serves, an empty host takes the place of a dead member. It is not done
 * while others stand still, which may hold a vote of the dead one that counts when they go on, nor while others lack what
 * they have acknowledged: that would be more losses at once than are promised to be survived.
 */
function replace(world: World, random: Random): number {
  const forgotten = world.nowNs - forgottenMs * 1e6;
  const dead = world.nodes.filter((node) => !node.alive && node.diedAtNs < forgotten);
  const whole = world.nodes.every((node) => dead.includes(node) || !(node.hard.recovering || node.paused));
  const node = random.pick(dead.length === 0 ? world.nodes : dead);
  if (!whole || !dead.includes(node) || dead.some((other) => other !== node && other.hard.recovering))
    return 0;
  const primary = world.nodes.find((other) => other.alive && other.engine?.core.status.phase === 'leading');
  if (primary === undefined) return 0;
  world.replace(node, primary.hard.view);
  return 1;
}

/** Both ways, or one way only. */
function partition(world: World, random: Random, nemesis: Nemesis, from: SimNode, to: SimNode): void {
  const directions = random.chance(0.5)
    ? [
        [from, to],
        [to, from],
      ]
    : [random.chance(0.5) ? [from, to] : [to, from]];
  for (const [a, b] of directions) {
    if (world.isCut(a!.id, b!.id)) continue;
    world.cut(a!.id, b!.id, true);
    nemesis.undo.push(() => world.cut(a!.id, b!.id, false));
  }
}

function restart(world: World, checkers: Checkers, node: SimNode): void {
  checkers.restarted(node);
  world.start(node);
}

function heal(world: World, checkers: Checkers, nemesis: Nemesis): void {
  world.log('peace');
  for (const undo of nemesis.undo.splice(0)) undo();
  for (const node of world.nodes) {
    node.paused = false;
    node.diskSpeed = 0.9;
    if (!node.alive) restart(world, checkers, node);
  }
  world.deliveryChance = 0.98;
  world.tearChance = 0.01;
}

/** Every member that can run the guest is made a whole copy, or the cluster was lost. */
async function awaitCopies(world: World, checkers: Checkers): Promise<void> {
  const boundMs = 8000;
  const lost = world.nodes.filter((node) => node.hard.recovering).length > (world.nodes.length - 1) / 2;
  const without = (): SimNode[] =>
    world.nodes.filter((node) => world.runsGuest(node.id) && node.engine?.guest.own.ready !== true);
  for (let i = 0; i < boundMs * stepsPerMs && without().length > 0; i++) {
    await world.step();
    checkers.check();
  }
  const missing = without().map((node) => node.id);
  assert(
    lost || missing.length === 0,
    `no copy of the guest on ${missing.join(', ')} after ${boundMs} ms of peace`,
  );
}

/** A request that is repeated as a client would must be answered in bounded time. */
async function awaitService(
  world: World,
  checkers: Checkers,
  random: Random,
  request: number,
): Promise<number> {
  // Memory durability cannot come back by itself from the loss of a majority: that needs an operator.
  const lost = world.nodes.filter((node) => node.hard.recovering).length > (world.nodes.length - 1) / 2;
  const boundMs = 6000;
  const probe = request + 1000;
  for (let i = 0; i < boundMs * stepsPerMs; i++) {
    await world.step();
    checkers.check();
    if (i % (40 * stepsPerMs) === 0) inject(world, random, probe);
    if (checkers.answered.has(probe)) {
      const primary = world.nodes.find(
        (node) => node.engine?.role === 'primary' && world.sim.mayRelease(node.id, world.localNs(node)),
      );
      if (primary !== undefined) checkers.nothingForgotten(primary);
      return Math.max(...world.nodes.map((node) => node.hard.view));
    }
  }
  for (const node of world.nodes)
    world.log(
      `${node.id} ${JSON.stringify(world.progress(node))} ${JSON.stringify(node.engine?.guest.own)} ${node.engine?.guest.state} ${node.engine?.guest.admitted} ${JSON.stringify(world.sim.counters(node.id))}`,
    );
  assert(lost, `no answer within ${boundMs} ms of peace`);
  return Math.max(...world.nodes.map((node) => node.hard.view));
}
