/**
 * What an RDMA device counts of repeats and refusals, from sysfs. Each driver has names of its own; those that
 * are known here to mean "said again" or "not taken" are picked out.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

const known = new Set([
  // soft RoCE
  'completer_retry_err',
  'duplicate_request',
  'out_of_seq_request',
  'rcvd_rnr_err',
  'rcvd_seq_err',
  'retry_exceeded_err',
  'retry_rnr_exceeded_err',
  'send_rnr_err',
  // mlx4, mlx5, bnxt_re, efa and others
  'local_ack_timeout_err',
  'out_of_buffer',
  'out_of_sequence',
  'packet_seq_err',
  'rnr_nak_retry_err',
  'roce_adp_retrans',
  'roce_slow_restart',
  'to_retransmits',
  'retransmits',
]);

/** The counters of one port by their names; null: the device has none of these. */
export function readRdmaRetries(
  device: string,
  port: number,
  root = '/sys/class/infiniband',
): Record<string, number> | null {
  const found: Record<string, number> = {};
  for (const directory of [
    join(root, device, 'ports', String(port), 'hw_counters'),
    join(root, device, 'hw_counters'),
  ]) {
    for (const name of namesIn(directory)) {
      const count = known.has(name) ? readCount(join(directory, name)) : null;
      if (count !== null) found[name] ??= count;
    }
  }
  return Object.keys(found).length === 0 ? null : found;
}

function namesIn(directory: string): string[] {
  try {
    return readdirSync(directory).sort();
  } catch {
    return [];
  }
}

/** null: gone, or no number. */
function readCount(file: string): number | null {
  try {
    const text = readFileSync(file, 'utf8').trim();
    return /^\d{1,20}$/.test(text) ? Number(text) : null;
  } catch {
    return null;
  }
}
