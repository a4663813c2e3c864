/** The verbs fabric on real queue pairs: native test programs, run where there are RDMA devices. */
import { join } from 'node:path';
import t from 'tap';

import { repositoryRoot } from '../../src/lib/root.js';
import { inBed, runBed, TapReader } from './bed.js';

const limitSeconds = 480;
const directory = process.env['FALCON_NATIVE'] ?? join(repositoryRoot, 'build/native');
const program = (name: string): string => `'${join(directory, name)}'`;

interface Part {
  readonly title: string;
  /** A shell line that prints TAP. */
  readonly command: string;
}

/** One after the other on one machine, whose boot takes as long as some of them. Races: a million, or what fits. */
const parts: readonly Part[] = [
  {
    title: 'the suite of all fabrics, and queue pairs',
    command: program('fabric_verbs_test'),
  },
  // Its name says needs an address that the kernel looks for in vain, which only a device has.
  { title: 'a reactor', command: program('reactor_verbs_test') },
  // Of one device to itself, the way on which a race takes half as long: no bridge between them.
  {
    title: 'on one device',
    command: `FALCON_RDMA_DEVICES=1 FALCON_WAKE_RACES=960000 FALCON_WAKE_SECONDS=85 ${program('fabric_verbs_test')} no_wake`,
  },
  { title: 'faults', command: program('fabric_verbs_faults_test') },
  // On one machine, a sleep is known to the peer before the next instruction. Only on a long wire do it and a
  // write pass each other.
  {
    title: 'half a millisecond apart, and one packet in a hundred is lost',
    command:
      'for host in h1 h2 h3; do tc qdisc replace dev $host root netem delay 500us loss 1% || exit 9; done; ' +
      `FALCON_LOSES_PACKETS=1 FALCON_WAKE_RACES=10000 ${program('fabric_verbs_test')} no_wake`,
  },
];

await t.test('native programs over verbs', inBed((limitSeconds + 60) * 1000), async (t) => {
  const ended: number[] = [];
  const readers = [new TapReader()];
  const run = await runBed(
    [
      ...['--limit', String(limitSeconds), '--'],
      parts.map(({ command }) => `(${command}); echo "# ended: $?"`).join('\n'),
    ],
    {
      timeoutMs: (limitSeconds + 30) * 1000,
      onLine: (line) => {
        const end = /^# ended: (\d+)$/.exec(line);
        if (end !== null) {
          ended.push(Number(end[1]));
          readers.push(new TapReader());
          return;
        }
        const point = readers.at(-1)?.take(line) ?? null;
        if (point === null) return;
        // Each is told as soon as it is known: a minute of silence looks like a hang.
        void t.test(`${parts[ended.length]?.title}: ${point.name}`, (t) => {
          for (const comment of point.comments) t.comment(comment);
          // Here nothing may be skipped: the bed has devices.
          t.ok(point.ok && point.skipped === '', point.skipped || point.comments.join('; '));
          t.end();
        });
      },
    },
  );
  t.equal(run.ended, 0, run.stderr);
  parts.forEach(({ title }, i) => {
    const { points = [], planned } = readers[i] ?? {};
    t.ok(points.length > 0, `${title}: there are cases`);
    t.equal(planned, points.length, `${title}: as many as planned`);
    t.equal(ended[i], points.every(({ ok }) => ok) ? 0 : 1, `${title}: exit code`);
  });
});
