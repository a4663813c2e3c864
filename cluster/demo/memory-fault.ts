/**
 * A fault inside a running guest: a bit of one value in its memory becomes another, as in a memory module that fails.
 *
 * The guest's memory is a file that QEMU maps. A value of up to 44 bytes lies in Redis's heap behind the header of a
 * short string, so what the server would answer is told from what passed through buffers. No write of the guest is
 * involved: the log, the input and the dirty log of QEMU know nothing of it.
 */
import { closeSync, openSync, readdirSync, readSync, writeSync } from 'node:fs';
import { join } from 'node:path';

import { shmDirectory } from '../../src/api/cluster.js';
import { FalconError } from '../../src/lib/errors.js';

const chunkBytes = 4 * 1024 * 1024;
/** sdshdr8 of Redis: length, room, type 1. */
const shortString = (value: string): Buffer =>
  Buffer.concat([Buffer.from([value.length, value.length, 1]), Buffer.from(value), Buffer.from([0])]);
const headerBytes = 3;

export interface MemoryFault {
  /** Offsets of the changed bytes in the guest's memory. */
  readonly at: readonly number[];
  readonly from: string;
  readonly to: string;
}

/** The memory of `node`'s guest. Errors: START_FAILED if there is none. */
export function guestMemory(cluster: string, node: string): string {
  const directory = shmDirectory(cluster);
  const name = readdirSync(directory).find((file) => new RegExp(`^${node}-[0-9a-f]{16}\\.ram$`).test(file));
  if (name === undefined) throw new FalconError('START_FAILED', `${directory}: no memory of ${node}'s guest`);
  return join(directory, name);
}

/** Offsets at which the server of the guest in the file `path` keeps `value`. */
export function findValue(path: string, value: string): number[] {
  const pattern = shortString(value);
  const found: number[] = [];
  const file = openSync(path, 'r');
  try {
    const chunk = Buffer.alloc(chunkBytes);
    // Chunks overlap by what a match can stick out.
    for (let at = 0; ; at += chunkBytes - pattern.length) {
      const length = readSync(file, chunk, 0, chunkBytes, at);
      const bytes = chunk.subarray(0, length);
      for (let i = bytes.indexOf(pattern); i >= 0; i = bytes.indexOf(pattern, i + 1)) {
        if (!found.includes(at + i + headerBytes)) found.push(at + i + headerBytes);
      }
      if (length < chunkBytes) return found;
    }
  } finally {
    closeSync(file);
  }
}

/** Flips one bit of `value` wherever the server keeps it. Errors: START_FAILED if it is nowhere. */
export function flipBit(path: string, value: string, byte: number, bit: number): MemoryFault {
  const places = findValue(path, value);
  if (places.length === 0) throw new FalconError('START_FAILED', `${path}: the value is nowhere`);
  const changed = Buffer.from(value);
  changed[byte] = (changed[byte] ?? 0) ^ (1 << bit);
  const file = openSync(path, 'r+');
  try {
    for (const place of places) writeSync(file, changed, byte, 1, place + byte);
  } finally {
    closeSync(file);
  }
  return { at: places.map((place) => place + byte), from: value, to: changed.toString('latin1') };
}
