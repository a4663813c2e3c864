/** The error table and the code that uses it agree. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';

import {
  asFalconError,
  errorTable,
  exitCodeTable,
  FalconError,
  formatError,
  isErrorCode,
  remoteError,
} from '../../src/lib/errors.js';
import { repositoryRoot } from '../../src/lib/root.js';
import { sourceFiles } from '../support/sources.js';

const upper = '[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*';

const table = join(repositoryRoot, 'src/lib/errors.ts');

/** Where a code is written down, by language. */
const uses: readonly (readonly [ext: string, pattern: RegExp])[] = [
  ['.ts', new RegExp(`new FalconError\\(\\s*'(${upper})'`, 'g')],
  ['.ts', new RegExp(`\\bcode: '(${upper})'`, 'g')],
  ['.cc', new RegExp(`Status\\s*[({]\\s*"(${upper})"`, 'g')],
  ['.h', new RegExp(`Status\\s*[({]\\s*"(${upper})"`, 'g')],
  ['.cc', new RegExp(`return \\{"(${upper})",`, 'g')],
  ['', new RegExp(`falcon: (${upper}): `, 'g')],
];

void t.test('every code in the sources is in the table', (t) => {
  let found = 0;
  for (const path of sourceFiles(['src', 'native', 'cluster']).filter((file) => file !== table)) {
    const text = readFileSync(path, 'utf8');
    for (const [ext, pattern] of uses) {
      if (!path.endsWith(ext)) continue;
      for (const [, code = ''] of text.matchAll(pattern)) {
        found++;
        if (!isErrorCode(code)) t.fail(`${path}: ${code} is not in src/lib/errors.ts`);
      }
    }
  }
  t.ok(found > 30, `${found} uses`);
  t.end();
});

void t.test('every code in the table is used somewhere', (t) => {
  const all = sourceFiles(['src', 'native', 'cluster'])
    .filter((path) => path !== table)
    .map((path) => readFileSync(path, 'utf8'))
    .join('\n');
  for (const code of Object.keys(errorTable)) t.ok(new RegExp(`\\b${code}\\b`).test(all), code);
  t.end();
});

void t.test('the rows', (t) => {
  const exits = new Set(exitCodeTable.map(([code]) => code));
  t.equal(exits.size, exitCodeTable.length, 'no exit code twice');
  for (const [code, row] of Object.entries(errorTable)) {
    t.match(code, new RegExp(`^${upper}$`));
    t.ok(['warning', 'error', 'fatal'].includes(row.severity), code);
    t.ok(exits.has(row.exit) && row.exit > 0, `${code} exits with a documented code`);
    t.match(row.text, /^[^.\n]+$/, `${code}: one clause, no full stop`);
  }
  const texts = Object.values(errorTable).map(({ text }) => text);
  t.equal(new Set(texts).size, texts.length, 'no wording twice');
  t.end();
});

void t.test('an error is one line', (t) => {
  const error = new FalconError('CONFIG_INVALID', 'must be\n  odd', { path: 'nodes[1].port' });
  t.equal(
    formatError(error),
    'falcon: CONFIG_INVALID: the configuration is not valid: nodes[1].port: must be odd',
  );
  t.same([error.exit, error.severity], [3, 'error']);
  t.equal(formatError(new Error('a\nb')), 'falcon: INTERNAL: internal error: a b');
  t.equal(formatError('text', 'falcond'), 'falcond: INTERNAL: internal error: text');
  t.equal(asFalconError(error), error);
  t.equal(
    remoteError('WAL_FAILED', 'the log could not be written: disk 1').message,
    'the log could not be written: disk 1',
  );
  t.equal(remoteError('WAL_FAILED', 'disk 1').detail, 'disk 1');
  t.same(
    [remoteError('NONSENSE', 'x').code, remoteError('NONSENSE', 'x').detail],
    ['INTERNAL', 'NONSENSE: x'],
  );
  t.equal(isErrorCode('toString'), false);
  t.end();
});
