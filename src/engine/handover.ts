/** A leadership transfer that an operator has asked for, and waits for. */
import type { NodeId } from '../consensus/types.js';

export interface TransferOutcome {
  readonly ok: boolean;
  readonly to: NodeId | null;
  readonly reason: string;
  /** Refused: nothing was begun. Abandoned: it was begun, and this replica serves on or stands again. */
  readonly code: 'TRANSFER_REFUSED' | 'TRANSFER_ABANDONED' | null;
}

export class Handover {
  private waiter: { readonly resolve: (outcome: TransferOutcome) => void; begun: boolean } | null = null;

  get running(): boolean {
    return this.waiter !== null;
  }

  /** `begin` asks the core; what it refuses at once was never begun. */
  ask(to: NodeId | null, begin: () => void): Promise<TransferOutcome> {
    if (this.waiter !== null) {
      const reason = 'a transfer is under way';
      return Promise.resolve({ ok: false, to, reason, code: 'TRANSFER_REFUSED' });
    }
    return new Promise((resolve) => {
      const waiter = { resolve, begun: false };
      this.waiter = waiter;
      begin();
      waiter.begun = true;
    });
  }

  settle({ ok, to, reason }: Omit<TransferOutcome, 'code'>): void {
    const { waiter } = this;
    if (waiter === null) return;
    this.waiter = null;
    const failure = waiter.begun ? 'TRANSFER_ABANDONED' : 'TRANSFER_REFUSED';
    waiter.resolve({ ok, to, reason, code: ok ? null : failure });
  }
}
