/**
 * Traffic for a memcached, run in the client's namespace:
 *   node memcached-load.js HOST PORT SECONDS
 * Every answer is checked; a kept connection that breaks is an error. Prints one JSON object.
 *
 * Connections have keys of their own. Numbers of `gets` count the writes of all connections, so they are asked for
 * at the end only, while nobody else writes: a guest that lags may serve connections in another order.
 */
import { sleep } from '../../src/lib/time.js';
import { ByteStream } from './byte-stream.js';

const [host = '', port = '', seconds = ''] = process.argv.slice(2);
const pauseMs = 10;
/** A guest that lags must not have more input waiting than is held for it. */
const largePauseMs = 300;
/** A guest that lags must have taken what one connection wrote before the next one writes. */
const lagMs = 2000;
const turns = 3;

const open = (): Promise<ByteStream> => ByteStream.open(host, Number(port));
/** All 256 bytes, line ends and the protocol's own words among them. */
const binary = Buffer.concat([
  Buffer.from('END\r\nVALUE x 0 1\r\n\0'),
  Buffer.from(Array.from({ length: 256 }, (_, i) => i)),
]);
const end = 'END\r\n';

const set = (key: string, value: Uint8Array | string, more = ''): Buffer => {
  const bytes = Buffer.from(value);
  return Buffer.concat([
    Buffer.from(`set ${key} 5 0 ${bytes.length}${more}\r\n`),
    bytes,
    Buffer.from('\r\n'),
  ]);
};
const found = (key: string, value: Uint8Array | string): Buffer => {
  const bytes = Buffer.from(value);
  return Buffer.concat([Buffer.from(`VALUE ${key} 5 ${bytes.length}\r\n`), bytes, Buffer.from('\r\n')]);
};

async function ask(
  stream: ByteStream,
  command: string | Uint8Array,
  answer: string | Uint8Array,
): Promise<void> {
  stream.write(command);
  await stream.expect(answer);
}

async function kept(name: string, until: number): Promise<number> {
  const stream = await open();
  await ask(stream, set(`${name}-n`, '0'), 'STORED\r\n');
  let rounds = 0;
  for (; performance.now() < until; rounds++) {
    const value = `value ${rounds} of ${name} `.repeat(1 + (rounds % 40));
    await ask(stream, set(`${name}-a`, value), 'STORED\r\n');
    await ask(stream, set(`${name}-b`, binary), 'STORED\r\n');
    await sleep(pauseMs);
    const both = Buffer.concat([found(`${name}-a`, value), found(`${name}-b`, binary), Buffer.from(end)]);
    await ask(stream, `get ${name}-a ${name}-missing ${name}-b\r\n`, both);
    await ask(stream, `incr ${name}-n 3\r\n`, `${3 * rounds + 3}\r\n`);
    // Nothing answers these two; the third shows that both were carried out.
    const quiet = [
      set(`${name}-q`, 'quiet', ' noreply'),
      Buffer.from(`append ${name}-q 0 0 2 noreply\r\n!!\r\n`),
    ];
    await ask(
      stream,
      Buffer.concat([...quiet, Buffer.from(`get ${name}-q\r\n`)]),
      Buffer.concat([found(`${name}-q`, 'quiet!!'), Buffer.from(end)]),
    );
    await sleep(pauseMs);
    await ask(stream, `delete ${name}-q\r\n`, 'DELETED\r\n');
    await ask(stream, `delete ${name}-q\r\n`, 'NOT_FOUND\r\n');
    await ask(stream, `nonsense\r\n`, 'ERROR\r\n');
    await sleep(pauseMs);
  }
  stream.end();
  return rounds * 10;
}

async function pipelined(until: number): Promise<number> {
  const stream = await open();
  let rounds = 0;
  for (; performance.now() < until; rounds++) {
    const one = (i: number): [Buffer, Buffer] => [
      Buffer.concat([set(`p-${i}`, `${rounds} ${i}`), Buffer.from(`get p-${i}\r\n`)]),
      Buffer.concat([Buffer.from('STORED\r\n'), found(`p-${i}`, `${rounds} ${i}`), Buffer.from(end)]),
    ];
    const all = Array.from({ length: 30 }, (_, i) => one(i));
    await ask(
      stream,
      Buffer.concat(all.map(([command]) => command)),
      Buffer.concat(all.map(([, text]) => text)),
    );
    await sleep(3 * pauseMs);
  }
  stream.end();
  return rounds * 60;
}

async function large(until: number): Promise<number> {
  const stream = await open();
  let rounds = 0;
  for (; performance.now() < until; rounds++) {
    const value = Buffer.concat(Array.from({ length: 150 }, () => binary));
    await ask(stream, set('large', value), 'STORED\r\n');
    await ask(stream, 'get large\r\n', Buffer.concat([found('large', value), Buffer.from(end)]));
    await sleep(largePauseMs);
  }
  stream.end();
  return rounds * 2;
}

/** Ended by the server, by the client, or by a reset in the middle of an answer. */
async function short(until: number): Promise<number> {
  const value = 'long '.repeat(8000);
  const first = await open();
  await ask(first, set('long', value), 'STORED\r\n');
  first.end();
  let count = 0;
  for (; performance.now() < until; count++) {
    const stream = await open();
    await ask(stream, set('s', String(count)), 'STORED\r\n');
    if (count % 3 === 0) {
      stream.write('quit\r\n');
      await stream.expectEnd();
    } else if (count % 3 === 1) stream.end();
    else {
      stream.write('get long\r\n');
      await stream.until('\r\n');
      stream.socket.resetAndDestroy();
    }
  }
  return count;
}

/** Connections take turns, so that the numbers follow from the input. */
async function numbered(): Promise<number> {
  const streams = await Promise.all(Array.from({ length: turns }, () => open()));
  let count = 0;
  for (const [turn, stream] of streams.entries()) {
    await sleep(lagMs);
    for (let i = 0; i < 20; i++, count++) {
      await ask(stream, set('counted', `${turn} ${i}`), 'STORED\r\n');
      stream.write('gets counted\r\n');
      const line = await stream.until('\r\n');
      const number = /^VALUE counted 5 \d+ (\d+)\r\n$/.exec(line)?.[1];
      if (number === undefined) throw new Error(`gets: ${line}`);
      await stream.expect(`${turn} ${i}\r\n${end}`);
      await ask(stream, `cas counted 5 0 3 ${number}\r\nnew\r\n`, 'STORED\r\n');
      await ask(stream, `cas counted 5 0 3 ${number}\r\nold\r\n`, 'EXISTS\r\n');
    }
    stream.end();
  }
  return count * 4;
}

const until = performance.now() + Number(seconds) * 1000;
const [bulk, pipes, shorts, ...keeps] = await Promise.all([
  large(until),
  pipelined(until),
  short(until),
  ...Array.from({ length: 6 }, (_, i) => kept(`k${i}`, until)),
]);
const counts = { kept: keeps, pipelined: pipes, large: bulk, short: shorts, gets: await numbered() };
process.stdout.write(`${JSON.stringify({ ...counts, slowestMs: Math.round(ByteStream.slowestMs) })}\n`);
process.exit(0);
