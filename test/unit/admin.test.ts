/** The admin socket: answers, refusals, and clients that mean no good. */
import { existsSync, statSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { spawnSync } from 'node:child_process';
import t from 'tap';

import { callDaemon } from '../../src/api/client.js';
import { LineSplitter } from '../../src/api/protocol.js';
import { startAdminServer } from '../../src/api/server.js';
import type { AdminHandlers } from '../../src/api/server.js';
import { bounds } from '../../src/lib/bounds.js';
import { FalconError } from '../../src/lib/errors.js';
import { sleep, waitUntil } from '../../src/lib/time.js';
import { temporaryDirectory } from '../support/directory.js';

const handlers: AdminHandlers = {
  status: (params) => ({ params }),
  shutdown: () => undefined,
  'transfer-leader': () => Promise.reject(new FalconError('TRANSFER_REFUSED', 'not today')),
};

async function serve(t: Tap, options: { slowMs?: number; handlers?: AdminHandlers } = {}): Promise<string> {
  const path = join(temporaryDirectory(t), 'admin.sock');
  const server = await startAdminServer(path, options.handlers ?? handlers, {
    slowMs: options.slowMs ?? 1000,
  });
  t.teardown(() => server.close());
  return path;
}

interface Tap {
  teardown(handler: () => unknown): void;
}

async function codeOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
    return 'OK';
  } catch (error) {
    return error instanceof FalconError ? error.code : String(error);
  }
}

/** All that comes back on a raw connection until it is closed, or `lines` lines. */
function talk(path: string, send: string | Buffer, lines = Infinity): Promise<string> {
  return new Promise((resolve) => {
    let got = '';
    const socket = connect(path, () => socket.write(send));
    const finish = (): void => {
      socket.destroy();
      resolve(got);
    };
    socket.on('data', (chunk) => {
      got += chunk.toString();
      if (got.split('\n').length > lines) finish();
    });
    socket.on('error', () => undefined);
    socket.on('close', finish);
  });
}

void t.test('a request is answered', async (t) => {
  const path = await serve(t);
  t.same(await callDaemon(path, 'status', { a: [1, 'ü'] }), { params: { a: [1, 'ü'] } });
  t.equal(await callDaemon(path, 'shutdown'), null);
  t.equal(await codeOf(callDaemon(path, 'transfer-leader')), 'TRANSFER_REFUSED');
  t.equal(statSync(path).mode & 0o777, 0o600, 'for its owner alone');
  const several = '{"id":1,"method":"status"}\n{"id":"b","method":"none"}\n{"id":3,"method":"toString"}\n';
  const replies = (await talk(path, several, 3)).trim().split('\n');
  t.equal(replies[0], '{"id":1,"result":{"params":{}}}');
  t.match(replies[1], '{"id":"b","error":{"code":"METHOD_UNKNOWN"');
  t.match(replies[2], '{"id":3,"error":{"code":"METHOD_UNKNOWN"', 'not a property of every object');
});

void t.test('garbage is refused with a code, and the connection ends', async (t) => {
  const path = await serve(t);
  for (const garbage of [
    '\n',
    'GET / HTTP/1.1\r\n',
    '{"id":1}\n',
    '[]\n',
    '{"id":null,"method":"status"}\n',
    '{"id":1,"method":"status","x":1}\n',
    '\0\0\xff\n',
  ]) {
    t.match(
      await talk(path, garbage),
      /^\{"id":null,"error":\{"code":"REQUEST_INVALID".*\}\n$/,
      JSON.stringify(garbage),
    );
  }
  t.equal(await codeOf(callDaemon(path, 'status')), 'OK', 'others are still answered');
});

void t.test('a line that never ends is refused', async (t) => {
  const path = await serve(t);
  t.match(await talk(path, Buffer.alloc(bounds.adminLineMaxBytes + 1, 'x')), 'REQUEST_TOO_LARGE');
  t.match(
    await talk(path, '{"id":1,"method":"status"}\n'.repeat(20_000)),
    'REQUEST_TOO_LARGE',
    'requests without end',
  );
  t.equal(await codeOf(callDaemon(path, 'status')), 'OK');
});

void t.test('a client that does not finish its line is refused', async (t) => {
  const path = await serve(t, { slowMs: 100 });
  t.match(await talk(path, '{"id":1,'), 'REQUEST_SLOW');
});

void t.test('a client that does not take its answers is dropped', async (t) => {
  const big = 'x'.repeat(900_000);
  const path = await serve(t, { slowMs: 100, handlers: { status: () => big } });
  const socket = connect(path);
  socket.on('error', () => undefined);
  let closed = false;
  socket.on('close', () => (closed = true));
  socket.pause();
  socket.write('{"id":1,"method":"status"}\n'.repeat(20));
  await sleep(400);
  socket.resume();
  t.ok(await waitUntil(() => closed, { timeoutMs: 5000, everyMs: 20 }));
  t.equal(await codeOf(callDaemon(path, 'status')), 'OK');
});

void t.test('an answer that is too large is refused', async (t) => {
  const path = await serve(t, { handlers: { status: () => 'x'.repeat(bounds.adminLineMaxBytes) } });
  t.equal(await codeOf(callDaemon(path, 'status')), 'REQUEST_TOO_LARGE');
});

void t.test('connections are bounded', async (t) => {
  const path = await serve(t);
  const sockets: Socket[] = [];
  t.teardown(() => sockets.forEach((socket) => socket.destroy()));
  for (let i = 0; i < bounds.adminConnectionsMax; i++) {
    const socket = connect(path);
    sockets.push(socket);
    await new Promise((resolve) => socket.once('connect', resolve));
  }
  t.match(await talk(path, ''), 'ADMIN_BUSY');
  sockets[0]?.destroy();
  t.ok(
    await waitUntil(async () => (await codeOf(callDaemon(path, 'status'))) === 'OK', {
      timeoutMs: 2000,
      everyMs: 20,
    }),
  );
});

void t.test('one daemon a socket', async (t) => {
  const path = await serve(t);
  t.equal(await codeOf(startAdminServer(path, handlers)), 'ALREADY_RUNNING');
  t.equal(await codeOf(callDaemon(path, 'status')), 'OK', 'the first one keeps it');

  const stale = join(temporaryDirectory(t), 'admin.sock');
  const script = `require('node:net').createServer().listen(${JSON.stringify(stale)}, () => process.kill(process.pid, 'SIGKILL'))`;
  spawnSync(process.execPath, ['-e', script]);
  t.ok(existsSync(stale), 'a dead daemon leaves its socket');
  const results = await Promise.all([
    startAdminServer(stale, handlers),
    codeOf(startAdminServer(stale, handlers)),
  ]);
  t.equal(results[1], 'ALREADY_RUNNING', 'of two at once one wins');
  t.equal(await codeOf(callDaemon(stale, 'status')), 'OK');
  await results[0].close();
  await results[0].close();
  t.notOk(existsSync(stale));

  const file = join(temporaryDirectory(t), 'admin.sock');
  writeFileSync(file, 'precious');
  t.equal(
    await codeOf(startAdminServer(file, handlers)),
    'ALREADY_RUNNING',
    'a file that is no socket stays',
  );
  t.ok(existsSync(file));
});

void t.test('a daemon that is not there, or says nothing', async (t) => {
  const directory = temporaryDirectory(t);
  const path = join(directory, 'mute.sock');
  t.equal(await codeOf(callDaemon(path, 'status')), 'DAEMON_UNREACHABLE');
  const mute = createServer((socket) => t.teardown(() => socket.destroy())).listen(path);
  t.teardown(() => mute.close());
  await new Promise((resolve) => mute.once('listening', resolve));
  t.equal(await codeOf(callDaemon(path, 'status', {}, { timeoutMs: 100 })), 'DAEMON_TIMEOUT');
});

void t.test('lines may be cut anywhere', (t) => {
  const text = '{"a":"häß"}\n\n{"b":2}\nrest';
  const bytes = Buffer.from(text);
  for (let cut = 0; cut <= bytes.length; cut++) {
    const splitter = new LineSplitter();
    t.same(
      [...splitter.take(bytes.subarray(0, cut)), ...splitter.take(bytes.subarray(cut))],
      text.split('\n').slice(0, -1),
    );
  }
  t.end();
});
