/** The data plane port over the addon: units and names change here, nothing else. */
import type { NodeId } from '../consensus/types.js';
import { noBase } from '../wire/view-table.js';
import type { LogBase } from '../wire/view-table.js';
import { assert } from '../lib/assert.js';
import { decodeVerifyReport } from '../wire/verify-report.js';
import type {
  DataPlane,
  EntryKind,
  GuestMode,
  OutputApplication,
  PlaneEvent,
  PlaneProgress,
  RoundPages,
  TransferOpen,
} from '../ports/data-plane.js';
import type { NativeCounters, NativeEvent } from './native.js';

const nsPerMs = 1e6;
const guestModes = { none: 0, booting: 1, running: 2 } as const;
const roundPages: Record<RoundPages, number> = { resident: 0, 'since-base': 1, pending: 2 };

/** What a data plane is reached through: a real replica, or one in a simulated world. */
export interface NativeTarget {
  command(name: string, ...args: (number | Uint8Array)[]): boolean;
  connect(peer: number, connection: Uint8Array, descriptor: Uint8Array): void;
  tick(): void;
  progress(into: Float64Array): void;
  counters(): NativeCounters;
  outputs(): OutputApplication[];
  expectVm(): void;
}

export class NativePlane implements DataPlane {
  private readonly target: NativeTarget;
  private readonly numbers = progressBuffer();

  constructor(target: NativeTarget) {
    this.target = target;
  }

  private command(name: string, ...args: (number | Uint8Array)[]): void {
    assert(this.target.command(name, ...args), `the addon knows ${name}`);
  }

  connect(peer: NodeId, connection: Uint8Array, descriptor: Uint8Array): void {
    this.target.connect(peer, connection, descriptor);
  }
  disconnect(peer: NodeId): void {
    this.command('disconnect', peer);
  }
  promise(view: number): void {
    this.command('promise', view);
  }
  lead(view: number): void {
    this.command('lead', view);
  }
  follow(view: number, primary: NodeId, agreeOp: number, base: LogBase | null): void {
    const { op, view: baseView, checksum } = base ?? noBase;
    this.command('follow', view, primary, agreeOp, op, baseView, checksum);
  }
  feed(peer: NodeId, view: number, agreeOp: number): void {
    this.command('feed', peer, view, agreeOp);
  }
  resign(view: number): void {
    this.command('resign', view);
  }
  holdInput(view: number): void {
    this.command('holdInput', view);
  }
  releaseInput(view: number): void {
    this.command('releaseInput', view);
  }
  surrender(view: number): void {
    this.command('surrender', view);
  }
  reclaim(view: number): void {
    this.command('reclaim', view);
  }
  openGate(view: number): void {
    this.command('openGate', view);
  }
  admitInput(admit: boolean): void {
    this.command('admitInput', admit ? 1 : 0);
  }
  setGuest(mode: GuestMode, bootOp: number): void {
    this.command('setGuest', guestModes[mode], bootOp);
  }
  expectGuest(): void {
    this.target.expectVm();
  }
  sendMail(peer: NodeId, message: Uint8Array): void {
    this.command('sendMail', peer, message);
  }
  propose(kind: EntryKind, payload: Uint8Array): void {
    this.command('propose', kind, payload);
  }

  transferOpen(o: TransferOpen): void {
    const text = (value: string): Uint8Array => Buffer.from(value);
    const numbers = [o.session, o.peer, o.role === 'source' ? 1 : 0, o.based ? 1 : 0, o.ramBytes];
    this.command(
      'transferOpen',
      ...numbers,
      o.key,
      text(o.ram),
      text(o.inbox),
      text(o.state),
      o.grant,
      o.verify ? 1 : 0,
    );
  }
  transferAttach(session: number, inbox: Uint8Array, ram: Uint8Array): void {
    this.command('transferAttach', session, inbox, ram);
  }
  transferCollected(session: number, file: string): void {
    this.command('transferCollected', session, Buffer.from(file));
  }
  transferRound(session: number, round: number, pages: RoundPages, final: boolean): void {
    this.command('transferRound', session, round, roundPages[pages], final ? 1 : 0);
  }
  transferSync(session: number): void {
    this.command('transferSync', session);
  }
  transferSend(session: number, file: string): void {
    this.command('transferSend', session, Buffer.from(file));
  }
  transferLook(session: number): void {
    this.command('transferLook', session);
  }
  transferTake(session: number, file: string): void {
    this.command('transferTake', session, Buffer.from(file));
  }
  transferSettle(session: number): void {
    this.command('transferSettle', session);
  }
  transferRelease(session: number): void {
    this.command('transferRelease', session);
  }
  transferRings(session: number): void {
    this.command('transferRings', session);
  }
  transferInstall(session: number): void {
    this.command('transferInstall', session);
  }
  transferClose(session: number): void {
    this.command('transferClose', session);
  }
  transferForget(peer: NodeId | null): void {
    this.command('transferForget', peer ?? progressMembers);
  }

  tick(): void {
    this.target.tick();
  }
  progress(): PlaneProgress {
    this.target.progress(this.numbers);
    return readProgress(this.numbers);
  }
  counters(): Record<string, number> {
    return flatten(this.target.counters());
  }
  outputs(): readonly OutputApplication[] {
    return this.target.outputs();
  }
}

/** The addon's kProgressFields, in its order; a test compares the two. */
export const progressFields = [
  'role',
  'promisedView',
  'lastOp',
  'durableOp',
  'commitOp',
  'deliveredOp',
  'leaseEndNs',
  'gate',
  'heardView',
  'heardFrom',
  'heardAtNs',
  'guest',
  'baseOp',
  'baseView',
  'baseChecksum',
  'committedView',
  'committedChecksum',
] as const;
export const progressMembers = 8;
const roles = ['idle', 'leading', 'following'] as const;
const gates = ['closed', 'armed', 'open'] as const;
const guests = ['none', 'booting', 'running'] as const;

/** What a progress call has filled. */
export function readProgress(numbers: Float64Array): PlaneProgress {
  const [role, promisedView, lastOp, durableOp, commitOp, deliveredOp, leaseEndNs, gate, ...rest] = numbers;
  const [heardView = 0, heardFrom = 0, heardAtNs = -1, guest = 0, ...more] = rest;
  const [baseOp = 0, baseView = 0, baseChecksum = 0, ...most] = more;
  const [committedView = 0, committedChecksum = 0, ...ofMembers] = most;
  const [acked, words] = [ofMembers.slice(0, progressMembers), ofMembers.slice(progressMembers)];
  return {
    role: roles[role ?? 0] ?? 'idle',
    promisedView: promisedView ?? 0,
    lastOp: lastOp ?? 0,
    durableOp: durableOp ?? 0,
    commitOp: commitOp ?? 0,
    deliveredOp: deliveredOp ?? 0,
    base: { op: baseOp, view: baseView, checksum: baseChecksum },
    committed: { op: commitOp ?? 0, view: committedView, checksum: committedChecksum },
    acked: acked.map((op) => (op < 0 ? null : op)),
    wordsAt: words.map((at) => (at > 0 ? at / nsPerMs : null)),
    leaseEndsAt: leaseEndNs !== undefined && leaseEndNs > 0 ? leaseEndNs / nsPerMs : null,
    gate: gates[gate ?? 0] ?? 'closed',
    heard: heardAtNs >= 0 ? { view: heardView, from: heardFrom, at: heardAtNs / nsPerMs } : null,
    guest: guests[guest] ?? 'none',
  };
}

export function progressBuffer(): Float64Array {
  return new Float64Array(progressFields.length + 2 * progressMembers);
}

function flatten(counters: NativeCounters): Record<string, number> {
  const flat: Record<string, number> = {};
  for (const [key, value] of Object.entries(counters)) {
    if (typeof value === 'number') flat[key] = value;
    else for (const [inner, number] of Object.entries(value)) flat[`${key}.${inner}`] = number;
  }
  return flat;
}

/** "CODE why" */
function codeAndWhy(text: string): { code: string; why: string } {
  const space = text.indexOf(' ');
  return space < 0 ? { code: text, why: '' } : { code: text.slice(0, space), why: text.slice(space + 1) };
}

/** Events of the addon in the port's words. Unknown ones are a broken build. */
export function convertEvent(event: NativeEvent): PlaneEvent {
  const text = (): string => Buffer.from(event.bytes ?? new Uint8Array()).toString('utf8');
  const { view, op, peer } = event;
  switch (event.type) {
    case 'promised':
      return {
        type: 'promised',
        view,
        tail: {
          last: { view: event.lastView ?? 0, op },
          commitOp: event.commitOp ?? 0,
          table: event.table ?? [],
        },
        heartbeatAckedAt: event.atNs >= 0 ? event.atNs / nsPerMs : null,
      };
    case 'following':
      return { type: 'following', view };
    case 'leading':
      return { type: 'leading', view, startOp: op };
    case 'mail':
      return { type: 'mail', from: peer, generation: op, bytes: event.bytes ?? new Uint8Array() };
    case 'control':
      return {
        type: 'control',
        kind: (event.entryKind ?? 0) as EntryKind,
        view,
        op,
        payload: event.bytes ?? new Uint8Array(),
      };
    case 'caught-up':
      return { type: 'caught-up', view, at: event.atNs / nsPerMs };
    case 'gate-opened':
      return { type: 'gate-opened', view, at: event.atNs / nsPerMs };
    case 'input-held':
      return { type: 'input-held', view, lastOp: op };
    case 'surrendered':
      return { type: 'surrendered', view };
    case 'stream-broken':
      return { type: 'stream-broken', peer, generation: op, ...codeAndWhy(text()) };
    case 'feed-lost':
      return { type: 'feed-lost', peer, view, generation: op, ...codeAndWhy(text()) };
    case 'failed':
      return { type: 'failed', why: text() };
    case 'transfer-opened': {
      // The target's memory stands behind the inbox: two grants, the first with its length in front.
      const bytes = event.bytes ?? new Uint8Array();
      const length = Buffer.from(bytes).readUInt16LE(0);
      const [inbox, ram] = [bytes.slice(2, 2 + length), bytes.slice(2 + length)];
      return { type: 'transfer-opened', session: op, inbox, ram };
    }
    case 'transfer-round': {
      const [pages = 0, equal = 0, sent = 0, found = 0, partial = 0, ...more] = event.numbers ?? [];
      const [moved = 0, overheadBytes = 0, digestNs = 0, waitNs = 0, refineNs = 0, moveNs = 0] = more;
      const counts = { pages, equal, sent, found, partial, bytes: moved, overheadBytes };
      return {
        type: 'transfer-round',
        session: op,
        figures: { ...counts, digestNs, waitNs, refineNs, moveNs },
      };
    }
    case 'transfer-settled':
      return { type: 'transfer-settled', session: op };
    case 'transfer-held':
      return { type: 'transfer-held', session: op, op: event.numbers?.[0] ?? 0 };
    case 'transfer-sent':
      return { type: 'transfer-sent', session: op, bytes: event.numbers?.[0] ?? 0 };
    case 'transfer-progress':
    case 'transfer-installed':
    case 'transfer-taken':
      return { type: event.type, session: op };
    case 'transfer-arrived':
      return {
        type: 'transfer-arrived',
        session: op,
        op: event.numbers?.[0] ?? 0,
        bootOp: event.numbers?.[1] ?? 0,
      };
    case 'transfer-verified':
      return {
        type: 'transfer-verified',
        session: op,
        report: decodeVerifyReport(event.bytes ?? new Uint8Array()),
      };
    case 'transfer-failed':
      return { type: 'transfer-failed', session: op, why: text() };
    case 'check-due':
      return { type: 'check-due', view, bytes: event.bytes ?? new Uint8Array() };
    case 'verdicts':
      return { type: 'verdicts', bytes: event.bytes ?? new Uint8Array() };
    case 'vm-attached':
      return { type: 'guest-attached' };
    case 'vm-detached':
      return { type: 'guest-detached' };
    case 'vm-refused':
      return { type: 'guest-refused' };
    default:
      throw new Error(`unknown event of the addon: ${event.type}`);
  }
}
