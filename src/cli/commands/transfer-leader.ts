import { realpathSync } from 'node:fs';

import { callDaemon } from '../../api/client.js';
import { loadConfig, nodeNamed, nodePaths } from '../../api/cluster.js';
import { bounds } from '../../lib/bounds.js';
import { exitCodes, FalconError } from '../../lib/errors.js';
import type { Command } from '../command.js';
import { answered, fetchAll, primaryOf } from '../replicas.js';

export const transferLeader: Command = {
  name: 'transfer-leader',
  summary: 'make another replica the primary',
  about:
    'Hands the service over to another replica without losing anything. A transfer that cannot finish within\n' +
    'an election timeout is abandoned, and the old primary goes on serving.',
  options: {
    to: {
      type: 'string',
      value: 'NODE',
      help: 'the replica that is to take over; without it the primary chooses',
    },
  },
  async run(directory, options, output) {
    const place = { config: loadConfig(directory), directory: realpathSync(directory) };
    const to = options.value('to');
    if (to !== null) nodeNamed(place.config, to);
    const rows = await fetchAll(place);
    if (answered(rows).length === 0)
      throw new FalconError('DAEMON_UNREACHABLE', `no replica of ${place.config.cluster} answers`);
    const primary = primaryOf(rows);
    if (primary === null) throw new FalconError('TRANSFER_REFUSED', 'there is no primary now');
    if (primary.node === to) {
      output.out(`${to} is the primary already`);
      return exitCodes.ok;
    }
    const { adminSocket } = nodePaths(place.directory, primary.node);
    await callDaemon(adminSocket, 'transfer-leader', { to }, { timeoutMs: bounds.adminTransferMs });
    output.out(`${primary.node} has handed over${to === null ? '' : ` to ${to}`}`);
    return exitCodes.ok;
  },
};
