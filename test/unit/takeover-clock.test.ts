/** The parts of a take-over add up to the whole, whichever of its moments were seen. */
import t from 'tap';

import { TakeoverClock } from '../../src/engine/takeover-clock.js';

void t.test('a whole take-over', (t) => {
  const clock = new TakeoverClock();
  clock.heard(100);
  clock.candidate(150);
  clock.candidate(170);
  clock.leading(180);
  clock.caughtUp(185);
  clock.gateOpened(2, 187);
  t.same(clock.last, { view: 2, openedAt: 187, detectMs: 50, electMs: 30, catchUpMs: 5, gateMs: 2 });
  t.end();
});

void t.test('the old primary was heard again: the next one counts from there', (t) => {
  const clock = new TakeoverClock();
  clock.heard(100);
  clock.candidate(150);
  clock.heard(200);
  clock.suspect(true, 230);
  clock.candidate(260);
  clock.leading(265);
  clock.caughtUp(266);
  clock.gateOpened(3, 266);
  t.match(clock.last, { detectMs: 60, electMs: 5, catchUpMs: 1, gateMs: 0 });
  t.end();
});

void t.test('a first primary has nobody to have heard', (t) => {
  const clock = new TakeoverClock();
  clock.leading(10);
  clock.caughtUp(5000);
  clock.gateOpened(1, 5001);
  t.match(clock.last, { detectMs: 0, electMs: 0, catchUpMs: 4990, gateMs: 1 });
  t.end();
});
