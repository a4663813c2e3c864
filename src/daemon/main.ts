#!/usr/bin/env node
/** falcond: one replica of one virtual machine. */
import { parseArgs } from 'node:util';

import { pino } from 'pino';

import { loadCluster, nodeNamed } from '../api/cluster.js';
import { asFalconError, exitCodes, FalconError, formatError, messageOf } from '../lib/errors.js';
import { bounds } from '../lib/bounds.js';
import { startDaemon } from './daemon.js';
import { BoundedLog } from '../lib/log-file.js';

const help = `usage: falcond --dir DIR --node NAME

Runs the replica NAME of the cluster in DIR until SIGTERM, SIGINT or "falcon down". Log records go to standard
output, one JSON object a line. Usually started by cluster/launch.

Environment: FALCON_LOG_LEVEL (debug, info, warn, error).`;

interface CommandLine {
  readonly dir?: string | undefined;
  readonly node?: string | undefined;
  readonly help?: boolean | undefined;
}

function parseCommandLine(): CommandLine {
  const options = {
    dir: { type: 'string' },
    node: { type: 'string' },
    help: { type: 'boolean', short: 'h' },
  } as const;
  try {
    return parseArgs({ options, strict: true }).values;
  } catch (error) {
    throw new FalconError('USAGE', messageOf(error));
  }
}

async function main(): Promise<number> {
  const values = parseCommandLine();
  if (values.help === true) {
    process.stdout.write(`${help}\n`);
    return exitCodes.ok;
  }
  if (values.dir === undefined || values.node === undefined)
    throw new FalconError('USAGE', 'needs --dir and --node (see --help)');
  const cluster = loadCluster(values.dir);
  const node = nodeNamed(cluster.config, values.node);
  const logger = pino(
    { base: { node: node.name }, level: process.env['FALCON_LOG_LEVEL'] ?? 'info' },
    new BoundedLog(1, bounds.daemonLogMaxBytes),
  );
  const daemon = await startDaemon(cluster, node, logger);
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => daemon.stop());
  const error = await daemon.ended;
  if (error === null) {
    logger.info('falcond stops');
    return exitCodes.ok;
  }
  process.stderr.write(`${formatError(error, 'falcond')}\n`);
  return error.exit;
}

try {
  process.exitCode = await main();
} catch (error) {
  const failure = asFalconError(error);
  process.stderr.write(`${formatError(failure, 'falcond')}\n`);
  process.exitCode = failure.exit;
}
// Whatever still holds the loop open (a connection in its last moments) must not keep a dead replica around.
setTimeout(() => process.exit(), 500).unref();
