/**
 * Assertions that stay on. A broken invariant stops the process: a silent replica is safe, a wrong one is not.
 */

/** Thrown for a broken invariant. Nobody but the outermost handler catches it. */
export class InvariantError extends Error {
  readonly code = 'INVARIANT_BROKEN';

  constructor(text: string) {
    super(text);
    this.name = 'InvariantError';
  }
}

/** Throws an InvariantError with `text` unless `condition` holds. */
export function assert(condition: unknown, text: string): asserts condition {
  if (!condition) throw new InvariantError(text);
}

/** Marks a branch that the types say cannot be reached. */
export function unreachable(value: never): never {
  throw new InvariantError(`unexpected value ${JSON.stringify(value)}`);
}
