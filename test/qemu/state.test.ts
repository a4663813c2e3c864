// Device state: a second machine goes on where the first stood, and what is refused leaves the guest as it was.
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import t from 'tap';

import { asFalconError } from '../../src/lib/errors.js';
import { composeState, parseState, type StateFile } from './state-file.js';
import { RAM_MIB, Tiny, type TinyOptions, whyNoKvm } from './tiny.js';

t.setTimeout(1_200_000);

const RAM_BYTES = RAM_MIB * 1024 * 1024;
const PAGES = [16, 17, 47, 79];
/** So that there is a device with memory and one with queues. */
const DEVICES = ['-device', 'virtio-rng-pci', '-device', 'VGA,romfile='];

const load = (tiny: Tiny, path: string): Promise<unknown> => tiny.qmp.execute('falcon-load-state', { path });

async function save(tiny: Tiny): Promise<string> {
  const path = join(tiny.directory, 'state');
  const { bytes } = (await tiny.qmp.execute('falcon-save-state', { path })) as { bytes: number };
  if (bytes !== readFileSync(path).length) throw new Error('a wrong size');
  return path;
}

/** The code of a call that must fail, and what it says. */
async function refusal(call: Promise<unknown>): Promise<string> {
  try {
    await call;
    return 'no error';
  } catch (error) {
    const { code, detail } = asFalconError(error);
    return `${code} ${detail}`;
  }
}

interface Test {
  teardown(handler: () => void): void;
}

/** A guest that has written its pages and stands. */
async function ran(t: Test, options: TinyOptions, rounds = 1): Promise<Tiny> {
  const tiny = new Tiny(t, options);
  tiny.writePages(PAGES);
  await tiny.qmp.execute('cont');
  for (let i = 0; i < rounds; i++) await tiny.rounds(16);
  await tiny.qmp.execute('stop');
  return tiny;
}

const copyRam = (from: Tiny, to: Tiny): void => to.write(0, from.read(0, RAM_BYTES));
const counters = (tiny: Tiny): number[] => PAGES.map((page) => tiny.counter(page));

for (const accelerator of ['tcg,thread=multi', 'kvm'] as const) {
  void t.test(`a fresh and a used machine go on, ${accelerator}`, async (t) => {
    const cannot = accelerator === 'kvm' ? await whyNoKvm(t) : null;
    if (cannot !== null) {
      t.plan(0, cannot);
      return;
    }
    const source = await ran(t, { accelerator, more: DEVICES }, 5);
    const fresh = new Tiny(t, { accelerator, more: DEVICES });
    const used = await ran(t, { accelerator, more: DEVICES });
    const state = await save(source);
    const saved = readFileSync(state);
    for (const target of [fresh, used]) {
      copyRam(source, target);
      await load(target, state);
      t.ok(target.read(0, RAM_BYTES).equals(source.read(0, RAM_BYTES)), 'a load does not touch the main RAM');
      // The clock that KVM has goes on while the guest stands.
      if (accelerator !== 'kvm')
        t.ok(readFileSync(await save(target)).equals(saved), 'a loaded machine is the saved one');
      await target.qmp.execute('cont');
      await target.rounds(16);
      await target.qmp.execute('stop');
      const went = counters(target).map((count, i) => count - (counters(source)[i] ?? NaN));
      t.ok(
        Math.min(...went) > 0 && Math.max(...went) - Math.min(...went) <= 1,
        `${went.join(' ')} rounds more`,
      );
    }
  });
}

void t.test('a machine in another order of blocks takes the state', async (t) => {
  const source = await ran(t, { more: DEVICES });
  const target = new Tiny(t, { more: DEVICES });
  const state = parseState(readFileSync(await save(source)));
  t.ok(state.blocks.length >= 3, state.blocks.map(({ idstr }) => idstr).join(' '));
  state.blocks.reverse();
  const path = join(target.directory, 'reversed');
  writeFileSync(path, composeState(state));
  copyRam(source, target);
  await load(target, path);
  await target.qmp.execute('cont');
  await target.rounds(16);
});

void t.test('pages that are zero in the file become zero', async (t) => {
  const source = await ran(t, { more: DEVICES });
  const target = new Tiny(t, { more: DEVICES });
  const state = parseState(readFileSync(await save(source)));
  const vga = state.blocks.find(({ idstr }) => idstr.includes('vga.vram'));
  if (vga === undefined) throw new Error('no video memory');
  const mark = Buffer.alloc(4096, 'mark');
  vga.pages = [{ index: 7, data: mark }];
  const path = join(target.directory, 'marked');
  writeFileSync(path, composeState(state));
  await load(target, path);
  const marked = parseState(readFileSync(await save(target))).blocks.find(({ idstr }) => idstr === vga.idstr);
  t.same(marked?.pages, [{ index: 7, data: mark }]);
  vga.pages = [];
  writeFileSync(path, composeState(state));
  await load(target, path);
  t.same(
    parseState(readFileSync(await save(target))).blocks.find(({ idstr }) => idstr === vga.idstr)?.pages,
    [],
  );
});

const composed = (change: (state: StateFile) => void) => {
  return (file: Buffer): Buffer => {
    const state = parseState(file);
    change(state);
    return composeState(state);
  };
};

const first = <T>(list: T[]): T => {
  const [item] = list;
  if (item === undefined) throw new Error('an empty list');
  return item;
};

const flip = (bytes: Buffer, at: number): void => {
  bytes[at] = (bytes[at] ?? 0) ^ 0x55;
};

const wrongFiles: readonly (readonly [what: string, says: RegExp, make: (file: Buffer) => Buffer])[] = [
  ['an empty file', /no file of falcon-save-state/, () => Buffer.alloc(0)],
  ['another file', /no file of falcon-save-state/, () => Buffer.from('x'.repeat(10_000))],
  ['half a header', /no file of falcon-save-state/, (file) => file.subarray(0, 20)],
  ['a file cut by a byte', /bytes, but \d+ were written/, (file) => file.subarray(0, -1)],
  ['a file cut in its middle', /bytes, but \d+ were written/, (file) => file.subarray(0, file.length >> 1)],
  ['bytes behind the end', /bytes, but \d+ were written/, (file) => Buffer.concat([file, Buffer.alloc(8)])],
  [
    'one wrong bit',
    /the checksum is wrong/,
    (file) => {
      const wrong = Buffer.from(file);
      flip(wrong, wrong.length - 1000);
      return wrong;
    },
  ],
  ['another version', /the file has version 2, not 1/, composed((state) => (state.version = 2))],
  ['another machine', /of a machine isapc/, composed((state) => (state.machine = 'isapc'))],
  ['more processors', /with 2 processors/, composed((state) => (state.cpus = 2))],
  ['more memory', /33554432 bytes/, composed((state) => (state.ramBytes = 33554432n))],
  [
    'an unknown device',
    /has a device 'lost' 0 of version 1/,
    composed((state) => state.sections.push({ idstr: 'lost', instance: 0, version: 1 })),
  ],
  [
    'a device of another version',
    /of version 99, this machine does not/,
    composed((state) => (first(state.sections).version = 99)),
  ],
  ['a device twice', /twice/, composed((state) => state.sections.push(first(state.sections)))],
  [
    'a device too few',
    /the file has no device/,
    composed((state) => (state.sections = state.sections.slice(0, -3))),
  ],
  ['a block twice', /memory '.+' twice/, composed((state) => state.blocks.push(first(state.blocks)))],
  [
    'a block too few',
    /the file has \d+ memory blocks, this machine \d+/,
    composed((state) => state.blocks.pop()),
  ],
  ['an unknown block', /has memory 'lost'/, composed((state) => (first(state.blocks).idstr = 'lost'))],
  ['the main RAM', /has memory 'ram'/, composed((state) => (first(state.blocks).idstr = 'ram'))],
  [
    'a block of another size',
    /bytes in the file and/,
    composed((state) => (first(state.blocks).bytes = 8192n * 64n)),
  ],
  [
    'a page behind the block',
    /has no page \d+ at that place/,
    composed((state) => first(state.blocks).pages.push({ index: 0x7fffffff, data: Buffer.alloc(4096) })),
  ],
  [
    'pages in disorder',
    /has no page 1 at that place/,
    composed((state) => {
      const page = Buffer.alloc(4096);
      first(state.blocks).pages = [
        { index: 1, data: page },
        { index: 1, data: page },
      ];
    }),
  ],
  ['a stream of something else', /not well formed/, composed((state) => flip(state.devices, 0))],
  ['no stream', /not well formed/, composed((state) => (state.devices = Buffer.alloc(0)))],
  // From here on devices have been changed when the fault is found.
  ['a wrong first section', /a device was refused/, composed((state) => flip(state.devices, 8))],
  [
    'a wrong last section',
    /a device was refused/,
    composed((state) => flip(state.devices, state.devices.length - 1)),
  ],
  [
    'a stream without an end',
    /a device was refused/,
    composed((state) => (state.devices = state.devices.subarray(0, -1))),
  ],
];

void t.test('wrong files are refused, and the guest is as it was', async (t) => {
  const source = await ran(t, { more: DEVICES }, 3);
  const right = readFileSync(await save(source));
  t.ok(composeState(parseState(right)).equals(right), 'the test knows the format');
  const target = await ran(t, { more: DEVICES });
  const before = readFileSync(await save(target));
  const ram = target.read(0, RAM_BYTES);
  const path = join(target.directory, 'wrong');
  for (const [what, says, make] of wrongFiles) {
    writeFileSync(path, make(right));
    const said = await refusal(load(target, path));
    t.match(said, /^GUEST_STATE_INVALID /, what);
    t.match(said, says, what);
    t.ok(readFileSync(await save(target)).equals(before), `${what}: devices and blocks`);
  }
  t.ok(target.read(0, RAM_BYTES).equals(ram), 'the main RAM');

  t.match(await refusal(load(target, '/nowhere/state')), /^QMP_FAILED .*No such file/);
  mkdirSync(join(target.directory, 'folder'));
  t.match(
    await refusal(load(target, join(target.directory, 'folder'))),
    /^GUEST_STATE_INVALID .* is no file/,
  );
  t.match(await refusal(target.qmp.execute('falcon-save-state', { path: '/nowhere/state' })), /^QMP_FAILED/);

  const count = target.counter(16);
  await target.qmp.execute('cont');
  await target.rounds(16);
  t.ok(target.counter(16) > count && target.counter(16) < 2 ** 31, 'it goes on');
  copyRam(source, target);
  await target.qmp.execute('stop');
  writeFileSync(path, right);
  await load(target, path);
  t.equal(await target.status(), 'paused', 'and takes the right file');
});

void t.test('the state of another machine is refused', async (t) => {
  const target = new Tiny(t, { more: DEVICES });
  const others: readonly (readonly [says: RegExp, options: TinyOptions])[] = [
    [/1 processors and 33554432 bytes, this is \S+ with 1 and 16777216/, { more: DEVICES, memoryMiB: 32 }],
    [/with 2 processors/, { more: [...DEVICES, '-smp', '2'] }],
    [/has a device '.*virtio-balloon' 0/, { more: [...DEVICES, '-device', 'virtio-balloon-pci'] }],
    [/the file has no device '.*vga'/, { more: ['-device', 'virtio-rng-pci'] }],
  ];
  for (const [says, options] of others) {
    const said = await refusal(load(target, await save(new Tiny(t, options))));
    t.match(said, /^GUEST_STATE_INVALID /);
    t.match(said, says);
  }
});

void t.test('commands in the wrong state are refused', async (t) => {
  const tiny = new Tiny(t);
  const path = join(tiny.directory, 'x');
  const dirty = (what: string, args = {}): Promise<string> =>
    refusal(tiny.qmp.execute(`falcon-dirty-${what}`, args));
  t.match(await dirty('stop'), /^GUEST_WRONG_STATE the dirty log is off/);
  t.match(await dirty('collect', { path }), /^GUEST_WRONG_STATE the dirty log is off/);
  t.equal(await dirty('start'), 'no error');
  t.match(await dirty('start'), /^GUEST_WRONG_STATE the dirty log is on/);
  t.match(await tiny.qmp.execute('query-falcon'), { 'dirty-log': true });

  tiny.writePages(PAGES);
  await tiny.qmp.execute('cont');
  await tiny.rounds(16);
  t.match(await dirty('collect', { path: '/nowhere/x' }), /^QMP_FAILED/);
  t.same(await tiny.collect(), PAGES, 'pages that could not be reported are reported the next time');
  t.match(await dirty('collect'), /^QMP_FAILED .*path/);
  const running = /^GUEST_WRONG_STATE the guest is not paused but 'running'/;
  t.match(await refusal(save(tiny)), running);
  t.match(await refusal(load(tiny, path)), running);
  t.equal(await dirty('stop'), 'no error');
  t.match(await tiny.qmp.execute('query-falcon'), { 'dirty-log': false, attached: false, status: 'running' });
  const { 'ram-blocks': blocks } = (await tiny.qmp.execute('query-falcon')) as { 'ram-blocks': unknown[] };
  t.match(
    blocks.filter((block) => (block as { main: boolean }).main),
    [{ idstr: 'ram', bytes: RAM_BYTES }],
  );
  t.ok(blocks.length >= 3);
});

void t.test('a device that cannot be saved', async (t) => {
  const tiny = new Tiny(t, { more: ['-device', 'rocker,name=switch'] });
  t.match(await refusal(save(tiny)), /^GUEST_WRONG_STATE State blocked by non-migratable device '.*rocker'/);
});

void t.test('a hundred saves and loads leave nothing behind', async (t) => {
  const source = await ran(t, { more: DEVICES });
  const target = await ran(t, { more: DEVICES });
  await target.qmp.execute('falcon-dirty-start');
  const round = async (): Promise<void> => {
    await load(target, await save(source));
    await load(source, await save(target));
    await target.collect();
  };
  const held = (tiny: Tiny): { kib: number; files: number } => ({
    kib: Number(
      /^RssAnon:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${tiny.process.pid}/status`, 'latin1'))?.[1],
    ),
    files: readdirSync(`/proc/${tiny.process.pid}/fd`).length,
  });
  for (let i = 0; i < 20; i++) await round();
  // The allocator may take another arena once; what leaks grows with every hundred.
  const seen = [held(target)];
  do {
    for (let i = 0; i < 100; i++) await round();
    seen.push(held(target));
  } while (seen.length < 4 && seen.at(-1)!.kib - seen.at(-2)!.kib >= 512);
  t.ok(seen[0]!.kib > 0);
  t.equal(seen.at(-1)!.files, seen[0]!.files, `${seen[0]!.files} open files`);
  t.ok(seen.at(-1)!.kib - seen.at(-2)!.kib < 512, `${seen.map(({ kib }) => kib).join(', ')} KiB`);
});
