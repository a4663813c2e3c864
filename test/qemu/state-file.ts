// The file of falcon-save-state, taken apart and put together again, so that tests can make wrong ones.
import { crc32c } from '../../src/wire/crc32c.js';

export interface Section {
  idstr: string;
  instance: number;
  version: number;
}

export interface Block {
  idstr: string;
  bytes: bigint;
  pages: { index: number; data: Buffer }[];
}

export interface StateFile {
  version: number;
  machine: string;
  cpus: number;
  ramBytes: bigint;
  sections: Section[];
  blocks: Block[];
  devices: Buffer;
}

const HEADER_BYTES = 24;
const CHECKED_FROM = 16;
const PAGE_BYTES = 4096;

export function parseState(file: Buffer): StateFile {
  let at = HEADER_BYTES;
  const u32 = (): number => file.readUInt32LE((at += 4) - 4);
  const u64 = (): bigint => file.readBigUInt64LE((at += 8) - 8);
  const bytes = (count: number): Buffer => Buffer.from(file.subarray(at, (at += count)));
  const text = (): string => bytes(u32()).toString('latin1');
  const list = <T>(item: () => T): T[] => Array.from({ length: u32() }, item);
  const state = {
    version: file.readUInt32LE(8),
    machine: text(),
    cpus: u32(),
    ramBytes: u64(),
    sections: list(() => ({ idstr: text(), instance: u32(), version: u32() })),
    blocks: list(() => ({
      idstr: text(),
      bytes: u64(),
      pages: list(() => ({ index: u32(), data: bytes(PAGE_BYTES) })),
    })),
    devices: bytes(Number(u64())),
  };
  if (at !== file.length) throw new Error(`${file.length - at} bytes behind the devices`);
  return state;
}

export function composeState(state: StateFile): Buffer {
  const parts: Buffer[] = [];
  const u32 = (value: number): void => {
    const part = Buffer.alloc(4);
    part.writeUInt32LE(value);
    parts.push(part);
  };
  const u64 = (value: bigint): void => {
    const part = Buffer.alloc(8);
    part.writeBigUInt64LE(value);
    parts.push(part);
  };
  const text = (value: string): void => {
    u32(value.length);
    parts.push(Buffer.from(value, 'latin1'));
  };
  text(state.machine);
  u32(state.cpus);
  u64(state.ramBytes);
  u32(state.sections.length);
  for (const { idstr, instance, version } of state.sections) {
    text(idstr);
    u32(instance);
    u32(version);
  }
  u32(state.blocks.length);
  for (const { idstr, bytes, pages } of state.blocks) {
    text(idstr);
    u64(bytes);
    u32(pages.length);
    for (const { index, data } of pages) {
      u32(index);
      parts.push(data);
    }
  }
  u64(BigInt(state.devices.length));
  parts.push(state.devices);
  return withHeader(Buffer.concat(parts), state.version);
}

function withHeader(body: Buffer, version: number): Buffer {
  const header = Buffer.alloc(HEADER_BYTES);
  header.write('FALCVMST', 0, 'latin1');
  header.writeUInt32LE(version, 8);
  header.writeBigUInt64LE(BigInt(HEADER_BYTES + body.length), CHECKED_FROM);
  const file = Buffer.concat([header, body]);
  file.writeUInt32LE(crc32c(file.subarray(CHECKED_FROM)), 12);
  return file;
}
