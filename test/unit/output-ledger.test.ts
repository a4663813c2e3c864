/** The bookkeeping of output checks: reports, majorities, changes of primary, bounds. */
import t from 'tap';

import { bounds } from '../../src/lib/bounds.js';
import { firstDifference } from '../../src/output/difference.js';
import { judge } from '../../src/output/judge.js';
import { OutputLedger } from '../../src/output/ledger.js';
import type { LedgerEffect, LedgerEvent, LedgerOptions } from '../../src/output/types.js';
import { checkHeaderBytes, checkItemBytes, decodeCheck } from '../../src/wire/output-check.js';
import type { VerdictRecord } from '../../src/wire/output-check.js';
import { decodeOutputMail, encodeOutputMail, noVerdict } from '../../src/wire/output-mail.js';

const text = (value: string): Uint8Array => new TextEncoder().encode(value);
const hashes = { right: 'aa'.repeat(32), wrong: 'bb'.repeat(32), other: 'cc'.repeat(32) };

function payload(proposer: number, positions: readonly number[], final = false, iss = 7): Uint8Array {
  const bytes = new Uint8Array(checkHeaderBytes + positions.length * checkItemBytes);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, 1, true);
  view.setUint16(2, positions.length, true);
  view.setUint16(4, proposer, true);
  for (const [i, position] of positions.entries()) {
    const at = checkHeaderBytes + i * checkItemBytes;
    bytes.set([255, 255, 10, 77, 1, 1], at + 10);
    view.setUint16(at + 32, 40_000 + i, true);
    view.setUint16(at + 34, 6379, true);
    view.setUint32(at + 36, iss, true);
    view.setBigUint64(at + 40, BigInt(position), true);
    bytes[at + 48] = final ? 1 : 0;
    bytes.fill(0xaa, at + 56, at + 88);
  }
  return bytes;
}

/** Ledgers that hear each other. */
class World {
  readonly ledgers: OutputLedger[];
  readonly effects: { self: number; effect: LedgerEffect }[] = [];
  now = 1000;
  cut = new Set<number>();

  constructor(count: number, options: Partial<LedgerOptions> = {}) {
    this.ledgers = Array.from(
      { length: count },
      (_, self) => new OutputLedger({ waitMs: 2000, primaryDiverged: 'heal-backups', ...options, self }),
    );
    this.lead(1, 0);
    this.all({ type: 'guests', members: this.ledgers.map((_, i) => i) });
  }
  lead(view: number, primary: number): void {
    this.all({ type: 'primary', now: this.now, view, primary });
  }
  all(event: LedgerEvent): void {
    for (const [self] of this.ledgers.entries()) this.step(self, event);
  }
  step(self: number, event: LedgerEvent): void {
    const out: LedgerEffect[] = [];
    this.ledgers[self]?.step(event, out);
    for (const effect of out) {
      this.effects.push({ self, effect });
      if (effect.type !== 'mail' || this.cut.has(self) || this.cut.has(effect.to)) continue;
      const mail = decodeOutputMail(encodeOutputMail(effect.mail));
      if (mail === null) throw new Error('mail does not survive its encoding');
      this.step(effect.to, { type: 'mail', now: this.now, from: self, mail });
    }
  }
  check(op: number, positions: readonly number[], iss = 7): void {
    const [proposer, view, tail] = [0, 1, 'expected'];
    const bytes = payload(proposer, positions, false, iss);
    this.step(proposer, {
      type: 'due',
      now: this.now,
      payload: bytes,
      tails: positions.map(() => text(tail)),
    });
    this.all({ type: 'check', now: this.now, view, op, payload: bytes });
  }
  verdict(
    self: number,
    op: number,
    verdict: VerdictRecord['verdict'],
    more: Partial<VerdictRecord> = {},
  ): void {
    const record = {
      op,
      index: 0,
      verdict,
      position: 8,
      agreed: 0,
      cause: '',
      hash: hashes.wrong,
      tail: text('expecTed'),
    };
    this.step(self, { type: 'verdicts', now: this.now, records: [{ ...record, ...more }] });
  }
  wait(ms: number): void {
    for (const until = this.now + ms; this.now < until;) {
      this.now += 20;
      this.all({ type: 'tick', now: this.now });
    }
  }
  of<T extends LedgerEffect['type']>(type: T): Extract<LedgerEffect, { type: T }>[] {
    return this.effects.flatMap(({ effect }) =>
      effect.type === type ? [effect as Extract<LedgerEffect, { type: T }>] : [],
    );
  }
}

t.test('agreement is counted once, however often it is told', (t) => {
  const world = new World(3);
  world.check(5, [8]);
  t.equal(world.of('propose').length, 1);
  world.cut.add(0);
  world.verdict(1, 5, 'late');
  world.wait(600);
  world.verdict(1, 5, 'agree');
  world.cut.clear();
  world.wait(2000);
  t.same(world.ledgers[0]?.members.get(1), { agree: 1, late: 0, diverged: 0, skipped: 0 });
  const mails = world.of('mail').length;
  world.wait(2000);
  t.equal(world.of('mail').length, mails, 'what is acknowledged is not told again');
  t.same([world.of('heal'), world.of('divergence')], [[], []]);
  t.end();
});

t.test('one diverged backup is healed, and the first differing byte is known', (t) => {
  const world = new World(3);
  world.check(5, [8]);
  world.verdict(1, 5, 'agree');
  world.verdict(2, 5, 'diverged');
  world.wait(3000);
  t.match(world.of('heal'), [{ member: 2 }]);
  t.same(world.of('primary-diverged'), []);
  t.match(world.ledgers[0]?.divergences, [
    { view: 1, op: 5, member: 2, client: '10.77.1.1:40000', port: 6379, position: 8, firstDifferent: 5 },
  ]);
  world.check(6, [20]);
  world.verdict(2, 6, 'diverged', { position: 20 });
  world.wait(3000);
  t.equal(world.of('heal').length, 1, 'asked for once');
  t.equal(world.ledgers[0]?.divergences.length, 1, 'a connection is listed once');
  world.step(0, { type: 'healed', member: 2 });
  world.check(7, [30]);
  world.verdict(2, 7, 'diverged', { position: 30 });
  world.wait(3000);
  t.equal(world.of('heal').length, 2, 'and again after it was healed');
  t.end();
});

t.test('a difference before the bytes that are kept has no place', (t) => {
  const world = new World(3);
  world.check(5, [100]);
  world.verdict(2, 5, 'diverged', { position: 200, agreed: 40, tail: text('expected') });
  world.wait(3000);
  t.match(world.ledgers[0]?.divergences, [{ agreed: 40, position: 100, firstDifferent: null }]);
  // All bytes that were not equal before are kept, and are: the guest has said more.
  world.step(0, { type: 'healed', member: 2 });
  world.check(6, [100], 8);
  world.verdict(2, 6, 'diverged', { position: 200, agreed: 92, tail: text('expected') });
  world.wait(3000);
  t.match(world.ledgers[0]?.divergences[1], { agreed: 92, position: 100, firstDifferent: 100 });
  t.end();
});

t.test('a judgement waits for all, but not for ever', (t) => {
  const world = new World(3);
  world.check(5, [8]);
  world.verdict(2, 5, 'diverged');
  world.wait(1000);
  t.same(world.of('heal'), []);
  world.wait(3000);
  t.match(world.of('heal'), [{ member: 2 }]);
  t.end();
});

t.test('a primary alone against a majority', (t) => {
  for (const primaryDiverged of ['heal-backups', 'transfer-leadership'] as const) {
    const world = new World(3, { primaryDiverged });
    world.check(5, [8]);
    world.verdict(1, 5, 'diverged');
    world.verdict(2, 5, 'diverged');
    world.wait(3000);
    t.equal(world.of('primary-diverged').length, 1);
    const transfer = primaryDiverged === 'transfer-leadership';
    t.equal(world.of('primary-diverged')[0]?.transferTo, transfer ? 1 : null);
    t.same(
      world.of('heal').map(({ member }) => member),
      transfer ? [] : [1, 2],
    );
  }
  const world = new World(3);
  world.check(5, [8]);
  world.verdict(1, 5, 'diverged');
  world.verdict(2, 5, 'diverged', { hash: hashes.other });
  world.wait(3000);
  t.same(world.of('primary-diverged'), [], 'two that differ from each other are no majority');
  t.same(
    world.of('heal').map(({ member }) => member),
    [1, 2],
  );
  t.end();
});

t.test('a new primary hears what the old one did not', (t) => {
  const world = new World(3);
  world.cut.add(0);
  world.check(5, [8]);
  world.verdict(1, 5, 'agree');
  world.verdict(2, 5, 'diverged');
  world.wait(1000);
  t.same(world.of('heal'), []);
  world.lead(2, 1);
  world.all({ type: 'guests', members: [1, 2] });
  world.wait(4000);
  t.same(
    world.effects.filter(({ effect }) => effect.type === 'heal').map(({ self }) => self),
    [1],
  );
  t.match(world.ledgers[1]?.divergences, [{ op: 5, member: 2, expected: null, firstDifferent: null }]);
  t.end();
});

t.test('what was asked for in an earlier view is asked for again', (t) => {
  const world = new World(3);
  world.check(5, [8]);
  world.verdict(2, 5, 'diverged');
  world.wait(3000);
  t.match(world.of('heal'), [{ member: 2 }]);
  // Another leads meanwhile, and what was asked of state transfer is forgotten.
  world.lead(2, 1);
  world.lead(3, 0);
  world.check(6, [20]);
  world.verdict(2, 6, 'diverged', { position: 20 });
  world.wait(3000);
  t.equal(world.of('heal').length, 2);
  t.end();
});

t.test('what was said before a member was healed does not heal it again', (t) => {
  const world = new World(3);
  world.check(5, [8]);
  world.verdict(2, 5, 'diverged');
  world.wait(500);
  t.same(world.of('heal'), [], 'the other has not told yet');
  world.step(0, { type: 'healed', member: 2 });
  world.wait(4000);
  t.same(world.of('heal'), []);
  t.end();
});

t.test('an old primary proposes nothing and judges nobody', (t) => {
  const world = new World(3);
  world.lead(2, 1);
  world.step(0, { type: 'due', now: world.now, payload: payload(0, [8]), tails: [] });
  t.same(world.of('propose'), []);
  world.lead(1, 0);
  t.equal(world.ledgers[0]?.leads, false, 'what is older is not believed');
  t.end();
});

t.test('nothing grows', (t) => {
  const world = new World(3);
  for (let op = 1; op < 3 * bounds.outputChecksKept; op++) {
    world.check(op, [8 + op], op);
    world.verdict(2, op, 'diverged', { position: 8 + op });
  }
  world.wait(8000);
  const kept = (ledger: OutputLedger): number =>
    (ledger as unknown as { records: Map<number, unknown> }).records.size;
  for (const ledger of world.ledgers) {
    t.ok(kept(ledger) <= bounds.outputChecksKept);
  }
  const kept0 = world.ledgers[2]?.divergences ?? [];
  t.equal(kept0.length, bounds.outputDivergencesKept);
  t.same([kept0[0]?.op, kept0.at(-1)?.op], [1, 3 * bounds.outputChecksKept - 1], 'the first and the newest');
  t.end();
});

t.test('who is right', (t) => {
  const b = { member: 1, hash: 'x' };
  t.same(judge(0, { proposer: 0, agreed: [1, 2], diverged: [] }), { heal: [], majority: [] });
  t.same(judge(0, { proposer: 0, agreed: [2], diverged: [b] }), { heal: [1], majority: [] });
  t.same(judge(0, { proposer: 0, agreed: [], diverged: [b] }), { heal: [1], majority: [] });
  t.same(judge(0, { proposer: 0, agreed: [], diverged: [b, { member: 2, hash: 'x' }] }), {
    heal: [1, 2],
    majority: [1, 2],
  });
  // The check of an earlier primary: measured by what this one has said itself.
  t.same(judge(1, { proposer: 0, agreed: [2], diverged: [b] }), { heal: [0, 2], majority: [0, 2] });
  t.same(
    judge(3, { proposer: 0, agreed: [2], diverged: [b] }).heal,
    [],
    'a primary that cannot tell heals nobody',
  );
  t.end();
});

t.test('where two outputs part', (t) => {
  const tail = (end: number, value: string): { end: number; bytes: Uint8Array } => ({
    end,
    bytes: text(value),
  });
  t.equal(firstDifference(tail(10, 'abcdefghij'), tail(10, 'abcdeXghij')).at, 5);
  t.equal(firstDifference(tail(10, 'ghij'), tail(10, 'abcdefghij')).at, null, 'before what is kept');
  t.equal(firstDifference(tail(10, 'abcdefghij'), tail(7, 'abcdefg')).at, 7, 'one ends');
  const shown = firstDifference(tail(100, 'y'.repeat(50)), tail(100, `${'y'.repeat(40)}z${'y'.repeat(9)}`));
  t.match(shown, { at: 90, from: 74 });
  t.equal(new TextDecoder().decode(shown.found).indexOf('z'), 16);
  t.equal(firstDifference(tail(0, ''), tail(0, '')).at, null);
  t.end();
});

t.test('what comes over the wire is checked', (t) => {
  t.match(decodeCheck(payload(2, [5, 6], true)), {
    proposer: 2,
    items: [{ client: '10.77.1.1:40000', position: 5, final: true, hash: hashes.right }, { position: 6 }],
  });
  for (const bytes of [new Uint8Array(), payload(0, [5]).subarray(1), payload(0, [5]).slice(0, -1)])
    t.equal(decodeCheck(bytes), null);
  t.equal(decodeCheck(payload(0, [2 ** 60])), null, 'a position that is no number here');
  const report = {
    type: 'report',
    op: 1,
    version: 2,
    verdicts: Uint8Array.of(0, noVerdict),
    diverged: [],
  } as const;
  t.same(decodeOutputMail(encodeOutputMail(report)), report);
  const item = { index: 2, position: 1, agreed: 0, cause: '', hash: hashes.right, tail: text('x') };
  t.equal(
    decodeOutputMail(encodeOutputMail({ ...report, diverged: [item] })),
    null,
    'an item that is not there',
  );
  t.equal(decodeOutputMail(encodeOutputMail({ ...report, verdicts: new Uint8Array(200) })), null);
  t.equal(decodeOutputMail(Uint8Array.of(4, 1, 2, 3)), null);
  t.equal(decodeOutputMail(Uint8Array.of(4)), null);
  t.end();
});
