/**
 * View tables: for every view in a log, its first op. Two tables and two last ops give the exact point up to
 * which two logs agree, because entries with the same viewstamp are the same entry and have the same past
 * (Raft's log matching property).
 */
import type { Op, View, Viewstamp } from './viewstamp.js';

export interface ViewTableRow {
  readonly view: View;
  readonly firstOp: Op;
}

/** Ascending by view and by firstOp. */
export type ViewTable = readonly ViewTableRow[];

/** The entry that a log stands behind: it and all before it are committed, and not in the log. Op 0: it stands behind nothing. */
export interface LogBase {
  readonly op: Op;
  readonly view: View;
  /** What the first entry of the log is chained to. */
  readonly checksum: number;
}

export const noBase: LogBase = { op: 0, view: 0, checksum: 0 };

export interface LogTail {
  /** Viewstamp of the last durable entry; (0, 0) for an empty log. */
  readonly last: Viewstamp;
  readonly commitOp: Op;
  readonly table: ViewTable;
}

/** Last op of row `index` of a table whose log ends at `lastOp`. */
function lastOpOfRow(table: ViewTable, index: number, lastOp: Op): Op {
  const next = table[index + 1];
  return next === undefined ? lastOp : next.firstOp - 1;
}

/** The greatest op up to which both logs hold the same entries; 0 if they share none. */
export function agreementOp(a: LogTail, b: LogTail): Op {
  let i = a.table.length - 1;
  let j = b.table.length - 1;
  while (i >= 0 && j >= 0) {
    const rowA = a.table[i]!;
    const rowB = b.table[j]!;
    if (rowA.view === rowB.view) {
      return Math.min(lastOpOfRow(a.table, i, a.last.op), lastOpOfRow(b.table, j, b.last.op));
    }
    if (rowA.view > rowB.view) i--;
    else j--;
  }
  return 0;
}
