/**
 * What the engines of two replicas tell each other beside consensus: how their guests are. Mail carries one
 * tag byte (consensus or engine) and a msgpackr record.
 */
import { pack, unpack } from 'msgpackr';

export const mailTags = { consensus: 1, engine: 2, transfer: 3, output: 4 } as const;

export interface GuestReport {
  /** Op of the vm-boot entry that the guest was started by; 0: no guest. */
  readonly bootOp: number;
  readonly ready: boolean;
  /** The vm-boot entry since which the cluster takes input; 0: none. */
  readonly admittedBootOp: number;
  /** The vm-sync entry by which the guest became what it is; 0: it was booted. */
  readonly syncOp: number;
}

export const noGuest: GuestReport = { bootOp: 0, ready: false, admittedBootOp: 0, syncOp: 0 };

export function encodeGuestReport(report: GuestReport): Uint8Array {
  const body = pack([report.bootOp, report.ready, report.admittedBootOp, report.syncOp]);
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
  if (!Array.isArray(value) || value.length !== 4) return null;
  const [bootOp, ready, admittedBootOp, syncOp] = value as unknown[];
  if (!isOp(bootOp) || typeof ready !== 'boolean' || !isOp(admittedBootOp) || !isOp(syncOp)) return null;
  return { bootOp, ready, admittedBootOp, syncOp };
}

function isOp(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}
