/**
 * Traffic for a Redis, run in the client's namespace:
 *   node redis-load.js HOST PORT mixed SECONDS   pipelines, large values, many short connections, pub/sub
 *   node redis-load.js HOST PORT lines LINE...   each LINE on a connection of its own, between harmless ones
 * Prints one JSON object.
 *
 * No answer depends on what another connection does at the same time: a guest that lags gets the input of several
 * connections at once, and may serve them in another order.
 */
import { connect } from 'node:net';
import type { Socket } from 'node:net';

const [host = '', port = '', mode = '', ...rest] = process.argv.slice(2);
const replyMs = 30_000;
/** A guest that lags must not have more input waiting than is held for it. */
const largePauseMs = 300;
/** A guest that lags must have published all before the subscriber leaves. */
const lagMs = 5000;

class Connection {
  readonly socket: Socket;
  bytes = 0;
  private waiter: (() => void) | null = null;

  private constructor(socket: Socket) {
    this.socket = socket;
    socket.setNoDelay(true);
    socket.on('data', (chunk) => {
      this.bytes += chunk.length;
      this.waiter?.();
    });
    socket.on('error', () => this.waiter?.());
  }

  static open(): Promise<Connection> {
    return new Promise((resolve, reject) => {
      const socket = connect(Number(port), host);
      socket.once('error', reject);
      socket.once('connect', () => resolve(new Connection(socket)));
    });
  }

  /** Sends and waits until `bytes` more have come back. */
  async ask(text: string, bytes: number): Promise<void> {
    const wanted = this.bytes + bytes;
    this.socket.write(text);
    const until = performance.now() + replyMs;
    while (this.bytes < wanted) {
      if (performance.now() > until)
        throw new Error(`${wanted - this.bytes} bytes of the answer are missing`);
      await new Promise<void>((resolve) => {
        this.waiter = resolve;
        setTimeout(resolve, 100);
      });
    }
  }
}

const bulk = (value: string): string => `$${Buffer.byteLength(value)}\r\n${value}\r\n`;
const command = (...words: string[]): string => `*${words.length}\r\n${words.map(bulk).join('')}`;
const ok = '+OK\r\n'.length;

async function pipelines(until: number): Promise<number> {
  const connection = await Connection.open();
  let rounds = 0;
  for (; performance.now() < until; rounds++) {
    const value = `value-${rounds}`.padEnd(20 + (rounds % 200), '.');
    const batch = Array.from(
      { length: 20 },
      (_, i) => command('SET', `p${i}`, value) + command('GET', `p${i}`),
    );
    await connection.ask(batch.join(''), 20 * (ok + bulk(value).length));
  }
  connection.socket.end();
  return rounds * 40;
}

async function largeValues(until: number): Promise<number> {
  const connection = await Connection.open();
  const value = 'large value '.repeat(4000);
  let rounds = 0;
  for (; performance.now() < until; rounds++) {
    await connection.ask(command('SET', 'big', value + String(rounds % 10)), ok);
    await connection.ask(command('GET', 'big'), bulk(`${value}0`).length);
    await new Promise((resolve) => setTimeout(resolve, largePauseMs));
  }
  await connection.ask('QUIT\r\n', ok);
  return rounds * 2;
}

/** Ended by either side, orderly or with a reset. */
async function shortConnections(key: string, until: number): Promise<number> {
  const setUp = await Connection.open();
  await setUp.ask(command('SET', `${key}-long`, 'long value '.repeat(3000)), ok);
  setUp.socket.end();
  let count = 0;
  for (; performance.now() < until; count++) {
    const connection = await Connection.open();
    await connection.ask(
      command('SET', key, String(count % 10)) + command('GET', key),
      ok + bulk('0').length,
    );
    if (count % 3 === 0) await connection.ask('QUIT\r\n', ok);
    else if (count % 3 === 1) connection.socket.end();
    else {
      connection.socket.write(command('GET', `${key}-long`));
      connection.socket.resetAndDestroy();
    }
  }
  return count;
}

async function publications(until: number): Promise<number> {
  const subscriber = await Connection.open();
  await subscriber.ask(command('SUBSCRIBE', 'news'), '*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n'.length);
  const publisher = await Connection.open();
  let count = 0;
  for (; performance.now() < until; count++)
    await publisher.ask(command('PUBLISH', 'news', `item ${count}`), 4);
  publisher.socket.end();
  await new Promise((resolve) => setTimeout(resolve, lagMs));
  subscriber.socket.end();
  return count;
}

async function mixed(seconds: number): Promise<unknown> {
  const until = performance.now() + seconds * 1000;
  const [piped, large, short, shorter, published] = await Promise.all([
    pipelines(until),
    largeValues(until),
    shortConnections('s', until),
    shortConnections('t', until),
    publications(until),
  ]);
  return { piped, large, short: short + shorter, published };
}

/** `\r` and `\n` are written as such. Returns the port of each connection. */
async function lines(texts: readonly string[]): Promise<unknown> {
  const ports: number[] = [];
  for (const text of texts) {
    const connection = await Connection.open();
    ports.push(connection.socket.localPort ?? 0);
    for (let i = 0; i < 5; i++) await connection.ask('PING before\r\n', '$6\r\nbefore\r\n'.length);
    await connection.ask(text.replaceAll('\\r', '\r').replaceAll('\\n', '\n'), 1);
    for (let i = 0; i < 5; i++) await connection.ask('PING after\r\n', '$5\r\nafter\r\n'.length);
    connection.socket.end();
  }
  return { ports };
}

const result = mode === 'mixed' ? await mixed(Number(rest[0])) : await lines(rest);
process.stdout.write(`${JSON.stringify(result)}\n`);
process.exit(0);
