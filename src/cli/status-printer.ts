/** The table of `falcon status`. */
import type {
  OutputStatus,
  PeerStatus,
  RdmaStatus,
  ReplicaStatus,
  StatusRow,
  SyncRecord,
} from '../api/status.js';
import { answered } from './replicas.js';
import { verifyLine } from './verify-printer.js';

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
  ['PEERS', (s) => `${s.peers.filter(({ state }) => state === 'up').length}/${s.peers.length}`],
  ['UP', (s) => formatDuration(s.uptimeMs)],
];

/** Lines of an aligned table; a replica that did not answer has its error code for a role. */
export function statusTable(rows: readonly StatusRow[]): string[] {
  const table = aligned([columns.map(([title]) => title), ...rows.map(rowCells)]);
  return [
    ...headLines(rows),
    ...table,
    ...linkLines(rows),
    ...takeoverLines(rows),
    ...syncLines(rows),
    ...outputLines(rows),
  ];
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

export function formatBytes(bytes: number): string {
  const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = bytes;
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
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

/** What crossed the fabric, and what is wrong with it. */
function linkLines(rows: readonly StatusRow[]): string[] {
  const lines = answered(rows).flatMap((row) => [
    trafficLine(row),
    ...row.peers.flatMap(peerLine(row)),
    ...refusedLine(row),
  ]);
  return lines.length === 0 ? [] : ['', ...lines];
}

function trafficLine({ node, fabric, link }: ReplicaStatus): string {
  const { rdma } = link;
  const percent = (fraction: number): string => `${Math.round(fraction * 1000) / 10} %`;
  const parts = [
    `${link.writes} writes`,
    formatBytes(link.writtenBytes),
    ...(rdma === null
      ? []
      : [
          `${percent(rdma.signaledFraction)} signaled`,
          `${percent(rdma.inlineFraction)} inline`,
          `${percent(rdma.stagedFraction)} staged`,
          rdma.retries === null
            ? 'retries not told'
            : `${Object.values(rdma.retries).reduce((sum, count) => sum + count, 0)} retries on the port`,
        ]),
    `${link.errors} errors`,
  ];
  return `${node} ${fabric}${rdma === null ? '' : ` on ${portName(rdma)}`}: ${parts.join(', ')}`;
}

function portName({ device, port, gid, gidIndex, linkLayer, mtuBytes }: RdmaStatus): string {
  const address = gid === null ? 'by LID' : `GID ${gid} (index ${gidIndex ?? '-'})`;
  return `${device} port ${port}, ${address}, ${linkLayer}, MTU ${mtuBytes}`;
}

function peerLine(row: ReplicaStatus): (peer: PeerStatus) => string[] {
  return ({ name, state, trouble, breaks, anewFromOp }) => {
    const why = trouble === null ? '' : `: ${trouble.code}: ${trouble.detail} (${trouble.at})`;
    if (state === 'lost') return [`${row.node} cannot feed ${name}${why}`];
    if (state === 'down') return [`${row.node} sees ${name} down${why}`];
    const times = breaks === 1 ? 'once' : `${breaks} times`;
    return [
      ...(breaks === 0 ? [] : [`${row.node} sees ${name} up; its connection broke ${times}, last${why}`]),
      ...(anewFromOp === null ? [] : [`${row.node} had ${name} begin its log anew at op ${anewFromOp}`]),
    ];
  };
}

function refusedLine({ node, refused }: ReplicaStatus): string[] {
  const { secret, version, other, unfinished } = refused;
  const total = secret + version + other + unfinished;
  if (total === 0) return [];
  return [
    `${node} let ${total} connections in no further: secret ${secret}, version ${version}, other ${other}, unfinished ${unfinished}`,
  ];
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
    const { active, last, verified, verifying } = sync;
    const now =
      active?.role === 'source'
        ? [
            `${node} makes ${active.peer} a copy: ${active.phase}, round ${active.rounds}, ${active.sent} of ${active.pages} pages sent`,
          ]
        : [];
    const comparing =
      verifying?.role === 'source'
        ? [`${node} compares its guest with ${verifying.peer}'s: ${verifying.phase}`]
        : [];
    const lines = [
      ...last.map((record) => syncLine(node, record)),
      ...now,
      ...verified.map(verifyLine),
      ...comparing,
    ];
    return lines.length === 0 ? [] : ['', ...lines];
  });
}

/** One session of state transfer in a line. */
export function syncLine(source: string, r: SyncRecord): string {
  const why = { fill: 'it had no guest', diverged: 'it had diverged', asked: 'on request' }[r.reason];
  if (!r.ok) return `${source} gave up making ${r.target} a copy (${why}): ${r.why}`;
  const pages = `${r.pages} pages looked at, ${r.equal} equal, ${r.found} found there, ${r.sent} sent`;
  return `${source} made ${r.target} a copy as of op ${r.op} (${why}): ${pages}, ${r.rounds} rounds, pause ${r.pauseMs} ms`;
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
