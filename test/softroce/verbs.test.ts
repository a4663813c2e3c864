/** The verbs fabric on real queue pairs: the native test program, run where there are RDMA devices. */
import { join } from 'node:path';
import t from 'tap';

import { repositoryRoot } from '../../src/lib/root.js';
import { runBed, TapReader } from './bed.js';

const limitSeconds = 400;
const directory = process.env['FALCON_NATIVE'] ?? join(repositoryRoot, 'build/native');

// By hand: FALCON_VERBS_CASE=wake node dist/test/softroce/verbs.test.js
const only = process.env['FALCON_VERBS_CASE'];

await t.test('fabric_verbs_test', { timeout: (limitSeconds + 60) * 1000 }, async (t) => {
  const reader = new TapReader();
  const program = [join(directory, 'fabric_verbs_test'), ...(only === undefined ? [] : [only])];
  const run = await runBed(['--limit', String(limitSeconds), '--', ...program], {
    timeoutMs: (limitSeconds + 30) * 1000,
    onLine: (line) => {
      const point = reader.take(line);
      if (point === null) return;
      // Each is told as soon as it is known: a minute of silence looks like a hang.
      void t.test(point.name, (t) => {
        for (const comment of point.comments) t.comment(comment);
        // Here nothing may be skipped: the bed has devices.
        t.ok(point.ok && point.skipped === '', point.skipped || point.comments.join('; '));
        t.end();
      });
    },
  });
  t.equal(reader.planned, reader.points.length, run.stderr);
  t.ok(reader.points.length > 0, 'there are cases');
  t.equal(run.ended, reader.points.every(({ ok }) => ok) ? 0 : 1, run.stderr);
});
