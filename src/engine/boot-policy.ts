/**
 * When the primary boots guests, and when it lets input in. Pure: facts in, a decision out.
 *
 * A guest lives from one vm-boot entry of the log on and executes every frame behind it. So a new vm-boot is
 * proposed only when no member that could be asked still has a guest; and input is admitted only when enough
 * guests are ready that it survives the loss of f hosts, or at once if it was admitted before this primary.
 */
import type { GuestReport } from '../wire/engine-mail.js';

export interface BootFacts {
  readonly now: number;
  /** When this replica became primary. */
  readonly leadingSince: number;
  /** The view's first entry is committed. */
  readonly viewCommitted: boolean;
  readonly members: number;
  /** Members that can run a guest, self included if it can. */
  readonly guestMembers: number;
  readonly selfCanRun: boolean;
  readonly own: GuestReport;
  /** When this replica's guest became ready; null: it is not. */
  readonly ownReadyAt: number | null;
  /** Peers that are connected and can run a guest. */
  readonly peersCanRun: number;
  /** Reports of peers that are connected. */
  readonly peers: readonly GuestReport[];
  /** The newest vm-boot entry known to be committed or in the log; 0: none. */
  readonly lastBootOp: number;
  /** The log holds, or once held, entries that have not come through here: a vm-boot may be among them. */
  readonly historyUnseen: boolean;
  /** A vm-boot was proposed in this view. */
  readonly bootProposed: boolean;
  /** When a quorum of guests was first seen ready in this view; null: not yet. */
  readonly quorumReadyAt: number | null;
}

/** In the first byte of a vm-boot: all boot, or the primary alone and the others become copies of its guest. */
export const bootModes = { each: 0, clone: 1 } as const;

export interface BootPolicyOptions {
  readonly mode: keyof typeof bootModes;
  /** How long to wait for members that have not reported before a first boot, with a log that is new. */
  readonly firstBootWaitMs: number;
  /** With `clone`: how long input waits for guests that are still to be made copies. */
  readonly fillWaitMs: number;
  /** How long to look for a surviving guest before all are booted anew. */
  readonly rebootWaitMs: number;
  /** How long to wait for the other guests once a quorum is ready. */
  readonly quorumReadyWaitMs: number;
}

export interface BootDecision {
  readonly boot: boolean;
  readonly admit: boolean;
  readonly quorumReady: boolean;
  readonly reason: string;
}

export function decideBoot(facts: BootFacts, options: BootPolicyOptions): BootDecision {
  const all = [facts.own, ...facts.peers];
  const newest = Math.max(facts.lastBootOp, ...all.map((report) => report.bootOp));
  const ready = all.filter((report) => report.ready && report.bootOp === newest && newest > 0).length;
  const quorum = Math.floor(facts.members / 2) + 1;
  const quorumReady =
    ready > 0 && ready >= Math.min(quorum, facts.guestMembers, reachable(facts, options, all, newest));
  const admit =
    facts.own.ready &&
    facts.own.bootOp === newest &&
    mayAdmit(facts, options, all, newest, ready, quorumReady);
  const boot = facts.viewCommitted && !facts.bootProposed && mayBoot(facts, options, all);
  const reason = boot
    ? newest === 0
      ? 'first boot'
      : 'no guest is left'
    : `${ready} of ${facts.guestMembers} guests ready`;
  return { boot, admit, quorumReady, reason };
}

/**
 * How many guests of the newest boot there can still be. A member that came back without its guest does not
 * count: waiting for it would be waiting for ever, and the service would be down though a guest is there.
 */
function reachable(
  facts: BootFacts,
  options: BootPolicyOptions,
  all: readonly GuestReport[],
  newest: number,
): number {
  const waited = facts.now - facts.leadingSince;
  const holding = all.filter((report) => report.bootOp === newest).length;
  const silent = waited >= options.rebootWaitMs ? 0 : facts.members - all.length;
  // As long as the others had time to be filled since there was something to fill them with.
  const since = facts.ownReadyAt ?? facts.now;
  const filling = options.mode === 'clone' && facts.now - since < options.fillWaitMs;
  const filled = filling ? 1 + facts.peersCanRun : 0;
  return Math.max(holding, filled) + silent;
}

function mayAdmit(
  facts: BootFacts,
  options: BootPolicyOptions,
  all: readonly GuestReport[],
  newest: number,
  ready: number,
  quorumReady: boolean,
): boolean {
  if (all.some((report) => report.admittedBootOp === newest)) return true;
  if (ready === facts.guestMembers) return true;
  return (
    quorumReady &&
    facts.quorumReadyAt !== null &&
    facts.now - facts.quorumReadyAt >= options.quorumReadyWaitMs
  );
}

function mayBoot(facts: BootFacts, options: BootPolicyOptions, all: readonly GuestReport[]): boolean {
  if (all.some((report) => report.bootOp > 0)) return false;
  const everybodyReported = all.length === facts.members;
  const waited = facts.now - facts.leadingSince;
  // Who has not reported may have the guest of a boot that was forgotten here.
  if (facts.lastBootOp === 0)
    return (
      everybodyReported || waited >= (facts.historyUnseen ? options.rebootWaitMs : options.firstBootWaitMs)
    );
  return waited >= (everybodyReported ? options.firstBootWaitMs : options.rebootWaitMs);
}
