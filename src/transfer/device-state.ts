/**
 * Which devices of two guests differ: the files of falcon-save-state (native/qemu/migration/falcon-state.c), taken apart.
 *
 * The devices' own part is QEMU's stream, whose sections have a header and a footer but no length: where one ends is
 * found by the header of the next, which the file's list of sections names, right behind a footer of the one before.
 * Nothing here trusts the bytes: a file that is not read to its end is said to be unreadable, not guessed at.
 */

/** A part of two states that is not the same: a device, or a memory beside the main one. */
export interface DeviceDifference {
  readonly name: string;
  /** How many bytes differ, and of how many. */
  readonly bytes: number;
  readonly of: number;
}

export interface DeviceComparison {
  /** Devices and memories that either side has. */
  readonly parts: number;
  readonly differing: readonly DeviceDifference[];
  /** Why they could not be told apart; null: they could. */
  readonly trouble: string | null;
}

const magic = 'FALCVMST';
const version = 1;
const headerBytes = 24;
const textMaxBytes = 255;
const pageBytes = 4096;
const sectionFull = 4;
const sectionFooter = 0x7e;
const endOfStream = 0;
const emptyPage = new Uint8Array(pageBytes);

interface Section {
  readonly name: string;
  /** What its header holds behind its number. */
  readonly header: Buffer;
}

/** Sections of devices, and pages of memories; both by name. */
interface State {
  readonly sections: Map<string, Uint8Array>;
  readonly memories: Map<string, Map<number, Uint8Array>>;
}

class Unreadable extends Error {}

class Reader {
  private readonly bytes: Buffer;
  private at = 0;

  constructor(bytes: Uint8Array) {
    this.bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  take(count: number): Buffer {
    if (count > this.bytes.length - this.at) throw new Unreadable('it is cut short');
    this.at += count;
    return this.bytes.subarray(this.at - count, this.at);
  }

  u32(): number {
    return this.take(4).readUInt32LE(0);
  }

  u64(): number {
    const value = this.take(8).readBigUInt64LE(0);
    if (value > BigInt(this.bytes.length)) throw new Unreadable('it is cut short');
    return Number(value);
  }

  text(): Buffer {
    const length = this.u32();
    if (length > textMaxBytes) throw new Unreadable('a name is too long');
    return this.take(length);
  }

  get left(): number {
    return this.bytes.length - this.at;
  }
}

export function compareDeviceStates(source: Uint8Array, target: Uint8Array): DeviceComparison {
  // The built-in service has no devices.
  if (source.length === 0 && target.length === 0) return { parts: 0, differing: [], trouble: null };
  const ours = read(source);
  const theirs = read(target);
  if (typeof ours === 'string') return unreadable('source', ours);
  if (typeof theirs === 'string') return unreadable('target', theirs);
  const differing: DeviceDifference[] = [];
  const note = (name: string, bytes: number, of: number): void => {
    if (bytes > 0) differing.push({ name, bytes, of });
  };
  const sections = union(ours.sections, theirs.sections);
  for (const name of sections) {
    const [a, b] = [ours.sections.get(name), theirs.sections.get(name)];
    const of = Math.max(a?.length ?? 0, b?.length ?? 0);
    // One that only one side has differs even if it is empty.
    note(name, a === undefined || b === undefined ? Math.max(of, 1) : differingBytes(a, b), of);
  }
  const memories = union(ours.memories, theirs.memories);
  for (const name of memories) {
    const [a, b] = [ours.memories.get(name), theirs.memories.get(name)];
    const pages = union(a ?? new Map<number, Uint8Array>(), b ?? new Map<number, Uint8Array>());
    const bytes = pages.map((page) => differingBytes(a?.get(page) ?? emptyPage, b?.get(page) ?? emptyPage));
    note(`memory ${name}`, total(bytes), pages.length * pageBytes);
  }
  return { parts: sections.length + memories.length, differing, trouble: null };
}

function unreadable(side: string, why: string): DeviceComparison {
  return { parts: 0, differing: [], trouble: `the state of the ${side}'s devices cannot be read: ${why}` };
}

function read(bytes: Uint8Array): State | string {
  try {
    return parse(new Reader(bytes));
  } catch (error) {
    if (error instanceof Unreadable) return error.message;
    throw error;
  }
}

function parse(file: Reader): State {
  const header = file.take(headerBytes);
  if (header.toString('latin1', 0, 8) !== magic) throw new Unreadable('it is no saved state');
  if (header.readUInt32LE(8) !== version) throw new Unreadable('it has another version');
  file.text();
  file.u32();
  file.take(8);
  const listed = repeat(file.u32(), () => readSection(file));
  const memories = new Map<string, Map<number, Uint8Array>>();
  repeat(file.u32(), () => readMemory(file, memories));
  const stream = file.take(file.u64());
  if (file.left > 0) throw new Unreadable('there is something behind the devices');
  return { sections: split(stream, listed), memories };
}

function readSection(file: Reader): Section {
  const idstr = file.text();
  const [instance, sectionVersion] = [file.u32(), file.u32()];
  const numbers = Buffer.alloc(8);
  numbers.writeUInt32BE(instance, 0);
  numbers.writeUInt32BE(sectionVersion, 4);
  const name = idstr.toString('latin1');
  return {
    name: instance === 0 ? name : `${name}#${instance}`,
    header: Buffer.concat([Buffer.of(idstr.length), idstr, numbers]),
  };
}

function readMemory(file: Reader, memories: Map<string, Map<number, Uint8Array>>): void {
  const name = file.text().toString('latin1');
  file.take(8);
  const pages = new Map<number, Uint8Array>();
  repeat(file.u32(), () => pages.set(file.u32(), file.take(pageBytes)));
  if (memories.has(name)) throw new Unreadable('a memory is there twice');
  memories.set(name, pages);
}

function split(stream: Buffer, listed: readonly Section[]): Map<string, Uint8Array> {
  const sections = new Map<string, Uint8Array>();
  let before: { name: string; id: number; at: number } | null = null;
  let from = 0;
  const close = (footer: number): void => {
    if (before === null) return;
    if (sections.has(before.name)) throw new Unreadable(`${before.name} is there twice`);
    sections.set(before.name, stream.subarray(before.at, footer));
  };
  for (const section of listed) {
    const at = findHeader(stream, section, before?.id ?? null, from);
    close(at - 5);
    from = at + 5 + section.header.length;
    before = { name: section.name, id: stream.readUInt32BE(at + 1), at: from };
  }
  if (before === null) throw new Unreadable('it lists no devices');
  const footer = stream.length - 6;
  if (footer < from || !isFooter(stream, footer, before.id) || stream.at(-1) !== endOfStream)
    throw new Unreadable(`the end of ${before.name} is not found`);
  close(footer);
  return sections;
}

/** Where the header of `section` begins: behind the footer of section number `before`, if there is one. */
function findHeader(stream: Buffer, section: Section, before: number | null, from: number): number {
  for (let at = from; ; at++) {
    const named = stream.indexOf(section.header, at + 5);
    if (named < 0) throw new Unreadable(`${section.name} is not found`);
    at = named - 5;
    if (stream[at] !== sectionFull) continue;
    if (before === null || (at - 5 >= from && isFooter(stream, at - 5, before))) return at;
  }
}

function isFooter(stream: Buffer, at: number, id: number): boolean {
  return stream[at] === sectionFooter && stream.readUInt32BE(at + 1) === id;
}

/** What only one of them has counts as different. */
function differingBytes(a: Uint8Array, b: Uint8Array): number {
  if (Buffer.compare(a, b) === 0) return 0;
  const shorter = Math.min(a.length, b.length);
  let count = Math.max(a.length, b.length) - shorter;
  for (let i = 0; i < shorter; i++) if (a[i] !== b[i]) count++;
  return count;
}

function union<Key>(a: ReadonlyMap<Key, unknown>, b: ReadonlyMap<Key, unknown>): Key[] {
  return [...new Set([...a.keys(), ...b.keys()])];
}

function total(numbers: readonly number[]): number {
  return numbers.reduce((sum, value) => sum + value, 0);
}

/** Ends early, by throwing, when there is not so much to read. */
function repeat<Item>(count: number, item: () => Item): Item[] {
  const items: Item[] = [];
  for (let i = 0; i < count; i++) items.push(item());
  return items;
}
