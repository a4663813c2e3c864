/**
 * Verification, decided: source and target against each other, with everything between them slow, lost or failing as a
 * seed says. Judged from outside: no guest stays stopped or stands longer than it may, nothing but reading is asked for,
 * and what goes through was looked at on both sides behind the same entry.
 */
import t from 'tap';

import { assert } from '../../src/lib/assert.js';
import { Random } from '../../src/lib/random.js';
import { transferOptions } from '../../src/transfer/defaults.js';
import { VerifySource } from '../../src/transfer/verify-source.js';
import { VerifyTarget } from '../../src/transfer/verify-target.js';
import type {
  VerifyEffect,
  VerifyFindings,
  VerifyRecord,
  VerifySourceEffect,
  VerifySourceEvent,
  VerifyTargetEffect,
  VerifyTargetEvent,
} from '../../src/transfer/verify-types.js';
import { decodeTransfer, encodeTransfer, sessionId } from '../../src/wire/transfer-messages.js';
import type { SessionId, TransferMessage } from '../../src/wire/transfer-messages.js';
import { decodeVerifyReport } from '../../src/wire/verify-report.js';

const none = new Uint8Array();
const findings: VerifyFindings = {
  pages: 100,
  differing: 2,
  firstPages: [3, 4],
  flows: 1,
  flowsDiffering: 0,
  framesWaiting: { source: 0, target: 1 },
  service: null,
  devices: { parts: 37, differing: [], trouble: null },
  targetPauseMs: 1,
};

type Side = 'source' | 'target';

interface Guest {
  still: boolean;
  since: number;
  longest: number;
  /** The op behind which each session has looked at it. */
  readonly taken: Map<SessionId, number>;
  readonly looked: Set<SessionId>;
  /** The session that the data plane has open. */
  open: SessionId;
  heldAt: number;
  /** The deed that is under way; the next one begins when it has ended. */
  busyUntil: number;
}

const makeGuest = (): Guest => ({
  still: false,
  since: 0,
  longest: 0,
  taken: new Map<SessionId, number>(),
  looked: new Set<SessionId>(),
  open: 0,
  heldAt: 0,
  busyUntil: 0,
});

/** Primary 0 and member 1, and everything between. */
class Pair {
  now = 0;
  view = 1;
  readonly random: Random;
  failing = 0.03;
  losing = 0.1;
  whole = true;
  readonly records: VerifyRecord[] = [];
  readonly refusals: string[] = [];
  readonly guests: Readonly<Record<Side, Guest>> = { source: makeGuest(), target: makeGuest() };
  private nextOp = 1;
  private readonly due: { readonly at: number; readonly run: () => void }[] = [];
  private readonly source: VerifySource;
  private readonly target: VerifyTarget;

  constructor(seed: number) {
    this.random = new Random(seed);
    const [machine, ramBytes] = [(): string => 'pc', (): number => 4096];
    this.source = new VerifySource(transferOptions(0), { key: () => new Uint8Array(32), machine, ramBytes });
    this.target = new VerifyTarget(transferOptions(1), { machine, ramBytes });
  }

  step(ms: number): void {
    this.now += ms;
    const ready = this.due.filter((one) => one.at <= this.now);
    this.due.splice(0, this.due.length, ...this.due.filter((one) => one.at > this.now));
    for (const one of ready) one.run();
    const peers = [{ node: 1, reachable: true, whole: this.whole, booting: false, syncOp: 0 }];
    this.toSource({ type: 'tick', now: this.now, view: this.view, able: true, peers });
    this.toTarget({ type: 'tick', now: this.now, view: this.view, primary: 0, whole: this.whole });
    for (const guest of Object.values(this.guests))
      if (guest.still) guest.longest = Math.max(guest.longest, this.now - guest.since);
  }

  ask(transferring = false): void {
    this.toSource({ type: 'request', now: this.now, peer: 1, transferring });
  }

  disconnect(): void {
    this.toSource({ type: 'peer-down', now: this.now, peer: 1 });
    this.toTarget({ type: 'peer-down', now: this.now, peer: 0 });
  }

  /** The primary begins a state transfer: it has given up whatever was before. */
  offerTransfer(): void {
    const { view } = this;
    const common = { session: sessionId(view, 1), view, machine: 'pc', ramBytes: 4096, baseOp: 0 };
    const message = { type: 'offer', ...common, key: new Uint8Array(32), inbox: none } as const;
    this.toTarget({ type: 'mail', now: this.now, from: 0, message });
  }

  get phase(): { source: string | null; target: string | null } {
    return { source: this.source.status?.phase ?? null, target: this.target.status?.phase ?? null };
  }

  get idle(): boolean {
    return this.source.status === null && this.target.status === null && this.due.length === 0;
  }

  private later(run: () => void): void {
    this.due.push({ at: this.now + this.random.below(60), run });
  }

  private tell(side: Side, session: SessionId, event: object): void {
    const body = { ...event, now: this.now, session };
    if (side === 'source') this.toSource(body as unknown as VerifySourceEvent);
    else this.toTarget(body as unknown as VerifyTargetEvent);
  }

  private answer(side: Side, session: SessionId, event: object, deed: () => void = () => undefined): void {
    this.later(() => {
      const fails = this.random.chance(this.failing);
      if (!fails) deed();
      this.tell(side, session, fails ? { type: 'failed', why: 'SYNC_MEMORY it was to be' } : event);
    });
  }

  /** What a guest is told is carried out in order. */
  private guestDo(side: Side, session: SessionId, type: string, deed: (guest: Guest) => void): void {
    const guest = this.guests[side];
    guest.busyUntil = Math.max(guest.busyUntil, this.now) + this.random.below(40);
    this.due.push({
      at: guest.busyUntil,
      run: () => {
        // Going on always comes about: what does not is the engine's to deal with.
        const fails = type !== 'resumed' && this.random.chance(this.failing);
        if (!fails) deed(guest);
        this.tell(side, session, fails ? { type: 'failed', why: 'QMP_TIMEOUT it was to be' } : { type });
      },
    });
  }

  private readonly toSource = (event: VerifySourceEvent): void => {
    const out: VerifySourceEffect[] = [];
    this.source.step(event, out);
    for (const effect of out) this.onSource(effect);
  };

  private readonly toTarget = (event: VerifyTargetEvent): void => {
    const out: VerifyTargetEffect[] = [];
    this.target.step(event, out);
    for (const effect of out) if (effect.type !== 'trace') this.on('target', effect);
  };

  private onSource(effect: VerifySourceEffect): void {
    switch (effect.type) {
      case 'refuse':
        this.refusals.push(effect.why);
        return;
      case 'record':
        this.records.push(effect.record);
        return;
      case 'propose': {
        const op = this.nextOp++;
        for (const side of ['source', 'target'] as const) {
          this.later(() => {
            if (this.guests[side].open !== effect.session) return;
            this.guests[side].heldAt = op;
            this.tell(side, effect.session, { type: 'held', op });
          });
        }
        return;
      }
      default:
        return this.on('source', effect);
    }
  }

  private on(side: Side, effect: VerifyEffect): void {
    const guest = this.guests[side];
    switch (effect.type) {
      case 'send': {
        const copy = decodeTransfer(encodeTransfer(effect.message));
        assert(copy !== null, 'a message comes through');
        return this.mail(side, copy);
      }
      case 'open':
        guest.open = effect.session;
        assert(side === 'source' || effect.grant.length === 3, 'the target is given the inbox');
        return this.answer(side, effect.session, {
          type: 'opened',
          inbox: side === 'source' ? Uint8Array.of(1, 2, 3) : none,
        });
      case 'collect':
        return this.guestDo(side, effect.session, 'collected', () => undefined);
      case 'look':
        return this.answer(side, effect.session, { type: 'taken' }, () => guest.looked.add(effect.session));
      case 'pause':
        return this.guestDo(side, effect.session, 'paused', (one) => {
          one.still = true;
          one.since = this.now;
        });
      case 'save':
        return this.guestDo(side, effect.session, 'saved', (one) => assert(one.still, 'it stands still'));
      case 'take':
        return this.answer(side, effect.session, { type: 'taken' }, () => {
          if (guest.open !== effect.session) return;
          assert(guest.still, 'what is looked at stands still');
          assert(guest.looked.has(effect.session), 'it was looked at before');
          guest.taken.set(effect.session, guest.heldAt);
        });
      case 'resume':
        return this.guestDo(side, effect.session, 'resumed', (one) => {
          one.still = false;
          if (one.open === effect.session && one.taken.has(effect.session) && side === 'target')
            this.send(effect.session);
        });
      case 'close':
        if (guest.open === effect.session) guest.open = 0;
        return;
    }
  }

  /** The target's record arrives. */
  private send(session: SessionId): void {
    this.answer('target', session, { type: 'sent' }, () => {
      const arrive = (): void => {
        const { source } = this.guests;
        if (source.open !== session) return;
        if (source.still || !source.taken.has(session)) return this.later(arrive);
        this.tell('source', session, { type: 'verified', findings });
      };
      arrive();
    });
  }

  private mail(from: Side, message: TransferMessage): void {
    if (this.random.chance(this.losing)) return;
    this.later(() => {
      if (from === 'target') this.toSource({ type: 'mail', now: this.now, from: 1, message });
      else this.toTarget({ type: 'mail', now: this.now, from: 0, message });
    });
  }
}

const settle = (pair: Pair, steps = 400): void => {
  for (let i = 0; i < steps && !pair.idle; i++) pair.step(5);
};

const calm = (seed: number): Pair => {
  const pair = new Pair(seed);
  pair.failing = pair.losing = 0;
  pair.step(5);
  return pair;
};

void t.test('two guests are compared, and both go on', (t) => {
  const pair = calm(1);
  pair.ask();
  settle(pair);
  t.match(pair.records, [{ ok: true, reason: 'verify', why: '', peer: 1, view: 1, op: 1, findings }]);
  const [record] = pair.records;
  t.ok(record!.pauseMs > 0 && record!.pauseMs < record!.durationMs);
  for (const guest of Object.values(pair.guests))
    t.match(guest, { still: false, open: 0, taken: new Map([[record!.session, 1]]) });
  t.end();
});

void t.test('refusals', (t) => {
  const pair = calm(2);
  pair.ask(true);
  pair.whole = false;
  pair.step(5);
  pair.ask();
  pair.whole = true;
  pair.step(5);
  pair.ask();
  pair.ask();
  t.same(pair.refusals, ['a state transfer runs', 'its guest is no whole copy', 'another verification runs']);
  settle(pair);
  t.match(pair.records, [{ ok: true }]);
  const source = new VerifySource(transferOptions(0), {
    key: () => new Uint8Array(32),
    machine: () => 'pc',
    ramBytes: () => 4096,
  });
  const out: VerifySourceEffect[] = [];
  source.step({ type: 'request', now: 0, peer: 1, transferring: false }, out);
  source.step({ type: 'tick', now: 0, view: 1, able: true, peers: [] }, out);
  source.step({ type: 'request', now: 0, peer: 1, transferring: false }, out);
  t.match(out, [
    { type: 'refuse', why: "the primary's guest does not run now" },
    { type: 'refuse', why: 'the replica is out of reach' },
  ]);
  t.end();
});

void t.test('whatever ends a session, in whatever phase, both guests go on', (t) => {
  const ends: Readonly<Record<string, (pair: Pair) => void>> = {
    'the connection breaks': (pair) => pair.disconnect(),
    'another view begins': (pair) => pair.view++,
    'the guest is whole no more': (pair) => (pair.whole = false),
    'a state transfer begins': (pair) => pair.offerTransfer(),
  };
  const phases = new Set<string>();
  for (const [name, end] of Object.entries(ends)) {
    for (let after = 0; after < 80; after++) {
      const pair = calm(after + 1);
      pair.ask();
      for (let i = 0; i < after; i++) pair.step(5);
      const { phase } = pair;
      end(pair);
      pair.step(5);
      if (phase.target !== null) t.not(pair.phase.target, phase.target, `${name} while ${phase.target}`);
      settle(pair, 6000);
      assert(pair.idle, `${name} after ${after} steps, while ${phase.source} and ${phase.target}: it ends`);
      for (const side of ['source', 'target'] as const)
        assert(
          !pair.guests[side].still && pair.guests[side].open === 0,
          `${name}: the ${side}'s guest goes on`,
        );
      phases.add(`source ${phase.source}`).add(`target ${phase.target}`);
    }
  }
  for (const phase of ['offering', 'syncing', 'pausing', 'taking', 'resuming', 'comparing'])
    t.ok(phases.has(`source ${phase}`), `a source that was ${phase}`);
  for (const phase of ['opening', 'looking', 'waiting', 'pausing', 'taking', 'resuming', 'sending'])
    t.ok(phases.has(`target ${phase}`), `a target that was ${phase}`);
  t.end();
});

void t.test('with failures everywhere', (t) => {
  let [failures, successes] = [0, 0];
  for (let seed = 1; seed <= 300; seed++) {
    const pair = new Pair(seed);
    for (let i = 0; i < 2000; i++) {
      pair.step(5);
      if (pair.random.chance(0.01)) pair.ask();
      if (pair.random.chance(0.001)) pair.disconnect();
      if (pair.random.chance(0.0005)) pair.view++;
      if (pair.random.chance(0.0005)) pair.offerTransfer();
    }
    pair.failing = pair.losing = 0;
    settle(pair, 20_000);
    assert(pair.idle, `seed ${seed}: it ends`);
    for (const side of ['source', 'target'] as const) {
      const { still, open, longest } = pair.guests[side];
      assert(!still && open === 0, `seed ${seed}: the ${side}'s guest runs`);
      assert(longest <= 2200, `seed ${seed}: the ${side}'s guest stood still for ${longest} ms`);
    }
    for (const { ok, session, op } of pair.records) {
      if (ok) successes++;
      else failures++;
      const ops = [pair.guests.source, pair.guests.target].map(({ taken }) => taken.get(session));
      assert(!ok || (ops[0] === op && ops[1] === op), `seed ${seed}: both were looked at behind op ${op}`);
    }
  }
  t.ok(failures > 300 && successes > 300, `${successes} sessions went through, ${failures} were given up`);
  t.end();
});

void t.test('a report, as the data plane lays it out', (t) => {
  const numbers = [9, 3, 2, 5, 1, 4, 0, 2, 7_000_000, 3, 2, 11, 12];
  const bytes = new Uint8Array(8 * numbers.length + 5);
  const view = new DataView(bytes.buffer);
  numbers.forEach((value, index) => view.setBigUint64(8 * index, BigInt(value), true));
  bytes.set([1, 2, 3, 4, 5], 8 * numbers.length);
  t.same(decodeVerifyReport(bytes), {
    pages: 9,
    differing: 3,
    firstPages: [11, 12],
    flows: 5,
    flowsDiffering: 1,
    framesWaiting: { source: 4, target: 0 },
    service: 'different',
    targetStoodNs: 7_000_000,
    devices: { source: Uint8Array.of(1, 2, 3), target: Uint8Array.of(4, 5) },
  });
  t.throws(() => decodeVerifyReport(bytes.subarray(1)));
  t.throws(() => decodeVerifyReport(none));
  t.end();
});
