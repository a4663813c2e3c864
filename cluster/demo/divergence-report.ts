/** What the demo of a divergence found, for people and as JSON. */
import type { DivergenceStatus, SyncRecord } from '../../src/api/status.js';
import type { Gap, Tally } from './key-client.js';
import type { MemoryFault } from './memory-fault.js';

/** Times are on the shared monotonic clock. */
export interface Observed {
  readonly seed: number;
  readonly fault: {
    readonly node: string;
    readonly key: number;
    readonly memory: MemoryFault;
    readonly atMs: number;
  };
  /** When the client asked for the key. */
  readonly askedMs: number;
  readonly foundMs: number;
  readonly found: DivergenceStatus;
  /** The checking period: new output waits no longer for a check, and no more of it than this. */
  readonly checkMs: number;
  readonly checkBytes: number;
  readonly heal: SyncRecord;
  readonly healedMs: number;
  /** The guest's memory holds the right value again. */
  readonly mended: boolean;
  readonly agreedAtHeal: number;
  readonly agreedAfter: number;
  readonly divergencesAtHeal: number;
  readonly divergencesAfter: number;
  readonly killed: string;
  readonly killedMs: number;
  /** Who was heard at the end. */
  readonly served: string;
  readonly tally: Tally;
}

export interface DivergenceDemoReport {
  readonly ok: boolean;
  readonly seed: number;
  readonly fault: {
    readonly node: string;
    readonly key: number;
    readonly was: string;
    readonly is: string;
    readonly memory_offsets: readonly number[];
  };
  readonly detection: {
    readonly after_read_ms: number;
    readonly after_fault_ms: number;
    readonly period_ms: number;
    /** The period, and what answer, verdict and look may take on a busy machine. */
    readonly allowed_ms: number;
    readonly in_time: boolean;
    readonly viewstamp: string;
    readonly client: string;
    readonly first_different: number | null;
    readonly check_position: number;
    readonly from: number;
    /** Hexadecimal. */
    readonly expected: string | null;
    readonly found: string;
  };
  readonly heal: {
    readonly after_detection_ms: number;
    readonly pages: number;
    readonly equal: number;
    readonly found_there: number;
    readonly sent: number;
    readonly bytes: number;
    readonly based: boolean;
    readonly rounds: number;
    readonly pause_ms: number;
    readonly duration_ms: number;
    readonly memory_mended: boolean;
  };
  readonly afterwards: { readonly agreed: number; readonly diverged: number };
  readonly failover: { readonly killed: string; readonly served: string; readonly outage_ms: number };
  readonly acked: number;
  readonly lost: number;
  readonly wrong: number;
  readonly read_back: number;
  readonly connection_survived: boolean;
  /** From the fault to the end of the heal. */
  readonly longest_gap_ms: number;
  readonly trouble: readonly string[];
}

/** Beyond the period: for the guest's answer, the verdict's mail and the look at it. */
const tellMs = 500;

export function judgeDivergence(seen: Observed): DivergenceDemoReport {
  const { fault, found, heal, tally } = seen;
  const afterReadMs = seen.foundMs - seen.askedMs;
  const bytesBehind = found.firstDifferent === null ? Infinity : found.position - found.firstDifferent;
  const within = afterReadMs <= seen.checkMs + tellMs && bytesBehind <= seen.checkBytes;
  const agreed = seen.agreedAfter - seen.agreedAtHeal;
  const diverged = seen.divergencesAfter - seen.divergencesAtHeal;
  const clientIsWell =
    tally.alive && tally.lost === 0 && tally.wrong === 0 && tally.acked > 0 && tally.readBack >= tally.acked;
  return {
    ok: within && seen.mended && agreed > 0 && diverged === 0 && seen.served === fault.node && clientIsWell,
    seed: seen.seed,
    fault: {
      node: fault.node,
      key: fault.key,
      was: fault.memory.from,
      is: fault.memory.to,
      memory_offsets: fault.memory.at,
    },
    detection: {
      after_read_ms: tenth(afterReadMs),
      after_fault_ms: tenth(seen.foundMs - fault.atMs),
      period_ms: seen.checkMs,
      allowed_ms: seen.checkMs + tellMs,
      in_time: within,
      viewstamp: `${found.view}/${found.op}`,
      client: found.client,
      first_different: found.firstDifferent,
      check_position: found.position,
      from: found.from,
      expected: found.expected,
      found: found.found,
    },
    heal: {
      after_detection_ms: tenth(seen.healedMs - seen.foundMs),
      pages: heal.pages,
      equal: heal.equal,
      found_there: heal.found,
      sent: heal.sent,
      bytes: heal.bytes,
      based: heal.based,
      rounds: heal.rounds,
      pause_ms: tenth(heal.pauseMs),
      duration_ms: tenth(heal.durationMs),
      memory_mended: seen.mended,
    },
    afterwards: { agreed, diverged },
    failover: {
      killed: seen.killed,
      served: seen.served,
      outage_ms: tenth(longest(tally.gaps, seen.killedMs, Infinity)),
    },
    acked: tally.acked,
    lost: tally.lost,
    wrong: tally.wrong,
    read_back: tally.readBack,
    connection_survived: tally.alive,
    longest_gap_ms: tenth(longest(tally.gaps, fault.atMs, seen.healedMs)),
    trouble: tally.trouble,
  };
}

export function divergenceLines(report: DivergenceDemoReport): string[] {
  const { fault, detection, heal, afterwards, failover } = report;
  const text = (hex: string | null): string =>
    JSON.stringify(Buffer.from(hex ?? '', 'hex').toString('latin1'));
  return [
    '',
    `replicas              3, seed ${report.seed}`,
    `fault                 one bit in the memory of ${fault.node}'s guest, at ${fault.memory_offsets.join(', ')}: key:${fault.key}`,
    `                      was ${fault.was}`,
    `                      is  ${fault.is}`,
    `found                 ${detection.after_read_ms} ms after the key was read; output is checked every ${detection.period_ms} ms`,
    `                      first at byte ${detection.first_different ?? '?'}, by the check at viewstamp ${detection.viewstamp}, of ${detection.check_position} bytes`,
    `                      expected from byte ${detection.from}: ${text(detection.expected)}`,
    `                      found    from byte ${detection.from}: ${text(detection.found)}`,
    `healed                ${heal.after_detection_ms} ms later: ${heal.pages} pages looked at, ${heal.equal} equal, ${heal.found_there} found there, ${heal.sent} sent, pause ${heal.pause_ms} ms`,
    `                      the value in its memory is ${heal.memory_mended ? 'right again' : 'STILL WRONG'}`,
    `afterwards            ${afterwards.agreed} checks agreed, ${afterwards.diverged} diverged`,
    `primary killed        ${failover.killed}; ${failover.served} serves, ${failover.outage_ms} ms between two replies`,
    `writes acknowledged   ${report.acked}`,
    `writes lost           ${report.lost}`,
    `wrong replies         ${report.wrong}`,
    `read back             ${report.read_back}`,
    `connection survived   ${report.connection_survived ? 'yes' : 'no'}`,
    `longest gap           ${report.longest_gap_ms} ms, from the fault to the end of the heal`,
    ...report.trouble.map((line) => `trouble               ${line}`),
    `result                ${report.ok ? 'ok' : 'FAILED'}`,
  ];
}

/** The longest gap that touches the time between. */
export function longest(gaps: readonly Gap[], startMs: number, endMs: number): number {
  const own = gaps.filter((gap) => gap.endMs > startMs && gap.startMs < endMs);
  return Math.max(0, ...own.map((gap) => gap.endMs - gap.startMs));
}

function tenth(value: number): number {
  return Math.round(value * 10) / 10;
}
