/** The vote file under everything that a disk and a crash may do to it. */
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';

import { realFileSystem } from '../../src/adapters/file-system.js';
import { createHardState, hardStatePath, openHardState } from '../../src/adapters/hard-state.js';
import type { HardState } from '../../src/consensus/types.js';
import type { FileSystem } from '../../src/ports/file-system.js';

const directory = '/cluster/a';
const path = hardStatePath(directory);
const identity = { cluster: 'demo', node: 'a' };
const sectorBytes = 512;

class SystemError extends Error {
  readonly code: string;
  constructor(code: string) {
    super(code);
    this.code = code;
  }
}

interface SimFile {
  bytes: Uint8Array;
  forced: Uint8Array;
}

/** Files in memory that know what was forced; counts operations, and fails or stops at the one it is told. */
class SimFileSystem implements FileSystem {
  readonly files = new Map<string, SimFile>();
  private readonly handles = new Map<number, SimFile>();
  private nextHandle = 3;
  operations = 0;
  /** Throws at the operation with this number (1 is the next); a write happens in part. */
  failAt = 0;
  failWith = 'EIO';
  shortWrites = false;

  private step(): boolean {
    this.operations++;
    return this.operations === this.failAt;
  }
  private fail(): never {
    throw new SystemError(this.failWith);
  }
  private fileOf(handle: number): SimFile {
    return this.handles.get(handle) ?? this.fail();
  }
  open(name: string, how: 'read-write' | 'create'): number {
    if (this.step()) this.fail();
    let file = this.files.get(name);
    if (how === 'create') {
      if (file !== undefined) throw new SystemError('EEXIST');
      file = { bytes: new Uint8Array(), forced: new Uint8Array() };
      this.files.set(name, file);
    }
    if (file === undefined) throw new SystemError('ENOENT');
    this.handles.set(this.nextHandle, file);
    return this.nextHandle++;
  }
  close(handle: number): void {
    this.handles.delete(handle);
  }
  get openFiles(): number {
    return this.handles.size;
  }
  read(handle: number, into: Uint8Array, position: number): number {
    if (this.step()) this.fail();
    const part = this.fileOf(handle).bytes.subarray(position, position + Math.min(into.length, 100));
    into.set(part);
    return part.length;
  }
  write(handle: number, from: Uint8Array, position: number): number {
    const fails = this.step();
    const taken = fails ? from.length >> 1 : this.shortWrites ? Math.min(from.length, 37) : from.length;
    const file = this.fileOf(handle);
    const grown = new Uint8Array(Math.max(file.bytes.length, position + taken));
    grown.set(file.bytes);
    grown.set(from.subarray(0, taken), position);
    file.bytes = grown;
    if (fails) this.fail();
    return taken;
  }
  sync(handle: number): void {
    if (this.step()) this.fail();
    const file = this.fileOf(handle);
    file.forced = Uint8Array.from(file.bytes);
  }
  syncDirectory(): void {
    if (this.step()) this.fail();
  }
  link(existing: string, name: string): void {
    if (this.step()) this.fail();
    if (this.files.has(name)) throw new SystemError('EEXIST');
    this.files.set(name, this.files.get(existing)!);
  }
  remove(name: string): void {
    if (this.step()) this.fail();
    this.files.delete(name);
  }
  /** Loses power: of each unforced sector the old or the new bytes stay, as the bits of `choice` say. */
  losePower(choice: number): void {
    for (const file of this.files.values()) {
      const kept = new Uint8Array(choice === 0 ? file.forced.length : file.bytes.length);
      kept.set(file.forced);
      for (const [index, start] of [0, 4096].entries()) {
        const survives = ((choice >> index) & 1) === 1;
        if (survives) kept.set(file.bytes.subarray(start, start + sectorBytes), Math.min(start, kept.length));
      }
      file.bytes = kept;
      file.forced = Uint8Array.from(kept);
    }
    this.restart();
  }
  restart(): void {
    this.handles.clear();
    this.failAt = 0;
    this.operations = 0;
  }
}

const voted: HardState = { view: 7, votedFor: 2, recovering: false };
const next: HardState = { view: 9007199254740991, votedFor: null, recovering: true };

/** A file that holds `voted`. */
function prepared(): SimFileSystem {
  const disk = new SimFileSystem();
  createHardState(disk, directory, identity);
  const store = openHardState(disk, directory, identity);
  store.write(voted);
  store.close();
  disk.restart();
  return disk;
}

void t.test('what is written is read back', (t) => {
  const disk = new SimFileSystem();
  createHardState(disk, directory, identity);
  t.same([...disk.files.keys()], [path]);
  let store = openHardState(disk, directory, identity);
  t.same(store.state, { view: 0, votedFor: null, recovering: false });
  for (const state of [voted, next, { view: 8, votedFor: 0, recovering: false }]) {
    store.write(state);
    t.same(store.state, state);
    store.close();
    disk.losePower(0);
    store = openHardState(disk, directory, identity);
    t.same(store.state, state);
  }
  store.close();
  store.close();
  t.throws(() => store.write(voted), { code: 'HARD_STATE_FAILED' });
  t.equal(disk.openFiles, 0);
  t.end();
});

void t.test('it is never made twice, and never out of nothing', (t) => {
  const disk = prepared();
  t.throws(() => createHardState(disk, directory, identity), { code: 'CLUSTER_EXISTS' });
  t.same(openHardState(disk, directory, identity).state, voted);
  const empty = new SimFileSystem();
  t.throws(() => openHardState(empty, directory, identity), { code: 'HARD_STATE_LOST' });
  t.equal(empty.files.size, 0);
  t.end();
});

void t.test('another node or cluster is refused', (t) => {
  const disk = prepared();
  t.throws(() => openHardState(disk, directory, { cluster: 'demo', node: 'b' }), { code: 'WAL_FOREIGN' });
  t.throws(() => openHardState(disk, directory, { cluster: 'other', node: 'a' }), { code: 'WAL_FOREIGN' });
  t.equal(disk.openFiles, 0);
  t.throws(() => createHardState(new SimFileSystem(), directory, { cluster: 'x'.repeat(500), node: 'a' }), {
    code: 'HARD_STATE_FAILED',
  });
  t.end();
});

void t.test('making it fails or stops anywhere: there is a whole file or none', (t) => {
  const clean = new SimFileSystem();
  createHardState(clean, directory, identity);
  for (let stop = 1; stop <= clean.operations; stop++) {
    for (let choice = 0; choice < 4; choice++) {
      const disk = new SimFileSystem();
      disk.failAt = stop;
      t.throws(() => createHardState(disk, directory, identity), { code: 'HARD_STATE_FAILED' });
      disk.losePower(choice);
      if (!disk.files.has(path)) createHardState(disk, directory, identity);
      t.equal(openHardState(disk, directory, identity).state.view, 0, `stopped at ${stop}`);
    }
  }
  t.end();
});

void t.test('short writes and short reads change nothing', (t) => {
  const disk = prepared();
  disk.shortWrites = true;
  const store = openHardState(disk, directory, identity);
  store.write(next);
  disk.losePower(0);
  t.same(openHardState(disk, directory, identity).state, next);
  t.end();
});

void t.test('a write that fails or stops anywhere: the old state or the new one, and no further use', (t) => {
  const clean = prepared();
  const cleanStore = openHardState(clean, directory, identity);
  const before = clean.operations;
  cleanStore.write(next);
  const seen = new Set<number>();
  for (const failWith of ['EIO', 'ENOSPC']) {
    for (let stop = before + 1; stop <= clean.operations; stop++) {
      for (let choice = 0; choice < 4; choice++) {
        const disk = prepared();
        const store = openHardState(disk, directory, identity);
        disk.failAt = stop;
        disk.failWith = failWith;
        t.throws(() => store.write(next), { code: 'HARD_STATE_FAILED' });
        t.same(store.state, voted);
        const tried = disk.operations;
        t.throws(() => store.write(next), { code: 'HARD_STATE_FAILED' });
        t.equal(disk.operations, tried, 'nothing is retried');
        disk.losePower(choice);
        const found = openHardState(disk, directory, identity).state;
        seen.add(found.view);
        t.ok(found.view === voted.view || found.view === next.view);
        t.same(found, found.view === voted.view ? voted : next);
        // Whatever it is, it stays so.
        disk.losePower(0);
        t.same(openHardState(disk, directory, identity).state, found);
      }
    }
  }
  t.equal(seen.size, 2);
  t.end();
});

void t.test('a start that fails anywhere loses nothing', (t) => {
  const clean = prepared();
  openHardState(clean, directory, identity).close();
  for (let stop = 1; stop <= clean.operations; stop++) {
    const disk = prepared();
    disk.failAt = stop;
    t.throws(() => openHardState(disk, directory, identity), { code: 'HARD_STATE_FAILED' });
    t.equal(disk.openFiles, 0);
    disk.losePower(stop & 3);
    t.same(openHardState(disk, directory, identity).state, voted);
  }
  t.end();
});

void t.test('every truncation and every flipped bit: the state, or a coded error', (t) => {
  const image = prepared().files.get(path)!.bytes;
  const opened = (bytes: Uint8Array): HardState | string => {
    const disk = new SimFileSystem();
    disk.files.set(path, { bytes, forced: Uint8Array.from(bytes) });
    try {
      return openHardState(disk, directory, identity).state;
    } catch (error) {
      return (error as SystemError).code;
    }
  };
  const wrong: string[] = [];
  const expectState = (what: string, found: HardState | string, wanted: HardState | string): void => {
    if (JSON.stringify(found) !== JSON.stringify(wanted)) wrong.push(`${what}: ${JSON.stringify(found)}`);
  };
  for (let length = 0; length <= image.length; length++) {
    const wanted = length < sectorBytes ? 'HARD_STATE_LOST' : voted;
    expectState(`length ${length}`, opened(image.slice(0, length)), wanted);
  }
  for (const slot of [0, 4096]) {
    for (let bit = 0; bit < sectorBytes * 8; bit++) {
      const broken = Uint8Array.from(image);
      broken[slot + (bit >> 3)]! ^= 1 << (bit & 7);
      expectState(`bit ${bit} of the slot at ${slot}`, opened(broken), voted);
      broken[4096 - slot + ((bit * 5) % sectorBytes)]! ^= 1;
      expectState(`bit ${bit} and one of the other slot`, opened(broken), 'HARD_STATE_LOST');
    }
  }
  t.same(wrong, []);
  t.end();
});

void t.test('on the real file system', (t) => {
  const real = mkdtempSync(join(tmpdir(), 'falcon-hard-state-'));
  t.teardown(() => rmSync(real, { recursive: true, force: true }));
  createHardState(realFileSystem, real, identity);
  t.throws(() => createHardState(realFileSystem, real, identity), { code: 'CLUSTER_EXISTS' });
  const store = openHardState(realFileSystem, real, identity);
  store.write(voted);
  store.close();
  const again = openHardState(realFileSystem, real, identity);
  t.same(again.state, voted);
  again.close();
  t.equal(statSync(hardStatePath(real)).mode & 0o777, 0o600);
  t.equal(readFileSync(hardStatePath(real)).length, 4096 + sectorBytes);
  rmSync(hardStatePath(real));
  t.throws(() => openHardState(realFileSystem, real, identity), { code: 'HARD_STATE_LOST' });
  t.end();
});
