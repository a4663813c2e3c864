/**
 * The layout of a log entry, as native/log/entry.h has it: a little-endian header of 48 bytes, the payload,
 * zeros up to a multiple of 8. The golden bytes in test/golden/entry.hex pin both.
 */
import { crc32c } from './crc32c.js';
import type { Op, View } from './viewstamp.js';

export const entryMagic = 0x45434c46;
export const entryHeaderBytes = 48;
export const maxPayloadBytes = 128 * 1024;

/** Offsets of the fields, in bytes. */
export const entryOffsets = {
  magic: 0,
  checksum: 4,
  previous: 8,
  payloadLength: 12,
  view: 16,
  op: 24,
  commitOp: 32,
  kind: 40,
} as const;

/** By name, the byte that stands in the header. */
export const entryKindCodes = {
  frame: 1,
  'view-start': 2,
  'vm-boot': 3,
  'output-check': 4,
  'vm-sync': 5,
  membership: 6,
  noop: 7,
} as const;
export type EntryKindName = keyof typeof entryKindCodes;

const kindNames = new Map<number, EntryKindName>(
  (Object.keys(entryKindCodes) as EntryKindName[]).map((name) => [entryKindCodes[name], name]),
);

export interface Entry {
  readonly view: View;
  readonly op: Op;
  readonly commitOp: Op;
  readonly kind: EntryKindName;
  /** Checksum of the entry before; 0 for op 1. */
  readonly previous: number;
  readonly payload: Uint8Array;
}

export interface DecodedEntry extends Entry {
  readonly checksum: number;
  /** Bytes that the entry takes, padding included. */
  readonly bytes: number;
}

export function entryBytes(payloadLength: number): number {
  return (entryHeaderBytes + payloadLength + 7) & ~7;
}

/** The whole entry. Throws RangeError if a field does not fit. */
export function encodeEntry(entry: Entry): Uint8Array {
  const { payload } = entry;
  if (payload.length > maxPayloadBytes) throw new RangeError(`payload of ${payload.length} bytes`);
  const bytes = new Uint8Array(entryBytes(payload.length));
  const view = new DataView(bytes.buffer);
  view.setUint32(entryOffsets.magic, entryMagic, true);
  view.setUint32(entryOffsets.previous, entry.previous, true);
  view.setUint32(entryOffsets.payloadLength, payload.length, true);
  view.setBigUint64(entryOffsets.view, unsigned(entry.view), true);
  view.setBigUint64(entryOffsets.op, unsigned(entry.op), true);
  view.setBigUint64(entryOffsets.commitOp, unsigned(entry.commitOp), true);
  view.setUint8(entryOffsets.kind, entryKindCodes[entry.kind]);
  bytes.set(payload, entryHeaderBytes);
  view.setUint32(entryOffsets.checksum, checksumOf(bytes, payload.length), true);
  return bytes;
}

/** The entry at the start of `bytes`; null if there is no whole one. The payload is a view of `bytes`. */
export function decodeEntry(bytes: Uint8Array): DecodedEntry | null {
  if (bytes.length < entryHeaderBytes) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const payloadLength = view.getUint32(entryOffsets.payloadLength, true);
  if (view.getUint32(entryOffsets.magic, true) !== entryMagic || payloadLength > maxPayloadBytes) return null;
  const length = entryBytes(payloadLength);
  const checksum = view.getUint32(entryOffsets.checksum, true);
  if (length > bytes.length || checksum !== checksumOf(bytes, payloadLength)) return null;
  const kind = kindNames.get(view.getUint8(entryOffsets.kind));
  const entryView = safe(view.getBigUint64(entryOffsets.view, true));
  const op = safe(view.getBigUint64(entryOffsets.op, true));
  const commitOp = safe(view.getBigUint64(entryOffsets.commitOp, true));
  if (kind === undefined || entryView === null || op === null || commitOp === null) return null;
  if (entryView === 0 || op === 0) return null;
  return {
    view: entryView,
    op,
    commitOp,
    kind,
    previous: view.getUint32(entryOffsets.previous, true),
    payload: bytes.subarray(entryHeaderBytes, entryHeaderBytes + payloadLength),
    checksum,
    bytes: length,
  };
}

function checksumOf(bytes: Uint8Array, payloadLength: number): number {
  return crc32c(bytes.subarray(entryOffsets.previous, entryHeaderBytes + payloadLength));
}

function unsigned(value: number): bigint {
  if (!Number.isSafeInteger(value) || value < 0) throw new RangeError(`not a count: ${value}`);
  return BigInt(value);
}

/** Null beyond 2^53 - 1: such a number is refused at the boundary. */
function safe(value: bigint): number | null {
  return value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : null;
}
