/**
 * The file that holds a guest's memory, for QEMU and falcond to map. It is sparse until touched. Each guest has a new
 * one under a new name, so that nobody who still maps an old one sees the new guest.
 */
import { randomBytes } from 'node:crypto';
import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  rmSync,
  statSync,
  statfsSync,
  truncateSync,
} from 'node:fs';
import { join } from 'node:path';

import { bounds } from '../lib/bounds.js';
import { errnoOf, FalconError, messageOf } from '../lib/errors.js';

export interface RamFileOptions {
  /** On a memory file system. */
  readonly directory: string;
  /** No other guest of the directory has it. */
  readonly name: string;
  readonly bytes: number;
}

const suffix = /^-[0-9a-f]{16}\.ram$/;

/** Makes a new file of `bytes` and a trailer, and takes away those of earlier guests. Errors: QEMU_FAILED. */
export function makeRamFile({ directory, name, bytes }: RamFileOptions): string {
  try {
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    removeRamFiles(directory, name);
    const size = bytes + bounds.ramTrailerBytes;
    const { bavail, bsize } = statfsSync(directory);
    // A page that finds no room later would end QEMU with SIGBUS.
    if (bavail * bsize < size)
      throw new FalconError(
        'QEMU_FAILED',
        `${directory} has ${bavail * bsize} bytes free, ${size} are needed`,
      );
    const path = join(directory, `${name}-${randomBytes(8).toString('hex')}.ram`);
    const file = openSync(path, 'wx+', 0o600);
    try {
      ftruncateSync(file, size);
    } finally {
      closeSync(file);
    }
    return path;
  } catch (error) {
    if (error instanceof FalconError) throw error;
    throw new FalconError('QEMU_FAILED', messageOf(error), { cause: error });
  }
}

/**
 * Makes all of it zero again, and as sparse as it was. Nobody may touch the memory meanwhile: for a moment the file is
 * empty.
 */
export function clearRamFile(path: string): void {
  const { size } = statSync(path);
  truncateSync(path, 0);
  truncateSync(path, size);
}

export function removeRamFiles(directory: string, name: string): void {
  for (const entry of list(directory)) {
    if (entry.startsWith(name) && suffix.test(entry.slice(name.length)))
      rmSync(join(directory, entry), { force: true });
  }
}

function list(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return [];
    throw error;
  }
}
