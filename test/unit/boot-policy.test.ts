/** When guests are booted and when input is let in: the rules one by one, and that no state waits for ever. */
import t from 'tap';

import { decideBoot } from '../../src/engine/boot-policy.js';
import type { BootFacts, BootPolicyOptions } from '../../src/engine/boot-policy.js';
import { Random } from '../../src/lib/random.js';
import type { GuestReport } from '../../src/wire/engine-mail.js';

const options: BootPolicyOptions = {
  mode: 'each',
  firstBootWaitMs: 300,
  fillWaitMs: 5000,
  rebootWaitMs: 600,
  quorumReadyWaitMs: 100,
};
const none: GuestReport = { bootOp: 0, ready: false, admittedBootOp: 0, syncOp: 0 };
const booting = (bootOp: number): GuestReport => ({ bootOp, ready: false, admittedBootOp: 0, syncOp: 0 });
const ready = (bootOp: number): GuestReport => ({ bootOp, ready: true, admittedBootOp: 0, syncOp: 0 });
const admitted = (bootOp: number): GuestReport => ({
  bootOp,
  ready: true,
  admittedBootOp: bootOp,
  syncOp: 0,
});

function facts(changes: Partial<BootFacts>): BootFacts {
  return {
    now: 1000,
    leadingSince: 1000,
    viewCommitted: true,
    members: 3,
    guestMembers: 3,
    selfCanRun: true,
    own: none,
    ownReadyAt: null,
    peers: [none, none],
    peersCanRun: 2,
    lastBootOp: 0,
    historyUnseen: false,
    bootProposed: false,
    quorumReadyAt: null,
    ...changes,
  };
}

void t.test('a first boot', (t) => {
  t.equal(decideBoot(facts({}), options).boot, true, 'at once when all have reported');
  t.equal(
    decideBoot(facts({ viewCommitted: false }), options).boot,
    false,
    'not before the view is committed',
  );
  t.equal(decideBoot(facts({ bootProposed: true }), options).boot, false, 'once in a view');
  t.equal(decideBoot(facts({ peers: [none] }), options).boot, false, 'who has not reported may have a guest');
  t.equal(decideBoot(facts({ peers: [none], now: 1300 }), options).boot, true, 'not for ever');
  const unseen = (changes: Partial<BootFacts>): boolean =>
    decideBoot(facts({ historyUnseen: true, ...changes }), options).boot;
  t.equal(unseen({}), true, 'all were asked');
  t.equal(unseen({ peers: [none], now: 1300 }), false, 'who is away may have a guest of a boot long ago');
  t.equal(unseen({ peers: [none], now: 1600 }), true, 'and is not waited for for ever');
  t.end();
});

void t.test('a guest that lives is never booted over', (t) => {
  for (const report of [booting(5), ready(5), admitted(5)]) {
    const peers = [none, report];
    t.equal(decideBoot(facts({ peers, lastBootOp: 5, now: 99_000 }), options).boot, false);
  }
  t.end();
});

void t.test('all guests are gone', (t) => {
  t.equal(decideBoot(facts({ lastBootOp: 5 }), options).boot, false);
  t.equal(decideBoot(facts({ lastBootOp: 5, now: 1300 }), options).boot, true, 'all were asked');
  t.equal(decideBoot(facts({ lastBootOp: 5, peers: [none], now: 1300 }), options).boot, false);
  t.equal(decideBoot(facts({ lastBootOp: 5, peers: [none], now: 1600 }), options).boot, true, 'one is away');
  t.end();
});

void t.test('input is admitted when it survives the loss of f hosts', (t) => {
  const one = decideBoot(facts({ own: ready(2), peers: [booting(2), booting(2)] }), options);
  t.match(one, { admit: false, quorumReady: false, reason: '1 of 3 guests ready' });
  const two = facts({ own: ready(2), peers: [ready(2), booting(2)] });
  t.match(decideBoot(two, options), { admit: false, quorumReady: true }, 'the third gets a moment');
  t.equal(decideBoot({ ...two, quorumReadyAt: 900 }, options).admit, true, 'not for ever');
  t.equal(
    decideBoot(facts({ own: ready(2), peers: [ready(2), ready(2)] }), options).admit,
    true,
    'all at once',
  );
  t.equal(
    decideBoot(facts({ own: booting(2), peers: [ready(2), ready(2)], quorumReadyAt: 0 }), options).admit,
    false,
  );
  t.end();
});

void t.test('what was admitted stays admitted', (t) => {
  const peers = [admitted(2), none];
  t.equal(decideBoot(facts({ own: ready(2), peers, lastBootOp: 2 }), options).admit, true);
  t.equal(
    decideBoot(facts({ own: ready(1), peers, lastBootOp: 2 }), options).admit,
    false,
    'but not for a guest of an earlier boot',
  );
  t.end();
});

void t.test('one guest that is left serves, once the others are known to have none', (t) => {
  const own = ready(2);
  const alone = facts({ own, peers: [none, none], lastBootOp: 2, quorumReadyAt: 800 });
  t.equal(decideBoot(alone, options).admit, true);
  const unheard = facts({ own, peers: [none], lastBootOp: 2, quorumReadyAt: 800 });
  t.equal(decideBoot(unheard, options).quorumReady, false, 'one that is away may have a guest');
  t.equal(decideBoot({ ...unheard, now: 1600 }, options).quorumReady, true, 'not for ever');
  t.end();
});

void t.test('whatever the others report, a primary ends up with a boot or with input', (t) => {
  const random = new Random(5);
  for (let i = 0; i < 5000; i++) {
    const lastBootOp = random.below(4);
    const report = (): GuestReport => {
      const bootOp = random.chance(0.4) ? 0 : lastBootOp;
      const isReady = bootOp > 0 && random.chance(0.7);
      return {
        bootOp,
        ready: isReady,
        admittedBootOp: isReady && random.chance(0.3) ? bootOp : 0,
        syncOp: 0,
      };
    };
    const own = report();
    const peers = [report(), report()].slice(0, random.below(3));
    const later = facts({ own, peers, lastBootOp, now: 100_000, quorumReadyAt: 50_000 });
    const { boot, admit } = decideBoot(later, options);
    // What can still change is waited for: a guest that boots, or a primary without the guest that others have.
    const waits = [own, ...peers].some(({ bootOp, ready: isReady }) => bootOp > 0 && !isReady);
    const handsOver = own.bootOp === 0 && peers.some(({ bootOp }) => bootOp > 0);
    if ((boot && admit) || (!boot && !admit && !waits && !handsOver)) {
      t.fail(JSON.stringify(later));
      break;
    }
  }
  t.pass('one of the two, never both');
  t.end();
});
