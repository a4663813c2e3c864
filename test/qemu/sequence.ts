// Numbered frames: taken and compared, byte by byte and in order.
import type { Test } from 'tap';
import { until } from './lines.js';
import { numberedFrame, type Peer, type Ring } from './peer.js';

export interface Sequence {
  readonly first: number;
  readonly count: number;
  readonly size: number;
}

/** One assertion for the whole sequence; says which frame is the first wrong one. */
export function checkNumbered(t: Test, frames: readonly Buffer[], { first, count, size }: Sequence): void {
  const wrong = frames.findIndex((frame, i) => !frame.equals(numberedFrame(first + i, size)));
  const what =
    wrong < 0 ? 'none' : `${first + wrong}: ${frames[wrong]?.subarray(0, 24).toString('hex') ?? ''}`;
  t.same(
    { count: frames.length, wrong: what },
    { count, wrong: 'none' },
    `frames ${first} to ${first + count - 1}`,
  );
}

/** Empties `ring` until the sequence has come out of it, and checks that nothing else has. */
export async function takeNumbered(t: Test, peer: Peer, ring: Ring, sequence: Sequence): Promise<void> {
  const frames: Buffer[] = [];
  await until(`${sequence.count} frames come out of ${ring}`, async () => {
    frames.push(...(await peer.take(ring, 100)));
    return frames.length >= sequence.count;
  });
  checkNumbered(t, frames, sequence);
}
