import { realpathSync } from 'node:fs';

import { callDaemon } from '../../api/client.js';
import { loadConfig, nodeNamed, nodePaths } from '../../api/cluster.js';
import type { DivergenceReport } from '../../api/status.js';
import { asFalconError, exitCodes, FalconError } from '../../lib/errors.js';
import type { Command } from '../command.js';
import { divergenceText } from '../divergence-printer.js';
import type { DivergenceRow } from '../divergence-printer.js';

export const divergence: Command = {
  name: 'divergence',
  summary: 'show where guests said something else',
  about:
    "Shows how comparing the guests' outputs went: checks by application and by replica, and the first and last\n" +
    'places where a guest said something else than the primary, with the bytes round the first difference.',
  options: {
    json: { type: 'boolean', help: 'print an array with one object per replica' },
    node: { type: 'string', value: 'NODE', help: 'ask this replica only' },
  },
  async run(directory, options, output) {
    const config = loadConfig(directory);
    const place = realpathSync(directory);
    const only = options.value('node');
    const names = only === null ? config.nodes.map(({ name }) => name) : [nodeNamed(config, only).name];
    const rows = await Promise.all(
      names.map(async (node): Promise<DivergenceRow> => {
        try {
          return (await callDaemon(nodePaths(place, node).adminSocket, 'divergence')) as DivergenceReport;
        } catch (error) {
          const { code, message } = asFalconError(error);
          return { node, error: { code, message } };
        }
      }),
    );
    if (rows.every((row) => 'error' in row))
      throw new FalconError('DAEMON_UNREACHABLE', `no replica of ${config.cluster} answers`);
    if (options.flag('json')) output.out(JSON.stringify(rows));
    else for (const line of divergenceText(rows)) output.out(line);
    return exitCodes.ok;
  },
};
