/** The demo of a divergence: its fault changes what a server keeps and nothing else, and its "ok" can fail. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import t from 'tap';

import { divergenceLines, judgeDivergence } from '../../cluster/demo/divergence-report.js';
import { valueOf } from '../../cluster/demo/key-client.js';
import { findValue, flipBit } from '../../cluster/demo/memory-fault.js';
import { divergenceDemoOptions } from '../../cluster/demo/options.js';
import type { DivergenceStatus, SyncRecord } from '../../src/api/status.js';
import { temporaryDirectory } from '../support/directory.js';

t.test('what the demo of a divergence is asked for', async (t) => {
  const given = { WRITE: '2', DURABILITY: 'memory', LOGS: '/somewhere', SEED: '' };
  t.same(divergenceDemoOptions(given, 9), {
    seed: 9,
    writeS: 2,
    depth: 1,
    durability: 'memory',
    json: false,
    logs: '/somewhere',
  });
  t.throws(() => divergenceDemoOptions({ DEPTH: '0' }, 9), { code: 'USAGE' });
});

t.test('a value is found and changed where a server keeps it, and only there', async (t) => {
  const path = join(temporaryDirectory(t), 'memory');
  const value = valueOf(1, 7);
  const kept = Buffer.concat([Buffer.from([32, 32, 1]), Buffer.from(value), Buffer.from([0])]);
  const memory = Buffer.alloc(9 * 1024 * 1024, 0x11);
  memory.set(Buffer.from(value), 100);
  // Across the border of two chunks that are read, and at the very end.
  const places = [4 * 1024 * 1024 - 20, memory.length - kept.length];
  for (const place of places) memory.set(kept, place);
  writeFileSync(path, memory);
  t.same(
    findValue(path, value),
    places.map((place) => place + 3),
  );
  const fault = flipBit(path, value, 5, 1);
  t.same(
    fault.at,
    places.map((place) => place + 8),
  );
  t.same(findValue(path, value), []);
  t.same(
    findValue(path, fault.to),
    places.map((place) => place + 3),
  );
  t.equal(readFileSync(path).toString('latin1', 100, 132), value, 'a buffer that it passed through');
  t.throws(() => flipBit(path, value, 5, 1), { code: 'START_FAILED' });
});

t.test('the report of a divergence is ok only if everything is', async (t) => {
  const tally = {
    ...{ acked: 10, readBack: 12, wrong: 0, lost: 0, alive: true, trouble: [] },
    gaps: [
      { startMs: 1_050, endMs: 1_080 },
      { startMs: 5_000, endMs: 5_090 },
    ],
  };
  const heal = {
    pages: 10,
    equal: 6,
    found: 1,
    sent: 3,
    bytes: 12_288,
    based: false,
    rounds: 2,
    pauseMs: 9,
    durationMs: 80,
  };
  const found = {
    view: 1,
    op: 5,
    position: 120,
    firstDifferent: 100,
    client: 'c',
    from: 84,
    expected: '',
    found: '',
  };
  const seen = {
    seed: 1,
    fault: { node: 'h3', key: 7, memory: { at: [8], from: 'a', to: 'b' }, atMs: 1_000 },
    askedMs: 1_001,
    foundMs: 1_090,
    found: found as unknown as DivergenceStatus,
    checkMs: 100,
    checkBytes: 65_536,
    heal: heal as unknown as SyncRecord,
    healedMs: 1_200,
    mended: true,
    agreedAtHeal: 2,
    agreedAfter: 6,
    divergencesAtHeal: 1,
    divergencesAfter: 1,
    killed: 'h1',
    killedMs: 4_900,
    served: 'h3',
    tally,
  };
  const report = judgeDivergence(seen);
  t.match(report, {
    ok: true,
    detection: { after_read_ms: 89, in_time: true },
    heal: { after_detection_ms: 110 },
    afterwards: { agreed: 4, diverged: 0 },
    failover: { outage_ms: 90 },
    longest_gap_ms: 30,
  });
  t.match(divergenceLines(report).join('\n'), /result +ok$/);
  const wrongs: Partial<typeof seen>[] = [
    { foundMs: 1_900 },
    { found: { ...seen.found, firstDifferent: null } },
    { found: { ...seen.found, position: 70_000 } },
    { mended: false },
    { agreedAfter: 2 },
    { divergencesAfter: 2 },
    { served: 'h2' },
    { tally: { ...tally, lost: 1 } },
    { tally: { ...tally, wrong: 1 } },
    { tally: { ...tally, alive: false } },
    { tally: { ...tally, readBack: 9 } },
  ];
  for (const wrong of wrongs)
    t.equal(judgeDivergence({ ...seen, ...wrong }).ok, false, JSON.stringify(wrong));
});
