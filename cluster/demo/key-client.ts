/**
 * A client that can tell whether a server lost or changed anything: it writes numbered keys over one TCP
 * connection, reads some of them back on the way and all of them at the end, and times every reply.
 *
 * A key counts as acknowledged when the reply to its SET has arrived; what is in flight when something breaks
 * may be there or not, and proves nothing. The connection is never made anew: if it ends, that is a result.
 */
import { createHash } from 'node:crypto';
import { connect } from 'node:net';
import type { Socket } from 'node:net';

import { Random } from '../../src/lib/random.js';
import { encodeCommand, ReplyParser } from './resp.js';
import type { Reply } from './resp.js';

export interface KeyClientOptions {
  readonly host: string;
  readonly port: number;
  /** What the values are derived from. */
  readonly seed: number;
  /** Requests in flight while writing. */
  readonly depth?: number;
  /** Between a reply and the next request; 0: it asks back to back. */
  readonly thinkMs?: number;
  /** A silence of this long while requests are in flight counts as the end of the connection. */
  readonly silenceMs?: number;
}

/** A time without any reply although one was due; milliseconds on the machine's monotonic clock. */
export interface Gap {
  readonly startMs: number;
  readonly endMs: number;
}

export interface Tally {
  readonly acked: number;
  readonly readBack: number;
  /** Replies that were not what they had to be. */
  readonly wrong: number;
  /** Acknowledged keys that the server does not have any more; only verify() finds them. */
  readonly lost: number;
  readonly alive: boolean;
  /** The first few things that were not right, for people. */
  readonly trouble: readonly string[];
  /** The longest gaps, longest first. */
  readonly gaps: readonly Gap[];
}

interface Pending {
  readonly request: string;
  readonly done: (reply: Reply) => void;
}

const readBackEvery = 16;
const verifyDepth = 32;
const gapsMax = 64;
/** Shorter ones are not remembered, in milliseconds. */
export const notedGapMs = 5;
const troubleMax = 8;

/** Milliseconds on CLOCK_MONOTONIC, which all processes of a machine share. */
export function sharedClockMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

export function keyName(n: number): string {
  return `key:${n}`;
}

export function valueOf(seed: number, n: number): string {
  return createHash('sha256').update(`${seed}:${n}`).digest('hex').slice(0, 32);
}

export class KeyClient {
  private readonly socket: Socket;
  private readonly seed: number;
  private readonly depth: number;
  private readonly thinkMs: number;
  private readonly random: Random;
  private readonly parser = new ReplyParser();
  private readonly pending: Pending[] = [];
  private readonly acked: number[] = [];
  private readonly trouble: string[] = [];
  private readonly gaps: Gap[] = [];
  private readonly silence: NodeJS.Timeout;
  private next = 1;
  private writing = false;
  private readBack = 0;
  private wrong = 0;
  private lost = 0;
  private alive = true;
  /** When the reply that is waited for became due: at the last reply, or at the request that ended a rest. */
  private dueMs = 0;
  private wakeIdle: (() => void)[] = [];
  private readonly ended: Promise<void>;
  private onEnded: () => void = () => undefined;

  private constructor(socket: Socket, options: KeyClientOptions) {
    const silenceMs = options.silenceMs ?? 30_000;
    this.socket = socket;
    this.seed = options.seed;
    this.depth = options.depth ?? 1;
    this.thinkMs = options.thinkMs ?? 0;
    this.random = new Random(options.seed);
    this.ended = new Promise((resolve) => (this.onEnded = resolve));
    socket.setNoDelay(true);
    socket.on('data', (chunk) => this.onData(chunk));
    socket.on('error', (error) => this.end(`the connection broke: ${error.message}`));
    socket.on('close', () => this.end('the connection was closed'));
    this.silence = setInterval(() => {
      const waitedMs = sharedClockMs() - this.dueMs;
      if (this.pending.length > 0 && waitedMs > silenceMs)
        this.end(`no reply for ${Math.round(waitedMs)} ms`);
    }, 100);
  }

  /** Opens the one connection; fails after `timeoutMs`. */
  static connect(options: KeyClientOptions, timeoutMs: number): Promise<KeyClient> {
    return new Promise((resolve, reject) => {
      const socket = connect({ host: options.host, port: options.port, timeout: timeoutMs });
      const fail = (error: Error): void => {
        socket.destroy();
        reject(error);
      };
      socket.once('error', fail);
      socket.once('timeout', () =>
        fail(new Error(`no connection to ${options.host}:${options.port} in ${timeoutMs} ms`)),
      );
      socket.once('connect', () => {
        socket.off('error', fail);
        socket.setTimeout(0);
        resolve(new KeyClient(socket, options));
      });
    });
  }

  /** Writes on and on, until rest(). */
  write(): void {
    this.writing = true;
    while (this.pending.length < this.depth && this.alive) this.step();
  }

  /** Stops writing; returns when nothing is in flight any more, or the connection has ended. */
  rest(): Promise<void> {
    this.writing = false;
    if (this.pending.length === 0 || !this.alive) return Promise.resolve();
    return new Promise((resolve) => this.wakeIdle.push(resolve));
  }

  /** Reads every acknowledged key back over the same connection. */
  async verify(): Promise<void> {
    await this.rest();
    for (let i = 0; i < this.acked.length && this.alive; i += verifyDepth) {
      const batch = this.acked.slice(i, i + verifyDepth).map((n) => this.read(n));
      // A broken connection answers nothing: rest() ends then as well.
      await Promise.race([Promise.all(batch), this.rest()]);
    }
  }

  /** Reads one key that was written, also in the middle of writing; returns when its reply, or the end, has come. */
  async readKey(n: number): Promise<void> {
    if (this.alive) await Promise.race([this.read(n), this.ended]);
  }

  tally(): Tally {
    const { readBack, wrong, lost, alive, trouble } = this;
    return {
      acked: this.acked.length,
      readBack,
      wrong,
      lost,
      alive,
      trouble: [...trouble],
      gaps: [...this.gaps],
    };
  }

  close(): void {
    clearInterval(this.silence);
    this.socket.removeAllListeners('close');
    this.socket.removeAllListeners('error');
    this.socket.on('error', () => undefined);
    this.socket.destroy();
  }

  private step(): void {
    const n = this.next;
    if (n % readBackEvery === 0 && this.acked.length > 0) {
      this.next++;
      void this.read(this.random.pick(this.acked));
      return;
    }
    this.next++;
    void this.send(['SET', keyName(n), valueOf(this.seed, n)]).then((reply) => {
      if (reply.kind === 'status' && reply.text === 'OK') this.acked.push(n);
      else this.report('wrong', `SET ${keyName(n)}: ${describe(reply)}`);
    });
  }

  private async read(n: number): Promise<void> {
    const reply = await this.send(['GET', keyName(n)]);
    this.readBack++;
    if (reply.kind === 'bulk' && reply.value === valueOf(this.seed, n)) return;
    if (reply.kind === 'bulk' && reply.value === null) this.report('lost', `GET ${keyName(n)}: no such key`);
    else this.report('wrong', `GET ${keyName(n)}: ${describe(reply)}`);
  }

  private send(words: readonly string[]): Promise<Reply> {
    if (this.pending.length === 0) this.dueMs = sharedClockMs();
    this.socket.write(encodeCommand(words));
    return new Promise((done) => this.pending.push({ request: words.slice(0, 2).join(' '), done }));
  }

  private onData(chunk: Uint8Array): void {
    const now = sharedClockMs();
    this.noteGap({ startMs: this.dueMs, endMs: now });
    this.dueMs = now;
    let replies: Reply[];
    try {
      replies = this.parser.take(chunk);
    } catch (error) {
      this.report('wrong', error instanceof Error ? error.message : String(error));
      this.end('the reply stream is garbled');
      return;
    }
    for (const reply of replies) {
      const request = this.pending.shift();
      if (request === undefined) this.report('wrong', `a reply that nobody asked for: ${describe(reply)}`);
      else request.done(reply);
    }
    // The promises above settle first, so that what is written next can count on what was acknowledged.
    queueMicrotask(() => this.goOn());
  }

  private goOn(): void {
    const next = (): void => {
      if (this.writing) this.write();
    };
    if (this.writing && this.thinkMs > 0) setTimeout(next, this.thinkMs);
    else if (this.writing) this.write();
    else if (this.pending.length === 0) for (const wake of this.wakeIdle.splice(0)) wake();
  }

  private noteGap(gap: Gap): void {
    if (gap.endMs - gap.startMs < notedGapMs) return;
    this.gaps.push(gap);
    this.gaps.sort((a, b) => b.endMs - b.startMs - (a.endMs - a.startMs));
    this.gaps.length = Math.min(this.gaps.length, gapsMax);
  }

  private report(kind: 'wrong' | 'lost', what: string): void {
    if (kind === 'wrong') this.wrong++;
    else this.lost++;
    this.say(`${kind}: ${what}`);
  }

  private say(what: string): void {
    if (this.trouble.length < troubleMax) this.trouble.push(what);
  }

  private end(why: string): void {
    if (!this.alive) return;
    this.alive = false;
    this.writing = false;
    const waiting = this.pending[0];
    this.say(waiting === undefined ? why : `${why} (waiting for ${waiting.request})`);
    this.socket.destroy();
    this.onEnded();
    for (const wake of this.wakeIdle.splice(0)) wake();
  }
}

function describe(reply: Reply): string {
  return 'text' in reply ? `${reply.kind} ${reply.text}` : `${reply.kind} ${String(reply.value)}`;
}
