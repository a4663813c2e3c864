/** What replicas tell each other about outputs: a replica its verdicts on one check, and the primary that it has them. */
import { pack, unpack } from 'msgpackr';

import { mailTags } from './engine-mail.js';
import { maxCheckItems, maxTailBytes } from './output-check.js';

/** Where a guest said something else. */
export interface DivergedItem {
  readonly index: number;
  readonly position: number;
  readonly agreed: number;
  readonly cause: string;
  readonly hash: string;
  readonly tail: Uint8Array;
}

export interface VerdictReport {
  readonly type: 'report';
  readonly op: number;
  /** Grows with every change of the verdicts on this check. */
  readonly version: number;
  /** By item: index into verdictNames, or `noVerdict`. */
  readonly verdicts: Uint8Array;
  /** The first few that diverged. */
  readonly diverged: readonly DivergedItem[];
}

export interface VerdictAck {
  readonly type: 'ack';
  readonly op: number;
  readonly version: number;
}

export type OutputMail = VerdictReport | VerdictAck;

export const noVerdict = 255;
/** More would not fit a mail. */
export const maxDivergedPerReport = 8;

export function encodeOutputMail(mail: OutputMail): Uint8Array {
  const fields =
    mail.type === 'ack'
      ? [mail.op, mail.version]
      : [
          mail.op,
          mail.version,
          mail.verdicts,
          mail.diverged.map((d) => [d.index, d.position, d.agreed, d.cause, d.hash, d.tail]),
        ];
  return Uint8Array.from([mailTags.output, ...pack(fields)]);
}

/** null: malformed. */
export function decodeOutputMail(bytes: Uint8Array): OutputMail | null {
  if (bytes.length < 2 || bytes.length > 16 * 1024 || bytes[0] !== mailTags.output) return null;
  let value: unknown;
  try {
    value = unpack(bytes.subarray(1));
  } catch {
    return null;
  }
  if (!Array.isArray(value)) return null;
  const [op, version, verdicts, diverged] = value as unknown[];
  if (!isCount(op) || !isCount(version)) return null;
  if (value.length === 2) return { type: 'ack', op, version };
  if (value.length !== 4 || !(verdicts instanceof Uint8Array) || verdicts.length > maxCheckItems) return null;
  if (!Array.isArray(diverged) || diverged.length > maxDivergedPerReport) return null;
  const items = diverged.map(divergedItem);
  if (items.some((item) => item === null || item.index >= verdicts.length)) return null;
  return { type: 'report', op, version, verdicts, diverged: items.filter((item) => item !== null) };
}

function divergedItem(value: unknown): DivergedItem | null {
  if (!Array.isArray(value) || value.length !== 6) return null;
  const [index, position, agreed, cause, hash, tail] = value as unknown[];
  if (!isCount(index) || !isCount(position) || !isCount(agreed)) return null;
  if (typeof cause !== 'string' || cause.length > 64) return null;
  if (typeof hash !== 'string' || !/^[0-9a-f]{64}$/.test(hash)) return null;
  if (!(tail instanceof Uint8Array) || tail.length > maxTailBytes) return null;
  return { index, position, agreed, cause, hash, tail };
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}
