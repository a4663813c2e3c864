/**
 * The file that holds a guest's memory, for QEMU and falcond to map. Each guest has a new one under a new name, so
 * that nobody who still maps an old one sees the new guest.
 */
import { execFile } from 'node:child_process';
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
import { rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';

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

/** Makes a new sparse file of `bytes` and a trailer, and takes away those of earlier guests. Errors: QEMU_FAILED. */
export function makeRamFile({ directory, name, bytes }: RamFileOptions): string {
  try {
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    removeRamFiles(directory, name);
    const size = bytes + bounds.ramTrailerBytes;
    const { bavail, bsize } = statfsSync(directory);
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
 * Takes room for all of the file: a page that found none when it is touched would end QEMU with SIGBUS. What nobody has
 * touched stays a hole to whoever looks for data. In another process, since it takes 0.3 s for each GiB. Errors: QEMU_FAILED.
 */
export async function reserveRamFile(path: string): Promise<void> {
  try {
    const { size } = await stat(path);
    await promisify(execFile)('fallocate', ['--length', String(size), path]);
  } catch (error) {
    const { stderr = '' } = error as { readonly stderr?: string };
    const why = stderr.trim() === '' ? messageOf(error) : stderr.trim();
    throw new FalconError('QEMU_FAILED', `no room for the guest's memory at ${path}: ${why}`, {
      cause: error,
    });
  }
}

/**
 * Whoever maps the memory keeps it. Not on the event loop, since the kernel gives back as much as it took. A file that cannot be
 * removed is left to makeRamFile.
 */
export async function removeRamFile(path: string): Promise<void> {
  await rm(path, { force: true }).catch(() => undefined);
}

/**
 * Makes all of it zero again and sparse. Nobody may touch the memory meanwhile: for a moment the file is
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
