/** The bootstrap: who may join, who is refused, and that strangers cost no more than the bounds say. */
import { randomBytes } from 'node:crypto';
import { connect, createServer } from 'node:net';
import type { AddressInfo, Socket } from 'node:net';
import { connect as tlsConnect } from 'node:tls';

import { pack } from 'msgpackr';
import t from 'tap';

import { Bootstrap, bootstrapVersion } from '../../src/adapters/bootstrap.js';
import { bounds } from '../../src/lib/bounds.js';
import { sleep, waitUntil } from '../../src/lib/time.js';

interface Joined {
  readonly peer: number;
  readonly connection: string;
  readonly descriptor: string;
}

interface Node {
  readonly bootstrap: Bootstrap;
  readonly port: number;
  readonly up: Joined[];
  readonly down: number[];
  readonly refused: string[];
}

interface Changes {
  readonly cluster?: string;
  readonly secret?: Uint8Array;
  readonly fabric?: string;
  readonly incarnation?: number;
}

const secret = randomBytes(bounds.secretBytes);
t.setTimeout(180_000);
const soon = { timeoutMs: 10_000, everyMs: 5 };

async function freePorts(count: number): Promise<number[]> {
  const servers = await Promise.all(
    Array.from({ length: count }, () => {
      const server = createServer();
      return new Promise<typeof server>((resolve) => server.listen(0, '127.0.0.1', () => resolve(server)));
    }),
  );
  const ports = servers.map((server) => (server.address() as AddressInfo).port);
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return ports;
}

async function startNode(
  t: { teardown(handler: () => Promise<void>): void },
  self: number,
  ports: readonly number[],
  changes: Changes = {},
): Promise<Node> {
  const members = ports.map((port, index) => {
    const incarnation = index === self ? (changes.incarnation ?? 1) : 1;
    return { index, name: `h${index + 1}`, address: '127.0.0.1', port, incarnation };
  });
  const up: Joined[] = [];
  const down: number[] = [];
  const refused: string[] = [];
  const bootstrap = await Bootstrap.start({
    cluster: changes.cluster ?? 'test-00000001',
    secret: changes.secret ?? secret,
    self: members[self]!,
    members,
    fabric: changes.fabric ?? 'shm',
    // What peers need may be another thing when they meet again.
    descriptor: () => new TextEncoder().encode(`memory of ${self}${up.length === 0 ? '' : ', replaced'}`),
    onPeerUp: (peer, connection, descriptor) =>
      up.push({
        peer,
        connection: Buffer.from(connection).toString('hex'),
        descriptor: Buffer.from(descriptor).toString(),
      }),
    onPeerDown: (peer) => down.push(peer),
    onRefused: (code) => refused.push(code),
  });
  t.teardown(() => bootstrap.close());
  return { bootstrap, port: ports[self]!, up, down, refused };
}

/** A TLS connection of one that has the secret; it says what it likes. */
function insider(port: number): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = tlsConnect({
      host: '127.0.0.1',
      port,
      minVersion: 'TLSv1.2',
      maxVersion: 'TLSv1.2',
      ciphers: 'ECDHE-PSK-CHACHA20-POLY1305',
      checkServerIdentity: () => undefined,
      pskCallback: () => ({ psk: Buffer.from(secret), identity: 'test-00000001' }),
    });
    socket.once('secureConnect', () => resolve(socket));
    socket.once('error', reject);
  });
}

function framed(body: Uint8Array, length = body.length): Uint8Array {
  const head = Buffer.alloc(4);
  head.writeUInt32LE(length);
  return Buffer.concat([head, body]);
}

const ended = (socket: Socket): Promise<void> =>
  new Promise((resolve) => {
    socket.on('error', () => undefined);
    socket.once('close', () => resolve());
    socket.resume();
  });

t.test('two members meet, and meet again under another name', async (t) => {
  const ports = await freePorts(2);
  const [a, b] = [await startNode(t, 0, ports), await startNode(t, 1, ports)];
  t.ok(await waitUntil(() => a.up.length === 1 && b.up.length === 1, soon));
  t.match(a.up[0], { peer: 1, descriptor: 'memory of 1' });
  t.match(b.up[0], { peer: 0, descriptor: 'memory of 0' });
  t.equal(a.up[0]?.connection, b.up[0]?.connection, 'both give the connection the same name');
  a.bootstrap.reset(1);
  t.ok(
    await waitUntil(() => a.up.length === 2 && b.up.length === 2, soon),
    'a dropped connection is made anew',
  );
  t.not(a.up[0]?.connection, a.up[1]?.connection);
  t.equal(a.up[1]?.connection, b.up[1]?.connection);
  t.match(a.up[1], { peer: 1, descriptor: 'memory of 1, replaced' }, 'with what is needed now');
  t.same([a.down, b.down], [[1], [0]]);
});

t.test('a member whose place another host has taken is let in no more', async (t) => {
  const ports = await freePorts(2);
  const [a, old] = [await startNode(t, 0, ports), await startNode(t, 1, ports)];
  t.ok(await waitUntil(() => a.up.length === 1 && old.up.length === 1, soon));
  const place = { index: 1, name: 'h2', address: '127.0.0.1', port: ports[1]! };
  a.bootstrap.replace({ ...place, incarnation: 2 });
  t.ok(await waitUntil(() => a.down.length === 1 && a.refused.length > 0, soon), 'the old one is sent away');
  t.equal(a.refused[0], 'PEER_REFUSED');
  await old.bootstrap.close();
  await startNode(t, 1, ports, { incarnation: 2 });
  t.ok(await waitUntil(() => a.up.length === 2, soon), 'the new one comes in');
  a.bootstrap.replace({ ...place, incarnation: 1 });
  await sleep(50);
  t.equal(a.down.length, 1, 'an older word changes nothing');
});

const strangers: readonly (readonly [name: string, changes: Changes, code: string])[] = [
  ['another secret', { secret: randomBytes(bounds.secretBytes) }, 'SECRET_WRONG'],
  ['another cluster', { cluster: 'test-00000002' }, 'SECRET_WRONG'],
  ['another fabric', { fabric: 'sim' }, 'PEER_REFUSED'],
];
for (const [name, changes, code] of strangers) {
  t.test(`${name} is refused, and said once`, async (t) => {
    const ports = await freePorts(2);
    const [a, b] = [await startNode(t, 0, ports), await startNode(t, 1, ports, changes)];
    t.ok(await waitUntil(() => a.refused.length > 0 && b.refused.length > 0, soon));
    await waitUntil(() => Object.values(a.bootstrap.refused).reduce((x, y) => x + y) >= 3, soon);
    t.same([a.refused[0], b.refused[0]], [code, code]);
    t.equal(a.refused.length, 1, 'the log is not flooded');
    t.same([a.up, b.up], [[], []]);
  });
}

t.test('what an insider says wrong is refused', async (t) => {
  const ports = await freePorts(2);
  const node = await startNode(t, 0, ports);
  const right = [bootstrapVersion, 'test-00000001', 1, 'shm', randomBytes(16), randomBytes(8), 1];
  const but = (index: number, value: unknown): Uint8Array => framed(pack(right.with(index, value as never)));
  const hellos: readonly (readonly [name: string, bytes: Uint8Array])[] = [
    ['another version', but(0, bootstrapVersion + 1)],
    ['another cluster', but(1, 'test-00000002')],
    ['a member that there is not', but(2, 7)],
    ['this member itself', but(2, 0)],
    ['a member with half an index', but(2, 0.5)],
    ['a short nonce', but(4, randomBytes(15))],
    ['a descriptor beyond its bound', but(5, randomBytes(bounds.descriptorMaxBytes + 1))],
    ['no list', framed(pack('hello'))],
    ['a list that is too short', framed(pack(right.slice(1)))],
    ['bytes that are no record', framed(randomBytes(100))],
    ['nothing', framed(new Uint8Array())],
    ['a hello beyond its bound', framed(new Uint8Array(), bounds.bootstrapHelloMaxBytes + 1)],
    ['something behind the hello', Buffer.concat([framed(pack(right)), Buffer.from('x')])],
  ];
  for (const [name, bytes] of hellos) {
    const before = node.bootstrap.refused.version + node.bootstrap.refused.other;
    const socket = await insider(node.port);
    socket.write(bytes);
    await ended(socket);
    t.equal(node.bootstrap.refused.version + node.bootstrap.refused.other, before + 1, name);
  }
  t.same(node.up, []);
  const socket = await insider(node.port);
  const closed = ended(socket);
  const hello = framed(pack(right));
  for (const byte of hello) socket.write(Uint8Array.of(byte));
  t.ok(await waitUntil(() => node.up.length === 1, soon), 'a hello may come byte by byte');
  socket.write('more');
  await closed;
  t.ok(await waitUntil(() => node.down.length === 1, soon), 'nothing may come behind it later either');
});

t.test('a second connection of the same member takes the place of the first', async (t) => {
  const ports = await freePorts(2);
  const node = await startNode(t, 0, ports);
  const hello = (): Uint8Array =>
    framed(pack([bootstrapVersion, 'test-00000001', 1, 'shm', randomBytes(16), randomBytes(8), 1]));
  const first = await insider(node.port);
  const firstEnded = ended(first);
  first.write(hello());
  t.ok(await waitUntil(() => node.up.length === 1, soon));
  const second = await insider(node.port);
  second.write(hello());
  await firstEnded;
  t.ok(await waitUntil(() => node.up.length === 2, soon));
  t.not(node.up[0]?.connection, node.up[1]?.connection);
  second.destroy();
});

t.test('garbage, silence and floods are bounded, and members still meet', async (t) => {
  const ports = await freePorts(2);
  const node = await startNode(t, 0, ports);
  const garbage = connect(node.port, '127.0.0.1');
  garbage.write(randomBytes(4096));
  await ended(garbage);

  const start = performance.now();
  const silent = connect(node.port, '127.0.0.1');
  const mute = await insider(node.port);
  await Promise.all([ended(silent), ended(mute)]);
  t.ok(performance.now() - start < bounds.bootstrapHandshakeMs * 3, 'who says nothing is sent away');

  // More connections than the bound at once, again and again: all but as many as the bound are ended from here.
  let refusedByBound = 0;
  let mostWaiting = 0;
  let sampling = true;
  const sample = (): void => {
    mostWaiting = Math.max(mostWaiting, node.bootstrap.strangersNow);
    if (sampling) setImmediate(sample);
  };
  sample();
  const before = node.bootstrap.refused.unfinished;
  const warnings = node.refused.length;
  for (let round = 0; round < 20; round++) {
    const sockets = Array.from({ length: 500 }, () => connect(node.port, '127.0.0.1'));
    let turnedAway = 0;
    for (const socket of sockets) {
      socket.on('error', () => undefined);
      socket.once('close', () => turnedAway++);
    }
    const most = sockets.length - bounds.bootstrapConnectionsMax;
    await waitUntil(() => turnedAway >= most, { timeoutMs: 20_000, everyMs: 5 });
    refusedByBound += turnedAway;
    for (const socket of sockets) socket.destroy();
  }
  sampling = false;
  t.ok(
    refusedByBound >= 20 * (500 - bounds.bootstrapConnectionsMax),
    `${refusedByBound} of 10000 were turned away at the door`,
  );
  t.ok(
    mostWaiting > 10 && mostWaiting <= bounds.bootstrapConnectionsMax,
    `${mostWaiting} were waited for at once`,
  );
  const all = await waitUntil(() => node.bootstrap.refused.unfinished - before >= 10_000, soon);
  t.ok(all, `${node.bootstrap.refused.unfinished - before} of 10000 counted`);
  t.equal(node.refused.length, warnings, 'and none of them logged');
  await sleep(50);
  const peer = await startNode(t, 1, ports);
  t.ok(await waitUntil(() => peer.up.length > 0 && node.up.length > 0, soon));
  t.equal(peer.up.at(-1)?.peer, 0);
});

t.test('who drips a hello is sent away in time', async (t) => {
  const ports = await freePorts(2);
  const node = await startNode(t, 0, ports);
  const start = performance.now();
  const drip = (socket: Socket, bytes: Uint8Array): Promise<void> => {
    let sent = 0;
    const timer = setInterval(() => socket.write(bytes.subarray(sent, ++sent)), 50);
    return ended(socket).finally(() => clearInterval(timer));
  };
  const hello = framed(
    pack([bootstrapVersion, 'test-00000001', 1, 'shm', randomBytes(16), randomBytes(2000), 1]),
  );
  // A TLS record that announces 16 KiB of a handshake and never brings them; and an insider's hello.
  const outsider = connect(node.port, '127.0.0.1');
  const record = Buffer.concat([Buffer.from('1603014000010000', 'hex'), Buffer.alloc(16_384, 1)]);
  const [inside] = [await insider(node.port)];
  await Promise.all([drip(outsider, record), drip(inside, hello)]);
  t.ok(performance.now() - start < bounds.bootstrapHandshakeMs * 3, 'each byte gives it no more time');
  t.ok(await waitUntil(() => node.bootstrap.refused.unfinished === 2, soon), 'counted');
  t.same([node.up, node.refused], [[], []]);
  t.equal(node.bootstrap.strangersNow, 0);
});

/** Stands between a member and the node on `port`, and keeps what the member sent. */
async function recorder(
  t: { teardown(handler: () => void): void },
  port: number,
): Promise<{ port: number; sent: Buffer[] }> {
  const sent: Buffer[] = [];
  const sockets: Socket[] = [];
  const server = createServer((near) => {
    const far = connect(port, '127.0.0.1');
    sockets.push(near, far);
    for (const socket of [near, far]) socket.on('error', () => undefined);
    near.on('data', (chunk: Buffer) => {
      sent.push(chunk);
      far.write(chunk);
    });
    far.on('data', (chunk: Buffer) => void near.write(chunk));
    near.on('close', () => far.destroy());
    far.on('close', () => near.destroy());
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', () => resolve()));
  t.teardown(() => {
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  return { port: (server.address() as AddressInfo).port, sent };
}

t.test('what was said before is of no use to who says it again', async (t) => {
  const ports = await freePorts(2);
  const node = await startNode(t, 0, ports);
  // Member 1 reaches the node through somebody who writes down every byte.
  const tap = await recorder(t, node.port);
  const peer = await startNode(t, 1, [tap.port, ports[1]!]);
  t.ok(await waitUntil(() => node.up.length === 1 && peer.up.length === 1, soon));
  const recorded = Buffer.concat(tap.sent);
  t.ok(recorded.length > 200);
  const replay = connect(node.port, '127.0.0.1');
  replay.write(recorded);
  await ended(replay);
  const { secret, version, other, unfinished } = node.bootstrap.refused;
  t.equal(secret + version + other + unfinished, 1, 'refused and counted');
  t.equal(node.up.length, 1, 'a recorded conversation lets nobody in');
  t.same(node.down, [], 'nor does it send away who is in');

  // An insider that repeats a member's hello, nonce and all, gets a connection of another name: the other half
  // of the name is the node's own.
  const hello = framed(
    pack([bootstrapVersion, 'test-00000001', 1, 'shm', randomBytes(16), randomBytes(8), 1]),
  );
  for (const count of [2, 3]) {
    const socket = await insider(node.port);
    socket.write(hello);
    t.ok(await waitUntil(() => node.up.length >= count, soon));
  }
  const names = node.up.map(({ connection }) => connection);
  t.equal(new Set(names).size, names.length, 'no name twice');
});

t.test('a connection that breaks as soon as it is made is not made without end', async (t) => {
  const ports = await freePorts(2);
  const [a, b] = [await startNode(t, 0, ports), await startNode(t, 1, ports)];
  t.ok(await waitUntil(() => a.up.length === 1 && b.up.length === 1, soon));
  const stop = performance.now() + 3000;
  while (performance.now() < stop) {
    const meetings = b.up.length;
    b.bootstrap.reset(0);
    await waitUntil(() => b.up.length > meetings, { timeoutMs: 3000, everyMs: 1 });
  }
  t.ok(b.up.length > 4 && b.up.length < 15, `${b.up.length} meetings in 3 s`);
  await sleep(bounds.bootstrapSettledMs + 100);
  const start = performance.now();
  const meetings = b.up.length;
  b.bootstrap.reset(0);
  t.ok(await waitUntil(() => b.up.length > meetings, soon));
  t.ok(performance.now() - start < bounds.bootstrapRedialMaxMs, 'one that lasted is made anew at once');
});
