/**
 * The part of Redis's protocol (RESP2) that a client of GET and SET needs: commands out, replies in.
 *
 * Written for checking rather than for breadth: what is not one of the four reply kinds below, or longer
 * than any reply to this client can be, is an error and never skipped.
 */

export type Reply =
  | { readonly kind: 'status'; readonly text: string }
  | { readonly kind: 'error'; readonly text: string }
  | { readonly kind: 'integer'; readonly value: number }
  /** null: the key does not exist. */
  | { readonly kind: 'bulk'; readonly value: string | null };

/** Longest bulk reply and longest line that are believed, in bytes. */
const bulkMaxBytes = 64 * 1024;
const lineMaxBytes = 1024;

/** A command as an array of bulk strings. */
export function encodeCommand(words: readonly string[]): Uint8Array {
  const parts = words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`);
  return Buffer.from(`*${words.length}\r\n${parts.join('')}`);
}

/** Cuts a byte stream into replies. */
export class ReplyParser {
  private rest: Buffer = Buffer.alloc(0);

  /** Takes what has arrived, returns the replies that are complete. Throws on bytes that are no reply. */
  take(chunk: Uint8Array): Reply[] {
    this.rest = this.rest.length === 0 ? Buffer.from(chunk) : Buffer.concat([this.rest, chunk]);
    const replies: Reply[] = [];
    for (;;) {
      const found = parseOne(this.rest);
      if (found === null) return replies;
      replies.push(found.reply);
      this.rest = this.rest.subarray(found.length);
    }
  }
}

/** The first reply of `bytes` and its length, or null if it is not all there. */
function parseOne(bytes: Buffer): { readonly reply: Reply; readonly length: number } | null {
  const end = bytes.indexOf('\r\n');
  if (end < 0) {
    if (bytes.length > lineMaxBytes) throw new Error(`no end of line in ${bytes.length} bytes`);
    return null;
  }
  const text = bytes.toString('utf8', 1, end);
  const length = end + 2;
  switch (bytes[0]) {
    case 0x2b: // +
      return { reply: { kind: 'status', text }, length };
    case 0x2d: // -
      return { reply: { kind: 'error', text }, length };
    case 0x3a: // :
      return { reply: { kind: 'integer', value: number(text) }, length };
    case 0x24: // $
      return parseBulk(bytes, number(text), length);
    default:
      throw new Error(`not a reply: ${JSON.stringify(bytes.toString('latin1', 0, 32))}`);
  }
}

function parseBulk(
  bytes: Buffer,
  size: number,
  start: number,
): { readonly reply: Reply; readonly length: number } | null {
  if (size === -1) return { reply: { kind: 'bulk', value: null }, length: start };
  if (size < 0 || size > bulkMaxBytes) throw new Error(`a bulk reply of ${size} bytes`);
  if (bytes.length < start + size + 2) return null;
  if (bytes.toString('latin1', start + size, start + size + 2) !== '\r\n')
    throw new Error('a bulk reply without end');
  return {
    reply: { kind: 'bulk', value: bytes.toString('utf8', start, start + size) },
    length: start + size + 2,
  };
}

function number(text: string): number {
  if (!/^-?\d{1,15}$/.test(text)) throw new Error(`not a number: ${JSON.stringify(text)}`);
  return Number(text);
}
