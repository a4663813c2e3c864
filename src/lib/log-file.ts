/**
 * A log on a file descriptor that does not grow for ever. When what was written passes a bound and the descriptor is
 * a file, the file is copied to `<file>.1` and emptied: whoever opened it for us keeps the same file open.
 */
import { copyFileSync, fstatSync, ftruncateSync, readlinkSync, writeSync } from 'node:fs';

import { errnoOf } from './errors.js';

export class BoundedLog {
  private readonly fd: number;
  private readonly maxBytes: number;
  private written: number;

  /** `fd` must append, or be no file. */
  constructor(fd: number, maxBytes: number) {
    this.fd = fd;
    this.maxBytes = maxBytes;
    this.written = fstatSync(fd).size;
  }

  /** A whole line, or bytes as they come. What cannot be written is lost: a log must not stop a replica. */
  write(part: string | Uint8Array): void {
    try {
      this.written += typeof part === 'string' ? writeSync(this.fd, part) : writeSync(this.fd, part);
      if (this.written > this.maxBytes) this.turn();
    } catch (error) {
      if (errnoOf(error) === null) throw error;
    }
  }

  private turn(): void {
    this.written = 0;
    if (!fstatSync(this.fd).isFile()) return;
    const path = readlinkSync(`/proc/self/fd/${this.fd}`);
    copyFileSync(path, `${path}.1`);
    ftruncateSync(this.fd, 0);
  }
}
