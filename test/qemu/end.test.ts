// A replica without its falcond must be silent: whatever goes wrong between the two, QEMU ends.
import t from 'tap';
import { cannotRun, makeLab, RING_BYTES, start } from './lab.js';
import { until } from './lines.js';
import type { Ended, Machine } from './machine.js';
import { numberedFrame, type Peer } from './peer.js';

t.setTimeout(1_200_000);
const skip = cannotRun();
// Far beyond the three seconds that QEMU allows itself, for a machine that is busy with something else.
const LIMIT_MS = 15_000;

/** How QEMU ended, or a timeout's name if it did not within the limit. */
function endOf(machine: Machine): Promise<Ended | 'still running'> {
  return new Promise((resolve) => {
    const limit = setTimeout(() => resolve('still running'), LIMIT_MS);
    void machine.ended.then((end) => {
      clearTimeout(limit);
      resolve(end);
    });
  });
}

type Act = (peer: Peer, machine: Machine) => Promise<unknown>;

const ends: [what: string, message: RegExp, act: Act][] = [
  ['falcond is killed', /falcond is gone, exiting/, async (peer) => peer.process.kill('SIGKILL')],
  ['falcond hangs up', /falcond is gone, exiting/, (peer) => peer.hangup()],
  [
    'falcond is killed while the guest is stopped',
    /falcond is gone, exiting/,
    async (peer, machine) => {
      await machine.execute('stop');
      peer.process.kill('SIGKILL');
    },
  ],
  ['falcond talks on the socket', /falcond broke the protocol, exiting/, (peer) => peer.talk()],
  [
    'a tail off its grid',
    /the deliver ring is corrupt at byte 0, exiting/,
    (peer) => peer.poke('deliver', 'tail', 4),
  ],
  [
    'a tail beyond the ring',
    /the deliver ring is corrupt/,
    (peer) => peer.poke('deliver', 'tail', RING_BYTES + 8),
  ],
  ['an empty record', /the deliver ring is corrupt/, (peer) => peer.poke('deliver', 'length', 0)],
  [
    'a record longer than a frame',
    /the deliver ring is corrupt/,
    (peer) => peer.poke('deliver', 'length', 70_000),
  ],
  [
    'a record longer than what is there',
    /the deliver ring is corrupt/,
    (peer) => peer.poke('deliver', 'length', 100),
  ],
  [
    'a wrap mark with nothing after it',
    /the deliver ring is corrupt/,
    (peer) => peer.poke('deliver', 'length', 2 ** 32 - 1),
  ],
];

for (const [what, message, act] of ends) {
  void t.test(`QEMU exits with status 1: ${what}`, { skip }, async (t) => {
    const { peer, machine } = await start(makeLab(t), 8);
    await until('QEMU runs', async () => (await peer.state('deliver')).consumerWaiting);
    await act(peer, machine);
    const end = await endOf(machine);
    t.match(end, { code: 1, signal: null });
    t.match(end === 'still running' ? '' : end.stderr, message);
  });
}

void t.test('the guest is stopped before QEMU exits', { skip }, async (t) => {
  const { peer, machine } = await start(makeLab(t), 8);
  await until('QEMU runs', async () => (await peer.state('deliver')).consumerWaiting);
  peer.process.kill('SIGKILL');
  await machine.drainEvents();
  t.match(machine.events, ['STOP']);
  t.match(await machine.ended, { code: 1, signal: null });
});

void t.test('a disk that hangs does not keep QEMU from going', { skip }, async (t) => {
  const lab = makeLab(t);
  const peer = await lab.startPeer();
  const machine = await lab.startMachine(lab.netdev, [
    ...['-blockdev', 'driver=null-aio,node-name=slow,size=1048576,latency-ns=60000000000'],
    // With a geometry given, QEMU does not read the disk to guess one.
    ...['-device', 'virtio-blk-pci,drive=slow,id=disk,cyls=16,heads=2,secs=63'],
  ]);
  await until('QEMU runs', async () => (await peer.state('deliver')).consumerWaiting);
  const read = { 'command-line': 'qemu-io -d /machine/peripheral/disk/virtio-backend "aio_read 0 512"' };
  t.notMatch(await machine.execute('human-monitor-command', read), /[Ee]rror/);
  peer.process.kill('SIGKILL');
  const began = performance.now();
  t.match(await endOf(machine), { code: 1, signal: null });
  t.ok(performance.now() - began > 2500, 'it did wait for the disk');
});

void t.test('a head that nobody can have reached ends QEMU at its next frame', { skip }, async (t) => {
  for (const head of [4, 1024]) {
    const { peer, machine, nic } = await start(makeLab(t), 8);
    await peer.poke('egress', 'head', head);
    await nic.send([numberedFrame(0, 60)]).catch(() => {});
    const end = await endOf(machine);
    t.match(end, { code: 1, signal: null });
    t.match(end === 'still running' ? '' : end.stderr, /the egress ring is corrupt at byte 0, exiting/);
  }
});

void t.test('a tail that is not theirs to write does not move QEMU', { skip }, async (t) => {
  const { peer, machine, nic } = await start(makeLab(t), 8);
  await nic.send([numberedFrame(0, 60)]);
  t.equal((await peer.take('egress', 1)).length, 1);
  await peer.poke('egress', 'tail', 1024);
  await nic.send([numberedFrame(1, 60)]);
  t.equal((await peer.state('egress')).tail, 144, 'QEMU goes by its own tail and repairs the shared word');
  t.match(await machine.execute('query-falcon'), { ports: [{ egress: { 'used-bytes': 72 } }] });
});

void t.test('netdev_del lets falcond go without ending QEMU', { skip }, async (t) => {
  const { peer, machine } = await start(makeLab(t), 8);
  t.ok(await peer.attached());
  await machine.execute('netdev_del', { id: 'n0' });
  await until('falcond sees QEMU go', async () => !(await peer.attached()));
  t.match(await machine.execute('query-falcon'), { attached: false, ports: [] });
  t.match(await machine.execute('query-status'), { status: 'running' });
});

void t.test('falcond sees the end of its QEMU', { skip }, async (t) => {
  const { peer, machine } = await start(makeLab(t), 8);
  t.ok(await peer.attached());
  machine.kill();
  await until('the socket ends', async () => !(await peer.attached()));
});
