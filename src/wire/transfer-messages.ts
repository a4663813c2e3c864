/**
 * What source and target of a state transfer say to each other beside the pages: msgpack, checked strictly on
 * the way in. Every message may be lost or repeated; a session's number makes late ones harmless.
 */
import { pack, unpack } from 'msgpackr';

import { assert } from '../lib/assert.js';
import type { Op, View } from './viewstamp.js';

/** Longest message, in bytes: two grants and the words around them. */
export const maxTransferMessageBytes = 2048;
export const maxGrantBytes = 768;
export const sessionKeyBytes = 32;
const maxTextChars = 200;

/** Number of a session, unique among all that a cluster ever begins: its view, and a count within it. */
export type SessionId = number;

/** One every three seconds lasts for 18 days of one view; views are far below 2^33. */
export const sessionsPerView = 1_048_576;
/** Verifications have numbers above it, transfers below. */
export const firstVerification = 524_288;

export function sessionId(view: View, count: number): SessionId {
  assert(count > 0 && count < sessionsPerView, 'sessions of a view are counted');
  return view * sessionsPerView + count;
}

export type TransferMessage =
  /**
   * The primary of `view` would fill the receiver. `machine` must equal the receiver's own. `key`: of the page
   * digests, fresh. `baseOp`: the vm-sync entry at which both were equal last; 0: none known. `inbox`: what the
   * target needs to write to the source.
   */
  | {
      readonly type: 'offer';
      readonly session: SessionId;
      readonly view: View;
      readonly machine: string;
      readonly ramBytes: number;
      readonly baseOp: Op;
      readonly key: Uint8Array;
      readonly inbox: Uint8Array;
    }
  /** The primary of `view` would compare the receiver's guest with its own. It opens an inbox; the receiver opens nothing. */
  | {
      readonly type: 'verify';
      readonly session: SessionId;
      readonly view: View;
      readonly machine: string;
      readonly ramBytes: number;
      readonly key: Uint8Array;
      readonly inbox: Uint8Array;
    }
  /** `based`: the target has the state of `baseOp` and knows which pages it has changed since. */
  | {
      readonly type: 'accept';
      readonly session: SessionId;
      readonly based: boolean;
      readonly inbox: Uint8Array;
      readonly ram: Uint8Array;
    }
  | { readonly type: 'refuse'; readonly session: SessionId; readonly reason: string }
  /** Either side gives the session up. */
  | { readonly type: 'abandon'; readonly session: SessionId; readonly reason: string };

const types = ['offer', 'accept', 'refuse', 'abandon', 'verify'] as const;

export function encodeTransfer(message: TransferMessage): Uint8Array {
  const index = types.indexOf(message.type);
  const body = ((): readonly unknown[] => {
    switch (message.type) {
      case 'offer': {
        const { view, machine, ramBytes, baseOp, key, inbox } = message;
        return [view, machine, ramBytes, baseOp, Buffer.from(key), Buffer.from(inbox)];
      }
      case 'verify': {
        const { view, machine, ramBytes, key, inbox } = message;
        return [view, machine, ramBytes, Buffer.from(key), Buffer.from(inbox)];
      }
      case 'accept':
        return [message.based, Buffer.from(message.inbox), Buffer.from(message.ram)];
      case 'refuse':
      case 'abandon':
        return [message.reason.slice(0, maxTextChars)];
    }
  })();
  const bytes = pack([index, message.session, ...body]);
  assert(bytes.length <= maxTransferMessageBytes, 'a transfer message fits');
  return Uint8Array.from(bytes);
}

/** null: malformed. */
export function decodeTransfer(bytes: Uint8Array): TransferMessage | null {
  if (bytes.length === 0 || bytes.length > maxTransferMessageBytes) return null;
  let value: unknown;
  try {
    value = unpack(bytes);
  } catch {
    return null;
  }
  if (!Array.isArray(value)) return null;
  const [index, session, ...rest] = value as unknown[];
  const type = types[index as number];
  if (type === undefined || !isCount(session) || session === 0) return null;
  switch (type) {
    case 'offer': {
      const [view, machine, ramBytes, baseOp, key, inbox] = rest;
      if (rest.length !== 6 || !isCount(view) || !isText(machine) || !isCount(ramBytes) || !isCount(baseOp))
        return null;
      if (!isBytes(key) || key.length !== sessionKeyBytes || !isBytes(inbox)) return null;
      return { type, session, view, machine, ramBytes, baseOp, key, inbox };
    }
    case 'verify': {
      const [view, machine, ramBytes, key, inbox] = rest;
      if (rest.length !== 5 || !isCount(view) || !isText(machine) || !isCount(ramBytes)) return null;
      if (!isBytes(key) || key.length !== sessionKeyBytes || !isBytes(inbox)) return null;
      return { type, session, view, machine, ramBytes, key, inbox };
    }
    case 'accept': {
      const [based, inbox, ram] = rest;
      if (rest.length !== 3 || typeof based !== 'boolean' || !isBytes(inbox) || !isBytes(ram)) return null;
      return { type, session, based, inbox, ram };
    }
    case 'refuse':
    case 'abandon': {
      const [reason] = rest;
      if (rest.length !== 1 || !isText(reason)) return null;
      return { type, session, reason };
    }
  }
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function isText(value: unknown): value is string {
  return typeof value === 'string' && value.length <= maxTextChars;
}

function isBytes(value: unknown): value is Uint8Array {
  return value instanceof Uint8Array && value.length <= maxGrantBytes;
}
