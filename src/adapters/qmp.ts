/**
 * A client of QEMU's monitor protocol on a stream that is connected already: requests go out with an id and come back
 * in any order, events in between. Each request has a time limit; what comes after it is dropped.
 */
import type { Duplex } from 'node:stream';

import { bounds } from '../lib/bounds.js';
import { FalconError, isErrorCode, messageOf } from '../lib/errors.js';

export interface QmpOptions {
  readonly greetingMs?: number;
  readonly requestMs?: number;
  readonly onEvent?: (name: string, data: unknown) => void;
}

interface Pending {
  readonly command: string;
  readonly timer: NodeJS.Timeout;
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: FalconError) => void;
}

interface Message {
  readonly QMP?: unknown;
  readonly id?: unknown;
  readonly return?: unknown;
  readonly error?: { readonly desc?: unknown };
  readonly event?: unknown;
  readonly data?: unknown;
}

const greeting = 'the greeting';

export class QmpClient {
  private readonly stream: Duplex;
  private readonly requestMs: number;
  private readonly onEvent: (name: string, data: unknown) => void;
  private readonly pending = new Map<number, Pending>();
  /** The capabilities are negotiated: requests may go out. */
  private readonly opened: Promise<unknown>;
  private nextId = 1;
  private unread: Buffer[] = [];
  private unreadBytes = 0;
  private ended: FalconError | null = null;

  constructor(stream: Duplex, options: QmpOptions = {}) {
    this.stream = stream;
    this.requestMs = options.requestMs ?? bounds.qmpRequestMs;
    this.onEvent = options.onEvent ?? ((): void => undefined);
    stream.on('data', (chunk: Buffer) => this.read(chunk));
    stream.once('error', (error) => this.end(messageOf(error)));
    stream.once('close', () => this.end('the connection has ended'));
    // The greeting is waited for like the answer to a request that nobody has sent.
    this.opened = this.wait(0, greeting, options.greetingMs ?? bounds.qmpGreetingMs).then(() =>
      this.request('qmp_capabilities', {}),
    );
    this.opened.catch(() => undefined);
  }

  /**
   * Resolves with what the command returns. Errors: QMP_TIMEOUT, QMP_FAILED, and the codes that our own commands name
   * in their messages.
   */
  async execute(command: string, args: Readonly<Record<string, unknown>> = {}): Promise<unknown> {
    await this.opened;
    return this.request(command, args);
  }

  close(): void {
    this.end('it was closed');
  }

  private request(command: string, args: Readonly<Record<string, unknown>>): Promise<unknown> {
    if (this.pending.size >= bounds.qmpPendingMaxRequests)
      return Promise.reject(
        new FalconError('QMP_FAILED', `${command}: ${this.pending.size} requests are waiting`),
      );
    const id = this.nextId++;
    const answer = this.wait(id, command, this.requestMs);
    if (this.ended === null)
      this.stream.write(`${JSON.stringify({ execute: command, arguments: args, id })}\n`);
    return answer;
  }

  private wait(id: number, command: string, limitMs: number): Promise<unknown> {
    if (this.ended !== null) return Promise.reject(this.ended);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.pending.delete(id);
        reject(new FalconError('QMP_TIMEOUT', `${command}: nothing within ${limitMs} ms`));
      }, limitMs);
      this.pending.set(id, { command, timer, resolve, reject });
    });
  }

  private read(chunk: Buffer): void {
    let rest = chunk;
    for (let end = rest.indexOf(10); end >= 0 && this.ended === null; end = rest.indexOf(10)) {
      const line = Buffer.concat([...this.unread, rest.subarray(0, end)]);
      this.unread = [];
      this.unreadBytes = 0;
      rest = rest.subarray(end + 1);
      if (line.length > bounds.qmpLineMaxBytes) return this.end('a line is too long');
      this.take(line.toString('utf8'));
    }
    if (rest.length === 0 || this.ended !== null) return;
    this.unread.push(rest);
    this.unreadBytes += rest.length;
    if (this.unreadBytes > bounds.qmpLineMaxBytes) this.end('a line is too long');
  }

  private take(line: string): void {
    if (line.trim() === '') return;
    let message: Message;
    try {
      message = JSON.parse(line) as Message;
    } catch {
      return this.end('a line is no JSON');
    }
    if (typeof message !== 'object' || message === null) return this.end('a line is no object');
    if (typeof message.event === 'string') return this.onEvent(message.event, message.data);
    const id = message.QMP !== undefined ? 0 : message.id;
    const request = typeof id === 'number' ? this.pending.get(id) : undefined;
    if (request === undefined || typeof id !== 'number') return; // too late
    this.pending.delete(id);
    clearTimeout(request.timer);
    if (message.error === undefined) request.resolve(message.return);
    else request.reject(refusal(request.command, message.error.desc));
  }

  private end(why: string): void {
    if (this.ended !== null) return;
    const error = new FalconError('QMP_FAILED', why);
    this.ended = error;
    this.unread = [];
    for (const { timer, reject, command } of this.pending.values()) {
      clearTimeout(timer);
      reject(new FalconError('QMP_FAILED', `${command}: ${why}`));
    }
    this.pending.clear();
    this.stream.destroy();
  }
}

/** Our own commands begin their messages with falcon, a code and the reason. */
function refusal(command: string, description: unknown): FalconError {
  const text = typeof description === 'string' ? description : 'no reason given';
  const [, code, detail] = /^falcon: ([A-Z_]+): ([^]*)$/.exec(text) ?? [];
  if (isErrorCode(code)) return new FalconError(code, detail);
  return new FalconError('QMP_FAILED', `${command}: ${text}`);
}
