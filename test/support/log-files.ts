/**
 * A node's log as its files have it, read in the most stupid way: every whole entry at every place where one can
 * stand, and of these the chain that ends at the newest. It shares nothing with the code that recovers a log but
 * the layout of an entry.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

import { decodeEntry, entryMagic } from '../../src/wire/entry.js';
import type { DecodedEntry } from '../../src/wire/entry.js';

/** The entries from the oldest that is kept to the newest, without a hole. */
export function readLogFiles(directory: string): DecodedEntry[] {
  const found = new Map<string, DecodedEntry>();
  for (const name of readdirSync(directory).filter((file) => file.endsWith('.seg'))) {
    for (const entry of entriesIn(readFileSync(join(directory, name)))) {
      found.set(`${entry.op} ${entry.checksum}`, entry);
    }
  }
  let newest: DecodedEntry | undefined;
  for (const entry of found.values()) {
    const older = newest === undefined || entry.view > newest.view;
    if (older || (entry.view === newest?.view && entry.op > newest.op)) newest = entry;
  }
  const chain: DecodedEntry[] = [];
  for (let at = newest; at !== undefined; at = found.get(`${at.op - 1} ${at.previous}`)) chain.push(at);
  return chain.reverse();
}

function* entriesIn(bytes: Buffer): Generator<DecodedEntry> {
  const magic = Buffer.alloc(4);
  magic.writeUInt32LE(entryMagic);
  for (let at = bytes.indexOf(magic); at >= 0; at = bytes.indexOf(magic, at + 1)) {
    if (at % 8 !== 0) continue;
    const entry = decodeEntry(bytes.subarray(at));
    if (entry !== null) yield entry;
  }
}
