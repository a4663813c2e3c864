/** What the addon shows to the process that loads it. */
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import t from 'tap';

import { repositoryRoot } from '../../src/lib/root.js';

t.test('it exports nothing of ours, or its parts could not be optimised together', (t) => {
  const directory = process.env['FALCON_NATIVE'] ?? join(repositoryRoot, 'build/native');
  const names = execFileSync('nm', ['-DC', '--defined-only', join(directory, 'falcon.node')], {
    encoding: 'utf8',
    maxBuffer: 64 << 20,
  })
    .split('\n')
    .map((line) => line.replace(/^\S+ \S /, ''));
  t.ok(names.includes('napi_register_module_v1'), 'what Node looks for');
  t.same(
    names.filter((name) => name.includes('falcon::')),
    [],
  );
  t.end();
});
