/** What the demo found, for people and as JSON. */
import type { TakeoverStatus } from '../../src/api/status.js';
import type { DemoOptions } from './options.js';
import type { Gap, Tally } from './key-client.js';

export interface Kill {
  readonly old: string;
  readonly new: string;
  /** On the shared monotonic clock. */
  readonly atMs: number;
  /** As the new primary tells it; null: it does not say. */
  readonly takeover: TakeoverStatus | null;
}

export interface KillReport {
  readonly old_primary: string;
  readonly new_primary: string;
  readonly outage_ms: number;
  readonly split_ms: Readonly<
    Record<'detect' | 'elect' | 'catch_up' | 'gate' | 'first_reply', number>
  > | null;
}

export interface DemoReport {
  readonly acked: number;
  readonly lost: number;
  readonly wrong: number;
  readonly connection_survived: boolean;
  readonly outage_ms: number;
  readonly old_primary: string;
  readonly new_primary: string;
  readonly replicas: number;
  readonly ok: boolean;
  readonly read_back: number;
  readonly seed: number;
  readonly kills: readonly KillReport[];
  readonly trouble: readonly string[];
}

/** How long after a kill a gap may start and still be the kill's. */
const causeMs = 5_000;

export function makeReport(options: DemoOptions, kills: readonly Kill[], tally: Tally): DemoReport {
  const reports = kills.map((kill, i) => describeKill(kill, kills[i + 1]?.atMs ?? Infinity, tally.gaps));
  const whole = reports.length === options.kills;
  return {
    acked: tally.acked,
    lost: tally.lost,
    wrong: tally.wrong,
    connection_survived: tally.alive,
    outage_ms: Math.max(0, ...reports.map((kill) => kill.outage_ms)),
    old_primary: reports[0]?.old_primary ?? '',
    new_primary: reports.at(-1)?.new_primary ?? '',
    replicas: options.hosts,
    ok:
      whole &&
      tally.acked > 0 &&
      tally.lost === 0 &&
      tally.wrong === 0 &&
      tally.alive &&
      tally.readBack >= tally.acked,
    read_back: tally.readBack,
    seed: options.seed,
    kills: reports,
    trouble: tally.trouble,
  };
}

function describeKill(kill: Kill, nextMs: number, gaps: readonly Gap[]): KillReport {
  const own = gaps.filter(
    (gap) => gap.endMs > kill.atMs && gap.startMs < Math.min(kill.atMs + causeMs, nextMs),
  );
  const outage = Math.max(0, ...own.map((gap) => gap.endMs - gap.startMs));
  const { takeover } = kill;
  const split = takeover && {
    detect: takeover.detectMs,
    elect: takeover.electMs,
    catch_up: takeover.catchUpMs,
    gate: takeover.gateMs,
    first_reply: Math.max(
      0,
      outage - takeover.detectMs - takeover.electMs - takeover.catchUpMs - takeover.gateMs,
    ),
  };
  return {
    old_primary: kill.old,
    new_primary: kill.new,
    outage_ms: tenth(outage),
    split_ms: split && {
      detect: tenth(split.detect),
      elect: tenth(split.elect),
      catch_up: tenth(split.catch_up),
      gate: tenth(split.gate),
      first_reply: tenth(split.first_reply),
    },
  };
}

export function reportLines(report: DemoReport): string[] {
  return [
    '',
    `replicas              ${report.replicas}, seed ${report.seed}`,
    ...report.kills.flatMap(killLines),
    `writes acknowledged   ${report.acked}`,
    `writes lost           ${report.lost}`,
    `wrong replies         ${report.wrong}`,
    `read back             ${report.read_back}`,
    `connection survived   ${report.connection_survived ? 'yes' : 'no'}`,
    `longest gap           ${report.outage_ms} ms`,
    ...report.trouble.map((line) => `trouble               ${line}`),
    `result                ${report.ok ? 'ok' : 'FAILED'}`,
  ];
}

function killLines(kill: KillReport): string[] {
  const split = kill.split_ms;
  const parts = split && Object.entries(split).map(([name, ms]) => `${name.replace('_', ' ')} ${ms}`);
  return [
    `primary killed        ${kill.old_primary}, ${kill.new_primary} took over; ${kill.outage_ms} ms between two replies`,
    ...(parts ? [`                      ${parts.join(', ')} ms`] : []),
  ];
}

function tenth(value: number): number {
  return Math.round(value * 10) / 10;
}
