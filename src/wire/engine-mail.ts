/**
 * What the engines of two replicas tell each other beside consensus: how their guests are. Mail carries one
 * tag byte (consensus or engine) and a msgpackr record.
 */
import { pack, unpack } from 'msgpackr';

export const mailTags = { consensus: 1, engine: 2, output: 4 } as const;

export interface GuestReport {
  /** Op of the vm-boot entry that the guest was started by; 0: no guest. */
  readonly bootOp: number;
  readonly ready: boolean;
  /** The vm-boot entry since which the cluster takes input; 0: none. */
  readonly admittedBootOp: number;
}

export function encodeGuestReport(report: GuestReport): Uint8Array {
  const body = pack([report.bootOp, report.ready, report.admittedBootOp]);
  return Uint8Array.from([mailTags.engine, ...body]);
}

/** null: malformed. */
export function decodeGuestReport(bytes: Uint8Array): GuestReport | null {
  if (bytes.length < 2 || bytes.length > 64 || bytes[0] !== mailTags.engine) return null;
  let value: unknown;
  try {
    value = unpack(bytes.subarray(1));
  } catch {
    return null;
  }
  if (!Array.isArray(value) || value.length !== 3) return null;
  const [bootOp, ready, admittedBootOp] = value as unknown[];
  if (!isOp(bootOp) || typeof ready !== 'boolean' || !isOp(admittedBootOp)) return null;
  return { bootOp, ready, admittedBootOp };
}

function isOp(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}
