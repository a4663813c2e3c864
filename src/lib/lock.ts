/**
 * A lock that the kernel releases when its holder dies, however it dies: a listening socket in the abstract
 * name space. It holds within one network namespace, which is where contenders for one name run.
 */
import { createHash } from 'node:crypto';
import { createServer } from 'node:net';

import { errnoOf } from './errors.js';

export interface Lock {
  release(): Promise<void>;
}

/** Takes the lock called `name` (any length), or returns null if another process holds it. */
export function takeLock(name: string): Promise<Lock | null> {
  const address = `\0falcon-${createHash('sha256').update(name).digest('hex').slice(0, 32)}`;
  const server = createServer((socket) => socket.destroy());
  return new Promise((resolve, reject) => {
    server.once('error', (error) => {
      if (errnoOf(error) === 'EADDRINUSE') resolve(null);
      else reject(error);
    });
    server.listen(address, () => {
      server.unref();
      resolve({ release: () => new Promise((done) => server.close(() => done())) });
    });
  });
}
