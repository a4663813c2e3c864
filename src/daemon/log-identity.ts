/**
 * Whether the log directory is the one that this node wrote before. An empty directory is a valid log, and a replica
 * that lost its disk must not vote with it; so the log and the node carry the same mark.
 */
import { randomBytes } from 'node:crypto';
import { closeSync, fsyncSync, openSync, readFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';

import { errnoOf } from '../lib/errors.js';

const markBytes = 16;

export interface LogIdentity {
  /** The log is the one of this node's earlier life, or both are new. */
  readonly same: boolean;
  /** Makes the marks agree; only after the loss is remembered in the vote file. */
  settle(): void;
}

/** `voted`: the node has lived before. */
export function logIdentity(nodeDirectory: string, walDirectory: string, voted: boolean): LogIdentity {
  const ofNode = join(nodeDirectory, 'log-mark');
  const ofLog = join(walDirectory, 'mark');
  const expected = readMark(ofNode);
  const found = readMark(ofLog);
  const settle = (): void => {
    if (expected !== null && expected === found) return;
    const mark = expected ?? randomBytes(markBytes).toString('hex');
    // The log first: a node's mark without a log's is what a loss looks like.
    writeMark(ofLog, mark);
    if (expected === null) writeMark(ofNode, mark);
  };
  return { same: expected === null ? found === null || !voted : expected === found, settle };
}

function readMark(path: string): string | null {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return null;
    throw error;
  }
}

function writeMark(path: string, mark: string): void {
  const file = openSync(path, 'w', 0o600);
  try {
    writeSync(file, `${mark}\n`);
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
}
