/** The client of QEMU's monitor: ids, events, time limits, and ends; nothing is left waiting. */
import { once } from 'node:events';
import { createServer, connect } from 'node:net';
import type { Socket } from 'node:net';
import { join } from 'node:path';

import t from 'tap';

import { QmpClient } from '../../src/adapters/qmp.js';
import type { QmpOptions } from '../../src/adapters/qmp.js';
import { bounds } from '../../src/lib/bounds.js';
import { asFalconError } from '../../src/lib/errors.js';
import { temporaryDirectory } from '../support/directory.js';

interface Test {
  teardown(handler: () => void): void;
}

interface Request {
  readonly execute: string;
  readonly arguments: unknown;
  readonly id: number;
}

/** The other end of a client: it reads requests one by one and says what the test wants. */
class Monitor {
  readonly client: QmpClient;
  private readonly socket: Socket;
  private readonly requests: Request[] = [];
  private arrived: () => void = () => undefined;

  private constructor(client: QmpClient, socket: Socket) {
    this.client = client;
    this.socket = socket;
    let text = '';
    socket.on('error', () => socket.destroy());
    socket.on('data', (chunk) => {
      const lines = (text + chunk.toString()).split('\n');
      text = lines.pop() ?? '';
      for (const line of lines) this.requests.push(JSON.parse(line) as Request);
      this.arrived();
    });
  }

  static async make(t: Test, options: QmpOptions = {}): Promise<Monitor> {
    const path = join(temporaryDirectory(t), 'qmp');
    const server = createServer();
    const connected = once(server, 'connection') as Promise<[Socket]>;
    server.listen(path);
    await once(server, 'listening');
    const client = new QmpClient(connect(path), options);
    const [socket] = await connected;
    server.close();
    t.teardown(() => {
      client.close();
      socket.destroy();
    });
    return new Monitor(client, socket);
  }

  async next(): Promise<Request> {
    while (this.requests.length === 0) await new Promise<void>((resolve) => (this.arrived = resolve));
    return this.requests.shift()!;
  }

  say(message: object | string | Buffer): void {
    const raw = typeof message === 'string' || Buffer.isBuffer(message);
    this.socket.write(raw ? message : `${JSON.stringify(message)}\r\n`);
  }

  async greet(): Promise<void> {
    this.say({ QMP: { version: {}, capabilities: [] } });
    const { execute, id } = await this.next();
    if (execute !== 'qmp_capabilities') throw new Error(`the first request is ${execute}`);
    this.say({ return: {}, id });
  }

  end(): void {
    this.socket.destroy();
  }
}

async function refusal(call: Promise<unknown>): Promise<string> {
  try {
    await call;
    return 'no error';
  } catch (error) {
    const { code, detail } = asFalconError(error);
    return `${code} ${detail}`;
  }
}

t.test('answers find their requests, whatever their order', async (t) => {
  const events: unknown[] = [];
  const monitor = await Monitor.make(t, { onEvent: (name, data) => events.push([name, data]) });
  const first = monitor.client.execute('one');
  const second = monitor.client.execute('two', { with: 'words' });
  await monitor.greet();
  const [one, two] = [await monitor.next(), await monitor.next()];
  t.match(
    [one, two],
    [
      { execute: 'one', arguments: {} },
      { execute: 'two', arguments: { with: 'words' } },
    ],
  );
  monitor.say({ return: 2, id: two.id });
  monitor.say({ event: 'STOP', data: { why: 'x' }, timestamp: {} });
  monitor.say({ return: 1, id: one.id });
  t.same(await Promise.all([first, second]), [1, 2]);
  t.same(events, [['STOP', { why: 'x' }]]);
});

t.test('a line may come in pieces, and several at once', async (t) => {
  const monitor = await Monitor.make(t);
  await monitor.greet();
  const asked = ['a', 'b'].map((name) => monitor.client.execute(name));
  const ids = [(await monitor.next()).id, (await monitor.next()).id];
  const text = ids.map((id) => `${JSON.stringify({ return: { text: 'grün' }, id })}\n`).join('');
  for (const byte of Buffer.from(text)) {
    monitor.say(Buffer.of(byte));
    await new Promise((resolve) => setImmediate(resolve));
  }
  t.same(await Promise.all(asked), [{ text: 'grün' }, { text: 'grün' }]);
});

t.test('refusals have codes', async (t) => {
  const monitor = await Monitor.make(t);
  await monitor.greet();
  const answers: readonly (readonly [desc: unknown, says: string])[] = [
    ['falcon: GUEST_STATE_INVALID: the checksum is wrong', 'GUEST_STATE_INVALID the checksum is wrong'],
    ['falcon: NONSENSE: x', 'QMP_FAILED do: falcon: NONSENSE: x'],
    ['Expecting a value', 'QMP_FAILED do: Expecting a value'],
    [undefined, 'QMP_FAILED do: no reason given'],
  ];
  for (const [desc, says] of answers) {
    const said = refusal(monitor.client.execute('do'));
    monitor.say({ error: { class: 'GenericError', desc }, id: (await monitor.next()).id });
    t.equal(await said, says);
  }
});

t.test('a late answer is dropped, and the next request is served', async (t) => {
  const monitor = await Monitor.make(t, { requestMs: 30 });
  await monitor.greet();
  const late = refusal(monitor.client.execute('slow'));
  const { id } = await monitor.next();
  t.equal(await late, 'QMP_TIMEOUT slow: nothing within 30 ms');
  monitor.say({ return: 'too late', id });
  const next = monitor.client.execute('quick');
  monitor.say({ return: 'in time', id: (await monitor.next()).id });
  t.equal(await next, 'in time');
});

t.test('a monitor that does not greet', async (t) => {
  const monitor = await Monitor.make(t, { greetingMs: 30 });
  t.equal(await refusal(monitor.client.execute('do')), 'QMP_TIMEOUT the greeting: nothing within 30 ms');
});

t.test('an end is the end of all requests, and of later ones', async (t) => {
  const ends: readonly (readonly [says: RegExp, act: (monitor: Monitor) => void])[] = [
    [/the connection has ended|ECONNRESET/, (monitor) => monitor.end()],
    [/it was closed/, (monitor) => monitor.client.close()],
    [/a line is no JSON/, (monitor) => monitor.say('{"return": \n')],
    [/a line is no object/, (monitor) => monitor.say('7\n')],
    [/a line is too long/, (monitor) => monitor.say('x'.repeat(bounds.qmpLineMaxBytes + 1))],
  ];
  for (const [says, act] of ends) {
    const monitor = await Monitor.make(t);
    await monitor.greet();
    const waiting = [refusal(monitor.client.execute('a')), refusal(monitor.client.execute('b'))];
    await monitor.next();
    act(monitor);
    for (const said of await Promise.all(waiting)) {
      t.match(said, /^QMP_FAILED [ab]: /);
      t.match(said, says);
    }
    t.match(await refusal(monitor.client.execute('late')), /^QMP_FAILED /);
    monitor.client.close();
  }
});

t.test('too many requests at once are refused', async (t) => {
  const monitor = await Monitor.make(t);
  await monitor.greet();
  const all = Array.from({ length: bounds.qmpPendingMaxRequests + 1 }, () =>
    refusal(monitor.client.execute('do')),
  );
  t.equal(await all.at(-1), `QMP_FAILED do: ${bounds.qmpPendingMaxRequests} requests are waiting`);
  for (let i = 0; i < bounds.qmpPendingMaxRequests; i++)
    monitor.say({ return: i, id: (await monitor.next()).id });
  t.same(new Set(await Promise.all(all.slice(0, -1))), new Set(['no error']));
});
