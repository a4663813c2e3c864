/**
 * Writes and commits over `verbs` in instructions, on the soft-RoCE bed with a clock that counts them: one
 * processor, all ends in one thread, so nothing spins and nobody waits for a scheduler, and each run gives the same.
 * With soft-RoCE the device's work is in them too, both ways and with its acknowledgements; of hardware only the
 * rest would be left.
 */
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';

import { repositoryRoot } from '../src/lib/root.js';

import { logEntryBytes } from './log-cases.js';

export interface Instructions {
  readonly writes: readonly { readonly bytes: number; readonly bare: number; readonly fabric: number }[];
  readonly commits: readonly { readonly up: number; readonly instructions: number }[];
}

const count = 500;
const membersUp = [2, 3] as const;

/** The median of each, in instructions: the bed's clock goes on by a nanosecond with each. */
export function countInstructions(sizes: readonly number[], devices: readonly string[]): Instructions {
  const native = process.env['FALCON_NATIVE'] ?? join(repositoryRoot, 'build/native');
  const pair = devices.slice(0, 2).join(',');
  const write = (kind: string, bytes: number): string =>
    `'${native}/write_bench' ${kind} ${bytes} ${count} ${pair}`;
  const lines = [
    'set -e',
    ...sizes.flatMap((bytes) => [write('bare', bytes), write('verbs', bytes)]),
    ...membersUp.map(
      (up) =>
        `folder=$(mktemp -d); '${native}/commit_bench' verbs ${up} ${logEntryBytes} ${count} $folder ${devices.join(',')}`,
    ),
  ];
  process.stderr.write('verbs: counting instructions\n');
  const text = execFileSync(
    join(repositoryRoot, 'cluster/softroce/run'),
    ['--count-instructions', '--devices', String(devices.length), '--', lines.join('\n')],
    { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] },
  );
  const medians = text
    .trim()
    .split('\n')
    .map((line) => (JSON.parse(line) as { p50Ns: number }).p50Ns);
  if (medians.length !== 2 * sizes.length + membersUp.length)
    throw new Error(`instructions: ${medians.length} lines`);
  return {
    writes: sizes.map((bytes, i) => ({ bytes, bare: medians[2 * i]!, fabric: medians[2 * i + 1]! })),
    commits: membersUp.map((up, i) => ({ up, instructions: medians[2 * sizes.length + i]! })),
  };
}

export function printInstructions({ writes, commits }: Instructions): void {
  console.log('\ninstructions, both ends in one thread, soft-RoCE included');
  console.log('                       verbs alone     fabric   ratio');
  for (const { bytes, bare, fabric } of writes) {
    console.log(
      `  write  ${String(bytes).padStart(4)} B       ${String(bare).padStart(11)}${String(fabric).padStart(11)}  ${(fabric / bare).toFixed(2).padStart(6)}`,
    );
  }
  const floor = writes.find(({ bytes }) => bytes === logEntryBytes)?.bare;
  for (const { up, instructions } of commits) {
    const ratio = floor === undefined ? '-' : (instructions / floor).toFixed(2);
    console.log(
      `  commit ${String(logEntryBytes).padStart(4)} B, ${up} up            ${String(instructions).padStart(11)}  ${ratio.padStart(6)} writes of verbs alone`,
    );
  }
}
