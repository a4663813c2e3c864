/** What the core of output checking is told, and what it wants done. Times are milliseconds. */
import type { OutputMail } from '../wire/output-mail.js';
import type { VerdictRecord } from '../wire/output-check.js';

export type Member = number;

export interface LedgerOptions {
  readonly self: Member;
  /** How long the primary waits for the others' verdicts before it judges a divergence by those that it has. */
  readonly waitMs: number;
  readonly primaryDiverged: 'heal-backups' | 'transfer-leadership';
}

export type LedgerEvent =
  /** The primary's data plane has output to be compared. */
  | {
      readonly type: 'due';
      readonly now: number;
      readonly payload: Uint8Array;
      readonly tails: readonly Uint8Array[];
    }
  /** A check has come through the log. */
  | {
      readonly type: 'check';
      readonly now: number;
      readonly view: number;
      readonly op: number;
      readonly payload: Uint8Array;
    }
  /** This replica has compared. */
  | { readonly type: 'verdicts'; readonly now: number; readonly records: readonly VerdictRecord[] }
  | { readonly type: 'mail'; readonly now: number; readonly from: Member; readonly mail: OutputMail }
  /** Who leads now, as this replica knows it. */
  | { readonly type: 'primary'; readonly now: number; readonly view: number; readonly primary: Member | null }
  /** The members that run a guest now. */
  | { readonly type: 'guests'; readonly members: readonly Member[] }
  /** A member's guest is a copy of the primary's again, or starts anew. */
  | { readonly type: 'healed'; readonly member: Member }
  | { readonly type: 'tick'; readonly now: number };

export type LedgerEffect =
  | { readonly type: 'propose'; readonly payload: Uint8Array }
  | { readonly type: 'mail'; readonly to: Member; readonly mail: OutputMail }
  /** State transfer from the primary would make this member's guest right. */
  | { readonly type: 'heal'; readonly member: Member; readonly reason: string }
  /** A majority says the same, and this primary something else. */
  | { readonly type: 'primary-diverged'; readonly reason: string; readonly transferTo: Member | null }
  | { readonly type: 'divergence'; readonly divergence: Divergence };

export interface Divergence {
  readonly view: number;
  readonly op: number;
  /** In the check. */
  readonly index: number;
  readonly member: Member;
  readonly client: string;
  /** Tells connections on the same ports apart. */
  readonly clientIss: number;
  readonly port: number;
  /** What was compared: this many bytes of the connection's output. */
  readonly position: number;
  /** This much had been found equal before. */
  readonly agreed: number;
  readonly cause: string;
  /** The first byte of the output that differs; null: it is older than what is kept. */
  readonly firstDifferent: number | null;
  /** Bytes around it, hexadecimal; null: not kept. */
  readonly expected: string | null;
  readonly found: string;
  /** Where these bytes begin. */
  readonly from: number;
}

export interface MemberCounts {
  agree: number;
  late: number;
  diverged: number;
  skipped: number;
}
