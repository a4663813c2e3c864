/**
 * Control mail between replicas as bytes: msgpack, checked strictly on the way in.
 *
 * What comes out of `decodeMessage` is a message that the core may trust in form: known type, exactly the fields of
 * that type, whole numbers from 0 to 2^53 - 1, tables in order. Whether it makes sense is the core's question.
 */
import { Packr, Unpackr } from 'msgpackr';
import { assert } from '../lib/assert.js';
import type { LogBase, LogTail, ViewTable, ViewTableRow } from './view-table.js';
import type { Op, View, Viewstamp } from './viewstamp.js';

/** Longest message, in bytes. */
export const maxMessageBytes = 4096;

/** Rows of a view table that a message carries: the newest ones. */
export const maxTableRows = 64;

/** Longest reason, in UTF-16 units; a longer one is cut when it is sent. */
export const maxReasonLength = 160;

/** Control mail between replicas. Every message is idempotent and may be lost, repeated, late; none outlives its connection. */
export type Message =
  /** May I stand in `view`? Changes nothing at the receiver. */
  | { readonly type: 'pre-vote'; readonly view: View; readonly last: Viewstamp; readonly hasGuest: boolean }
  | {
      readonly type: 'pre-vote-reply';
      readonly view: View;
      readonly granted: boolean;
      readonly reason: string;
      readonly currentView: View;
    }
  /** `handover`: sent on a TimeoutNow of the primary, which has given up its lease; stickiness does not apply. */
  | { readonly type: 'vote'; readonly view: View; readonly last: Viewstamp; readonly handover: boolean }
  | {
      readonly type: 'vote-reply';
      readonly view: View;
      readonly granted: boolean;
      readonly reason: string;
      readonly currentView: View;
      readonly tail: LogTail | null;
    }
  /** The sender is the primary of `view` and does not know the receiver's log yet. */
  | { readonly type: 'new-view'; readonly view: View }
  | { readonly type: 'view-state'; readonly view: View; readonly tail: LogTail }
  /**
   * Cut your log behind `agreeOp`, or with a base begin it anew behind that, and take entries from my ring in stream `view`.
   * `caughtUpOp`: the primary's last op now. The base, at `agreeOp`, is committed.
   */
  | {
      readonly type: 'follow';
      readonly view: View;
      readonly agreeOp: Op;
      readonly caughtUpOp: Op;
      readonly base: LogBase | null;
    }
  | { readonly type: 'following'; readonly view: View }
  /** The sender has given up its lease in `view`; the receiver's log equals its own up to `last`. */
  | { readonly type: 'timeout-now'; readonly view: View; readonly last: Viewstamp }
  /** The receiver's message carried an old view. */
  | { readonly type: 'stale-view'; readonly currentView: View };

/** Bytes that are not a message, and why. */
export interface Malformed {
  readonly type: 'malformed';
  readonly reason: string;
}

const packr = new Packr({ useRecords: false, variableMapSize: true, moreTypes: false });
const unpackr = new Unpackr({ useRecords: false, mapsAsObjects: true, moreTypes: false });

class MalformedError extends Error {}

/** Reads the fields of one map; `done` insists that there were no others. */
class Fields {
  private readonly map: Readonly<Record<string, unknown>>;
  private taken = 0;

  constructor(value: unknown, what: string) {
    if (value === null || typeof value !== 'object' || Object.getPrototypeOf(value) !== Object.prototype) {
      throw new MalformedError(`${what} is not a map`);
    }
    this.map = value as Record<string, unknown>;
  }

  take(name: string): unknown {
    if (!Object.hasOwn(this.map, name)) throw new MalformedError(`${name} is missing`);
    this.taken++;
    return this.map[name];
  }

  whole(name: string): number {
    return wholeNumber(this.take(name), name);
  }

  flag(name: string): boolean {
    const value = this.take(name);
    if (typeof value !== 'boolean') throw new MalformedError(`${name} is not true or false`);
    return value;
  }

  text(name: string): string {
    const value = this.take(name);
    if (typeof value !== 'string' || value.length > maxReasonLength)
      throw new MalformedError(`${name} is not a short text`);
    return value;
  }

  done(): void {
    if (Object.keys(this.map).length !== this.taken) throw new MalformedError('a field too many');
  }
}

function wholeNumber(value: unknown, name: string): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0 || Object.is(value, -0)) {
    throw new MalformedError(`${name} is not a whole number from 0 to 2^53 - 1`);
  }
  return value;
}

function pair(value: unknown, name: string): readonly [number, number] {
  if (!Array.isArray(value) || value.length !== 2) throw new MalformedError(`${name} is not a pair`);
  return [wholeNumber(value[0], name), wholeNumber(value[1], name)];
}

function viewstampOf(value: unknown, name: string): Viewstamp {
  const [view, op] = pair(value, name);
  if ((view === 0) !== (op === 0)) throw new MalformedError(`${name} is not a viewstamp`);
  return { view, op };
}

function tableOf(value: unknown, last: Viewstamp): ViewTable {
  if (!Array.isArray(value) || value.length > maxTableRows)
    throw new MalformedError('table is not a short list');
  const table: ViewTableRow[] = [];
  for (const item of value) {
    const [view, firstOp] = pair(item, 'table row');
    const before = table.at(-1);
    if (view === 0 || firstOp === 0) throw new MalformedError('table row of view 0 or op 0');
    if (before !== undefined && (view <= before.view || firstOp <= before.firstOp))
      throw new MalformedError('table out of order');
    table.push({ view, firstOp });
  }
  const end = table.at(-1);
  if ((end?.view ?? 0) !== last.view || (end?.firstOp ?? 0) > last.op)
    throw new MalformedError('table does not fit its last entry');
  return table;
}

function baseOf(value: unknown): LogBase | null {
  if (value === null) return null;
  if (!Array.isArray(value) || value.length !== 3) throw new MalformedError('base is not three numbers');
  const [op, view, checksum] = value.map((item) => wholeNumber(item, 'base')) as [number, number, number];
  if (op === 0 || view === 0 || checksum > 0xffff_ffff) throw new MalformedError('base is no entry');
  return { op, view, checksum };
}

function tailOf(value: unknown): LogTail {
  const fields = new Fields(value, 'tail');
  const last = viewstampOf(fields.take('last'), 'last');
  const commitOp = fields.whole('commitOp');
  const table = tableOf(fields.take('table'), last);
  fields.done();
  return { last, commitOp, table };
}

function packStamp(stamp: Viewstamp): readonly [number, number] {
  return [stamp.view, stamp.op];
}

function packTail(tail: LogTail): object {
  return {
    last: packStamp(tail.last),
    commitOp: tail.commitOp,
    table: tail.table.slice(-maxTableRows).map((row) => [row.view, row.firstOp]),
  };
}

/** The bytes of a message, at most maxMessageBytes. View tables are cut to their newest rows, reasons to their beginning. */
export function encodeMessage(message: Message): Uint8Array {
  const map: Record<string, unknown> = { ...message };
  if ('last' in message) map['last'] = packStamp(message.last);
  if ('tail' in message) map['tail'] = message.tail === null ? null : packTail(message.tail);
  if (message.type === 'follow' && message.base !== null) {
    const { op, view, checksum } = message.base;
    map['base'] = [op, view, checksum];
  }
  if ('reason' in message) map['reason'] = message.reason.slice(0, maxReasonLength);
  const bytes = packr.pack(map);
  assert(bytes.length <= maxMessageBytes, `a message of ${bytes.length} bytes`);
  return Uint8Array.from(bytes);
}

function messageOf(value: unknown): Message {
  const fields = new Fields(value, 'message');
  const message = body(fields.take('type'), fields);
  fields.done();
  return message;
}

function body(type: unknown, fields: Fields): Message {
  switch (type) {
    case 'pre-vote':
      return {
        type,
        view: fields.whole('view'),
        last: viewstampOf(fields.take('last'), 'last'),
        hasGuest: fields.flag('hasGuest'),
      };
    case 'pre-vote-reply':
      return {
        type,
        view: fields.whole('view'),
        granted: fields.flag('granted'),
        reason: fields.text('reason'),
        currentView: fields.whole('currentView'),
      };
    case 'vote':
      return {
        type,
        view: fields.whole('view'),
        last: viewstampOf(fields.take('last'), 'last'),
        handover: fields.flag('handover'),
      };
    case 'vote-reply':
      return voteReply(fields);
    case 'new-view':
    case 'following':
      return { type, view: fields.whole('view') };
    case 'view-state':
      return { type, view: fields.whole('view'), tail: tailOf(fields.take('tail')) };
    case 'follow':
      return follow(fields);
    case 'timeout-now':
      return { type, view: fields.whole('view'), last: viewstampOf(fields.take('last'), 'last') };
    case 'stale-view':
      return { type, currentView: fields.whole('currentView') };
    default:
      throw new MalformedError('unknown type');
  }
}

function follow(fields: Fields): Message {
  const view = fields.whole('view');
  const agreeOp = fields.whole('agreeOp');
  const caughtUpOp = fields.whole('caughtUpOp');
  const base = baseOf(fields.take('base'));
  if (agreeOp > caughtUpOp) throw new MalformedError('agreeOp is behind caughtUpOp');
  if (base !== null && (base.op !== agreeOp || base.view > view))
    throw new MalformedError('base does not fit its message');
  return { type: 'follow', view, agreeOp, caughtUpOp, base };
}

function voteReply(fields: Fields): Message {
  const granted = fields.flag('granted');
  const tail = fields.take('tail');
  if (granted !== (tail !== null))
    throw new MalformedError('a granted vote carries a tail, a refused one does not');
  return {
    type: 'vote-reply',
    view: fields.whole('view'),
    granted,
    reason: fields.text('reason'),
    currentView: fields.whole('currentView'),
    tail: tail === null ? null : tailOf(tail),
  };
}

/** The message in `bytes`, or what is wrong with them. Never throws. */
export function decodeMessage(bytes: Uint8Array): Message | Malformed {
  if (bytes.length === 0 || bytes.length > maxMessageBytes)
    return { type: 'malformed', reason: `${bytes.length} bytes` };
  try {
    return messageOf(unpackr.unpack(bytes));
  } catch (error) {
    return { type: 'malformed', reason: error instanceof MalformedError ? error.message : 'not msgpack' };
  }
}
