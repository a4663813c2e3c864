import { existsSync, mkdirSync, realpathSync, renameSync } from 'node:fs';

import { realFileSystem } from '../../adapters/file-system.js';
import { createHardState, readmittedState } from '../../adapters/hard-state.js';
import { callDaemon } from '../../api/client.js';
import { loadConfig, nodeNamed, nodePaths, replacedConfig, writeConfig } from '../../api/cluster.js';
import { findDaemon } from '../../api/lifecycle.js';
import { exitCodes, FalconError } from '../../lib/errors.js';
import type { Command } from '../command.js';
import { answered, fetchAll, primaryOf } from '../replicas.js';

export const memberReplace: Command = {
  name: 'member replace',
  summary: 'put an empty host in the place of a member whose host or disk is lost',
  about:
    'The member keeps its name and its vote; what it had promised and stored is gone, so the new one fetches the log from\n' +
    'the primary before it votes, and is then made a copy. The old host is not let in again. Start the new one with\n' +
    '`falcon up DIR --node NODE`, where it is, in a copy of DIR.',
  options: {
    node: { type: 'string', value: 'NODE', help: 'the member' },
    address: { type: 'string', value: 'ADDRESS', help: "the new host's address; without it the old one's" },
  },
  async run(directory, options, output) {
    const place = { config: loadConfig(directory), directory: realpathSync(directory) };
    const name = options.value('node');
    if (name === null)
      throw new FalconError('USAGE', '--node is missing (falcon member replace --help lists what there is)');
    const before = nodeNamed(place.config, name);
    const address = options.value('address') ?? before.address;
    if (before.netns !== null && address !== before.address)
      throw new FalconError(
        'USAGE',
        `${name} is a network namespace of this machine: its address cannot change`,
      );
    if (findDaemon(place.directory, name) !== null) throw new FalconError('ALREADY_RUNNING', `${name} runs`);
    const rows = await fetchAll(place);
    if (answered(rows).some((row) => row.node === name))
      throw new FalconError('ALREADY_RUNNING', `${name} answers`);
    const primary = primaryOf(rows);
    if (primary?.gate !== 'open')
      throw new FalconError('MEMBER_REFUSED', 'there is no primary that serves: who knows the log now?');
    const { incarnation } = { incarnation: before.incarnation + 1 };
    const config = replacedConfig(place.config, name, address, incarnation);
    // First the others: from here on the old host is not let in.
    for (const { node } of answered(rows)) {
      const { adminSocket } = nodePaths(place.directory, node);
      await callDaemon(adminSocket, 'member', { node: name, address, incarnation });
    }
    writeConfig(place.directory, config);
    const paths = nodePaths(place.directory, name);
    if (existsSync(paths.directory))
      renameSync(paths.directory, `${paths.directory}.replaced-${before.incarnation}`);
    mkdirSync(paths.wal, { recursive: true, mode: 0o700 });
    const identity = { cluster: config.cluster, node: name };
    createHardState(realFileSystem, paths.directory, identity, readmittedState(primary.view));
    output.out(`${name} is incarnation ${incarnation}: falcon up ${directory} --node ${name} starts it`);
    return exitCodes.ok;
  },
};
