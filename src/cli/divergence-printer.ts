/** What `falcon divergence` prints. */
import type { DivergenceReport, DivergenceStatus } from '../api/status.js';
import { aligned, outputTable } from './status-printer.js';

export type DivergenceRow =
  | DivergenceReport
  | { readonly node: string; readonly error: { readonly code: string; readonly message: string } };

export function divergenceText(rows: readonly DivergenceRow[]): string[] {
  const reports = rows.filter((row): row is DivergenceReport => !('error' in row));
  const table = outputTable(reports.map(({ applications }) => applications));
  const checked = Math.max(0, ...reports.map(({ checks }) => checks));
  const members = reports.flatMap((report) =>
    report.members.map((m) =>
      [m.node, report.node, m.agreed, m.late, m.diverged, m.skipped].map((cell) => String(cell)),
    ),
  );
  const head = ['NODE', 'REPORTED TO', 'AGREED', 'LATE', 'DIVERGED', 'SKIPPED'];
  const silent = rows.flatMap((row) => ('error' in row ? [`${row.node}: ${row.error.code}`] : []));
  return [
    `${checked} outputs checked`,
    ...(table.length === 0 ? [] : ['', ...table]),
    ...(members.length === 0 ? [] : ['', ...aligned([head, ...members])]),
    ...known(reports).flatMap(describe),
    ...(silent.length === 0 ? [] : ['', ...silent]),
  ];
}

/** Each divergence once, by the replica that knows most of it. */
function known(reports: readonly DivergenceReport[]): DivergenceStatus[] {
  const found = new Map<string, DivergenceStatus>();
  for (const one of reports.flatMap(({ divergences }) => divergences)) {
    const key = `${one.op} ${one.index} ${one.member}`;
    if ((found.get(key)?.expected ?? null) === null) found.set(key, one);
  }
  return [...found.values()].sort((a, b) => a.op - b.op || a.index - b.index);
}

function describe(one: DivergenceStatus): string[] {
  const where =
    one.cause !== ''
      ? `connection lost: ${one.cause}`
      : one.firstDifferent === null
        ? `somewhere in bytes ${one.agreed} to ${one.position}`
        : `first at byte ${one.firstDifferent}`;
  const lines = [
    '',
    `${one.member} diverged on port ${one.port}, client ${one.client}: ${where}`,
    `  found by the check at viewstamp ${one.view}/${one.op}, of ${one.position} bytes; equal up to ${one.agreed}`,
  ];
  const shown = (label: string, bytes: string): string =>
    `  ${label} from byte ${one.from}: ${quoted(bytes)}`;
  const expected = one.expected ?? '';
  if (expected !== '') lines.push(shown('expected', expected));
  if (expected !== '' || one.found !== '') lines.push(shown('found   ', one.found));
  return lines;
}

/** Bytes as a string literal. */
function quoted(hex: string): string {
  const text = Buffer.from(hex, 'hex').toString('latin1');
  const escaped = text.replaceAll(/[^\x20-\x7e]|["\\]/g, (c) => {
    if (c === '\r') return '\\r';
    if (c === '\n') return '\\n';
    if (c === '"' || c === '\\') return `\\${c}`;
    return `\\x${c.charCodeAt(0).toString(16).padStart(2, '0')}`;
  });
  return `"${escaped}"`;
}
