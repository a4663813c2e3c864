/**
 * Majorities. Two quorums of the same members always share one, and everything here rests on that.
 */
import { assert } from '../lib/assert.js';
import type { NodeId } from './types.js';

/** Replicas that make a majority of `memberCount` = 2f+1: f+1. */
export function quorumSize(memberCount: number): number {
  assert(memberCount >= 1, 'a cluster has members');
  return Math.floor(memberCount / 2) + 1;
}

/** True if `nodes` holds a majority of `members`; nodes that are not members do not count. */
export function isQuorum(nodes: ReadonlySet<NodeId>, members: readonly NodeId[]): boolean {
  let count = 0;
  for (const member of members) if (nodes.has(member)) count++;
  return count >= quorumSize(members.length);
}
