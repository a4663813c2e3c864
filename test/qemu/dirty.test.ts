// The dirty log: what a guest or a device writes in a round is seen in that round, and nothing else is.
import t from 'tap';

import { Tiny, whyNoKvm } from './tiny.js';

t.setTimeout(1_200_000);

const ROUNDS = 20;
/** Far apart and side by side. */
const PAGES = [16, 17, 30, 47, 48, 64, 79];

const accelerators = ['tcg,thread=multi', 'tcg,thread=single', 'kvm'] as const;

for (const accelerator of accelerators) {
  void t.test(`the same pages in every round, ${accelerator}`, async (t) => {
    const cannot = accelerator === 'kvm' ? await whyNoKvm(t) : null;
    if (cannot !== null) {
      t.plan(0, cannot);
      return;
    }
    const tiny = new Tiny(t, { accelerator });
    tiny.writePages(PAGES);
    await tiny.qmp.execute('cont');
    await tiny.rounds(16);
    await tiny.qmp.execute('falcon-dirty-start');
    for (let round = 0; round < ROUNDS; round++) {
      await tiny.rounds(16);
      t.same(await tiny.collect(), PAGES, `round ${round}`);
    }

    // The guest goes over to other pages: its last writes to the old ones may be in the round of the change.
    tiny.writePages([20, 40]);
    await tiny.rounds(20);
    t.match(
      (await tiny.collect()).filter((page) => !PAGES.includes(page)),
      [20, 40],
    );
    for (let round = 0; round < 3; round++) {
      await tiny.rounds(20);
      t.same(await tiny.collect(), [20, 40], `other pages, round ${round}`);
    }

    await tiny.qmp.execute('stop');
    t.ok(
      (await tiny.collect()).every((page) => [20, 40].includes(page)),
      'what was written before the stop',
    );
    t.same(await tiny.collect(), [], 'a guest that stands writes nothing');
    await tiny.qmp.execute('cont');
    await tiny.rounds(20);
    t.same(await tiny.collect(), [20, 40]);
    await tiny.qmp.execute('falcon-dirty-stop');
  });

  void t.test(`a log begins empty, ${accelerator}`, async (t) => {
    const cannot = accelerator === 'kvm' ? await whyNoKvm(t) : null;
    if (cannot !== null) {
      t.plan(0, cannot);
      return;
    }
    const tiny = new Tiny(t, { accelerator });
    tiny.writePages([16, 17]);
    await tiny.qmp.execute('cont');
    await tiny.rounds(17);
    await tiny.qmp.execute('stop');
    for (const running of [false, true, false]) {
      await tiny.qmp.execute('falcon-dirty-start');
      t.same(await tiny.collect(), [], 'nothing since the start');
      await tiny.qmp.execute('cont');
      await tiny.rounds(17);
      t.same(await tiny.collect(), [16, 17]);
      if (!running) await tiny.qmp.execute('stop');
      await tiny.qmp.execute('falcon-dirty-stop');
      await tiny.qmp.execute('stop');
    }
  });
}
