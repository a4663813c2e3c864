/** The file of a guest's memory, on the machine's memory file system. */
import { mkdtempSync, rmSync, statSync, truncateSync } from 'node:fs';
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
    clearRamFile(path);
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

  await t.test('of an earlier guest goes, and no other', (t) => {
    const other = makeRamFile({ directory, name: 'other', bytes });
    const first = makeRamFile({ directory, name: 'd', bytes });
    const second = makeRamFile({ directory, name: 'd', bytes });
    t.throws(() => statSync(first), { code: 'ENOENT' });
    removeRamFiles(directory, 'd');
    t.throws(() => statSync(second), { code: 'ENOENT' });
    t.ok(statSync(other).isFile());
    t.end();
  });
});
