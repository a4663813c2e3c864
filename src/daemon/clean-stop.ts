/**
 * With `durability: memory` the log is written and not forced, so after a crash it may lack what was acknowledged. A
 * clean stop forces it and says so; whoever starts next takes the word away before it relies on it.
 */
import { closeSync, fsyncSync, openSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';

import { errnoOf } from '../lib/errors.js';

const name = 'clean-stop';

/** The log is closed and nothing writes to it any more. */
export function noteCleanStop(nodeDirectory: string, walDirectory: string): void {
  for (const file of readdirSync(walDirectory)) force(join(walDirectory, file));
  force(walDirectory);
  closeSync(openSync(join(nodeDirectory, name), 'w', 0o600));
  force(join(nodeDirectory, name));
  force(nodeDirectory);
}

/** Whether the stop before was clean; true once only. */
export function takeCleanStop(nodeDirectory: string): boolean {
  const path = join(nodeDirectory, name);
  try {
    rmSync(path);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return false;
    throw error;
  }
  force(nodeDirectory);
  return true;
}

function force(path: string): void {
  const file = openSync(path, 'r');
  try {
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
}
