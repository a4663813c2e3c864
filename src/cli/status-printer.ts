/** The table of `falcon status`. */
import type { OutputStatus, ReplicaStatus, StatusRow } from '../api/status.js';
import { answered } from './replicas.js';

const columns: readonly (readonly [title: string, cell: (status: ReplicaStatus) => string])[] = [
  ['NODE', (s) => s.node],
  ['ROLE', (s) => (s.recovering ? `${s.role} (recovering)` : s.role)],
  ['VIEW', (s) => String(s.view)],
  ['LAST', (s) => String(s.lastOp)],
  ['DURABLE', (s) => String(s.durableOp)],
  ['COMMIT', (s) => String(s.commitOp)],
  ['DELIVERED', (s) => String(s.deliveredOp)],
  ['LAG', (s) => String(s.lagOps)],
  ['LEASE', leaseCell],
  ['GATE', (s) => s.gate],
  ['INPUT', (s) => (s.admitted ? 'admitted' : '-')],
  ['GUEST', (s) => s.guest.state],
  ['DURABILITY', (s) => s.durability],
  ['PEERS', (s) => `${s.peers.filter((peer) => peer.connected).length}/${s.peers.length}`],
  ['UP', (s) => formatDuration(s.uptimeMs)],
];

/** Lines of an aligned table; a replica that did not answer has its error code for a role. */
export function statusTable(rows: readonly StatusRow[]): string[] {
  const table = aligned([columns.map(([title]) => title), ...rows.map(rowCells)]);
  return [...headLines(rows), ...table, ...takeoverLines(rows), ...outputLines(rows)];
}

export function aligned(cells: readonly (readonly string[])[]): string[] {
  const widths = (cells[0] ?? []).map((_, i) => Math.max(...cells.map((row) => (row[i] ?? '').length)));
  return cells.map((row) =>
    row
      .map((cell, i) => cell.padEnd(widths[i] ?? 0))
      .join('  ')
      .trimEnd(),
  );
}

export function formatDuration(milliseconds: number): string {
  const seconds = Math.floor(milliseconds / 1000);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

function headLines(rows: readonly StatusRow[]): string[] {
  const first = answered(rows)[0];
  return first === undefined
    ? []
    : [`cluster ${first.cluster}, fabric ${first.fabric}, lan ${first.lan}`, ''];
}

function rowCells(row: StatusRow): string[] {
  if ('error' in row) return [row.node, row.error.code, ...columns.slice(2).map(() => '-')];
  return columns.map(([, cell]) => cell(row));
}

function leaseCell(status: ReplicaStatus): string {
  if (!status.lease.held) return '-';
  return status.lease.remainingMs === null ? 'held' : `${Math.round(status.lease.remainingMs)} ms`;
}

function takeoverLines(rows: readonly StatusRow[]): string[] {
  return answered(rows).flatMap((row) => {
    if (row.lastTakeover === undefined) return [];
    const t = row.lastTakeover;
    const total = t.detectMs + t.electMs + t.catchUpMs + t.gateMs;
    const split = `detect ${t.detectMs}, elect ${t.electMs}, catch up ${t.catchUpMs}, gate ${t.gateMs}`;
    return ['', `${row.node} took over in view ${t.view} at ${t.at}: ${Math.round(total)} ms (${split})`];
  });
}

/** How comparing the guests' outputs went, by application, over all replicas that answer. */
function outputLines(rows: readonly StatusRow[]): string[] {
  const table = outputTable(answered(rows).map(({ outputs }) => outputs));
  return table.length === 0 ? [] : ['', ...table];
}

export function outputTable(replicas: readonly (readonly OutputStatus[])[]): string[] {
  const ports = [...new Set(replicas.flat().map(({ port }) => port))].sort((a, b) => a - b);
  if (ports.length === 0) return [];
  const rows = ports.map((port) => {
    const of = replicas.flat().filter((one) => one.port === port);
    const sum = (key: 'agreed' | 'late' | 'diverged' | 'skipped'): string =>
      String(of.reduce((total, one) => total + one[key], 0));
    const bytes = Math.max(...of.map((one) => one.bytes));
    const flows = Math.max(...of.map((one) => one.flowsEnded + one.flowsCut));
    const name = port === 0 ? 'other' : String(port);
    const verdicts = [sum('agreed'), sum('late'), sum('diverged'), sum('skipped')];
    return [name, String(bytes), String(flows), ...verdicts];
  });
  return aligned([['PORT', 'BYTES', 'ENDED', 'AGREED', 'LATE', 'DIVERGED', 'SKIPPED'], ...rows]);
}
