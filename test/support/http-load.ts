/**
 * Traffic for an nginx with `web-pages.ts`, run in the client's namespace:
 *   node http-load.js HOST PORT mixed SECONDS   kept and short connections, conditional, pipelined, HEAD, large, unknown
 *   node http-load.js HOST PORT small COUNT     COUNT small requests on one connection
 * Every answer is checked; a kept connection that breaks is an error. Prints one JSON object.
 */
import { sleep } from '../../src/lib/time.js';
import { ByteStream } from './byte-stream.js';
import { pages } from './web-pages.js';
import type { PagePath } from './web-pages.js';

const [host = '', port = '', mode = '', amount = ''] = process.argv.slice(2);
/** Of one kept connection; a machine with few processors runs three guests. */
const pauseMs = 20;
/** A guest that lags must not have more to say than is kept for it. */
const largePauseMs = 500;

const open = (): Promise<ByteStream> => ByteStream.open(host, Number(port));
const request = (method: string, path: string, ...headers: string[]): string =>
  [`${method} ${path} HTTP/1.1`, `Host: ${host}`, ...headers, '', ''].join('\r\n');

/** Of the Date headers. */
const years = new Set<string>();

interface Answer {
  readonly status: number;
  readonly headers: ReadonlyMap<string, string>;
}

async function head(stream: ByteStream): Promise<Answer> {
  const [first = '', ...lines] = (await stream.until('\r\n\r\n')).trimEnd().split('\r\n');
  const headers = new Map(
    lines.map((line) => [
      line.slice(0, line.indexOf(':')).toLowerCase(),
      line.slice(line.indexOf(':') + 1).trim(),
    ]),
  );
  years.add(/ (\d{4}) /.exec(headers.get('date') ?? '')?.[1] ?? 'none');
  return { status: Number(first.split(' ')[1]), headers };
}

function expectStatus(answer: Answer, status: number, what: string): void {
  if (answer.status !== status) throw new Error(`${what}: ${answer.status} instead of ${status}`);
}

async function expectPage(stream: ByteStream, path: PagePath): Promise<Answer> {
  const answer = await head(stream);
  expectStatus(answer, 200, path);
  if (Number(answer.headers.get('content-length')) !== pages[path].length)
    throw new Error(`${path}: a length of ${answer.headers.get('content-length')}`);
  await stream.expect(pages[path]);
  return answer;
}

/** One round of each kind of request, over and over, on one connection. */
async function kept(until: number): Promise<number> {
  const stream = await open();
  let count = 0;
  for (; performance.now() < until; count += 5) {
    stream.write(request('GET', '/page.txt'));
    const { headers } = await expectPage(stream, '/page.txt');
    await sleep(pauseMs);
    stream.write(request('GET', '/page.txt', `If-Modified-Since: ${headers.get('last-modified')}`));
    expectStatus(await head(stream), 304, 'not modified');
    await sleep(pauseMs);
    stream.write(request('HEAD', '/large.bin'));
    expectStatus(await head(stream), 200, 'HEAD');
    await sleep(pauseMs);
    stream.write(request('GET', `/unknown-${count}`));
    const missing = await head(stream);
    expectStatus(missing, 404, 'an unknown path');
    await stream.read(Number(missing.headers.get('content-length')));
    stream.write(request('GET', '/small.txt'));
    await expectPage(stream, '/small.txt');
    await sleep(pauseMs);
  }
  stream.end();
  return count;
}

async function pipelined(until: number): Promise<number> {
  const stream = await open();
  let rounds = 0;
  for (; performance.now() < until; rounds++) {
    const paths: PagePath[] = Array.from({ length: 16 }, (_, i) =>
      i % 4 === 0 ? '/page.txt' : '/small.txt',
    );
    stream.write(paths.map((path) => request('GET', path)).join(''));
    for (const path of paths) await expectPage(stream, path);
    await sleep(3 * pauseMs);
  }
  stream.end();
  return rounds * 16;
}

async function large(until: number): Promise<number> {
  const stream = await open();
  let count = 0;
  for (; performance.now() < until; count++) {
    stream.write(request('GET', '/large.bin'));
    await expectPage(stream, '/large.bin');
    await sleep(largePauseMs);
  }
  stream.end();
  return count;
}

/** Ended by the server, by the client, or by a reset in the middle of an answer. */
async function short(until: number): Promise<number> {
  let count = 0;
  for (; performance.now() < until; count++) {
    const stream = await open();
    const ending = count % 3;
    if (ending === 2) {
      stream.write(request('GET', '/large.bin'));
      await head(stream);
      stream.socket.resetAndDestroy();
      continue;
    }
    stream.write(request('GET', '/page.txt', ...(ending === 0 ? ['Connection: close'] : [])));
    await expectPage(stream, '/page.txt');
    if (ending === 0) await stream.expectEnd();
    else stream.end();
  }
  return count;
}

async function mixed(seconds: number): Promise<unknown> {
  const until = performance.now() + seconds * 1000;
  const [bulk, pipes, shorts, ...keeps] = await Promise.all([
    large(until),
    pipelined(until),
    short(until),
    ...Array.from({ length: 6 }, () => kept(until)),
  ]);
  return { kept: keeps, pipelined: pipes, large: bulk, short: shorts, years: [...years] };
}

async function small(count: number): Promise<unknown> {
  const stream = await open();
  for (let i = 0; i < count; i++) {
    stream.write(request('GET', '/small.txt'));
    await expectPage(stream, '/small.txt');
  }
  stream.end();
  return { port: stream.socket.localPort, years: [...years] };
}

const result = (await (mode === 'mixed' ? mixed(Number(amount)) : small(Number(amount)))) as object;
process.stdout.write(`${JSON.stringify({ ...result, slowestMs: Math.round(ByteStream.slowestMs) })}\n`);
process.exit(0);
