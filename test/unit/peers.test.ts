/** A mailbox that has fallen silent is told from a peer that is gone, and from a process that stood still itself. */
import t from 'tap';

import { Peers } from '../../src/engine/peers.js';

const silenceMs = 1000;
const tickMs = 5;

/** Ticks from `from` until `until`; returns who was found silent at the end. */
function watch(
  peers: Peers,
  from: number,
  until: number,
  progress: (now: number) => Parameters<Peers['silent']>[2],
): number[] {
  let silent: number[] = [];
  for (let now = from; now <= until; now += tickMs) silent = peers.silent(now, silenceMs, progress(now));
  return silent;
}

const nobody = [null, null, null];
const none = { heard: null, acked: nobody, wordsAt: nobody, commitOp: 0 };

void t.test('heartbeats of the primary come, its mail does not', (t) => {
  const peers = new Peers();
  peers.up(1, 0);
  peers.up(2, 0);
  const heard = (now: number): typeof none => ({ ...none, heard: { view: 1, from: 1, at: now } as never });
  t.same(watch(peers, 0, silenceMs, heard), []);
  t.same(
    watch(peers, silenceMs + tickMs, silenceMs + 2 * tickMs, heard),
    [1],
    'and the quiet one is left alone',
  );
  peers.mail(1, silenceMs + 2 * tickMs);
  t.same(watch(peers, silenceMs + 3 * tickMs, silenceMs + 3 * tickMs, heard), [], 'one word is enough');
  t.end();
});

void t.test('a backup acknowledges, and its mail does not come', (t) => {
  const peers = new Peers();
  peers.up(1, 0);
  const acks = (now: number): typeof none => ({ ...none, acked: [null, now, null] as never });
  t.same(watch(peers, 0, 2 * silenceMs, acks), [1]);
  t.end();
});

void t.test(
  'a backup of a quiet cluster has nothing to acknowledge but heartbeats, and its mail does not come',
  (t) => {
    const peers = new Peers();
    peers.up(1, 0);
    const echoes = (now: number): typeof none => ({
      ...none,
      acked: [null, 7, null] as never,
      wordsAt: [null, now, null] as never,
      commitOp: 7,
    });
    t.same(watch(peers, 0, silenceMs, echoes), []);
    t.same(watch(peers, silenceMs + tickMs, 2 * silenceMs, echoes), [1]);
    t.end();
  },
);

void t.test('committed entries do not reach a backup whose mail comes', (t) => {
  const peers = new Peers();
  peers.up(1, 0);
  const stuck = (now: number): typeof none => {
    peers.mail(1, now);
    return { ...none, acked: [null, 7, null] as never, commitOp: 8 };
  };
  t.same(watch(peers, 0, silenceMs, stuck), []);
  t.same(watch(peers, silenceMs + tickMs, silenceMs + 3 * tickMs, stuck), [1]);
  const level = (now: number): typeof none => ({ ...stuck(now), commitOp: 7 });
  t.same(watch(peers, silenceMs + 4 * tickMs, 5 * silenceMs, level), [], 'one that has all of them is level');
  t.end();
});

void t.test('a peer that shows no life is left to the election and the fabric', (t) => {
  const peers = new Peers();
  peers.up(1, 0);
  t.same(
    watch(peers, 0, 5 * silenceMs, () => ({ ...none, acked: [null, 7, null] as never })),
    [],
  );
  t.end();
});

void t.test('this process stood still: nobody is blamed for it', (t) => {
  const peers = new Peers();
  peers.up(1, 0);
  const heard = (now: number): typeof none => ({ ...none, heard: { view: 1, from: 1, at: now } as never });
  t.same(watch(peers, 0, 100, heard), []);
  t.same(peers.silent(10_000, silenceMs, heard(10_000)), []);
  peers.down(1, { code: 'FABRIC_DOWN', detail: '', at: 10_000 });
  t.same(watch(peers, 10_005, 20_000, heard), [], 'nor one that is not connected');
  t.end();
});
