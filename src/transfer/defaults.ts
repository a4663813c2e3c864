/** The bounds of a session, as every replica has them. */
import { bounds } from '../lib/bounds.js';
import type { NodeId } from '../consensus/types.js';
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
    roundsMax: bounds.transferRoundsMax,
  };
}
