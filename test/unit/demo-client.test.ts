/** The demo's client has to notice every way in which a server can fail it, or its "lost: 0" means nothing. */
import { createServer } from 'node:net';
import type { AddressInfo, Socket } from 'node:net';

import t from 'tap';

import { KeyClient, keyName, valueOf } from '../../cluster/demo/key-client.js';
import { demoOptions } from '../../cluster/demo/options.js';
import { makeReport } from '../../cluster/demo/report.js';
import { encodeCommand, ReplyParser } from '../../cluster/demo/resp.js';

const seed = 5;
type Tap = { teardown(handler: () => void): void };
type Answer = (words: string[], socket: Socket, store: Map<string, string>) => string | null;

const honest: Answer = ([verb, key = '', value = ''], _socket, store) => {
  if (verb === 'GET')
    return store.has(key) ? `$${store.get(key)?.length}\r\n${store.get(key)}\r\n` : '$-1\r\n';
  store.set(key, value);
  return '+OK\r\n';
};

/** A server that is asked over TCP as Redis is; commands arrive whole, as the client writes them. */
async function serve(t: Tap, answer: Answer, depth = 1, silenceMs = 30_000): Promise<KeyClient> {
  const store = new Map<string, string>();
  const server = createServer((socket) => {
    let rest = '';
    socket.on('error', () => socket.destroy());
    socket.on('data', (chunk) => {
      rest += chunk.toString('latin1');
      for (;;) {
        const found = /^\*(\d)\r\n((?:\$\d+\r\n[^\r]*\r\n)+?)(?=\*|$)/.exec(rest);
        if (found === null) return;
        rest = rest.slice(found[0].length);
        const words = found[2]?.split('\r\n').filter((_, i) => i % 2 === 1) ?? [];
        const reply = answer(words, socket, store);
        if (reply !== null) socket.write(reply);
      }
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  const client = await KeyClient.connect({ host: '127.0.0.1', port, seed, depth, silenceMs }, 1_000);
  t.teardown(() => {
    client.close();
    server.close();
  });
  return client;
}

const writeFor = async (client: KeyClient, milliseconds: number): Promise<void> => {
  client.write();
  await new Promise((resolve) => setTimeout(resolve, milliseconds));
  await client.rest();
};

for (const depth of [1, 8]) {
  t.test(`an honest server, ${depth} in flight`, async (t) => {
    const client = await serve(t, honest, depth);
    await writeFor(client, 50);
    await client.verify();
    const tally = client.tally();
    t.match(tally, { wrong: 0, lost: 0, alive: true, trouble: [] });
    t.ok(tally.acked > 10);
    t.ok(tally.readBack >= tally.acked);
  });
}

t.test('a lost key', async (t) => {
  const client = await serve(t, (words, socket, store) => {
    const reply = honest(words, socket, store);
    store.delete(keyName(3));
    return reply;
  });
  await writeFor(client, 50);
  await client.verify();
  t.ok(client.tally().lost >= 1);
  t.match(client.tally(), { wrong: 0, alive: true });
});

t.test('a changed value, a refused write', async (t) => {
  const client = await serve(t, (words, socket, store) => {
    if (words[0] === 'SET' && words[1] === keyName(4)) return '-OOM no memory\r\n';
    const reply = honest(words, socket, store);
    store.set(keyName(3), valueOf(seed + 1, 3));
    return reply;
  });
  await writeFor(client, 50);
  await client.verify();
  t.ok(client.tally().wrong >= 2);
  t.match(client.tally().trouble.join('\n'), /OOM/);
});

t.test('a reply too many, and garbage', async (t) => {
  const twice = await serve(t, (words, socket, store) => `${honest(words, socket, store)}+OK\r\n`);
  await writeFor(twice, 20);
  t.ok(twice.tally().wrong > 0);
  const garbled = await serve(t, () => 'HTTP/1.1 400 Bad Request\r\n');
  await writeFor(garbled, 20);
  t.match(garbled.tally(), { alive: false, acked: 0, wrong: 1 });
});

t.test('a connection that ends, or falls silent', async (t) => {
  let count = 0;
  const closing = await serve(t, (words, socket, store) => {
    if (++count > 10) socket.resetAndDestroy();
    return count > 10 ? null : honest(words, socket, store);
  });
  await writeFor(closing, 50);
  await closing.verify();
  t.match(closing.tally(), { alive: false, lost: 0 });
  const silent = await serve(t, () => null, 1, 150);
  await writeFor(silent, 20);
  t.match(silent.tally(), { alive: false, acked: 0 });
  t.match(silent.tally().trouble[0], /no reply/);
});

t.test('a gap is a time in which a reply was due, and a rest is none', async (t) => {
  let slow = false;
  const client = await serve(t, (words, socket, store) => {
    const reply = honest(words, socket, store);
    if (!slow) return reply;
    slow = false;
    setTimeout(() => socket.write(reply ?? ''), 80);
    return null;
  });
  await writeFor(client, 30);
  await new Promise((resolve) => setTimeout(resolve, 300));
  slow = true;
  await writeFor(client, 30);
  const [longest] = client.tally().gaps;
  t.ok(
    longest !== undefined && longest.endMs - longest.startMs >= 75 && longest.endMs - longest.startMs < 280,
  );
});

t.test('replies that arrive byte by byte', async (t) => {
  const parser = new ReplyParser();
  const bytes = Buffer.from('+OK\r\n$3\r\na\r\n\r\n$-1\r\n:12\r\n-ERR no\r\n');
  const replies = [...bytes].flatMap((byte) => parser.take(Uint8Array.of(byte)));
  t.same(replies, [
    { kind: 'status', text: 'OK' },
    { kind: 'bulk', value: 'a\r\n' },
    { kind: 'bulk', value: null },
    { kind: 'integer', value: 12 },
    { kind: 'error', text: 'ERR no' },
  ]);
  for (const wrong of ['x\r\n', '$-2\r\n', '$99999999\r\n', '$1\r\nabc\r\n', ':1x\r\n']) {
    t.throws(() => new ReplyParser().take(Buffer.from(wrong)), wrong);
  }
  t.equal(
    Buffer.from(encodeCommand(['SET', 'ä', ''])).toString(),
    '*3\r\n$3\r\nSET\r\n$2\r\nä\r\n$0\r\n\r\n',
  );
});

t.test('what is asked for', async (t) => {
  t.match(demoOptions({}, 9), { hosts: 3, kills: 1, seed: 9, idleS: 0, lan: 'flood', json: false });
  t.match(demoOptions({ KILLS: '2', JSON: '1', IDLE: '60', SEED: '' }, 9), {
    hosts: 3,
    kills: 2,
    revive: true,
    idleS: 60,
    json: true,
    seed: 9,
  });
  const wrongs = [
    { HOSTS: '4' },
    { HOSTS: '3', KILLS: '2', REVIVE: '0' },
    { SEED: '-1' },
    { LAN: 'loud' },
    { WRITE: '1e9' },
  ];
  for (const env of wrongs) t.throws(() => demoOptions(env, 9), { code: 'USAGE' }, JSON.stringify(env));
});

t.test('the report blames the right gap and is ok only if everything is', async (t) => {
  const options = demoOptions({}, 9);
  const gaps = [
    { startMs: 100, endMs: 900 },
    { startMs: 990, endMs: 1080 },
    { startMs: 20_000, endMs: 20_500 },
  ];
  const tally = { acked: 10, readBack: 12, wrong: 0, lost: 0, alive: true, trouble: [], gaps };
  const takeover = { view: 2, at: '', detectMs: 50, electMs: 10, catchUpMs: 5, gateMs: 1 };
  const kill = { old: 'h1', new: 'h2', atMs: 1_000, takeover };
  const report = makeReport(options, [kill], tally);
  t.match(report, {
    ok: true,
    outage_ms: 90,
    old_primary: 'h1',
    new_primary: 'h2',
    replicas: 3,
    kills: [{ split_ms: { first_reply: 24 } }],
  });
  t.equal(makeReport(options, [], tally).ok, false, 'nobody was killed');
  for (const wrong of [{ lost: 1 }, { wrong: 1 }, { alive: false }, { acked: 0 }, { readBack: 9 }]) {
    t.equal(makeReport(options, [kill], { ...tally, ...wrong }).ok, false, JSON.stringify(wrong));
  }
});
