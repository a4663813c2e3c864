/** Time for the engine: milliseconds on a monotonic clock whose zero does not matter. */
export interface Clock {
  now(): number;
}
