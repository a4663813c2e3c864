/** The table of `falcon status`. */
import type { ReplicaStatus, StatusRow, SyncRecord } from '../api/status.js';
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
  const cells = [columns.map(([title]) => title), ...rows.map(rowCells)];
  const widths = columns.map((_, i) => Math.max(...cells.map((row) => (row[i] ?? '').length)));
  const table = cells.map((row) =>
    row
      .map((cell, i) => cell.padEnd(widths[i] ?? 0))
      .join('  ')
      .trimEnd(),
  );
  return [...headLines(rows), ...table, ...takeoverLines(rows), ...syncLines(rows)];
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

function syncLines(rows: readonly StatusRow[]): string[] {
  return answered(rows).flatMap(({ node, sync }) => {
    const { active, last } = sync;
    const now =
      active?.role === 'source'
        ? [`${node} makes ${active.peer} a copy: ${active.phase}, round ${active.rounds}, ${active.sent} of ${active.pages} pages sent`]
        : [];
    const lines = [...last.map((record) => syncLine(node, record)), ...now];
    return lines.length === 0 ? [] : ['', ...lines];
  });
}

/** One session of state transfer in a line. */
export function syncLine(source: string, r: SyncRecord): string {
  const why = { fill: 'it had no guest', diverged: 'it had diverged', asked: 'on request' }[r.reason];
  if (!r.ok) return `${source} gave up making ${r.target} a copy (${why}): ${r.why}`;
  const pages = `${r.pages} pages looked at, ${r.equal} equal, ${r.sent} sent`;
  return `${source} made ${r.target} a copy as of op ${r.op} (${why}): ${pages}, ${r.rounds} rounds, pause ${r.pauseMs} ms`;
}
