/** A cluster of three over verbs, in the soft-RoCE bed; the steps are those of test/e2e/fabrics. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';

import { repositoryRoot } from '../../src/lib/root.js';
import { inBed, runBed, TapReader } from './bed.js';

const limitSeconds = 540;
t.setTimeout((limitSeconds + 50) * 1000);
const inside = join(repositoryRoot, 'dist/test/softroce/cluster-inside.js');

await t.test('a cluster over verbs', inBed((limitSeconds + 60) * 1000), async (t) => {
  const out = mkdtempSync(join(tmpdir(), 'falcon-verbs-'));
  t.teardown(() => rmSync(out, { recursive: true }));
  const reader = new TapReader();
  const run = await runBed(['--limit', String(limitSeconds), '--out', out, '--', process.execPath, inside], {
    timeoutMs: (limitSeconds + 30) * 1000,
    onLine: (line) => {
      const point = reader.take(line);
      if (point === null) return;
      void t.test(point.name, (t) => {
        for (const comment of point.comments) t.comment(comment);
        t.ok(point.ok && point.skipped === '', point.skipped || point.comments.join('; '));
        t.end();
      });
    },
  });
  t.equal(reader.points.length, 9, 'as many steps as there are');
  t.equal(reader.planned, reader.points.length, 'as planned');
  t.equal(run.ended, 0, 'its exit code');
  if (run.ended !== 0) t.comment(`${run.stdout.slice(-6000)}\n${run.stderr.slice(-2000)}`);
});
