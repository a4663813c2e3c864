// Guest memory as tests compare it: two files, page by page.
import { closeSync, fstatSync, openSync, readSync, writeSync } from 'node:fs';

import { bounds } from '../../src/lib/bounds.js';

const PAGE_BYTES = bounds.guestPageBytes;
const CHUNK_BYTES = 1024 * 1024;

/** Calls `differs` for every page that is not the same in the two; how long they are is up to `bytes`. */
function compare(
  bytes: number,
  read: (at: number) => readonly [Buffer, Buffer],
  differs: (page: number, left: Buffer) => void,
): void {
  for (let at = 0; at < bytes; at += CHUNK_BYTES) {
    const [left, right] = read(at);
    if (left.equals(right)) continue;
    for (let offset = 0; offset < CHUNK_BYTES && at + offset < bytes; offset += PAGE_BYTES) {
      const page = left.subarray(offset, offset + PAGE_BYTES);
      if (!page.equals(right.subarray(offset, offset + PAGE_BYTES)))
        differs((at + offset) / PAGE_BYTES, page);
    }
  }
}

function chunk(file: number, at: number): Buffer {
  const buffer = Buffer.alloc(CHUNK_BYTES);
  readSync(file, buffer, 0, CHUNK_BYTES, at);
  return buffer;
}

export function copyOf(path: string, bytes: number): Buffer {
  const file = openSync(path, 'r');
  const buffer = Buffer.alloc(bytes);
  for (let at = 0; at < bytes; at += CHUNK_BYTES)
    readSync(file, buffer, at, Math.min(CHUNK_BYTES, bytes - at), at);
  closeSync(file);
  return buffer;
}

/** The pages of the file that are not as in `before`, a copy of it. */
export function changedPages(path: string, before: Buffer): number[] {
  const file = openSync(path, 'r');
  const pages: number[] = [];
  compare(
    before.length,
    (at) => [before.subarray(at, at + CHUNK_BYTES), chunk(file, at)],
    (page) => pages.push(page),
  );
  closeSync(file);
  return pages;
}

export function differingPages(left: string, right: string, bytes: number): number[] {
  const [a, b] = [openSync(left, 'r'), openSync(right, 'r')];
  const pages: number[] = [];
  compare(
    bytes,
    (at) => [chunk(a, at), chunk(b, at)],
    (page) => pages.push(page),
  );
  closeSync(a);
  closeSync(b);
  return pages;
}

export function copyPages(from: string, to: string, pages: readonly number[]): void {
  const [source, target] = [openSync(from, 'r'), openSync(to, 'r+')];
  if (fstatSync(source).size !== fstatSync(target).size) throw new Error('memories of different size');
  const page = Buffer.alloc(PAGE_BYTES);
  for (const index of pages) {
    readSync(source, page, 0, PAGE_BYTES, index * PAGE_BYTES);
    writeSync(target, page, 0, PAGE_BYTES, index * PAGE_BYTES);
  }
  closeSync(source);
  closeSync(target);
}
