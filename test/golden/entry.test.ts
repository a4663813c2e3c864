/** TypeScript's view of a log entry against the bytes that the native code writes. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';

import { repositoryRoot } from '../../src/lib/root.js';
import { crc32c } from '../../src/wire/crc32c.js';
import { decodeEntry, encodeEntry, entryBytes, entryHeaderBytes } from '../../src/wire/entry.js';
import type { EntryKindName } from '../../src/wire/entry.js';

interface Golden {
  readonly name: string;
  readonly bytes: Uint8Array;
}

const golden: readonly Golden[] = readFileSync(join(repositoryRoot, 'test/golden/entry.hex'), 'utf8')
  .split('\n')
  .filter((line) => line !== '' && !line.startsWith('#'))
  .map((line) => {
    const [name = '', hex = ''] = line.split(': ');
    return { name, bytes: new Uint8Array(Buffer.from(hex, 'hex')) };
  });

/** What test/native/entry_test.cc put in. */
const expected: readonly (readonly [
  name: string,
  view: number,
  op: number,
  commitOp: number,
  kind: EntryKindName,
  payloadBytes: number,
])[] = [
  ['first', 1, 1, 0, 'view-start', 0],
  ['one byte', 1, 2, 1, 'frame', 1],
  ['padded', 1, 3, 2, 'vm-boot', 13],
  ['aligned', 2, 4, 2, 'output-check', 64],
  ['large numbers', 2 ** 53 - 1, 2 ** 53 - 2, 2 ** 32, 'membership', 5],
  ['last kind', 2 ** 53 - 1, 2 ** 53 - 1, 2 ** 32 + 1, 'noop', 300],
];

void t.test('golden bytes decode to what was written, and encode to the same bytes', (t) => {
  t.equal(golden.length, expected.length);
  let previous = 0;
  for (const [index, [name, view, op, commitOp, kind, payloadBytes]] of expected.entries()) {
    const { bytes } = golden[index]!;
    const payload = Uint8Array.from({ length: payloadBytes }, (_, at) => at * 7 + 1);
    t.equal(golden[index]!.name, name);
    const entry = decodeEntry(bytes);
    t.match(entry, { view, op, commitOp, kind, previous, bytes: bytes.length }, name);
    t.same(entry?.payload, payload, `${name}: payload`);
    t.same(encodeEntry({ view, op, commitOp, kind, previous, payload }), bytes, `${name}: encoded`);
    previous = entry?.checksum ?? 0;
  }
  t.end();
});

void t.test('nothing broken decodes', (t) => {
  const { bytes } = golden[2]!;
  for (let length = 0; length < bytes.length; length++) t.equal(decodeEntry(bytes.subarray(0, length)), null);
  for (let bit = 0; bit < (entryHeaderBytes + 13) * 8; bit++) {
    const broken = Uint8Array.from(bytes);
    broken[bit >> 3]! ^= 1 << (bit & 7);
    t.equal(decodeEntry(broken), null, `bit ${bit}`);
  }
  t.end();
});

void t.test('numbers beyond 2^53 are refused on both ways', (t) => {
  const entry = {
    view: 1,
    op: 1,
    commitOp: 0,
    kind: 'noop',
    previous: 0,
    payload: new Uint8Array(),
  } as const;
  t.throws(() => encodeEntry({ ...entry, op: 2 ** 53 }), RangeError);
  t.throws(() => encodeEntry({ ...entry, view: -1 }), RangeError);
  const bytes = encodeEntry(entry);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(24, 2n ** 53n, true);
  view.setUint32(4, crc32c(bytes.subarray(8)), true);
  t.equal(decodeEntry(bytes), null);
  view.setBigUint64(24, 2n ** 53n - 1n, true);
  view.setUint32(4, crc32c(bytes.subarray(8)), true);
  t.equal(decodeEntry(bytes)?.op, 2 ** 53 - 1);
  t.end();
});

void t.test('CRC32C has its published values', (t) => {
  const text = new TextEncoder().encode('123456789');
  t.equal(crc32c(text), 0xe3069283);
  t.equal(crc32c(text.subarray(4), crc32c(text.subarray(0, 4))), 0xe3069283);
  t.equal(crc32c(new Uint8Array(32)), 0x8a9136aa);
  t.equal(crc32c(new Uint8Array()), 0);
  t.equal(entryBytes(1), 56);
  t.end();
});
