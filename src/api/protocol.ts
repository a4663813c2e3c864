/**
 * The admin protocol: one JSON object a line, in both directions, over a Unix socket.
 *
 *   request  {"id": 1, "method": "status", "params": {}}
 *   reply    {"id": 1, "result": ...}   or   {"id": 1, "error": {"code": "...", "message": "..."}}
 *
 * A reply whose id is null answers something that was no request.
 */
import { StringDecoder } from 'node:string_decoder';

import { bounds } from '../lib/bounds.js';
import { FalconError, messageOf } from '../lib/errors.js';
import { isRecord } from './schema.js';

export const adminMethods = [
  'status',
  'shutdown',
  'transfer-leader',
  'sync',
  'verify',
  'divergence',
  'member',
] as const;

export type AdminMethod = (typeof adminMethods)[number];

export interface Request {
  readonly id: number | string;
  readonly method: string;
  readonly params: unknown;
}

export type Reply =
  | { readonly id: number | string | null; readonly result: unknown }
  | {
      readonly id: number | string | null;
      readonly error: { readonly code: string; readonly message: string };
    };

/** Errors: REQUEST_INVALID. */
export function parseRequest(line: string): Request {
  const value = parseObject(line);
  const { id, method } = value;
  if (typeof id !== 'number' && typeof id !== 'string')
    throw new FalconError('REQUEST_INVALID', 'id must be a number or a string');
  if (typeof method !== 'string') throw new FalconError('REQUEST_INVALID', 'method must be a string');
  const unknown = Object.keys(value).find((key) => !['id', 'method', 'params'].includes(key));
  if (unknown !== undefined)
    throw new FalconError('REQUEST_INVALID', `unknown key ${JSON.stringify(unknown)}`);
  return { id, method, params: value['params'] ?? {} };
}

/** Errors: REQUEST_INVALID. */
export function parseReply(line: string): Reply {
  const value = parseObject(line);
  const id = typeof value['id'] === 'number' || typeof value['id'] === 'string' ? value['id'] : null;
  const { error } = value;
  if (error === undefined) return { id, result: value['result'] };
  if (!isRecord(error) || typeof error['code'] !== 'string' || typeof error['message'] !== 'string') {
    throw new FalconError('REQUEST_INVALID', 'an error without code and message');
  }
  return { id, error: { code: error['code'], message: error['message'] } };
}

/** A line with its newline. Errors: REQUEST_TOO_LARGE. */
export function formatLine(message: Request | Reply): string {
  const line = `${JSON.stringify(message)}\n`;
  if (Buffer.byteLength(line) > bounds.adminLineMaxBytes) {
    throw new FalconError('REQUEST_TOO_LARGE', `more than ${bounds.adminLineMaxBytes} bytes`);
  }
  return line;
}

/** Cuts a stream of bytes into lines, none longer than bounds.adminLineMaxBytes (REQUEST_TOO_LARGE). */
export class LineSplitter {
  private parts: Buffer[] = [];
  private bytes = 0;

  /** True while an unfinished line is held. */
  get partial(): boolean {
    return this.bytes > 0;
  }

  /** Takes a chunk, returns the lines that it completed. */
  take(chunk: Buffer): string[] {
    const lines: string[] = [];
    let start = 0;
    for (;;) {
      const end = chunk.indexOf(0x0a, start);
      const piece = chunk.subarray(start, end < 0 ? chunk.length : end);
      if (this.bytes + piece.length >= bounds.adminLineMaxBytes) {
        throw new FalconError('REQUEST_TOO_LARGE', `a line has more than ${bounds.adminLineMaxBytes} bytes`);
      }
      this.parts.push(piece);
      this.bytes += piece.length;
      if (end < 0) return lines;
      lines.push(joinText(this.parts));
      this.parts = [];
      this.bytes = 0;
      start = end + 1;
    }
  }
}

function joinText(parts: readonly Buffer[]): string {
  const decoder = new StringDecoder('utf8');
  return parts.map((part) => decoder.write(part)).join('') + decoder.end();
}

function parseObject(line: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (error) {
    throw new FalconError('REQUEST_INVALID', messageOf(error), { cause: error });
  }
  if (!isRecord(value)) throw new FalconError('REQUEST_INVALID', 'not an object');
  return value;
}
