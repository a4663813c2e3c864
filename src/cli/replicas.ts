/** Asking all replicas of a cluster at once. */
import { fetchStatus } from '../api/client.js';
import { nodePaths } from '../api/cluster.js';
import type { ClusterPlace } from '../api/lifecycle.js';
import type { ReplicaStatus, StatusRow } from '../api/status.js';
import { asFalconError, FalconError } from '../lib/errors.js';

/** One row per node, in the order of the configuration. */
export function fetchAll(place: ClusterPlace): Promise<StatusRow[]> {
  return Promise.all(
    place.config.nodes.map(async ({ name }): Promise<StatusRow> => {
      try {
        return await fetchStatus(nodePaths(place.directory, name).adminSocket);
      } catch (error) {
        const { code, message } = asFalconError(error);
        return { node: name, error: { code, message } };
      }
    }),
  );
}

export function answered(rows: readonly StatusRow[]): ReplicaStatus[] {
  return rows.filter((row): row is ReplicaStatus => !('error' in row));
}

/** The primary of the highest view: an old one may not know yet that it is deposed. */
export function primaryOf(rows: readonly StatusRow[]): ReplicaStatus | null {
  const primaries = answered(rows).filter((row) => row.role === 'primary');
  return primaries.sort((a, b) => b.view - a.view)[0] ?? null;
}

/**
 * The primary, for a command about `node`, a backup (null: any). Errors: DAEMON_UNREACHABLE; `refused` if nobody leads
 * now, or `node` does.
 */
export async function primaryOver(
  place: ClusterPlace,
  node: string | null,
  refused: 'SYNC_REFUSED' | 'VERIFY_REFUSED',
): Promise<ReplicaStatus> {
  const rows = await fetchAll(place);
  if (answered(rows).length === 0)
    throw new FalconError('DAEMON_UNREACHABLE', `no replica of ${place.config.cluster} answers`);
  const primary = primaryOf(rows);
  if (primary === null) throw new FalconError(refused, 'there is no primary now');
  if (primary.node === node) throw new FalconError(refused, `${node} is the primary`);
  return primary;
}
