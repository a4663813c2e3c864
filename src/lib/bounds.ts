/**
 * Every bound of the TypeScript side, with its unit in its name.
 *
 * Nothing here grows at run time. What a bound is for stands beside it; how bounds depend on each other is
 * checked when this file loads, so a change that breaks a relation fails in the first test that runs.
 */
import assert from 'node:assert/strict';

export const bounds = {
  // the cluster
  nodesMax: 7,
  nodeNameMaxChars: 32,
  clusterNameMaxChars: 48,
  configMaxBytes: 256 * 1024,
  secretBytes: 32,
  /** sun_path of Linux is 108 bytes with its terminating zero. */
  socketPathMaxBytes: 107,
  /** IFNAMSIZ of Linux is 16 with its terminating zero. */
  interfaceNameMaxChars: 15,
  /** IB_DEVICE_NAME_MAX of Linux is 64 with its terminating zero. */
  rdmaDeviceMaxChars: 63,
  /** A kernel command line of x86-64. */
  kernelAppendMaxChars: 1024,

  // the admin interface
  adminLineMaxBytes: 1024 * 1024,
  adminConnectionsMax: 16,
  /** Requests of one connection that were read and are not answered yet. */
  adminPendingMaxRequests: 64,
  /** From the first byte of a line to its end, and for an answer to be taken. */
  adminSlowMs: 5_000,
  adminIdleMs: 60_000,
  adminRequestMs: 2_000,
  /** A leadership transfer waits for the target's log before it gives up. */
  adminTransferMs: 30_000,

  // the bootstrap
  /** From the connection to the end of the hellos. */
  bootstrapHandshakeMs: 3_000,
  /** Connections that have not said a right hello yet. */
  bootstrapConnectionsMax: 64,
  bootstrapHelloMaxBytes: 8 * 1024,
  descriptorMaxBytes: 4 * 1024,
  bootstrapKeepAliveMs: 1_000,
  bootstrapRedialMinMs: 20,
  bootstrapRedialMaxMs: 1_000,
  /** A connection that lasted so long is dialled anew at once; others by and by. */
  bootstrapSettledMs: 2_000,
  bootstrapWarningEveryMs: 10_000,

  // the engine
  tickMs: 5,
  guestReportMs: 100,
  /** A peer that lives and sends no report for so long gets a new connection. */
  mailSilenceMs: 5_000,
  /** How long a first primary waits for members that have not reported before it boots guests. */
  firstBootWaitMs: 3_000,
  /** How long a guest that starts waits for room for its memory, and how often it looks. */
  guestMemoryWaitMs: 2_000,
  guestMemoryRetryMs: 100,
  /** How long a primary looks for a surviving guest before it boots all anew. */
  rebootWaitMs: 10_000,
  /** How long input waits for members whose guests are still to be made copies of the first. */
  fillWaitMs: 60_000,
  guestStopMs: 2_000,

  // state transfer
  transferOfferRetryMs: 100,
  /** A target may have to start its guest's process first. */
  transferOfferWaitMs: 30_000,
  transferProgressWaitMs: 20_000,
  /** A round may take as long as all of the memory takes at this speed, beside that: a slow network is no end. */
  transferSlowestBytesPerMs: 20_000,
  /** The longest that the source's guest stands still for one session. */
  transferPauseMaxMs: 2_000,
  transferConfirmWaitMs: 20_000,
  transferBackOffMinMs: 500,
  transferBackOffMaxMs: 30_000,
  transferHealEveryMs: 3_000,
  /** 1 MiB: about what is digested, compared and moved in a millisecond. */
  transferSettledPages: 256,
  /** A few replies, of a guest that changes few pages meanwhile. */
  transferSettleMs: 3,
  transferRoundsMax: 8,
  transferRecordsMax: 64,
  statusSyncsMax: 8,
  /** An operator waits so long for a member to be made a copy. */
  adminSyncMs: 120_000,
  /** Opening, offering, waiting for the log and comparing are given up each in transferProgressWaitMs. */
  adminVerifyMs: 120_000,

  // QEMU
  /** From the start of QEMU until its monitor answers; QEMU itself waits for falcond for five seconds. */
  qmpGreetingMs: 15_000,
  qmpRequestMs: 10_000,
  /** One line of an answer or an event. */
  qmpLineMaxBytes: 1024 * 1024,
  /** Requests that are not answered yet. */
  qmpPendingMaxRequests: 64,
  guestPageBytes: 4096,
  /** Behind the guest's memory in its file, not seen by QEMU. */
  ramTrailerBytes: 4096,
  consoleLogMaxBytes: 4 * 1024 * 1024,
  // comparing outputs
  /** Checks whose verdicts a replica keeps, and checks that it has proposed and not seen come back. */
  outputChecksKept: 256,
  outputProposedMax: 64,
  /** The first half of them are the first that were seen. */
  outputDivergencesKept: 32,
  outputShownBytes: 64,
  outputReportMs: 20,
  /** A report that was not acknowledged is sent again. */
  outputReportRetryMs: 500,
  outputReportsPerTick: 8,
  outputMasksMax: 4,
  outputMaskStartMaxBytes: 64,
  outputMaskMaxBytes: 4096,

  // the data plane
  logEntriesMax: 256 * 1024,
  inflightEntriesMax: 16 * 1024,

  // starting and stopping
  /** From the start of a daemon until its admin socket answers. */
  daemonStartMs: 30_000,
  /** From then until there is a primary, beside what the guest may take to boot. */
  primaryWaitMs: 60_000,
  shutdownWaitMs: 6_000,
  terminateWaitMs: 3_000,
  killWaitMs: 3_000,
  pollMs: 50,
  statusWatchMs: 1_000,
  progressMs: 2_000,
  hostScriptMs: 60_000,
  daemonLogMaxBytes: 16 * 1024 * 1024,
  /** How much of the end of a daemon's log is read for its last line. */
  logTailMaxBytes: 16 * 1024,
  logLineMaxChars: 400,
} as const;

assert(bounds.nodesMax % 2 === 1, 'a cluster has 2f+1 nodes');
assert(bounds.adminRequestMs < bounds.adminSlowMs, 'a client gives up before it is taken for slow');
assert(bounds.adminSlowMs < bounds.adminIdleMs);
assert(bounds.statusWatchMs < bounds.adminIdleMs, 'a watching client is not idle');
assert(bounds.pollMs < bounds.progressMs);
assert(bounds.descriptorMaxBytes < bounds.bootstrapHelloMaxBytes, 'a descriptor fits a hello');
assert(bounds.bootstrapRedialMaxMs < bounds.bootstrapSettledMs, 'waiting for a redial is no settling');
assert(bounds.tickMs < bounds.guestReportMs);
assert(bounds.ramTrailerBytes % bounds.guestPageBytes === 0, 'the trailer is whole pages');
assert(bounds.inflightEntriesMax < bounds.logEntriesMax, 'what is in flight fits the log in memory');
assert(bounds.transferOfferRetryMs < bounds.transferOfferWaitMs);
assert(4 * bounds.transferProgressWaitMs + bounds.transferPauseMaxMs < bounds.adminVerifyMs);
assert(bounds.transferBackOffMinMs <= bounds.transferBackOffMaxMs);
assert(bounds.outputDivergencesKept % 2 === 0);
assert(bounds.outputReportMs < bounds.outputReportRetryMs);
assert(bounds.terminateWaitMs <= bounds.shutdownWaitMs);
assert(bounds.logLineMaxChars < bounds.logTailMaxBytes);
assert(bounds.configMaxBytes <= bounds.adminLineMaxBytes, 'a configuration fits an admin message');
