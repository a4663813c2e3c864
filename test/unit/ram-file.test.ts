/** The file of a guest's memory, on the machine's memory file system. */
import { mkdirSync, mkdtempSync, rmSync, statSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';

import {
  clearRamFile,
  makeRamFile,
  removeRamFile,
  removeRamFiles,
  reserveRamFile,
} from '../../src/adapters/ram-file.js';

const bytes = 8 * 2 ** 20;
const tebibyte = 2 ** 40;

t.test('a RAM file', async (t) => {
  const directory = mkdtempSync('/dev/shm/falcon-ram-file-');
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  const taken = (path: string): number => statSync(path).blocks * 512;

  await t.test('takes its room when told to, and gives it back', async (t) => {
    const path = makeRamFile({ directory, name: 'a', bytes });
    const { size } = statSync(path);
    t.ok(size > bytes, 'it has a trailer');
    t.equal(taken(path), 0, 'sparse');
    await reserveRamFile(path);
    t.ok(taken(path) >= size, 'reserved');
    await clearRamFile(path);
    t.match([statSync(path).size, taken(path)], [size, 0], 'sparse again');
    await removeRamFile(path);
    t.throws(() => statSync(path), { code: 'ENOENT' });
    await removeRamFile(path);
  });

  await t.test('is refused where there is no room', async (t) => {
    t.throws(() => makeRamFile({ directory, name: 'b', bytes: tebibyte }), {
      code: 'QEMU_FAILED',
      message: /bytes free, \d+ are needed/,
    });
    const path = makeRamFile({ directory, name: 'c', bytes });
    truncateSync(path, tebibyte);
    await t.rejects(reserveRamFile(path), { code: 'QEMU_FAILED', message: /No space left/ });
    t.equal(taken(path), 0, 'nothing is left of the attempt');
    await t.rejects(reserveRamFile(join(directory, 'nobody')), { code: 'QEMU_FAILED' });
  });

  await t.test('of an earlier guest goes, and no other', async (t) => {
    const other = makeRamFile({ directory, name: 'other', bytes });
    const earlier = [1, 2].map(() => makeRamFile({ directory, name: 'd', bytes }));
    await removeRamFiles(directory, 'd');
    for (const path of earlier) t.throws(() => statSync(path), { code: 'ENOENT' });
    t.ok(statSync(other).isFile());
    await removeRamFiles(join(directory, 'nowhere'), 'd');
    mkdirSync(join(directory, `e-${'0'.repeat(16)}.ram`));
    await t.rejects(removeRamFiles(directory, 'e'), { code: 'QEMU_FAILED' });
  });

  await t.test('the event loop goes on while memory is given back', async (t) => {
    const path = makeRamFile({ directory, name: 'f', bytes: 256 * 2 ** 20 });
    for (const giveBack of [() => clearRamFile(path), () => removeRamFiles(directory, 'f')]) {
      await reserveRamFile(path);
      let done = false;
      const given = giveBack().then(() => (done = true));
      await new Promise((resolve) => setImmediate(resolve));
      t.notOk(done, 'it is still at it');
      await given;
    }
  });
});
