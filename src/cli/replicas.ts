/** Asking all replicas of a cluster at once. */
import { fetchStatus } from '../api/client.js';
import { nodePaths } from '../api/cluster.js';
import type { ClusterPlace } from '../api/lifecycle.js';
import type { ReplicaStatus, StatusRow } from '../api/status.js';
import { asFalconError } from '../lib/errors.js';

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
