/**
 * make bench-log: append to commit over `shm` with 3 members, one of them down (two processors), beside floors
 * taken in the same run (the cluster: members.ts).
 *
 * JSON=1 prints one JSON object on the last line.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';

import { repositoryRoot } from '../src/lib/root.js';
import { measure, type LoadCase, type Measured } from './members.js';

const spinNs = 20_000;

const us = (nanoseconds: number): string => (nanoseconds / 1000).toFixed(nanoseconds < 10_000 ? 2 : 1);

async function main(): Promise<void> {
  const directory = mkdtempSync(join(process.env['BENCH_DIR'] ?? '/var/tmp', 'falcon-bench-'));
  const shm = mkdtempSync('/dev/shm/falcon-bench-');
  const results: (LoadCase & Measured)[] = [];
  try {
    process.stderr.write('floors...\n');
    const program = join(
      process.env['FALCON_NATIVE'] ?? join(repositoryRoot, 'build/native'),
      'floors_bench',
    );
    const floors = JSON.parse(execFileSync(program, [directory], { encoding: 'utf8' })) as Record<
      'spin' | 'wake' | 'force',
      { p50Ns: number; p99Ns: number }
    >;
    console.log('floors, there and back (µs)      p50      p99');
    console.log(
      `  spinning, two processes   ${us(floors.spin.p50Ns).padStart(8)} ${us(floors.spin.p99Ns).padStart(8)}`,
    );
    console.log(
      `  wake-up, two processes    ${us(floors.wake.p50Ns).padStart(8)} ${us(floors.wake.p99Ns).padStart(8)}`,
    );
    console.log(
      `  lone 512 B fdatasync      ${us(floors.force.p50Ns).padStart(8)} ${us(floors.force.p99Ns).padStart(8)}`,
    );
    console.log(
      '\nappend to commit, 3 members, 1 down         depth      p50      p99 (µs)  entries/s  p50/floor',
    );
    for (const durability of ['memory', 'disk'] as const) {
      for (const busy of [true, false]) {
        for (const entryBytes of [64, 1024]) {
          for (const depth of [1, 256]) {
            const slow = durability === 'disk' || !busy;
            const entries = slow ? (depth === 1 ? 4000 : 40_000) : depth === 1 ? 200_000 : 1_000_000;
            const poll = busy ? 'busy' : spinNs;
            const c: LoadCase = { durability, polls: [poll, poll], entryBytes, depth, entries };
            const load = await measure(c, {
              fabric: 'shm',
              devices: [],
              segmentBytes: 64 << 20,
              directory,
              shm,
            });
            results.push({ ...c, ...load });
            const floor =
              durability === 'disk' ? floors.force.p50Ns : busy ? floors.spin.p50Ns : floors.wake.p50Ns;
            const name = `${durability.padEnd(6)} ${busy ? 'busy    ' : 'adaptive'} ${String(entryBytes).padStart(4)} B`;
            console.log(
              `  ${name.padEnd(40)} ${String(depth).padStart(6)} ${us(load.p50Ns).padStart(8)} ${us(load.p99Ns).padStart(8)}    ` +
                `${String(load.perSecond).padStart(10)}  ${depth === 1 ? (load.p50Ns / floor).toFixed(1).padStart(8) : '       -'}`,
            );
          }
        }
      }
    }
    if (process.env['JSON'] === '1') console.log(JSON.stringify({ floors, results }));
  } finally {
    rmSync(directory, { recursive: true, force: true });
    rmSync(shm, { recursive: true, force: true });
  }
}

await main();
