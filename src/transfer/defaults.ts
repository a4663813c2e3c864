/** The bounds of sessions, as every replica has them. */
import { bounds } from '../lib/bounds.js';
import type { Milliseconds, NodeId } from '../consensus/types.js';
import type { TransferOptions } from './types.js';

export function transferOptions(self: NodeId): TransferOptions {
  return {
    self,
    offerRetryMs: bounds.transferOfferRetryMs,
    offerWaitMs: bounds.transferOfferWaitMs,
    progressWaitMs: bounds.transferProgressWaitMs,
    slowestBytesPerMs: bounds.transferSlowestBytesPerMs,
    pauseMaxMs: bounds.transferPauseMaxMs,
    confirmWaitMs: bounds.transferConfirmWaitMs,
    backOffMinMs: bounds.transferBackOffMinMs,
    backOffMaxMs: bounds.transferBackOffMaxMs,
    healEveryMs: bounds.transferHealEveryMs,
    settledPages: bounds.transferSettledPages,
    settleMs: bounds.transferSettleMs,
    roundsMax: bounds.transferRoundsMax,
  };
}

/** When a step that may look at all of the memory has taken too long. */
export function memoryDeadline(options: TransferOptions, now: Milliseconds, ramBytes: number): Milliseconds {
  return now + options.progressWaitMs + ramBytes / options.slowestBytesPerMs;
}
