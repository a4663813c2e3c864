/** The codec of control mail: every message there and back, garbage refused, nothing thrown. */
import { Packr } from 'msgpackr';
import t from 'tap';
import { Random } from '../../src/lib/random.js';
import { decodeMessage, encodeMessage, maxMessageBytes, maxTableRows } from '../../src/wire/messages.js';
import type { Message } from '../../src/wire/messages.js';

const big = Number.MAX_SAFE_INTEGER;
const tail = {
  last: { view: 3, op: 9 },
  commitOp: 4,
  table: [
    { view: 1, firstOp: 1 },
    { view: 3, firstOp: 7 },
  ],
};
const empty = { last: { view: 0, op: 0 }, commitOp: 0, table: [] };
const messages: readonly Message[] = [
  { type: 'pre-vote', view: 2, last: { view: 1, op: 5 }, hasGuest: true },
  { type: 'pre-vote-reply', view: 2, granted: false, reason: 'live primary', currentView: big },
  { type: 'vote', view: big, last: { view: big, op: big }, handover: false },
  { type: 'vote-reply', view: 2, granted: true, reason: '', currentView: 2, tail },
  { type: 'vote-reply', view: 2, granted: false, reason: 'newer log', currentView: 2, tail: null },
  { type: 'new-view', view: 2 ** 40 },
  { type: 'view-state', view: 3, tail },
  { type: 'view-state', view: 3, tail: empty },
  { type: 'follow', view: 3, agreeOp: 0, caughtUpOp: 2 ** 33, base: null },
  {
    type: 'follow',
    view: big,
    agreeOp: big,
    caughtUpOp: big,
    base: { op: big, view: big, checksum: 2 ** 32 - 1 },
  },
  { type: 'following', view: 3 },
  { type: 'timeout-now', view: 3, last: { view: 3, op: 2 ** 52 } },
  { type: 'stale-view', currentView: 0 },
];

const packr = new Packr({ useRecords: false });
const refused = (value: unknown): boolean => decodeMessage(packr.pack(value)).type === 'malformed';

t.test('there and back', async (t) => {
  for (const message of messages) t.same(decodeMessage(encodeMessage(message)), message, message.type);
});

t.test('a long view table is cut to its newest rows and fits', async (t) => {
  const table = Array.from({ length: 500 }, (_, i) => ({ view: 2 ** 51 + i, firstOp: 2 ** 50 + i * 7 }));
  const last = { view: table.at(-1)!.view, op: big };
  const bytes = encodeMessage({ type: 'view-state', view: last.view, tail: { last, commitOp: big, table } });
  t.ok(bytes.length <= maxMessageBytes, `${bytes.length} bytes`);
  const back = decodeMessage(bytes);
  t.same(back, {
    type: 'view-state',
    view: last.view,
    tail: { last, commitOp: big, table: table.slice(-maxTableRows) },
  });
  const reply = decodeMessage(
    encodeMessage({
      type: 'pre-vote-reply',
      view: 1,
      granted: false,
      reason: 'x'.repeat(5000),
      currentView: 1,
    }),
  );
  t.ok(reply.type === 'pre-vote-reply' && reply.reason.length < 200, 'a long reason is cut');
});

t.test('what is not a message is refused', async (t) => {
  const vote = { type: 'vote', view: 2, last: [1, 5], handover: false };
  t.notOk(refused(vote), 'the form that the rest of this test spoils');
  for (const [what, value] of [
    ['a number', 5],
    ['a list', [vote]],
    ['null', null],
    ['a text', 'vote'],
    ['no type', { ...vote, type: undefined }],
    ['unknown type', { ...vote, type: 'veto' }],
    ['a type of another prototype', { ...vote, type: 'constructor' }],
    ['a field too many', { ...vote, extra: 1 }],
    ['a field missing', { type: 'vote', view: 2, last: [1, 5] }],
    ['a negative view', { ...vote, view: -1 }],
    ['a fraction', { ...vote, view: 1.5 }],
    ['not a number', { ...vote, view: Number.NaN }],
    ['beyond 2^53', { ...vote, view: 2 ** 53 }],
    ['a big integer', { ...vote, view: 2n ** 60n }],
    ['a text for a view', { ...vote, view: '2' }],
    ['a number for a flag', { ...vote, handover: 1 }],
    ['half a viewstamp', { ...vote, last: [1] }],
    ['view without op', { ...vote, last: [1, 0] }],
    ['a viewstamp of three', { ...vote, last: [1, 2, 3] }],
    ['a map for a viewstamp', { ...vote, last: { view: 1, op: 5 } }],
  ] as const)
    t.ok(refused(value), what);
  const follow = { type: 'follow', view: 3, agreeOp: 8, caughtUpOp: 9, base: [8, 2, 7] };
  t.notOk(refused(follow));
  t.notOk(refused({ ...follow, base: null }));
  for (const [what, value] of [
    ['no word of a base', { type: 'follow', view: 3, agreeOp: 8, caughtUpOp: 9 }],
    ['a base of two numbers', { ...follow, base: [8, 2] }],
    ['a base of four', { ...follow, base: [8, 2, 7, 7] }],
    ['a map for a base', { ...follow, base: { op: 8, view: 2, checksum: 7 } }],
    ['a base at another op', { ...follow, base: [7, 2, 7] }],
    ['a base of a later view', { ...follow, base: [8, 4, 7] }],
    ['a base of no view', { ...follow, base: [8, 0, 7] }],
    ['a base before the first entry', { ...follow, agreeOp: 0, base: [0, 0, 0] }],
    ['a checksum of 33 bits', { ...follow, base: [8, 2, 2 ** 32] }],
    ['a negative checksum', { ...follow, base: [8, 2, -1] }],
    ['to follow from behind the end', { ...follow, base: null, agreeOp: 10 }],
  ] as const)
    t.ok(refused(value), what);
  const state = (table: unknown, last: unknown = [3, 9]): unknown => ({
    type: 'view-state',
    view: 3,
    tail: { last, commitOp: 1, table },
  });
  t.notOk(
    refused(
      state([
        [1, 1],
        [3, 7],
      ]),
    ),
  );
  for (const [what, table] of [
    [
      'views not ascending',
      [
        [3, 1],
        [3, 7],
      ],
    ],
    [
      'ops not ascending',
      [
        [1, 7],
        [3, 7],
      ],
    ],
    ['ends in another view', [[1, 1]]],
    ['begins behind the end', [[3, 10]]],
    ['op 0', [[3, 0]]],
    ['empty for a log', []],
    ['not a list', { length: 0 }],
    ['too long', Array.from({ length: 65 }, (_, i) => [i + 1, i + 1])],
    ['not pairs', [[3]]],
  ] as const)
    t.ok(refused(state(table)), what);
  t.ok(refused(state([[1, 1]], [0, 0])), 'rows for an empty log');
  t.ok(
    refused({ type: 'vote-reply', view: 2, granted: true, reason: '', currentView: 2, tail: null }),
    'a vote without a tail',
  );
  t.ok(
    refused({ type: 'pre-vote-reply', view: 2, granted: true, reason: 'x'.repeat(161), currentView: 2 }),
    'a long reason',
  );
});

t.test('garbage', async (t) => {
  const random = new Random(11);
  t.equal(decodeMessage(new Uint8Array(0)).type, 'malformed');
  t.equal(decodeMessage(new Uint8Array(maxMessageBytes + 1)).type, 'malformed');
  let passed = 0;
  for (let round = 0; round < 20000; round++) {
    let bytes: Uint8Array;
    if (random.chance(0.3)) bytes = Uint8Array.from({ length: random.below(60) }, () => random.below(256));
    else {
      bytes = encodeMessage(random.pick(messages));
      for (let i = 1 + random.below(3); i > 0; i--) bytes[random.below(bytes.length)] = random.below(256);
      if (random.chance(0.3)) bytes = bytes.slice(0, random.below(bytes.length + 1));
    }
    const message = decodeMessage(bytes);
    if (message.type === 'malformed') continue;
    passed++;
    // What passes is a message: it can be sent on and comes back the same.
    if (JSON.stringify(decodeMessage(encodeMessage(message))) !== JSON.stringify(message))
      return void t.fail(JSON.stringify(message));
  }
  t.ok(passed > 100 && passed < 15000, `${passed} of 20000 spoilt messages are messages again`);
  t.equal(({} as Record<string, unknown>)['polluted'], undefined);
});
