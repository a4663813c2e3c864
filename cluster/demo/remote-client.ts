/** Driving `client.ts` in another network namespace: a word out, a tally back. */
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

import { ownGarbage } from '../../src/api/lifecycle.js';
import type { Tally } from './key-client.js';

export interface RemoteClientOptions {
  /** null: here. */
  readonly netns: string | null;
  readonly host: string;
  readonly port: number;
  readonly seed: number;
  readonly depth: number;
  readonly thinkMs?: number;
}

export type ClientWord = 'write' | 'rest' | 'verify' | 'tally' | `read:${number}`;

/** Longer than the client itself tries to connect. */
const startMs = 45_000;

export class RemoteClient {
  private readonly child: ChildProcess;
  private readonly answers: Tally[] = [];
  private waiter: {
    readonly resolve: (tally: Tally) => void;
    readonly reject: (error: Error) => void;
  } | null = null;
  private ended: string | null = null;

  private constructor(options: RemoteClientOptions) {
    const program = fileURLToPath(new URL('client.js', import.meta.url));
    const { host, port, seed, depth, thinkMs = 0 } = options;
    // It notes gaps: one that waits for V8's own threads would note its own.
    const node = [process.execPath, ownGarbage, program, host, ...[port, seed, depth, thinkMs].map(String)];
    const [file = '', ...args] =
      options.netns === null ? node : ['ip', 'netns', 'exec', options.netns, ...node];
    // A session of its own: ctrl-C is the driver's affair.
    this.child = spawn(file, args, { stdio: ['pipe', 'pipe', 'inherit'], detached: true });
    this.child.once('error', (error) => this.end(error.message));
    this.child.once('close', (code, by) => this.end(`the client ended with ${code ?? by}`));
    this.child.stdin?.on('error', () => undefined);
    if (this.child.stdout !== null) {
      createInterface({ input: this.child.stdout }).on('line', (line) => this.onLine(line));
    }
  }

  /** Starts the process and waits for its connection. */
  static async start(options: RemoteClientOptions): Promise<RemoteClient> {
    const client = new RemoteClient(options);
    try {
      await client.answer(startMs);
      return client;
    } catch (error) {
      client.stop();
      throw error;
    }
  }

  /** One word; returns the tally that answers it. */
  say(word: ClientWord, timeoutMs: number): Promise<Tally> {
    this.child.stdin?.write(`${word}\n`);
    return this.answer(timeoutMs);
  }

  get pid(): number | null {
    return this.child.pid ?? null;
  }

  /** Kills the process. */
  stop(): void {
    if (this.ended === null) this.child.kill('SIGKILL');
  }

  private onLine(line: string): void {
    const tally = JSON.parse(line) as Tally;
    const waiter = this.waiter;
    if (waiter === null) {
      this.answers.push(tally);
      return;
    }
    this.waiter = null;
    waiter.resolve(tally);
  }

  private answer(timeoutMs: number): Promise<Tally> {
    const ready = this.answers.shift();
    if (ready !== undefined) return Promise.resolve(ready);
    if (this.ended !== null) return Promise.reject(new Error(this.ended));
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.waiter = null;
        reject(new Error(`the client does not answer after ${timeoutMs} ms`));
      }, timeoutMs);
      this.waiter = {
        resolve: (tally) => {
          clearTimeout(timer);
          resolve(tally);
        },
        reject: (error) => {
          clearTimeout(timer);
          reject(error);
        },
      };
    });
  }

  private end(why: string): void {
    this.ended ??= why;
    const waiter = this.waiter;
    this.waiter = null;
    waiter?.reject(new Error(this.ended));
  }
}
