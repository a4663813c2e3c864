/** Single steps of the core that a cluster reaches only by rare timing: late answers of the data plane, two failures at once. */
import t from 'tap';
import { Core } from '../../src/consensus/core.js';
import type { Effect, Event, Message } from '../../src/consensus/types.js';
import { InvariantError } from '../../src/lib/assert.js';
import { emptyTail } from '../../src/consensus/agreement.js';
import { Random } from '../../src/lib/random.js';
import { noBase } from '../../src/wire/view-table.js';

const options = {
  self: 0,
  members: [0, 1, 2],
  witnesses: [],
  electionTimeoutMinMs: 150,
  electionTimeoutMaxMs: 300,
  leaseMs: 60,
  driftMarginMs: 4,
  retryMs: 20,
} as const;

class Bench {
  now = 0;
  readonly core: Core;

  constructor(view = 0) {
    const random = new Random(5);
    this.core = new Core(
      { ...options, random: () => random.float() },
      { view, votedFor: null, recovering: false },
      0,
      emptyTail,
    );
  }

  step(event: Record<string, unknown>): string[] {
    const out: Effect[] = [];
    this.core.step({ now: this.now, ...event } as unknown as Event, out);
    return out.map((effect) =>
      effect.type === 'send' ? `${effect.message.type}>${effect.to}` : effect.type,
    );
  }

  mail(from: number, message: Message): string[] {
    return this.step({ type: 'mail', from, message });
  }

  /** Primary of view 1, replica 1 follows and has acknowledged op 1. */
  lead(): this {
    while (this.core.status.phase !== 'asking') {
      this.now += 5;
      this.step({ type: 'tick' });
    }
    this.mail(1, { type: 'pre-vote-reply', view: 1, granted: true, reason: '', currentView: 0 });
    this.step({ type: 'promised', view: 1, tail: emptyTail, heartbeatAckedAt: null });
    this.mail(1, { type: 'vote-reply', view: 1, granted: true, reason: '', currentView: 1, tail: emptyTail });
    this.step({ type: 'leading', view: 1, startOp: 1 });
    this.mail(1, { type: 'following', view: 1 });
    this.step({ type: 'peer-guest', node: 1, whole: true });
    this.step({ type: 'guest', whole: true });
    this.progress(1, 1);
    return this;
  }

  progress(lastOp: number, acked: number): string[] {
    return this.step({
      type: 'progress',
      lastOp,
      durableOp: lastOp,
      commitOp: 1,
      acked: new Map([[1, acked]]),
      base: noBase,
      committed: noBase,
      leaseEndsAt: this.now + 60,
    });
  }
}

t.test('promise before persist before vote; nothing is decided without the answer', async (t) => {
  const bench = new Bench();
  bench.now = 100;
  t.same(bench.mail(1, { type: 'vote', view: 1, last: { view: 0, op: 0 }, handover: false }), ['promise']);
  t.same(bench.mail(2, { type: 'vote', view: 1, last: { view: 0, op: 0 }, handover: false }), [], 'kept');
  t.same(bench.step({ type: 'promised', view: 1, tail: emptyTail, heartbeatAckedAt: null }), [
    'persist',
    'vote-reply>1',
    'vote-reply>2',
  ]);
  t.equal(bench.core.status.votedFor, 1);
  t.same(
    bench.step({ type: 'promised', view: 1, tail: emptyTail, heartbeatAckedAt: null }),
    ['trace'],
    'an answer nobody waits for',
  );
});

t.test('an answer to an abandoned transfer does not count for the next one', async (t) => {
  const bench = new Bench().lead();
  t.equal(bench.core.status.phase, 'leading');
  t.same(bench.step({ type: 'transfer', to: 1 }), ['hold-input']);
  t.same(
    bench.step({ type: 'peer-guest', node: 1, whole: false }),
    ['transfer-result', 'release-input'],
    'abandoned while holding',
  );
  bench.step({ type: 'peer-guest', node: 1, whole: true });
  t.same(bench.step({ type: 'transfer', to: 1 }), ['hold-input']);
  t.same(bench.step({ type: 'input-held', view: 1, lastOp: 1 }), [], 'the late answer of the first');
  t.equal(bench.core.status.transfer?.phase, 'holding');
  bench.progress(3, 1);
  t.same(bench.step({ type: 'input-held', view: 1, lastOp: 3 }), [], 'op 3 is not acknowledged');
  t.same(bench.progress(4, 3), [], 'an entry more was appended meanwhile');
  t.same(bench.progress(4, 4), ['surrender']);
  t.same(
    bench.step({ type: 'peer-guest', node: 1, whole: false }),
    ['transfer-result', 'reclaim', 'release-input'],
    'abandoned while surrendering: nobody has been told',
  );
  bench.step({ type: 'peer-guest', node: 1, whole: true });
  t.same(bench.step({ type: 'transfer', to: 1 }), ['hold-input']);
  t.same(bench.step({ type: 'input-held', view: 1, lastOp: 4 }), ['surrender']);
  t.same(
    bench.step({ type: 'surrendered', view: 1 }),
    [],
    'the late answer of the first: the lease may be taken up again',
  );
  t.same(bench.step({ type: 'surrendered', view: 1 }), ['timeout-now>1']);
  t.same(
    bench.step({ type: 'peer-guest', node: 1, whole: false }),
    ['transfer-result', 'resign', 'release-input', 'role', 'role', 'promise'],
    'told: never again in this view',
  );
  t.equal(bench.core.status.transfer, null);
});

t.test('every way out of a transfer gives one result and leaves nothing behind', async (t) => {
  const ways: Record<string, (bench: Bench) => string[]> = {
    'higher view': (bench) => bench.mail(2, { type: 'stale-view', currentView: 9 }),
    'new primary': (bench) => bench.mail(2, { type: 'new-view', view: 5 }),
    connection: (bench) => bench.step({ type: 'peer-down', node: 1 }),
    'new connection': (bench) => bench.step({ type: 'peer-up', node: 1 }),
    time: (bench) => {
      bench.now += 299;
      bench.progress(1, 0);
      bench.now += 1;
      return bench.step({ type: 'tick' });
    },
  };
  for (const [name, way] of Object.entries(ways)) {
    for (const held of [false, true]) {
      const bench = new Bench().lead();
      bench.progress(2, 1);
      bench.step({ type: 'transfer', to: 1 });
      if (held) bench.step({ type: 'input-held', view: 1, lastOp: 2 });
      const effects = way(bench);
      t.equal(effects.filter((effect) => effect === 'transfer-result').length, 1, `${name}: one result`);
      t.equal(effects.filter((effect) => effect === 'release-input').length, 1, `${name}: input goes on`);
      t.equal(bench.core.status.transfer, null, `${name}: nothing left`);
    }
  }
});

t.test('a stale promise, a stale lead, mail from strangers', async (t) => {
  const bench = new Bench().lead();
  t.same(bench.step({ type: 'leading', view: 1, startOp: 1 }), [], 'leading twice');
  t.same(bench.mail(7, { type: 'new-view', view: 99 }), ['trace'], 'not a member');
  t.same(bench.mail(0, { type: 'new-view', view: 99 }), ['trace'], 'from itself');
  t.equal(bench.core.status.view, 1);
  t.same(bench.mail(2, { type: 'view-state', view: 0, tail: emptyTail }), [], 'a log shown in an older view');
  t.throws(
    () => bench.mail(2, { type: 'new-view', view: 1 }),
    InvariantError,
    'two primaries in one view: stop',
  );
});

t.test('caughtUpOp waits for a word of the data plane after the log was shown', async (t) => {
  const bench = new Bench().lead();
  t.same(bench.mail(2, { type: 'view-state', view: 1, tail: emptyTail }), []);
  const out: Effect[] = [];
  bench.core.step(
    {
      type: 'progress',
      now: bench.now,
      lastOp: 77,
      durableOp: 70,
      commitOp: 1,
      acked: new Map(),
      base: noBase,
      committed: noBase,
      leaseEndsAt: bench.now + 60,
    },
    out,
  );
  t.match(out, [
    { type: 'feed', peer: 2, agreeOp: 0 },
    { type: 'send', to: 2, message: { type: 'follow', agreeOp: 0, caughtUpOp: 77 } },
  ]);
});

t.test(
  'entries of its own view at a backup came from this primary, even if it has not been told yet that it holds them',
  async (t) => {
    const bench = new Bench().lead();
    bench.mail(2, {
      type: 'view-state',
      view: 1,
      tail: { last: { view: 1, op: 50 }, commitOp: 1, table: [{ view: 1, firstOp: 1 }] },
    });
    bench.now += 25;
    const out: Effect[] = [];
    bench.core.step({ type: 'tick', now: bench.now }, out);
    t.match(out, [
      { type: 'feed', peer: 2, agreeOp: 50 },
      { type: 'send', to: 2, message: { type: 'follow', agreeOp: 50, caughtUpOp: 50 } },
    ]);
  },
);

t.test('a candidate gives itself no vote before its own lease rule allows', async (t) => {
  const bench = new Bench();
  while (bench.core.status.phase !== 'asking') {
    bench.now += 5;
    bench.step({ type: 'tick' });
  }
  t.same(bench.mail(1, { type: 'pre-vote-reply', view: 1, granted: true, reason: '', currentView: 0 }), [
    'role',
    'promise',
  ]);
  // The data plane acknowledged a heartbeat that this core had not heard of.
  const ackedAt = bench.now - 10;
  t.same(bench.step({ type: 'promised', view: 1, tail: emptyTail, heartbeatAckedAt: ackedAt }), ['persist']);
  t.same([bench.core.status.votedFor, bench.core.status.phase], [null, 'lease-wait']);
  bench.now = ackedAt + 63;
  t.same(bench.step({ type: 'tick' }), []);
  bench.now = ackedAt + 64;
  t.same(bench.step({ type: 'tick' }), ['persist', 'vote>1', 'vote>2']);
  t.equal(bench.core.status.votedFor, 0);
});

t.test('a follow that the data plane does not answer is begun again', async (t) => {
  const bench = new Bench();
  t.same(bench.mail(1, { type: 'new-view', view: 3 }), ['promise']);
  t.same(bench.step({ type: 'promised', view: 3, tail: emptyTail, heartbeatAckedAt: null }), [
    'persist',
    'role',
    'view-state>1',
  ]);
  t.same(bench.mail(1, { type: 'follow', view: 3, agreeOp: 0, caughtUpOp: 1, base: null }), ['follow']);
  t.same(bench.mail(1, { type: 'follow', view: 3, agreeOp: 0, caughtUpOp: 1, base: null }), [], 'under way');
  bench.now = 205;
  bench.step({ type: 'heard', view: 3, from: 1, at: 204 });
  t.same(bench.step({ type: 'tick' }), ['trace', 'promise']);
});

t.test('a core refuses to start on nonsense', async (t) => {
  const make = (change: object, hard = { view: 0, votedFor: null, recovering: false }): Core =>
    new Core({ ...options, random: () => 0.5, ...change }, hard, 0, emptyTail);
  t.throws(() => make({ members: [1, 2, 3] }), InvariantError, 'not a member');
  t.throws(() => make({ members: [0, 1] }), InvariantError, 'two members');
  t.throws(() => make({ members: [0, 1, 1] }), InvariantError, 'a member twice');
  t.throws(() => make({ witnesses: [9] }), InvariantError, 'a witness from elsewhere');
  t.throws(() => make({ leaseMs: 0 }), InvariantError, 'no lease');
  const core = make({});
  t.throws(() => core.step({ type: 'tick', now: Number.NaN }, []), InvariantError);
  core.step({ type: 'tick', now: 10 }, []);
  t.throws(() => core.step({ type: 'tick', now: 9 }, []), InvariantError, 'time goes back');
});

t.test('a cluster of one', async (t) => {
  const out: Effect[] = [];
  const core = new Core(
    { ...options, members: [0], random: () => 0.5 },
    { view: 0, votedFor: null, recovering: false },
    0,
    emptyTail,
  );
  for (let now = 5; core.status.role === 'backup' && now < 1000; now += 5)
    core.step({ type: 'tick', now }, out);
  core.step({ type: 'promised', now: 1000, view: 1, tail: emptyTail, heartbeatAckedAt: null }, out);
  t.match(
    out.map((effect) => effect.type),
    ['role', 'promise', 'persist', 'role', 'lead'],
  );
});

t.test('a follower that cannot be fed counts for nothing, until it comes anew', async (t) => {
  const bench = new Bench().lead();
  t.same(bench.core.status.followers, [1]);
  t.same(bench.step({ type: 'feed-lost', view: 7, node: 1, released: false }), [], 'of another view');
  t.same(bench.step({ type: 'feed-lost', view: 1, node: 5, released: false }), [], 'no member');
  t.same(bench.core.status.followers, [1]);
  bench.step({ type: 'transfer', to: 1 });
  t.same(bench.step({ type: 'feed-lost', view: 1, node: 1, released: false }), [
    'trace',
    'transfer-result',
    'release-input',
  ]);
  t.same([bench.core.status.followers, bench.core.status.apart], [[], [1]]);
  t.match(bench.step({ type: 'transfer', to: 1 }), ['transfer-result'], 'no target any more');
  bench.now += options.retryMs;
  t.notOk(bench.step({ type: 'tick' }).includes('follow>1'), 'it is left alone');
  t.same(bench.mail(1, { type: 'view-state', view: 1, tail: emptyTail }), [], 'the same log is no news');
  t.same(bench.core.status.apart, [1]);
  bench.step({ type: 'peer-up', node: 1 });
  t.same(bench.core.status.apart, [], 'a new connection is a new try');
  bench.mail(1, { type: 'view-state', view: 1, tail: emptyTail });
  t.ok(bench.progress(1, 0).includes('feed'));
});
