import { realpathSync } from 'node:fs';

import { loadConfig } from '../../api/cluster.js';
import { findDaemon, stopCluster } from '../../api/lifecycle.js';
import { exitCodes } from '../../lib/errors.js';
import { repositoryRoot } from '../../lib/root.js';
import type { Command } from '../command.js';

export const down: Command = {
  name: 'down',
  summary: 'stop all replicas and leave nothing behind',
  about:
    'Asks every daemon of the cluster on this machine to stop, kills what does not, and removes sockets, shared\n' +
    'memory and host namespaces. Logs, votes and configuration stay. A cluster that is down already is no error.',
  options: {},
  async run(directory, _options, output) {
    const place = { config: loadConfig(directory), directory: realpathSync(directory) };
    const running = place.config.nodes.filter(({ name }) => findDaemon(place.directory, name) !== null);
    await stopCluster(repositoryRoot, place, output.say);
    output.out(
      running.length === 0 ? 'nothing was running' : `stopped ${running.map(({ name }) => name).join(', ')}`,
    );
    return exitCodes.ok;
  },
};
