/**
 * Viewstamps: the order of everything. A viewstamp is (view, op), ordered by view first; op is dense from 1,
 * view only grows. Both are integers below 2^53 (a view or op beyond that is refused at the boundary).
 */

export type View = number & { readonly __brand?: 'view' };
export type Op = number & { readonly __brand?: 'op' };

export interface Viewstamp {
  readonly view: View;
  readonly op: Op;
}

export const zeroViewstamp: Viewstamp = { view: 0, op: 0 };

/** Negative if `a` is older than `b`, 0 if they are equal, positive if `a` is newer. */
export function compareViewstamps(a: Viewstamp, b: Viewstamp): number {
  return a.view !== b.view ? a.view - b.view : a.op - b.op;
}

/** "view.op", as logs, the command line and the tests write it. */
export function formatViewstamp(v: Viewstamp): string {
  return `${v.view}.${v.op}`;
}
