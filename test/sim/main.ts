/** make sim SEEDS=n [SEED=first]: runs seeds and says which one failed, with the end of its trace. */
import { runSeed, SeedFailure } from './run.js';

const count = Number(process.env['SEEDS'] ?? '200');
const first = Number(process.env['SEED'] ?? '1');
const started = performance.now();
const total = {
  commits: 0,
  outputs: 0,
  kills: 0,
  views: 0,
  syncs: 0,
  syncsBased: 0,
  syncsAbandoned: 0,
  copies: 0,
  compared: 0,
  flips: 0,
  rebases: 0,
  replaced: 0,
};
let nextProgress = started + 2000;
for (let seed = first; seed < first + count; seed++) {
  try {
    const result = await runSeed(seed);
    total.commits += result.commits;
    total.outputs += result.outputs;
    total.kills += result.kills;
    total.views += result.views;
    total.syncs += result.syncs;
    total.syncsBased += result.syncsBased;
    total.copies += result.copies;
    total.compared += result.compared;
    total.flips += result.flips;
    total.rebases += result.rebases;
    total.replaced += result.replaced;
    total.syncsAbandoned += result.syncsAbandoned;
  } catch (error) {
    if (!(error instanceof SeedFailure)) throw error;
    console.error(error.trace.slice(-120).join('\n'));
    console.error(error.cause instanceof Error ? error.cause.stack : error.cause);
    console.error(`${error.message}\nplay it again: make sim SEEDS=1 SEED=${seed}`);
    process.exit(1);
  }
  if (performance.now() > nextProgress) {
    nextProgress = performance.now() + 2000;
    console.error(`${seed - first + 1} of ${count} seeds, ${total.commits} entries committed`);
  }
}
const seconds = ((performance.now() - started) / 1000).toFixed(1);
console.log(
  `${count} seeds passed in ${seconds} s: ${total.commits} entries committed, ${total.outputs} answers, ${total.kills} kills, ${total.views} views, ${total.syncs} state transfers (${total.syncsBased} from a common point), ${total.syncsAbandoned} given up, ${total.copies} copies compared, ${total.compared} guests verified (${total.flips} with a flipped byte), ${total.replaced} members replaced, ${total.rebases} logs begun anew`,
);
