/** Saved states of devices, compared: which devices differ, and what cannot be read is said to be so. */
import t from 'tap';

import { Random } from '../../src/lib/random.js';
import { compareDeviceStates } from '../../src/transfer/device-state.js';
import { composeState } from '../qemu/state-file.js';
import type { StateFile } from '../qemu/state-file.js';

interface Device {
  readonly idstr: string;
  readonly instance: number;
  readonly state: Buffer;
}

/** QEMU's stream: its magic and version, sections with headers and footers, the end. */
function streamOf(devices: readonly Device[]): Buffer {
  const parts: Buffer[] = [Buffer.from('5145564d00000003', 'hex')];
  devices.forEach(({ idstr, instance, state }, index) => {
    const numbers = Buffer.alloc(8);
    numbers.writeUInt32BE(instance, 0);
    numbers.writeUInt32BE(1, 4);
    const id = Buffer.from([0, 0, 0, index + 3]);
    const name = Buffer.concat([Buffer.of(idstr.length), Buffer.from(idstr, 'latin1')]);
    parts.push(Buffer.of(4), id, name, numbers, state, Buffer.of(0x7e), id);
  });
  return Buffer.concat([...parts, Buffer.of(0)]);
}

function stateOf(devices: readonly Device[], change: Partial<StateFile> = {}): Buffer {
  return composeState({
    version: 1,
    machine: 'pc-i440fx-7.2',
    cpus: 1,
    ramBytes: 1n << 28n,
    sections: devices.map(({ idstr, instance }) => ({ idstr, instance, version: 1 })),
    blocks: [{ idstr: 'vga.vram', bytes: 1n << 24n, pages: [{ index: 2, data: Buffer.alloc(4096, 1) }] }],
    devices: streamOf(devices),
    ...change,
  });
}

// The state of one looks like the header of the next, but for the footer in front.
const tricky = Buffer.concat([
  Buffer.from([4, 0, 0, 0, 5, 3]),
  Buffer.from('cpu', 'latin1'),
  Buffer.from([0, 0, 0, 1, 0, 0, 0, 1, 9]),
]);
const devices: readonly Device[] = [
  { idstr: 'timer', instance: 0, state: Buffer.from([1, 2, 3, 4]) },
  { idstr: 'cpu', instance: 0, state: tricky },
  { idstr: 'cpu', instance: 1, state: Buffer.alloc(100, 7) },
  { idstr: '0000:00:02.0/e1000', instance: 0, state: Buffer.alloc(0) },
];

function changed(index: number, state: Buffer): Device[] {
  return devices.map((device, i) => (i === index ? { ...device, state } : device));
}

void t.test('equal states', (t) => {
  t.same(compareDeviceStates(stateOf(devices), stateOf(devices)), { parts: 5, differing: [], trouble: null });
  const nothing = new Uint8Array();
  t.same(compareDeviceStates(nothing, nothing), { parts: 0, differing: [], trouble: null });
  t.end();
});

void t.test('each device that differs is named, with what differs', (t) => {
  const differs = (state: Buffer): unknown => compareDeviceStates(stateOf(devices), state).differing;
  t.same(differs(stateOf(changed(0, Buffer.from([1, 9, 3, 9])))), [{ name: 'timer', bytes: 2, of: 4 }]);
  t.same(differs(stateOf(changed(2, Buffer.alloc(103, 7)))), [{ name: 'cpu#1', bytes: 3, of: 103 }]);
  t.same(differs(stateOf(changed(3, Buffer.of(5)))), [{ name: '0000:00:02.0/e1000', bytes: 1, of: 1 }]);
  t.same(differs(stateOf(devices.slice(0, 3))), [{ name: '0000:00:02.0/e1000', bytes: 1, of: 0 }]);
  const pages = [
    { index: 2, data: Buffer.alloc(4096, 1).fill(2, 0, 10) },
    { index: 5, data: Buffer.alloc(4096).fill(3, 0, 7) },
  ];
  const blocks = [{ idstr: 'vga.vram', bytes: 1n << 24n, pages }];
  t.same(differs(stateOf(devices, { blocks })), [{ name: 'memory vga.vram', bytes: 17, of: 8192 }]);
  t.end();
});

void t.test('what cannot be read', (t) => {
  const good = stateOf(devices);
  const why = (bytes: Uint8Array): string | null => compareDeviceStates(good, bytes).trouble;
  const cannot = "the state of the target's devices cannot be read";
  t.equal(why(new Uint8Array()), `${cannot}: it is cut short`);
  t.equal(why(good.subarray(0, good.length - 1)), `${cannot}: it is cut short`);
  t.equal(why(Buffer.concat([good, Buffer.of(0)])), `${cannot}: there is something behind the devices`);
  t.equal(why(Buffer.alloc(64)), `${cannot}: it is no saved state`);
  t.equal(why(stateOf(devices, { version: 2 })), `${cannot}: it has another version`);
  t.equal(
    why(stateOf(devices, { devices: streamOf(devices.slice(0, 3)) })),
    `${cannot}: 0000:00:02.0/e1000 is not found`,
  );
  const endless = streamOf(devices).subarray(0, -1);
  t.equal(
    why(stateOf(devices, { devices: endless })),
    `${cannot}: the end of 0000:00:02.0/e1000 is not found`,
  );
  t.equal(why(stateOf([])), `${cannot}: it lists no devices`);
  t.equal(why(stateOf([...devices, devices[0]!])), `${cannot}: timer is there twice`);
  t.match(compareDeviceStates(Buffer.alloc(64), good).trouble, /^the state of the source's devices/);
  t.end();
});

void t.test('bytes that anybody made up', (t) => {
  const good = stateOf(devices);
  const random = new Random(3);
  let [read, unread] = [0, 0];
  for (let i = 0; i < 3000; i++) {
    const bytes = Uint8Array.from(good);
    for (let n = 1 + random.below(4); n > 0; n--) {
      // Counts, lengths and names are at the front; the devices' stream at the end.
      const at = random.chance(0.5) ? random.below(200) : bytes.length - 1 - random.below(300);
      bytes[at] = random.below(256);
    }
    const cut = random.chance(0.2) ? bytes.subarray(0, random.below(bytes.length)) : bytes;
    if (compareDeviceStates(good, cut).trouble === null) read++;
    else unread++;
  }
  t.ok(read > 100 && unread > 100, `${read} were read, ${unread} were not, none did harm`);
  t.end();
});
