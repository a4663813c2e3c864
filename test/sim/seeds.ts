/** Runs a row of seeds as tests: a failing one is printed with the end of its trace and how to play it again. */
import t from 'tap';

import { runSeed, SeedFailure } from './run.js';

const traceLines = 60;
const seedsATest = 10;

export async function testSeeds(first: number, count: number): Promise<void> {
  let [commits, copies, based, compared, flips, rebases, replaced] = [0, 0, 0, 0, 0, 0, 0];
  for (let from = first; from < first + count; from += seedsATest) {
    const until = Math.min(from + seedsATest, first + count);
    await t.test(`seeds ${from} to ${until - 1}`, async (t) => {
      for (let seed = from; seed < until; seed++) {
        try {
          const result = await runSeed(seed);
          commits += result.commits;
          copies += result.copies;
          based += result.syncsBased;
          compared += result.compared;
          flips += result.flips;
          rebases += result.rebases;
          replaced += result.replaced;
        } catch (error) {
          if (!(error instanceof SeedFailure)) throw error;
          t.comment(error.trace.slice(-traceLines).join('\n'));
          t.fail(`${error.message}; play it again: make sim SEEDS=1 SEED=${seed}`);
        }
      }
      t.pass('each serves again after its faults');
    });
  }
  t.ok(copies > count, `${copies} copies of guests were what their source was`);
  t.ok(based > count / 10, `${based} of them were made from a common point`);
  t.ok(
    compared > count && flips > count / 4,
    `${compared} comparisons of guests told what differs, ${flips} bytes were flipped for them`,
  );
  t.ok(rebases > count / 5, `${rebases} logs began anew behind what the primary keeps`);
  t.ok(replaced > count / 10, `${replaced} members were replaced by empty hosts`);
  t.ok(commits > count * 50, `${commits} entries were committed under faults`);
}
