/** What the engine of a replica, and its part that carries out state transfers, are made with. */
import type { CoreOptions, HardState, Milliseconds, NodeId } from '../consensus/types.js';
import type { LedgerOptions } from '../output/types.js';
import type { Clock } from '../ports/clock.js';
import type { DataPlane } from '../ports/data-plane.js';
import type { GuestRunner } from '../ports/guest.js';
import type { HardStateStore } from '../ports/hard-state-store.js';
import type { TransferOptions } from '../transfer/types.js';
import type { LogTail } from '../wire/view-table.js';
import type { BootPolicyOptions } from './boot-policy.js';
import type { GuestKeeper } from './guest-keeper.js';

export interface EngineOptions {
  readonly core: CoreOptions;
  readonly hardState: HardState;
  /** The log as the scan at start found it. The data plane starts with hardState.view promised. */
  readonly tail: LogTail;
  readonly boot: BootPolicyOptions;
  readonly transfer: StateTransferOptions;
  /** This member runs a guest. */
  readonly canRunGuest: boolean;
  readonly reportIntervalMs: number;
  /** Many reports: a peer that lives and sends none for so long has lost its mailbox. */
  readonly mailSilenceMs: number;
  readonly outputs: Omit<LedgerOptions, 'self'>;
}

export interface EnginePorts {
  readonly plane: DataPlane;
  readonly store: HardStateStore;
  readonly guest: GuestRunner | null;
  readonly clock: Clock;
  /** Asks the bootstrap to make the connection to a peer anew. */
  reconnect(peer: NodeId, why: string): void;
  /** The replica must stop: `why` begins with a code. */
  fail(why: string): void;
  log(level: 'debug' | 'info' | 'warn' | 'error', text: string, fields?: Record<string, unknown>): void;
}

export interface StateTransferOptions {
  readonly core: TransferOptions;
  /** What two guests must have in common to be copies of each other. */
  readonly machine: string;
  /** Where files of a session may be made; they are small but for the inbox. */
  readonly files: { readonly inbox: string; readonly dirty: string; readonly state: string };
  /** Fresh random bytes for each session. */
  readonly key: () => Uint8Array;
  readonly recordsMax: number;
}

export interface StateTransferPorts {
  readonly plane: DataPlane;
  readonly guest: GuestRunner | null;
  readonly keeper: GuestKeeper;
  /** The connection to a peer is dropped, and made anew: what was posted to it is read no more. */
  cutOff(peer: NodeId): void;
  /** A member has become a copy of this replica's guest. */
  whole(peer: NodeId): void;
  now(): Milliseconds;
  log(level: 'debug' | 'info' | 'warn' | 'error', text: string, fields?: Record<string, unknown>): void;
}
