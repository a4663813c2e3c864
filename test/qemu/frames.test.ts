// Frames through the patched QEMU on their three ways, the rings' wrap, doorbells and counters.
import t from 'tap';
import { cannotRun, makeLab, RING_BYTES, start } from './lab.js';
import { pause, until } from './lines.js';
import { numberedFrame, type Peer, type Ring } from './peer.js';
import { checkNumbered, takeNumbered } from './sequence.js';

t.setTimeout(1_200_000);
const skip = cannotRun();

const idle = (peer: Peer): Promise<void> =>
  until('QEMU waits for frames to deliver', async () => (await peer.state('deliver')).consumerWaiting);

void t.test('a frame from the network goes to falcond and not to the guest', { skip }, async (t) => {
  const { peer, nic } = await start(makeLab(t), 8);
  await idle(peer);
  t.ok(await peer.inject(numberedFrame(1, 20)));
  t.ok(await peer.inject(numberedFrame(2, 1514)));
  await until(
    'both frames are in the ingress ring',
    async () => (await peer.state('ingress')).produced === 2,
  );
  const [first, second] = await peer.take('ingress', 3);
  const padded = Buffer.concat([numberedFrame(1, 20), Buffer.alloc(40)]);
  t.same(first, padded, 'padded to the smallest Ethernet frame, as for the guest');
  t.same(second, numberedFrame(2, 1514));
  await pause(100);
  t.same(await nic.received(), [], 'the guest has seen nothing');
});

void t.test('a frame from falcond goes to the guest', { skip }, async (t) => {
  const { peer, nic } = await start(makeLab(t), 8);
  t.ok(await peer.push(numberedFrame(1, 1514)));
  t.ok(await peer.push(numberedFrame(2, 42)));
  await until('the guest has taken both', async () => (await peer.state('deliver')).consumed === 2);
  const state = await peer.state('deliver');
  t.equal(state.head, state.tail, 'the ring is empty');
  const padded = Buffer.concat([numberedFrame(2, 42), Buffer.alloc(18)]);
  t.same(await nic.received(), [numberedFrame(1, 1514), padded]);
});

void t.test('a frame from the guest goes to falcond and not to the network', { skip }, async (t) => {
  const { peer, nic } = await start(makeLab(t), 8);
  await nic.send([numberedFrame(1, 60), numberedFrame(2, 1514)]);
  t.same(await peer.take('egress', 3), [numberedFrame(1, 60), numberedFrame(2, 1514)]);
  await pause(100);
  t.same(await peer.sniff(1), [], 'the tap has shown nothing');
});

void t.test('all rings wrap around and keep order and content', { skip }, async (t) => {
  const { peer, nic } = await start(makeLab(t), 64);
  const rounds = 24;
  const each = 60;
  for (let round = 0; round < rounds; round++) {
    const first = round * each;
    // Sizes that do not divide the ring leave another remainder at its end each time.
    const size = 1514 - 8 * round - (round % 7);
    t.equal(await peer.injectMany(first, each, size), each);
    t.equal(await peer.pushMany(first, each, size), each);
    await nic.send(Array.from({ length: each }, (_, i) => numberedFrame(first + i, size)));
    for (const ring of ['ingress', 'egress'] as const) {
      await takeNumbered(t, peer, ring, { first, count: each, size });
    }
    await until('the guest has taken the round', async () => {
      return (await peer.state('deliver')).consumed === first + each;
    });
    checkNumbered(t, await nic.received(), { first, count: each, size });
    await nic.release();
  }
  for (const ring of ['ingress', 'deliver', 'egress'] satisfies Ring[]) {
    const state = await peer.state(ring);
    t.ok(state.tail > 3 * RING_BYTES, `${ring} has wrapped`);
    t.equal(state.head, state.tail, `${ring} is empty`);
    t.equal(state.produced, rounds * each);
    t.equal(state.consumed, rounds * each);
  }
});

void t.test(
  'the doorbell rings once for a falcond that waits, and never for one that does not',
  { skip },
  async (t) => {
    const { peer, nic } = await start(makeLab(t), 64);
    await idle(peer);
    await peer.rings();
    const size = 100;

    t.equal(await peer.injectMany(0, 20, size), 20);
    await takeNumbered(t, peer, 'ingress', { first: 0, count: 20, size });
    await nic.send([numberedFrame(0, size)]);
    t.equal(await peer.pushMany(0, 20, size), 20);
    await until('the guest has taken all', async () => (await peer.state('deliver')).consumed === 20);
    t.equal(await peer.rings(), 0, 'nobody waits');

    await peer.arm('ingress', 'consumer');
    t.equal(await peer.injectMany(20, 20, size), 20);
    await takeNumbered(t, peer, 'ingress', { first: 20, count: 20, size });
    t.equal(await peer.rings(), 1, 'ingress');
    t.notOk((await peer.state('ingress')).consumerWaiting, 'and the word is cleared');

    await peer.arm('egress', 'consumer');
    await nic.send([numberedFrame(1, size), numberedFrame(2, size)]);
    t.equal(await peer.rings(), 1, 'egress');

    await idle(peer);
    await peer.arm('deliver', 'producer');
    t.equal(await peer.pushMany(20, 20, size), 20);
    await until('the guest has taken all', async () => (await peer.state('deliver')).consumed === 40);
    t.equal(await peer.rings(), 1, 'deliver');
  },
);

void t.test('query-falcon shows the rings', { skip }, async (t) => {
  const { peer, machine, nic } = await start(makeLab(t), 8);
  await nic.send([numberedFrame(0, 60), numberedFrame(1, 60)]);
  t.equal((await peer.take('egress', 1)).length, 1);
  t.equal(await peer.pushMany(0, 9, 60), 9);
  await until(
    'seven frames fit into eight descriptors',
    async () => (await peer.state('deliver')).consumed === 7,
  );
  const ring = (produced: number, consumed: number): object => ({
    'produced-frames': produced,
    'consumed-frames': consumed,
    'used-bytes': (produced - consumed) * 72,
    capacity: RING_BYTES,
  });
  const expected = { id: 'n0', running: true, 'layout-version': 1 };
  const info = (await machine.execute('query-falcon')) as { ports: unknown };
  t.match(info, { attached: true, status: 'running', 'dirty-log': false });
  t.same(info.ports, [{ ...expected, ingress: ring(0, 0), deliver: ring(9, 7), egress: ring(2, 1) }]);
});
