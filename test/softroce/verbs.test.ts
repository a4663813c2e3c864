/** The verbs fabric on real queue pairs: the native test program, run where there are RDMA devices. */
import { join } from 'node:path';
import t, { type Test } from 'tap';

import { repositoryRoot } from '../../src/lib/root.js';
import { inBed, runBed, TapReader } from './bed.js';

const limitSeconds = 240;
const timeoutMs = (limitSeconds + 60) * 1000;
const directory = process.env['FALCON_NATIVE'] ?? join(repositoryRoot, 'build/native');
const program = (name: string): string => `'${join(directory, name)}'`;
const bed = inBed(timeoutMs);

/** Runs `command`, a shell line that prints TAP, and makes each of its cases a test. */
async function runCases(t: Test, command: string): Promise<void> {
  const reader = new TapReader();
  const run = await runBed(['--limit', String(limitSeconds), '--', command], {
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
  t.ok(reader.points.length > 0, 'there are cases');
  t.equal(reader.planned, reader.points.length, run.stderr);
  t.equal(run.ended, reader.points.every(({ ok }) => ok) ? 0 : 1, run.stderr);
}

await t.test('the suite of all fabrics, and queue pairs', bed, (t) =>
  runCases(t, program('fabric_verbs_test')),
);

await t.test('faults', bed, (t) => runCases(t, program('fabric_verbs_faults_test')));

// On one machine, a sleep is known to the peer before the next instruction. Only on a long wire do it and a
// write pass each other.
await t.test('half a millisecond apart, and one packet in a hundred is lost', bed, (t) =>
  runCases(
    t,
    'for host in h1 h2 h3; do tc qdisc add dev $host root netem delay 500us loss 1% || exit 9; done; ' +
      `FALCON_LOSES_PACKETS=1 ${program('fabric_verbs_test')} no_wake`,
  ),
);
