/** Runs every text scenario in test/scenario/data. UPDATE=1 rewrites their traces. */
import { existsSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { runScenario } from './runner.js';

/** The repository: the folder above this file that holds the scenario data (compiled tests lie in dist/). */
function dataFolder(): string {
  const root = process.env['SCENARIO_ROOT'];
  for (let folder = root ?? dirname(fileURLToPath(import.meta.url)); ; folder = dirname(folder)) {
    const data = join(folder, 'test', 'scenario', 'data');
    if (existsSync(data)) return data;
    if (folder === dirname(folder)) throw new Error('test/scenario/data not found');
  }
}

const folder = dataFolder();
const files = readdirSync(folder)
  .filter((name) => name.endsWith('.txt'))
  .sort();
t.ok(files.length >= 10, `${files.length} scenario files`);

for (const file of files) {
  t.test(file, async (t) => {
    const update = process.env['UPDATE'] === '1';
    for (const block of runScenario(join(folder, file), update)) {
      if (update) t.notMatch(block.actual, /^ERROR/m, block.commands);
      else t.equal(block.actual, block.expected, block.commands);
    }
  });
}
