/** The other end of the admin protocol: one request, one answer. */
import { connect } from 'node:net';

import { bounds } from '../lib/bounds.js';
import { errnoOf, FalconError, messageOf, remoteError } from '../lib/errors.js';
import { formatLine, LineSplitter, parseReply } from './protocol.js';
import type { AdminMethod } from './protocol.js';
import type { ReplicaStatus } from './status.js';

export interface CallOptions {
  readonly timeoutMs?: number;
}

/**
 * Asks the daemon behind the socket `path`. Errors: DAEMON_UNREACHABLE, DAEMON_TIMEOUT, and what the daemon
 * answers.
 */
export function callDaemon(
  path: string,
  method: AdminMethod,
  params: unknown = {},
  options: CallOptions = {},
): Promise<unknown> {
  const timeoutMs = options.timeoutMs ?? bounds.adminRequestMs;
  const splitter = new LineSplitter();
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    const timer = setTimeout(
      () => finish(new FalconError('DAEMON_TIMEOUT', `${path}, ${timeoutMs} ms`)),
      timeoutMs,
    );
    function finish(error: FalconError | null, result?: unknown): void {
      clearTimeout(timer);
      socket.destroy();
      if (error === null) resolve(result);
      else reject(error);
    }
    socket.once('connect', () => socket.write(formatLine({ id: 1, method, params })));
    socket.once('error', (error) =>
      finish(new FalconError('DAEMON_UNREACHABLE', messageOf(error), { cause: error })),
    );
    socket.once('close', () =>
      finish(new FalconError('DAEMON_UNREACHABLE', `${path}: closed before it answered`)),
    );
    socket.on('data', (chunk) => {
      try {
        const line = splitter.take(chunk)[0];
        if (line === undefined) return;
        const reply = parseReply(line);
        if ('error' in reply) finish(remoteError(reply.error.code, reply.error.message));
        else finish(null, reply.result);
      } catch (error) {
        finish(new FalconError('DAEMON_UNREACHABLE', `${path}: ${messageOf(error)}`, { cause: error }));
      }
    });
  });
}

export async function fetchStatus(path: string, options: CallOptions = {}): Promise<ReplicaStatus> {
  // The shape is the daemon's own promise: both ends are built from one source.
  return (await callDaemon(path, 'status', {}, options)) as ReplicaStatus;
}

/** Whether any process accepts connections on the socket `path`, be it busy or not. */
export function someoneListens(path: string): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', (error) => {
      const errno = errnoOf(error);
      if (errno === 'ECONNREFUSED' || errno === 'ENOENT' || errno === 'ENOTSOCK') resolve(false);
      // A full backlog is a listener that does not get round to accepting.
      else if (errno === 'EAGAIN') resolve(true);
      else reject(new FalconError('DAEMON_UNREACHABLE', messageOf(error), { cause: error }));
    });
  });
}
