/**
 * Checks of the guests' output as native/vm/output_check.h lays them out: the payload of an `output-check`
 * entry, what the primary's data plane wants to have checked, and what a replica found. Little-endian.
 */

export const checkHeaderBytes = 8;
export const checkItemBytes = 88;
export const verdictRecordBytes = 64;
export const checkVersion = 1;
export const maxCheckItems = 128;
export const maxTailBytes = 512;

/** By number. `late`: another verdict may follow. `skipped`: it cannot be told. */
export const verdictNames = ['agree', 'late', 'diverged', 'skipped'] as const;
export type Verdict = (typeof verdictNames)[number];

/** Why a replica had lost a flow before it was compared, by number. */
const causeNames = [
  '',
  'no answer to the SYN',
  'more input than can be held',
  'reset by this guest',
] as const;

export interface CheckItem {
  /** `10.77.1.1:40000`, and the connection's first sequence number. */
  readonly client: string;
  readonly clientIss: number;
  /** The application: a port of the guest. */
  readonly port: number;
  /** Bytes of output that are compared. */
  readonly position: number;
  /** The connection's output ended there. */
  readonly final: boolean;
  readonly hash: string;
}

export interface OutputCheck {
  /** The member whose hashes these are. */
  readonly proposer: number;
  readonly items: readonly CheckItem[];
}

/** null: malformed. */
export function decodeCheck(payload: Uint8Array): OutputCheck | null {
  if (payload.length < checkHeaderBytes) return null;
  const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
  const count = view.getUint16(2, true);
  if (view.getUint16(0, true) !== checkVersion || count > maxCheckItems) return null;
  if (payload.length !== checkHeaderBytes + count * checkItemBytes) return null;
  const items: CheckItem[] = [];
  for (let at = checkHeaderBytes; at < payload.length; at += checkItemBytes) {
    const position = Number(view.getBigUint64(at + 40, true));
    if (!Number.isSafeInteger(position)) return null;
    items.push({
      client: `${addressText(payload.subarray(at, at + 16))}:${view.getUint16(at + 32, true)}`,
      clientIss: view.getUint32(at + 36, true),
      port: view.getUint16(at + 34, true),
      position,
      final: payload[at + 48] !== 0,
      hash: hex(payload.subarray(at + 56, at + 88)),
    });
  }
  return { proposer: view.getUint16(4, true), items };
}

export interface VerdictRecord {
  readonly op: number;
  readonly index: number;
  readonly verdict: Verdict;
  /** Where this guest's output stands, and up to where it had been found equal. */
  readonly position: number;
  readonly agreed: number;
  /** Why the flow was lost here before; empty: it was not. */
  readonly cause: string;
  /** Diverged: this replica's hash at the item's position, or at its own if that is less. */
  readonly hash: string;
  /** Diverged: the bytes before that position. */
  readonly tail: Uint8Array;
}

/** What a data plane's `verdicts` event holds. Throws RangeError if it is cut short: our own data plane made it. */
export function decodeVerdicts(bytes: Uint8Array): VerdictRecord[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const records: VerdictRecord[] = [];
  for (let at = 0; at < bytes.length;) {
    const tailBytes = view.getUint16(at + 28, true);
    const end = at + verdictRecordBytes + tailBytes;
    if (end > bytes.length) throw new RangeError('a verdict that is cut short');
    records.push({
      op: Number(view.getBigUint64(at, true)),
      position: Number(view.getBigUint64(at + 8, true)),
      agreed: Number(view.getBigUint64(at + 16, true)),
      index: view.getUint16(at + 24, true),
      verdict: verdictNames[view.getUint8(at + 26)] ?? 'skipped',
      cause: causeNames[view.getUint8(at + 27)] ?? '',
      hash: hex(bytes.subarray(at + 32, at + 64)),
      tail: bytes.slice(at + verdictRecordBytes, end),
    });
    at = end;
  }
  return records;
}

/** What a `check-due` event holds: the payload to propose, and what was said before each position. */
export function decodeDue(bytes: Uint8Array): { payload: Uint8Array; tails: Uint8Array[] } {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const length = view.getUint32(0, true);
  const payload = bytes.slice(4, 4 + length);
  const tails: Uint8Array[] = [];
  for (let at = 4 + length; at < bytes.length;) {
    const tailBytes = view.getUint16(at, true);
    tails.push(bytes.slice(at + 2, at + 2 + tailBytes));
    at += 2 + tailBytes;
  }
  return { payload, tails };
}

export function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

function addressText(bytes: Uint8Array): string {
  const mapped = bytes.subarray(0, 10).every((byte) => byte === 0) && bytes[10] === 255 && bytes[11] === 255;
  if (mapped) return bytes.subarray(12).join('.');
  const groups = Array.from({ length: 8 }, (_, i) =>
    (((bytes[2 * i] ?? 0) << 8) | (bytes[2 * i + 1] ?? 0)).toString(16),
  );
  return `[${groups.join(':')}]`;
}
