/**
 * Time in the core: a tick brings `now`, and a timeout is a named object with a deadline and the number of
 * attempts that have failed so far, from which its back-off follows.
 */
import { assert } from '../lib/assert.js';
import type { Milliseconds } from './types.js';

/** Back-off doubles with each failed attempt up to this factor. */
const maxBackOffFactor = 4;

export class Timeout {
  readonly name: string;
  /** When it is due; null: not armed. */
  deadline: Milliseconds | null = null;
  /** Failed attempts since the last success. */
  attempts = 0;

  constructor(name: string) {
    this.name = name;
  }

  armAt(deadline: Milliseconds): void {
    assert(Number.isFinite(deadline), `timeout ${this.name} armed at ${deadline}`);
    this.deadline = deadline;
  }

  cancel(): void {
    this.deadline = null;
  }

  due(now: Milliseconds): boolean {
    return this.deadline !== null && now >= this.deadline;
  }

  /** Counts a failed attempt. */
  failed(): void {
    this.attempts++;
  }

  succeeded(): void {
    this.attempts = 0;
  }

  /** 1, 2, 4, then 4 for ever: a wait grows, but a healed network is not kept waiting for long. */
  backOffFactor(): number {
    return Math.min(2 ** this.attempts, maxBackOffFactor);
  }
}

/** Uniform in [low, high). `random`: uniform in [0, 1). */
export function randomBetween(random: () => number, low: Milliseconds, high: Milliseconds): Milliseconds {
  assert(low <= high, `bounds ${low}, ${high} the wrong way round`);
  const draw = random();
  assert(draw >= 0 && draw < 1, `random() gave ${draw}`);
  return low + draw * (high - low);
}

/** `base` half to one and a half times: two replicas that repeat do not stay in step. */
export function jittered(random: () => number, base: Milliseconds): Milliseconds {
  return randomBetween(random, base * 0.5, base * 1.5);
}
