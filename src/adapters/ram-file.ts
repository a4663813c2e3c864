/**
 * The file that holds a guest's memory, for QEMU and falcond to map. Each guest has a new one under a new name, so
 * that nobody who still maps an old one sees the new guest.
 */
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { closeSync, ftruncateSync, mkdirSync, openSync, readdirSync, statfsSync } from 'node:fs';
import { open, rm, stat, truncate } from 'node:fs/promises';
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

/** Makes a new sparse file of `bytes` and a trailer. Errors: QEMU_FAILED. */
export function makeRamFile({ directory, name, bytes }: RamFileOptions): string {
  try {
    mkdirSync(directory, { recursive: true, mode: 0o700 });
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
    const file = await open(path, 'r+');
    try {
      const { size } = await file.stat();
      await allocate(file.fd, size);
    } finally {
      await file.close();
    }
  } catch (error) {
    throw new FalconError('QEMU_FAILED', `cannot reserve the guest's memory, ${path}: ${messageOf(error)}`, {
      cause: error,
    });
  }
}

/** By the descriptor: a file that is removed meanwhile is not made anew. */
function allocate(fd: number, bytes: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn('fallocate', ['--length', String(bytes), '/proc/self/fd/3'], {
      stdio: ['ignore', 'ignore', 'pipe', fd],
      env: { ...process.env, LC_ALL: 'C' },
    });
    let said = '';
    child.stderr?.setEncoding('utf8').on('data', (text: string) => (said = (said + text).slice(-1000)));
    child.once('error', reject);
    child.once('close', (code, signal) => {
      if (code === 0) resolve();
      else reject(new Error(said.trim() === '' ? `fallocate ended with ${code ?? signal}` : said.trim()));
    });
  });
}

/**
 * Whoever maps the memory keeps it. This and all that gives memory back is done off the event loop, since it takes the
 * kernel 70 ms for each GiB. A file that cannot be removed is left to removeRamFiles.
 */
export async function removeRamFile(path: string): Promise<void> {
  await rm(path, { force: true }).catch(() => undefined);
}

/**
 * Makes all of it zero again and sparse. Nobody may touch the memory meanwhile: for a moment the file is
 * empty.
 */
export async function clearRamFile(path: string): Promise<void> {
  const { size } = await stat(path);
  await truncate(path, 0);
  await truncate(path, size);
}

/** What earlier guests of that name have left. Errors: QEMU_FAILED. */
export async function removeRamFiles(directory: string, name: string): Promise<void> {
  try {
    for (const entry of list(directory)) {
      if (entry.startsWith(name) && suffix.test(entry.slice(name.length)))
        await rm(join(directory, entry), { force: true });
    }
  } catch (error) {
    throw new FalconError('QEMU_FAILED', messageOf(error), { cause: error });
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
