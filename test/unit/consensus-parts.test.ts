/** The small parts of the core against naive versions: agreement of logs, quorums, timeouts, random numbers. */
import t from 'tap';
import { agreeWith, emptyTail, feedStart, stampAt } from '../../src/consensus/agreement.js';
import { isQuorum, quorumSize } from '../../src/consensus/quorum.js';
import { Timeout, jittered, randomBetween } from '../../src/consensus/timer.js';
import { InvariantError, assert } from '../../src/lib/assert.js';
import { Random } from '../../src/lib/random.js';
import { agreementOp } from '../../src/wire/view-table.js';
import type { LogTail, ViewTableRow } from '../../src/wire/view-table.js';
import { compareViewstamps } from '../../src/wire/viewstamp.js';

interface NaiveEntry {
  readonly view: number;
  readonly op: number;
}

function tailOf(log: readonly NaiveEntry[], commitOp = 0): LogTail {
  const table: ViewTableRow[] = [];
  for (const { view, op } of log) if (table.at(-1)?.view !== view) table.push({ view, firstOp: op });
  return { last: log.at(-1) ?? { view: 0, op: 0 }, commitOp, table };
}

/** The stupid way: entry by entry from the front. */
function naiveAgreement(a: readonly NaiveEntry[], b: readonly NaiveEntry[]): number {
  let op = 0;
  while (op < a.length && op < b.length && a[op]!.view === b[op]!.view) op++;
  return op;
}

/** Logs as primaries make them: each view goes on from a cut of some existing log and is copied in part. */
function randomLogs(random: Random, count: number): NaiveEntry[][] {
  const logs: NaiveEntry[][] = Array.from({ length: count }, () => []);
  for (let view = 1; view <= 1 + random.below(12); view++) {
    const primary = random.pick(logs);
    for (let i = 1 + random.below(5); i > 0; i--) primary.push({ view, op: primary.length + 1 });
    for (let i = 0; i < count; i++) {
      if (!random.chance(0.4) || logs[i] === primary) continue;
      // A backup takes entries of this view behind the point of agreement.
      const agree = naiveAgreement(primary, logs[i]!);
      const cut = random.chance(0.8) ? primary.length : agree + random.below(primary.length - agree + 1);
      logs[i] = primary.slice(0, cut);
    }
  }
  return logs;
}

t.test('agreement of two view tables is agreement entry by entry', async (t) => {
  const random = new Random(7);
  let shared = 0;
  for (let round = 0; round < 5000; round++) {
    const [a, b] = randomLogs(random, 4) as [NaiveEntry[], NaiveEntry[]];
    const naive = naiveAgreement(a, b);
    if (naive > 0 && naive < a.length) shared++;
    const ta = tailOf(a);
    const tb = tailOf(b);
    if (agreementOp(ta, tb) !== naive || agreementOp(tb, ta) !== naive) {
      t.fail(`${JSON.stringify(ta)} ${JSON.stringify(tb)}: ${agreementOp(ta, tb)}, by entries ${naive}`);
      return;
    }
    // What is committed at both changes nothing of it.
    const commitOp = random.below(naive + 1);
    if (agreeWith(tailOf(a, commitOp), tailOf(b, commitOp)) !== naive) {
      t.fail(`committed ${commitOp}: ${JSON.stringify(ta)} ${JSON.stringify(tb)}`);
      return;
    }
    const op = random.below(a.length + 1);
    const stamp = stampAt(ta, op);
    if (op > 0 && (stamp.view !== a[op - 1]!.view || stamp.op !== op)) {
      t.fail(`stamp of ${op} in ${JSON.stringify(ta)}: ${JSON.stringify(stamp)}`);
      return;
    }
  }
  t.ok(shared > 500, `${shared} pairs that part in the middle`);
});

t.test('tables that do not reach back say nothing rather than something wrong', async (t) => {
  const own: LogTail = { last: { view: 9, op: 50 }, commitOp: 40, table: [{ view: 9, firstOp: 30 }] };
  const theirs: LogTail = { last: { view: 5, op: 20 }, commitOp: 10, table: [{ view: 5, firstOp: 11 }] };
  t.equal(agreeWith(own, theirs), null, 'the primary has released what would tell');
  t.equal(
    agreeWith(
      {
        ...own,
        table: [
          { view: 1, firstOp: 1 },
          { view: 9, firstOp: 11 },
        ],
      },
      theirs,
    ),
    10,
    'no view in common, committed up to 10',
  );
  t.equal(
    agreeWith(
      {
        ...own,
        table: [
          { view: 1, firstOp: 1 },
          { view: 9, firstOp: 11 },
        ],
      },
      { ...theirs, table: [{ view: 5, firstOp: 15 }] },
    ),
    null,
    'rows left out at the backup',
  );
  t.equal(
    agreeWith(own, { last: { view: 5, op: 20 }, commitOp: 20, table: [{ view: 5, firstOp: 15 }] }),
    20,
    'all of it committed',
  );
  t.throws(
    () => agreeWith(own, { ...theirs, last: { view: 5, op: 60 }, commitOp: 60 }),
    InvariantError,
    'a primary without what is committed must stop',
  );
});

t.test('whoever is told to begin anew loses nothing that the primary has', async (t) => {
  const random = new Random(11);
  const counts = { anew: 0, on: 0, apart: 0 };
  for (let round = 0; round < 20000; round++) {
    const [own, theirs] = randomLogs(random, 4) as [NaiveEntry[], NaiveEntry[]];
    const agreed = naiveAgreement(own, theirs);
    if (own.length === 0) continue;
    // What the backup holds for committed is in both; what the primary stands behind is committed, but not everywhere.
    const committed = random.below(agreed + 1);
    const baseOp = random.below(own.length + 1);
    const from = random.below(Math.min(theirs.length, committed) + 1);
    const base = { op: baseOp, view: own[baseOp - 1]?.view ?? 0, checksum: baseOp };
    const ownTail = tailOf(own.slice(Math.max(baseOp - 1, 0)), baseOp);
    const full = tailOf(theirs.slice(Math.max(from - 1, 0)), committed);
    const theirTail = theirs.length === 0 ? tailOf([]) : full;
    const start = feedStart(ownTail, theirTail, base);
    const what = JSON.stringify({ ownTail, theirTail, base, start, agreed });
    if (start === null) counts.apart++;
    else if (start.base === null) {
      counts.on++;
      // From there on all can be read here, and it is no further than what they share.
      if (start.agreeOp < baseOp || start.agreeOp > agreed) return void t.fail(what);
    } else {
      counts.anew++;
      if (start.agreeOp !== baseOp || start.base !== base) return void t.fail(what);
      // Behind the base they share nothing, so nothing that counts is given up.
      if (agreed > baseOp) return void t.fail(what);
    }
  }
  t.ok(counts.anew > 2000 && counts.on > 2000, JSON.stringify(counts));
  t.ok(counts.apart < 200, 'tables that reach back tell almost always');
  const own: LogTail = { last: { view: 9, op: 50 }, commitOp: 40, table: [{ view: 9, firstOp: 30 }] };
  const base = { op: 29, view: 8, checksum: 1 };
  const theirs: LogTail = { last: { view: 5, op: 35 }, commitOp: 10, table: [{ view: 5, firstOp: 34 }] };
  t.equal(feedStart(own, theirs, base), null, 'rows that were left out could be shared ones');
  t.same(feedStart(own, { ...theirs, commitOp: 35 }, base), { agreeOp: 35, base: null });
  t.equal(feedStart(own, emptyTail, { op: 29, view: 0, checksum: 0 }), null, 'a base that is not known');
});

t.test('quorums', async (t) => {
  t.same([1, 3, 5, 7].map(quorumSize), [1, 2, 3, 4]);
  const random = new Random(3);
  for (let round = 0; round < 2000; round++) {
    const n = random.pick([1, 3, 5, 7]);
    const members = Array.from({ length: n }, (_, i) => i);
    const pickSome = (): Set<number> => new Set(members.filter(() => random.chance(0.6)));
    const a = pickSome();
    const b = pickSome();
    if (isQuorum(a, members) !== a.size * 2 > n) return void t.fail(`${[...a].join()} of ${n}`);
    if (isQuorum(a, members) && isQuorum(b, members) && ![...a].some((node) => b.has(node)))
      return void t.fail('two quorums apart');
  }
  t.notOk(isQuorum(new Set([7, 8, 9]), [0, 1, 2]), 'strangers do not count');
});

t.test('timeouts', async (t) => {
  const timeout = new Timeout('test');
  t.notOk(timeout.due(1e9), 'not armed');
  timeout.armAt(10);
  t.notOk(timeout.due(9.9));
  t.ok(timeout.due(10));
  timeout.cancel();
  t.notOk(timeout.due(11));
  const factors = [];
  for (let i = 0; i < 5; i++) {
    factors.push(timeout.backOffFactor());
    timeout.failed();
  }
  t.same(factors, [1, 2, 4, 4, 4], 'back-off is bounded');
  timeout.succeeded();
  t.equal(timeout.backOffFactor(), 1);
  const random = new Random(1);
  const draws = Array.from({ length: 1000 }, () => randomBetween(() => random.float(), 150, 300));
  t.ok(draws.every((x) => x >= 150 && x < 300) && Math.min(...draws) < 155 && Math.max(...draws) > 295);
  t.ok(
    Array.from({ length: 1000 }, () => jittered(() => random.float(), 20)).every((x) => x >= 10 && x < 30),
  );
  t.throws(() => timeout.armAt(Number.NaN), InvariantError);
  t.throws(() => randomBetween(() => 1, 0, 1), InvariantError, 'random() of 1 is out of range');
});

t.test('random numbers', async (t) => {
  const a = new Random(42);
  const b = new Random(42);
  const c = new Random(43);
  const first = Array.from({ length: 100 }, () => a.uint32());
  t.same(
    first,
    Array.from({ length: 100 }, () => b.uint32()),
    'the same seed, the same numbers',
  );
  t.notSame(
    first,
    Array.from({ length: 100 }, () => c.uint32()),
  );
  t.not(new Random(1).uint32(), new Random(2 ** 32 + 1).uint32(), 'high bits of a seed count');
  const buckets = new Array<number>(16).fill(0);
  for (let i = 0; i < 16000; i++) buckets[a.below(16)]!++;
  t.ok(
    buckets.every((n) => n > 800 && n < 1200),
    buckets.join(' '),
  );
  t.throws(() => new Random(0.5), InvariantError);
});

t.test('assert', async (t) => {
  t.throws(() => assert(false, 'broken'), { code: 'INVARIANT_BROKEN', message: 'broken' });
  t.doesNotThrow(() => assert(1, 'fine'));
  t.equal(Math.sign(compareViewstamps({ view: 2, op: 1 }, { view: 1, op: 9 })), 1);
});
