#!/usr/bin/env node
/** `falcon`, the operator's command: finds the verb, runs it, and turns what it throws into a line and an exit code. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

import { asFalconError, exitCodes, FalconError, formatError } from '../lib/errors.js';
import { repositoryRoot } from '../lib/root.js';
import { commandHelp, helpRequested, overview, parseCommandLine } from './command.js';
import type { Command, Output } from './command.js';
import { divergence } from './commands/divergence.js';
import { down } from './commands/down.js';
import { init } from './commands/init.js';
import { memberReplace } from './commands/member-replace.js';
import { status } from './commands/status.js';
import { sync } from './commands/sync.js';
import { transferLeader } from './commands/transfer-leader.js';
import { up } from './commands/up.js';
import { verify } from './commands/verify.js';

const commands: readonly Command[] = [
  init,
  up,
  status,
  divergence,
  sync,
  verify,
  transferLeader,
  memberReplace,
  down,
];

const output: Output = {
  out: (line) => process.stdout.write(`${line}\n`),
  say: (line) => process.stderr.write(`${line}\n`),
};

function version(): string {
  const manifest = JSON.parse(readFileSync(join(repositoryRoot, 'package.json'), 'utf8')) as {
    readonly version: string;
  };
  return manifest.version;
}

async function main(args: readonly string[]): Promise<number> {
  // `member` has verbs of its own.
  const words = args[0] === 'member' && args.length > 1 ? 2 : 1;
  const verb = args.length === 0 ? undefined : args.slice(0, words).join(' ');
  const rest = args.slice(words);
  if (verb === undefined) throw new FalconError('USAGE', 'a command is missing (falcon --help lists them)');
  if (verb === '--help' || verb === '-h') {
    output.out(overview(commands));
    return exitCodes.ok;
  }
  if (verb === '--version') {
    output.out(version());
    return exitCodes.ok;
  }
  const command = commands.find(({ name }) => name === verb);
  if (command === undefined)
    throw new FalconError('USAGE', `no command ${JSON.stringify(verb)} (falcon --help lists them)`);
  const parsed = parseCommandLine(command, rest);
  if (parsed === helpRequested) {
    output.out(commandHelp(command));
    return exitCodes.ok;
  }
  return command.run(parsed.directory, parsed.options, output);
}

// A reader that closes the pipe early (`falcon status | head -1`) is no error.
process.stdout.on('error', () => process.exit(process.exitCode ?? exitCodes.ok));

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  output.say(formatError(error));
  process.exitCode = asFalconError(error).exit;
}
