/** What the engine of a replica is made with. */
import type { CoreOptions, HardState, NodeId } from '../consensus/types.js';
import type { LedgerOptions } from '../output/types.js';
import type { Clock } from '../ports/clock.js';
import type { DataPlane } from '../ports/data-plane.js';
import type { GuestRunner } from '../ports/guest.js';
import type { HardStateStore } from '../ports/hard-state-store.js';
import type { LogTail } from '../wire/view-table.js';
import type { BootPolicyOptions } from './boot-policy.js';
import type { StateTransferOptions } from './state-transfer.js';

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
