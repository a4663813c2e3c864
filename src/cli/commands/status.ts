import { realpathSync } from 'node:fs';

import { loadConfig } from '../../api/cluster.js';
import type { ClusterPlace } from '../../api/lifecycle.js';
import type { StatusRow } from '../../api/status.js';
import { bounds } from '../../lib/bounds.js';
import { exitCodes, FalconError } from '../../lib/errors.js';
import { Interrupt } from '../../lib/interrupt.js';
import type { Command, Options, Output } from '../command.js';
import { answered, fetchAll } from '../replicas.js';
import { statusTable } from '../status-printer.js';

export const status: Command = {
  name: 'status',
  summary: 'show what every replica is doing',
  about:
    'Shows for each replica its role, view, log, lag, lease, gate and guest. A replica that does not answer\n' +
    'has an error code in place of its role; if none answers, the exit code is 4.',
  options: {
    json: { type: 'boolean', help: 'print an array with one object per replica' },
    watch: { type: 'boolean', help: 'go on, once a second, until ctrl-C' },
  },
  async run(directory, options, output) {
    const place: ClusterPlace = { config: loadConfig(directory), directory: realpathSync(directory) };
    if (options.flag('watch')) return watch(place, options, output);
    const rows = await fetchAll(place);
    // The table of a cluster that is down would say nothing but one error, several times.
    if (options.flag('json') || answered(rows).length > 0) print(rows, options, output);
    if (answered(rows).length === 0)
      throw new FalconError('DAEMON_UNREACHABLE', `no replica of ${place.config.cluster} answers`);
    return exitCodes.ok;
  },
};

async function watch(place: ClusterPlace, options: Options, output: Output): Promise<number> {
  const interrupt = new Interrupt();
  const clear = process.stdout.isTTY ? '\x1b[H\x1b[J' : '';
  while (interrupt.signal === null) {
    const rows = await fetchAll(place);
    if (!options.flag('json')) output.out(`${clear}${new Date().toISOString()}`);
    print(rows, options, output);
    await interrupt.pause(bounds.statusWatchMs);
  }
  interrupt.dispose();
  return exitCodes.ok;
}

function print(rows: readonly StatusRow[], options: Options, output: Output): void {
  if (options.flag('json')) output.out(JSON.stringify(rows));
  else for (const line of statusTable(rows)) output.out(line);
}
