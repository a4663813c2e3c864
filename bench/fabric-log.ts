/**
 * Append to commit of a three-member log in memory over one fabric, cases of log-cases.ts; bench/fabric.ts runs it,
 * in the soft-RoCE bed for `verbs`. Prints a line for each case: log-NUMBER BYTES, and a JSON object, or null if
 * it was not measured; why is told on standard error.
 *
 * Usage: fabric-log.js shm|tcp|verbs CASE,... [DEVICE,DEVICE,DEVICE]
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';

import type { NativeCounters } from '../src/adapters/native.js';
import { messageOf } from '../src/lib/errors.js';
import { repositoryRoot } from '../src/lib/root.js';

import { logCases, logEntryBytes, type LogCase } from './log-cases.js';
import { measure, type FabricName } from './members.js';

const threadLimitMs = 30_000;

interface Commit {
  readonly p50Ns: number;
  readonly p99Ns: number;
  /** Not of members that one thread polls: their rounds wait for each other in between. */
  readonly perSecond: number | null;
  readonly writesPerEntry: number | null;
}

/** Of the primary: entries, and the words and heartbeats beside them. */
function writes({ before, after }: { before: NativeCounters; after: NativeCounters }): number {
  const total = ({ fabric }: NativeCounters): number => (fabric as Record<string, number>)['writes'] ?? 0;
  return total(after) - total(before);
}

/** What was appended meanwhile, the warm-up included. */
function entriesOf({ before, after }: { before: NativeCounters; after: NativeCounters }): number {
  return Number(after['entriesProposed']) - Number(before['entriesProposed']);
}

interface Where {
  readonly fabric: FabricName;
  readonly devices: string;
  readonly directory: string;
  readonly shm: string;
}

function inOneThread({ fabric, devices, directory }: Where, one: LogCase): Commit {
  const program = join(process.env['FALCON_NATIVE'] ?? join(repositoryRoot, 'build/native'), 'commit_bench');
  let least: Commit | null = null;
  for (let round = 0; round < one.rounds; round++) {
    const args = [fabric, one.up, logEntryBytes, one.entries[fabric], directory, devices].map(String);
    const text = execFileSync(program, args, { encoding: 'utf8', timeout: threadLimitMs });
    const commit = { ...(JSON.parse(text) as Commit), perSecond: null, writesPerEntry: null };
    if (least === null || commit.p50Ns < least.p50Ns) least = commit;
    rmSync(directory, { recursive: true });
    mkdirSync(directory);
  }
  if (least === null) throw new Error('no rounds');
  return least;
}

async function inReactors(where: Where, { polls, depth, entries, rounds }: LogCase): Promise<Commit> {
  const { fabric, directory, shm } = where;
  const devices = where.devices.split(',');
  const { p50Ns, p99Ns, perSecond, counted } = await measure(
    {
      durability: 'memory',
      polls: polls ?? [],
      entryBytes: logEntryBytes,
      depth,
      entries: entries[fabric],
      rounds,
    },
    { fabric, devices, directory, shm, segmentBytes: 4 << 20 },
  );
  return { p50Ns, p99Ns, perSecond, writesPerEntry: writes(counted) / entriesOf(counted) };
}

async function main(): Promise<void> {
  const [fabric, wanted = '', devices = ''] = process.argv.slice(2);
  const directory = mkdtempSync('/dev/shm/falcon-bench-log-');
  const shm = mkdtempSync('/dev/shm/falcon-bench-');
  const where: Where = { fabric: fabric as FabricName, devices, directory, shm };
  try {
    for (const index of wanted.split(',').map(Number)) {
      const one = logCases[index];
      if (one === undefined) throw new Error(`there is no case ${index}`);
      let commit: Commit | null = null;
      try {
        commit = one.polls === null ? inOneThread(where, one) : await inReactors(where, one);
      } catch (error) {
        process.stderr.write(`bench: ${one.name}, ${one.depth} in flight: ${messageOf(error)}\n`);
      }
      console.log(`log-${index} ${logEntryBytes} ${JSON.stringify(commit)}`);
    }
  } finally {
    rmSync(directory, { recursive: true, force: true });
    rmSync(shm, { recursive: true, force: true });
  }
}

await main();
