/**
 * Append to commit of a three-member log in memory over one fabric; bench/fabric.ts runs it, in the soft-RoCE
 * bed for `verbs`. Prints one JSON object.
 *
 * Usage: fabric-log.js shm|tcp|verbs WAITING BYTES DEPTH ENTRIES ROUNDS [DEVICE,DEVICE,DEVICE]
 * WAITING: for each member that is up, the primary first, "busy" or the nanoseconds it spins: busy,busy,0
 */
import { mkdtempSync, rmSync } from 'node:fs';

import type { NativeCounters } from '../src/adapters/native.js';

import { measure, type FabricName } from './members.js';

/** Of the primary: entries, and the words and heartbeats beside them. */
function writes({ before, after }: { before: NativeCounters; after: NativeCounters }): number {
  const total = ({ fabric }: NativeCounters): number => (fabric as Record<string, number>)['writes'] ?? 0;
  return total(after) - total(before);
}

/** What was appended meanwhile, the warm-up included. */
function entriesOf({ before, after }: { before: NativeCounters; after: NativeCounters }): number {
  return Number(after['entriesProposed']) - Number(before['entriesProposed']);
}

async function main(): Promise<void> {
  const [fabric, waiting, bytes, depth, entries, rounds, devices] = process.argv.slice(2);
  const directory = mkdtempSync('/dev/shm/falcon-bench-log-');
  const shm = mkdtempSync('/dev/shm/falcon-bench-');
  try {
    const { counted, ...load } = await measure(
      {
        durability: 'memory',
        polls: (waiting ?? '').split(',').map((each) => (each === 'busy' ? each : Number(each))),
        entryBytes: Number(bytes),
        depth: Number(depth),
        entries: Number(entries),
        rounds: Number(rounds),
      },
      {
        fabric: fabric as FabricName,
        devices: (devices ?? '').split(','),
        directory,
        shm,
        segmentBytes: 4 << 20,
      },
    );
    console.log(JSON.stringify({ ...load, writesPerEntry: writes(counted) / entriesOf(counted) }));
  } finally {
    rmSync(directory, { recursive: true, force: true });
    rmSync(shm, { recursive: true, force: true });
  }
}

await main();
