/**
 * The daemon's end of the admin protocol.
 *
 * Whoever may open the socket may ask; that is the file's owner alone. Still nothing that a client does may
 * hold the daemon up: connections, the length of a line, requests in flight and time are all bounded, and a
 * client that exceeds a bound is told the code and dropped.
 */
import { chmodSync, statSync, unlinkSync } from 'node:fs';
import { createServer } from 'node:net';
import type { Server, Socket } from 'node:net';

import { bounds } from '../lib/bounds.js';
import { asFalconError, errnoOf, FalconError } from '../lib/errors.js';
import { takeLock } from '../lib/lock.js';
import type { Lock } from '../lib/lock.js';
import { someoneListens } from './client.js';
import { formatLine, LineSplitter, parseRequest } from './protocol.js';
import type { AdminMethod, Reply, Request } from './protocol.js';

/** Answers a request: a JSON value, now or later. What it throws is sent as an error with its code. */
export type AdminHandler = (params: unknown) => unknown;

export type AdminHandlers = Readonly<Partial<Record<AdminMethod, AdminHandler>>>;

export interface AdminServer {
  /** Stops listening, drops all clients, removes the socket. May be called again. */
  close(): Promise<void>;
}

export interface AdminServerOptions {
  /** For tests: how long a client may take over a line or an answer. */
  readonly slowMs?: number;
}

/**
 * Listens on the Unix socket `path`, mode 0600. A socket file that a dead daemon left is replaced.
 * Errors: ALREADY_RUNNING if a live daemon has it.
 */
export async function startAdminServer(
  path: string,
  handlers: AdminHandlers,
  options: AdminServerOptions = {},
): Promise<AdminServer> {
  const lock = await takeLock(`admin ${path}`);
  if (lock === null)
    throw new FalconError('ALREADY_RUNNING', `another daemon is starting or running on ${path}`);
  try {
    await removeStaleSocket(path);
    const connections = new Set<Connection>();
    const server = createServer((socket) =>
      accept(socket, connections, handlers, options.slowMs ?? bounds.adminSlowMs),
    );
    await listen(server, path);
    chmodSync(path, 0o600);
    return closer(server, path, connections, lock);
  } catch (error) {
    await lock.release();
    throw error;
  }
}

/** Removes a socket that nobody listens on. Errors: ALREADY_RUNNING if somebody does. */
export async function removeStaleSocket(path: string): Promise<void> {
  const found = statSync(path, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!found.isSocket()) throw new FalconError('ALREADY_RUNNING', `${path} is no socket; remove it`);
  if (await someoneListens(path)) throw new FalconError('ALREADY_RUNNING', `a daemon answers on ${path}`);
  unlinkSync(path);
}

function listen(server: Server, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(path, () => {
      server.removeListener('error', reject);
      resolve();
    });
  });
}

function closer(server: Server, path: string, connections: Set<Connection>, lock: Lock): AdminServer {
  const socketFile = statSync(path);
  let closing: Promise<void> | null = null;
  async function close(): Promise<void> {
    // The path may be another daemon's by now, if somebody removed ours by hand.
    const current = statSync(path, { throwIfNoEntry: false });
    const stopped = new Promise<void>((resolve) => server.close(() => resolve()));
    for (const connection of connections) connection.drop();
    await stopped;
    if (current?.ino === socketFile.ino) removeIfThere(path);
    await lock.release();
  }
  return {
    close() {
      closing ??= close();
      return closing;
    },
  };
}

function removeIfThere(path: string): void {
  try {
    unlinkSync(path);
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error;
  }
}

function accept(socket: Socket, connections: Set<Connection>, handlers: AdminHandlers, slowMs: number): void {
  const connection = new Connection(socket, handlers, slowMs);
  if (connections.size >= bounds.adminConnectionsMax) {
    connection.refuse(new FalconError('ADMIN_BUSY', `${bounds.adminConnectionsMax} connections are open`));
    return;
  }
  connections.add(connection);
  socket.once('close', () => connections.delete(connection));
  connection.start();
}

/** One client: requests are answered one after the other, and reading stops while one is being answered. */
class Connection {
  private readonly socket: Socket;
  private readonly handlers: AdminHandlers;
  private readonly slowMs: number;
  private readonly splitter = new LineSplitter();
  private readonly lines: string[] = [];
  private answering = false;
  private slowTimer: NodeJS.Timeout | null = null;

  constructor(socket: Socket, handlers: AdminHandlers, slowMs: number) {
    this.socket = socket;
    this.handlers = handlers;
    this.slowMs = slowMs;
    // A client that goes away in the middle is no trouble of ours; 'close' follows.
    socket.on('error', () => undefined);
  }

  start(): void {
    this.socket.setTimeout(bounds.adminIdleMs, () =>
      this.refuse(new FalconError('REQUEST_SLOW', 'the connection was idle')),
    );
    this.socket.on('data', (chunk) => this.onData(chunk));
    this.socket.once('close', () => this.stopTimer());
  }

  drop(): void {
    this.socket.destroy();
  }

  /** Says why, and ends the connection. */
  refuse(error: FalconError): void {
    this.stopTimer();
    this.socket.removeAllListeners('data');
    this.socket.end(formatLine(errorReply(null, error)));
    // Bytes that still arrive are thrown away, so that the refusal is not lost in a reset; but not for ever.
    this.socket.resume();
    this.socket.setTimeout(this.slowMs, () => this.socket.destroy());
    setTimeout(() => this.socket.destroy(), this.slowMs).unref();
  }

  private onData(chunk: Buffer): void {
    try {
      this.lines.push(...this.splitter.take(chunk));
    } catch (error) {
      this.refuse(asFalconError(error));
      return;
    }
    if (this.lines.length > bounds.adminPendingMaxRequests) {
      this.refuse(
        new FalconError('REQUEST_TOO_LARGE', `more than ${bounds.adminPendingMaxRequests} requests at once`),
      );
      return;
    }
    if (!this.splitter.partial) this.stopTimer();
    else
      this.slowTimer ??= setTimeout(
        () => this.refuse(new FalconError('REQUEST_SLOW', 'a line was not finished')),
        this.slowMs,
      );
    void this.answerLines();
  }

  private async answerLines(): Promise<void> {
    if (this.answering) return;
    this.answering = true;
    this.socket.pause();
    for (
      let line = this.lines.shift();
      line !== undefined && !this.socket.destroyed;
      line = this.lines.shift()
    ) {
      const { reply, wrong } = await this.answer(line);
      if (wrong !== null) {
        this.refuse(wrong);
        return;
      }
      if (!(await this.send(reply))) return;
    }
    this.answering = false;
    this.socket.resume();
  }

  /** `wrong`: the line was no request, and what follows it cannot be trusted to be one. */
  private async answer(line: string): Promise<{ reply: string; wrong: FalconError | null }> {
    let request: Request;
    try {
      request = parseRequest(line);
    } catch (error) {
      return { reply: '', wrong: asFalconError(error) };
    }
    try {
      const handler = Object.hasOwn(this.handlers, request.method)
        ? this.handlers[request.method as AdminMethod]
        : undefined;
      if (handler === undefined) throw new FalconError('METHOD_UNKNOWN', request.method.slice(0, 100));
      return {
        reply: formatLine({ id: request.id, result: (await handler(request.params)) ?? null }),
        wrong: null,
      };
    } catch (error) {
      return { reply: formatLine(errorReply(request.id, asFalconError(error))), wrong: null };
    }
  }

  /** False if the client does not take the answer. */
  private send(reply: string): Promise<boolean> {
    if (this.socket.destroyed) return Promise.resolve(false);
    if (this.socket.write(reply)) return Promise.resolve(true);
    return new Promise((resolve) => {
      const timer = setTimeout(() => {
        this.socket.destroy();
        resolve(false);
      }, this.slowMs);
      const done = (taken: boolean): void => {
        clearTimeout(timer);
        resolve(taken);
      };
      this.socket.once('drain', () => done(true));
      this.socket.once('close', () => done(false));
    });
  }

  private stopTimer(): void {
    if (this.slowTimer !== null) clearTimeout(this.slowTimer);
    this.slowTimer = null;
  }
}

function errorReply(id: number | string | null, error: FalconError): Reply {
  return { id, error: { code: error.code, message: error.message } };
}
