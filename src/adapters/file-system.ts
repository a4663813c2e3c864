/** The real file system. */
import { closeSync, fsyncSync, linkSync, openSync, readSync, rmSync, writeSync } from 'node:fs';

import type { FileSystem } from '../ports/file-system.js';

export const realFileSystem: FileSystem = {
  open: (path, how) => openSync(path, how === 'create' ? 'wx+' : 'r+', 0o600),
  close: (file) => closeSync(file),
  read: (file, into, position) => readSync(file, into, 0, into.length, position),
  write: (file, from, position) => writeSync(file, from, 0, from.length, position),
  sync: (file) => fsyncSync(file),
  syncDirectory(path) {
    const directory = openSync(path, 'r');
    try {
      fsyncSync(directory);
    } finally {
      closeSync(directory);
    }
  },
  link: (existing, path) => linkSync(existing, path),
  remove: (path) => rmSync(path, { force: true }),
};
