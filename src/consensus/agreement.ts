/**
 * What the core needs to know about logs: which of two is newer, up to where they are the same, which view an
 * op belongs to.
 */
import { agreementOp } from '../wire/view-table.js';
import type { LogBase, LogTail } from '../wire/view-table.js';
import { zeroViewstamp } from '../wire/viewstamp.js';
import type { Op, Viewstamp } from '../wire/viewstamp.js';
import { assert } from '../lib/assert.js';

export const emptyTail: LogTail = { last: zeroViewstamp, commitOp: 0, table: [] };

/** Entries of this log that are certainly committed; a commit op may run ahead of the log that holds it. */
export function committedHere(tail: LogTail): Op {
  return Math.min(tail.commitOp, tail.last.op);
}

/** The viewstamp of entry `op` of the log; (0, 0) where the table does not reach so far back. */
export function stampAt(tail: LogTail, op: Op): Viewstamp {
  assert(op <= tail.last.op, `op ${op} is behind the end of the log at ${tail.last.op}`);
  for (let i = tail.table.length - 1; i >= 0; i--) {
    const row = tail.table[i]!;
    if (row.firstOp <= op) return { view: row.view, op };
  }
  return zeroViewstamp;
}

/** True if the table does not say of which view each entry behind `op` is. */
function beginsAfter(tail: LogTail, op: Op): boolean {
  const first = tail.table[0];
  return first !== undefined && first.firstOp > op + 1;
}

/** True if two tables have a row for the same view. */
function shareView(a: LogTail, b: LogTail): boolean {
  const views = new Set(a.table.map((row) => row.view));
  return b.table.some((row) => views.has(row.view));
}

/**
 * The op behind which a backup with log `theirs` must cut to go on from the primary with log `own`; null if the
 * tables do not say.
 *
 * What is committed at the backup is in the primary's log (it could not have won without it), so the logs agree
 * at least up to there. Without any view in common this is the exact answer as long as both tables reach back
 * to there. A table can be shorter (old segments released, rows left out of a message); then cutting
 * could take away entries that are committed thanks to this backup, and the backup needs a state transfer.
 */
export function agreeWith(own: LogTail, theirs: LogTail): Op | null {
  const committed = committedHere(theirs);
  assert(
    committed <= own.last.op,
    `a backup holds op ${committed} committed, the primary ends at ${own.last.op}`,
  );
  const unsure = beginsAfter(own, committed) || beginsAfter(theirs, committed);
  if (theirs.last.op > committed && unsure && !shareView(own, theirs)) return null;
  const agreeOp = Math.max(agreementOp(own, theirs), committed);
  assert(agreeOp <= theirs.last.op, 'agreement behind the end of the other log');
  return agreeOp;
}

export interface FeedStart {
  readonly agreeOp: Op;
  /** The other log begins anew behind this, at `agreeOp`; null: it goes on. */
  readonly base: LogBase | null;
}

/**
 * Where a primary with log `own`, of which it can read what is behind `base`, begins to feed a backup with log
 * `theirs`; null if it cannot.
 *
 * If the backup ends, or parts, before `base`, it is told to take the place behind `base` for the end of its log. All up to
 * there is committed and in this log, so it then stands for no less than before, provided that it holds nothing of this log
 * behind `base`, which it would lose: entries that count because this backup has acknowledged them. What it holds there
 * of no use to anybody, as whatever `follow` cuts off.
 */
export function feedStart(own: LogTail, theirs: LogTail, base: LogBase): FeedStart | null {
  const agreeOp = agreeWith(own, theirs);
  if (agreeOp !== null && agreeOp >= base.op) return { agreeOp, base: null };
  if (base.view === 0) return null;
  const holdsNothingBehind =
    agreeOp !== null ||
    theirs.last.op <= base.op ||
    (!shareView(own, theirs) && !beginsAfter(own, base.op) && !beginsAfter(theirs, base.op));
  return holdsNothingBehind ? { agreeOp: base.op, base } : null;
}
