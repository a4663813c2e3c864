import { realpathSync } from 'node:fs';

import { callDaemon } from '../../api/client.js';
import { loadConfig, nodeNamed, nodePaths } from '../../api/cluster.js';
import type { ReplicaStatus, VerifyResult } from '../../api/status.js';
import { bounds } from '../../lib/bounds.js';
import { exitCodes, FalconError } from '../../lib/errors.js';
import type { Command } from '../command.js';
import { primaryOver } from '../replicas.js';
import { verifyLines } from '../verify-printer.js';

export const verify: Command = {
  name: 'verify',
  summary: "compare backups' guests with the primary's",
  about:
    'Compares memory, devices and connections of two guests at one place of the log, and changes nothing. The service\n' +
    'stands still for a moment. Healthy guests differ somewhat: this tells how much and where, and judges nothing.',
  options: {
    node: { type: 'string', value: 'NODE', help: 'this backup alone, not every one with a whole guest' },
    json: { type: 'boolean', help: 'a list with one object for each backup' },
  },
  async run(directory, options, output) {
    const place = { config: loadConfig(directory), directory: realpathSync(directory) };
    const node = options.value('node');
    if (node !== null) nodeNamed(place.config, node);
    const primary = await primaryOver(place, node, 'VERIFY_REFUSED');
    const { adminSocket } = nodePaths(place.directory, primary.node);
    const results: VerifyResult[] = [];
    const json = options.flag('json');
    try {
      for (const target of node === null ? wholeBackups(primary) : [node]) {
        const waiting = setTimeout(() => output.say(`waiting for ${target} ...`), bounds.progressMs);
        try {
          const timeoutMs = bounds.adminVerifyMs;
          const result = (await callDaemon(
            adminSocket,
            'verify',
            { node: target },
            { timeoutMs },
          )) as VerifyResult;
          results.push(result);
          if (!json) for (const line of verifyLines(result)) output.out(line);
        } finally {
          clearTimeout(waiting);
        }
      }
    } finally {
      // What was found before one failed is found all the same.
      if (json && results.length > 0) output.out(JSON.stringify(results));
    }
    return exitCodes.ok;
  },
};

/** As the primary knows them, in the order of the configuration. */
function wholeBackups(primary: ReplicaStatus): string[] {
  const whole = primary.peers.filter(({ connected, guest }) => connected && guest).map(({ name }) => name);
  if (whole.length === 0) throw new FalconError('VERIFY_REFUSED', 'no backup has a whole guest');
  return whole;
}
