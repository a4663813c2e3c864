/** A daemon's log stays within its bound, and loses nothing of its newest part. */
import { closeSync, openSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';

import t from 'tap';

import { BoundedLog } from '../../src/lib/log-file.js';
import { temporaryDirectory } from '../support/directory.js';

t.test('the file is turned over at its bound', async (t) => {
  const path = join(temporaryDirectory(t), 'falcond.log');
  const fd = openSync(path, 'a');
  const log = new BoundedLog(fd, 1000);
  for (let i = 0; i < 250; i++) log.write(`line ${String(i).padStart(4, '0')}\n`);
  t.ok(statSync(path).size <= 1010 && statSync(`${path}.1`).size <= 1010);
  const lines = (readFileSync(`${path}.1`, 'utf8') + readFileSync(path, 'utf8')).trimEnd().split('\n');
  t.equal(lines.at(-1), 'line 0249');
  t.equal(
    lines.length,
    Number(lines.at(-1)?.slice(5)) - Number(lines[0]?.slice(5)) + 1,
    'no hole in what is kept',
  );
  t.ok(lines.length >= 100);
  closeSync(fd);
});

t.test('what is there counts, and a pipe is left alone', async (t) => {
  const path = join(temporaryDirectory(t), 'falcond.log');
  const first = openSync(path, 'a');
  new BoundedLog(first, 1000).write('x'.repeat(900));
  closeSync(first);
  const second = openSync(path, 'a');
  new BoundedLog(second, 1000).write('y'.repeat(200));
  t.equal(statSync(path).size, 0);
  t.equal(statSync(`${path}.1`).size, 1100);
  closeSync(second);
  const nowhere = openSync('/dev/null', 'a');
  const log = new BoundedLog(nowhere, 10);
  for (let i = 0; i < 5; i++) log.write('0123456789');
  closeSync(nowhere);
  t.doesNotThrow(() => log.write('closed by mistake\n'));
});
