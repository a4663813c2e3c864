/** Waiting, for everything outside the pure cores. */

export function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/** Monotonic milliseconds. Wall clocks decide nothing. */
export function monotonicMs(): number {
  return performance.now();
}

/** Asks `done` every `everyMs` until it says true (returns true) or `timeoutMs` has passed (returns false). */
export async function waitUntil(
  done: () => boolean | Promise<boolean>,
  options: { readonly timeoutMs: number; readonly everyMs: number },
): Promise<boolean> {
  const end = monotonicMs() + options.timeoutMs;
  for (;;) {
    if (await done()) return true;
    if (monotonicMs() >= end) return false;
    await sleep(options.everyMs);
  }
}
