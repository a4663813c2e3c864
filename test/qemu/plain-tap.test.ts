// Without falcon= the tap of the patched QEMU is the tap that it was.
import t from 'tap';
import { cannotRun, makeLab, TAP } from './lab.js';
import { E1000 } from './e1000.js';
import { until } from './lines.js';
import { numberedFrame } from './peer.js';
import { checkNumbered } from './sequence.js';

t.setTimeout(1_200_000);
const skip = cannotRun();

for (const header of ['vnet_hdr=off', 'vnet_hdr=on']) {
  void t.test(`frames pass both ways with ${header}`, { skip }, async (t) => {
    const lab = makeLab(t);
    // The peer only plays the network here: nobody connects to its socket.
    const network = await lab.startPeer();
    const machine = await lab.startMachine(`tap,id=n0,ifname=${TAP},script=no,downscript=no,${header}`);
    const nic = await E1000.start(machine, 8);
    t.notOk(await network.attached());
    t.match(await machine.execute('query-falcon'), { attached: false, ports: [] });

    const frames: Buffer[] = [];
    const receive = async (count: number): Promise<void> => {
      await until(`the guest has ${count} frames`, async () => {
        frames.push(...(await nic.received()));
        await nic.release();
        return frames.length >= count;
      });
    };
    t.ok(await network.inject(numberedFrame(0, 20)));
    await receive(1);
    t.same(frames.shift(), Buffer.concat([numberedFrame(0, 20), Buffer.alloc(40)]), 'padded for the guest');
    // More than the guest has buffers for, so that reading from the tap stops and goes on.
    t.equal(await network.injectMany(1, 300, 1514), 300);
    await receive(300);
    checkNumbered(t, frames, { first: 1, count: 300, size: 1514 });

    await nic.send(Array.from({ length: 50 }, (_, i) => numberedFrame(i, 100 + i)));
    const sent: Buffer[] = [];
    await until('the network has the frames', async () => {
      sent.push(...(await network.sniff(100)));
      return sent.length >= 50;
    });
    t.same(
      sent,
      Array.from({ length: 50 }, (_, i) => numberedFrame(i, 100 + i)),
    );
  });
}
