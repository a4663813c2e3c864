// What a guest on falcond's rings adds to the dirty log, and what is refused while it is there.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

import t from 'tap';

import { temporaryDirectory } from '../support/directory.js';
import { E1000 } from './e1000.js';
import { cannotRun, makeLab, start } from './lab.js';
import { until } from './lines.js';
import { Machine } from './machine.js';
import { numberedFrame } from './peer.js';
import { setBits } from './tiny.js';

t.setTimeout(1_200_000);
const skip = cannotRun();
const PAGE_BYTES = 4096;

void t.test('what a device writes is in the dirty log, in every round', { skip }, async (t) => {
  const path = join(temporaryDirectory(t), 'dirty');
  const { peer, machine, nic } = await start(makeLab(t), 8);
  const collect = async (): Promise<number[]> => {
    await machine.execute('falcon-dirty-collect', { path });
    return setBits(readFileSync(path));
  };
  await machine.execute('falcon-dirty-start');
  t.same(await collect(), []);
  const { receiveRing, receiveBuffers, bufferBytes } = E1000.memory;
  for (let round = 0; round < 12; round++) {
    t.ok(await peer.push(numberedFrame(round, 100)));
    await until('the guest has the frame', async () => (await peer.state('deliver')).consumed === round + 1);
    // The device writes the frame and says so in its ring; nobody else writes.
    const buffer = receiveBuffers + (round % 8) * bufferBytes;
    t.same(await collect(), [receiveRing / PAGE_BYTES, Math.floor(buffer / PAGE_BYTES)], `frame ${round}`);
    t.equal((await nic.received()).length, 1);
    await nic.release();
    await collect(); // the driver has given the descriptor back
  }
});

void t.test('migration, snapshots and memory hot-plug are refused', { skip }, async (t) => {
  const lab = makeLab(t);
  await lab.startPeer();
  const memory = ['-m', '64,slots=2,maxmem=256M', '-object', 'memory-backend-ram,id=more,size=64M'];
  const machine = await lab.startMachine(lab.netdev, memory);
  const monitor = (line: string): Promise<unknown> =>
    machine.execute('human-monitor-command', { 'command-line': line });
  const protectedBy = /falcon: GUEST_PROTECTED: .*attached to falcond/;
  const plug = { driver: 'pc-dimm', memdev: 'more', id: 'dimm' };
  t.match(await machine.execute('query-falcon'), { attached: true });
  await t.rejects(machine.execute('migrate', { uri: 'exec:cat > /dev/null' }), { message: protectedBy });
  t.match(await monitor('savevm now'), protectedBy);
  t.match(await monitor('loadvm now'), protectedBy);
  await t.rejects(machine.execute('device_add', plug), { message: protectedBy });

  await machine.execute('netdev_del', { id: 'n0' });
  t.match(await machine.execute('query-falcon'), { attached: false });
  for (const line of ['savevm now', 'loadvm now']) t.notMatch(await monitor(line), protectedBy, line);
  await machine.execute('device_add', plug);
  await machine.execute('migrate', { uri: 'exec:cat > /dev/null' });
});

void t.test('a machine that must stay migratable cannot be attached', { skip }, async (t) => {
  const lab = makeLab(t);
  await lab.startPeer();
  const { code, stderr } = await Machine.run(lab.machineOptions(lab.netdev, ['-only-migratable']));
  t.equal(code, 1);
  t.match(stderr, /disallowing migration blocker \(--only-migratable\) for: falcon: GUEST_PROTECTED/);
});
