import { realpathSync } from 'node:fs';

import { callDaemon } from '../../api/client.js';
import { loadConfig, nodeNamed, nodePaths } from '../../api/cluster.js';
import type { SyncRecord } from '../../api/status.js';
import { bounds } from '../../lib/bounds.js';
import { exitCodes, FalconError } from '../../lib/errors.js';
import type { Command } from '../command.js';
import { primaryOver } from '../replicas.js';
import { syncLine } from '../status-printer.js';

export const sync: Command = {
  name: 'sync',
  summary: "make a replica's guest a copy of the primary's",
  about:
    'Compares the memory of two guests and moves the pages that differ, then the state of devices and connections.\n' +
    'The service goes on; it stands still for a moment at the end. Replicas without a guest are filled by themselves.',
  options: {
    node: { type: 'string', value: 'NODE', help: 'the replica' },
    json: { type: 'boolean', help: 'what it took, as JSON' },
  },
  async run(directory, options, output) {
    const place = { config: loadConfig(directory), directory: realpathSync(directory) };
    const node = options.value('node');
    if (node === null)
      throw new FalconError('USAGE', '--node is missing (falcon sync --help lists what there is)');
    nodeNamed(place.config, node);
    const primary = await primaryOver(place, node, 'SYNC_REFUSED');
    const { adminSocket } = nodePaths(place.directory, primary.node);
    const waiting = setTimeout(() => output.say(`waiting for ${node} ...`), bounds.progressMs);
    try {
      const timeoutMs = bounds.adminSyncMs;
      const record = (await callDaemon(adminSocket, 'sync', { node }, { timeoutMs })) as SyncRecord;
      output.out(options.flag('json') ? JSON.stringify(record) : syncLine(primary.node, record));
    } finally {
      clearTimeout(waiting);
    }
    return exitCodes.ok;
  },
};
