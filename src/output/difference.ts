/** Where two outputs part, by the last bytes of each. */

export const shownBytes = 64;
const before = 16;

export interface Tail {
  /** The output's length where the tail ends. */
  readonly end: number;
  readonly bytes: Uint8Array;
}

export interface Difference {
  /** null: the bytes that are kept are the same. */
  readonly at: number | null;
  /** Where the shown bytes begin. */
  readonly from: number;
  readonly expected: Uint8Array;
  readonly found: Uint8Array;
}

/** Positions count from the beginning of the output. Both tails may have lost what came before them. */
export function firstDifference(expected: Tail, found: Tail): Difference {
  const start = Math.max(expected.end - expected.bytes.length, found.end - found.bytes.length);
  const end = Math.min(expected.end, found.end);
  let at: number | null = null;
  for (let position = start; position < end && at === null; position++) {
    if (byteAt(expected, position) !== byteAt(found, position)) at = position;
  }
  if (at === null && expected.end !== found.end && start <= end) at = end;
  const from = Math.max(start, (at ?? end) - before);
  return { at, from, expected: cut(expected, from), found: cut(found, from) };
}

function byteAt(tail: Tail, position: number): number | undefined {
  return tail.bytes[position - (tail.end - tail.bytes.length)];
}

function cut(tail: Tail, from: number): Uint8Array {
  const start = from - (tail.end - tail.bytes.length);
  return start < 0 ? new Uint8Array() : tail.bytes.slice(start, start + shownBytes);
}
