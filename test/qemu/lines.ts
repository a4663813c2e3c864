// Request and answer over a pair of streams, one line each: the test peer and QEMU's qtest both speak so.
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';

interface Waiter {
  readonly resolve: (line: string) => void;
  readonly reject: (error: Error) => void;
}

export class Lines {
  private readonly waiters: Waiter[] = [];
  private readonly unread: string[] = [];
  private readonly to: Writable;
  private ended = false;

  constructor(from: Readable, to: Writable) {
    this.to = to;
    // A peer that dies shows as the end of its output; the error of a late write says nothing more.
    to.on('error', () => {});
    const reader = createInterface({ input: from });
    reader.on('line', (line) => {
      const waiter = this.waiters.shift();
      if (waiter) waiter.resolve(line);
      else this.unread.push(line);
    });
    reader.on('close', () => {
      this.ended = true;
      for (const waiter of this.waiters.splice(0)) waiter.reject(new Error('the other side has ended'));
    });
    from.on('error', () => reader.close());
  }

  next(): Promise<string> {
    const line = this.unread.shift();
    if (line !== undefined) return Promise.resolve(line);
    if (this.ended) return Promise.reject(new Error('the other side has ended'));
    return new Promise((resolve, reject) => this.waiters.push({ resolve, reject }));
  }

  ask(line: string): Promise<string> {
    const answer = this.next();
    this.to.write(line + '\n');
    return answer;
  }
}

/** Asks again until `probe` is true; throws what `what` says after `limitMs`. */
export async function until(what: string, probe: () => Promise<boolean>, limitMs = 10_000): Promise<void> {
  const end = performance.now() + limitMs;
  while (!(await probe())) {
    if (performance.now() > end) throw new Error(`did not happen within ${limitMs} ms: ${what}`);
    await pause(10);
  }
}

export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
