/**
 * Seeded pseudo-random numbers: everything that is left to chance comes from one seed and can be played again.
 *
 * The generator is xoshiro128** 1.1 (David Blackman and Sebastiano Vigna, 2018, public domain,
 * https://prng.di.unimi.it/), its state filled from the seed by SplitMix32's mixing steps. Not for secrets.
 */
import { assert } from './assert.js';

function rotateLeft(value: number, bits: number): number {
  return ((value << bits) | (value >>> (32 - bits))) >>> 0;
}

export class Random {
  private readonly s: Uint32Array<ArrayBuffer>;

  /** `seed`: any integer; only its low 32 bits and the 21 above them count. */
  constructor(seed: number) {
    assert(Number.isSafeInteger(seed), `a seed is an integer, not ${seed}`);
    let mixer = (seed ^ Math.imul(Math.floor(seed / 2 ** 32), 0x9e3779b1)) >>> 0;
    this.s = new Uint32Array(4);
    for (let i = 0; i < 4; i++) {
      mixer = (mixer + 0x9e3779b9) >>> 0;
      let z = mixer;
      z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
      z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
      this.s[i] = (z ^ (z >>> 15)) >>> 0;
    }
    if (this.s.every((word) => word === 0)) this.s[0] = 1;
  }

  /** Uniform in [0, 2^32). */
  uint32(): number {
    const s = this.s;
    const result = Math.imul(rotateLeft(Math.imul(s[1]!, 5) >>> 0, 7), 9) >>> 0;
    const shifted = s[1]! << 9;
    s[2] = s[2]! ^ s[0]!;
    s[3] = s[3]! ^ s[1]!;
    s[1] = s[1]! ^ s[2];
    s[0] = s[0]! ^ s[3];
    s[2] = s[2] ^ shifted;
    s[3] = rotateLeft(s[3], 11);
    return result;
  }

  /** Uniform in [0, 1), 32 bits of it. */
  float(): number {
    return this.uint32() / 2 ** 32;
  }

  /** Uniform integer in [0, bound); `bound` from 1 to 2^32. */
  below(bound: number): number {
    assert(bound >= 1 && bound <= 2 ** 32, `bound ${bound} out of range`);
    return Math.floor(this.float() * bound);
  }

  /** True with probability `p`. */
  chance(p: number): boolean {
    return this.float() < p;
  }

  /** One element of a list that is not empty. */
  pick<T>(list: readonly T[]): T {
    assert(list.length > 0, 'nothing to pick from');
    return list[this.below(list.length)]!;
  }

  /** A generator of its own, so that one consumer's draws do not shift another's. */
  fork(): Random {
    return new Random(this.uint32());
  }
}
