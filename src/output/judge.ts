/** Who is right about one output, and who is to be made right. */
import type { Member } from './types.js';

export interface Opinions {
  readonly proposer: Member;
  /** Members that said what the proposer said. */
  readonly agreed: readonly Member[];
  /** The others, with what tells their outputs apart. */
  readonly diverged: readonly { readonly member: Member; readonly hash: string }[];
}

export interface Judgement {
  /** Members whose guests differ from the primary's. */
  readonly heal: readonly Member[];
  /** Those that say the same among themselves, if they are more than half of all and the primary is not one of them. */
  readonly majority: readonly Member[];
}

/** `self` is the primary now; the check may be an earlier primary's. */
export function judge(self: Member, { proposer, agreed, diverged }: Opinions): Judgement {
  if (diverged.length === 0) return { heal: [], majority: [] };
  const groups = new Map<string, Member[]>([['', [...new Set([proposer, ...agreed])]]]);
  for (const { member, hash } of diverged) groups.set(hash, [...(groups.get(hash) ?? []), member]);
  const all = [...groups.values()];
  const voters = all.reduce((sum, group) => sum + group.length, 0);
  const own = all.find((group) => group.includes(self)) ?? [];
  const others = all.filter((group) => group !== own);
  // Clients have seen the primary's output: it is what the others are measured by, right or wrong.
  const heal = own.length === 0 ? [] : others.flat();
  const majority = others.find((group) => group.length * 2 > voters) ?? [];
  return { heal, majority };
}
