// A full ring stops its source: nothing is lost, nothing changes places, and a stopped guest takes nothing.
import t from 'tap';
import { cannotRun, makeLab, start } from './lab.js';
import { pause, until } from './lines.js';
import { numberedFrame } from './peer.js';
import { checkNumbered, takeNumbered } from './sequence.js';

t.setTimeout(1_200_000);
const skip = cannotRun();
const SIZE = 1514;

void t.test('a full ingress ring stops the tap', { skip }, async (t) => {
  const { peer } = await start(makeLab(t), 8);
  const count = 2000;
  await until('QEMU runs', async () => (await peer.state('deliver')).consumerWaiting);
  t.equal(await peer.injectMany(0, count, SIZE), count);
  await until('QEMU waits for room', async () => (await peer.state('ingress')).producerWaiting);
  const { produced } = await peer.state('ingress');
  t.ok(produced > 100 && produced < 400, `the ring has taken ${produced}`);
  await pause(100);
  t.equal((await peer.state('ingress')).produced, produced, 'and no more after that');
  await takeNumbered(t, peer, 'ingress', { first: 0, count, size: SIZE });
});

void t.test('a ring in vain does not lose a full ingress ring', { skip }, async (t) => {
  const { peer } = await start(makeLab(t), 8);
  await until('QEMU runs', async () => (await peer.state('deliver')).consumerWaiting);
  t.equal(await peer.injectMany(0, 500, SIZE), 500);
  await until('QEMU waits for room', async () => (await peer.state('ingress')).producerWaiting);
  for (let i = 0; i < 5; i++) {
    await peer.ring();
    await pause(5);
  }
  t.ok((await peer.state('ingress')).producerWaiting, 'it still waits');
  await takeNumbered(t, peer, 'ingress', { first: 0, count: 500, size: SIZE });
});

void t.test('a full egress ring keeps what the guest sends', { skip }, async (t) => {
  const { peer, nic } = await start(makeLab(t), 8);
  const batch = 100;
  const count = 1000;
  for (let first = 0; first < count; first += batch) {
    await nic.send(Array.from({ length: batch }, (_, i) => numberedFrame(first + i, SIZE)));
  }
  const state = await peer.state('egress');
  t.ok(state.producerWaiting, 'QEMU waits for room');
  t.ok(state.produced > 300 && state.produced < 400, `the ring has taken ${state.produced}`);
  await takeNumbered(t, peer, 'egress', { first: 0, count, size: SIZE });
});

void t.test(
  'a guest without buffers stops the deliver ring, whose head waits for the NIC',
  { skip },
  async (t) => {
    const { peer, nic } = await start(makeLab(t), 8);
    const frames: Buffer[] = [];
    let pushed = await peer.pushMany(0, 600, SIZE);
    t.ok(pushed > 300 && pushed < 400, `the ring has taken ${pushed}`);
    await until('the NIC has no more buffers', async () => (await peer.state('deliver')).consumed === 7);
    await pause(50);
    t.equal((await peer.state('deliver')).consumed, 7, 'a frame in QEMU is not yet consumed');
    while (frames.length < 600) {
      frames.push(...(await nic.received()));
      await nic.release();
      if (pushed < 600) pushed += await peer.pushMany(pushed, 600 - pushed, SIZE);
    }
    checkNumbered(t, frames, { first: 0, count: 600, size: SIZE });
    const { head, tail } = await peer.state('deliver');
    t.equal(head, tail, 'all is consumed');
  },
);

void t.test('a stopped guest takes nothing and loses nothing', { skip }, async (t) => {
  const { peer, machine, nic } = await start(makeLab(t), 8);
  await until('QEMU runs', async () => (await peer.state('deliver')).consumerWaiting);
  await machine.execute('stop');
  t.equal(await peer.pushMany(0, 5, SIZE), 5);
  t.equal(await peer.injectMany(0, 5, SIZE), 5);
  await peer.ring();
  await pause(200);
  t.equal((await peer.state('deliver')).consumed, 0);
  t.equal((await peer.state('ingress')).produced, 0);
  await machine.execute('cont');
  await takeNumbered(t, peer, 'ingress', { first: 0, count: 5, size: SIZE });
  await until('the guest has taken all', async () => (await peer.state('deliver')).consumed === 5);
  checkNumbered(t, await nic.received(), { first: 0, count: 5, size: SIZE });
});

void t.test('a frame that waits for the NIC when the guest is stopped comes once', { skip }, async (t) => {
  const { peer, machine, nic } = await start(makeLab(t), 8);
  t.equal(await peer.pushMany(0, 10, SIZE), 10);
  await until('the NIC has no more buffers', async () => (await peer.state('deliver')).consumed === 7);
  for (let i = 0; i < 3; i++) {
    await machine.execute('stop');
    await pause(20);
    t.equal(
      (await peer.state('deliver')).consumed,
      7,
      'the frame that QEMU has dropped still counts as ours',
    );
    await machine.execute('cont');
  }
  const frames = await nic.received();
  await nic.release();
  await until('the guest has taken all', async () => (await peer.state('deliver')).consumed === 10);
  frames.push(...(await nic.received()));
  checkNumbered(t, frames, { first: 0, count: 10, size: SIZE });
});

void t.test('a full ingress ring and a stop in between lose nothing', { skip }, async (t) => {
  const { peer, machine } = await start(makeLab(t), 8);
  await until('QEMU runs', async () => (await peer.state('deliver')).consumerWaiting);
  t.equal(await peer.injectMany(0, 800, SIZE), 800);
  await until('QEMU waits for room', async () => (await peer.state('ingress')).producerWaiting);
  await machine.execute('stop');
  const { produced } = await peer.state('ingress');
  const frames = await peer.take('ingress', 800);
  t.equal(frames.length, produced, 'the stopped QEMU has added nothing');
  checkNumbered(t, frames, { first: 0, count: produced, size: SIZE });
  await machine.execute('cont');
  await takeNumbered(t, peer, 'ingress', { first: produced, count: 800 - produced, size: SIZE });
});
