/** What a verb of the command line is, how its arguments are read, and how its help is written. */
import { parseArgs } from 'node:util';

import { exitCodeTable, FalconError, messageOf } from '../lib/errors.js';

export interface Output {
  /** Results: standard output. */
  readonly out: (line: string) => void;
  /** Progress: standard error. */
  readonly say: (line: string) => void;
}

interface OptionSpec {
  readonly type: 'boolean' | 'string';
  /** Name of the value in the help. */
  readonly value?: string;
  readonly choices?: readonly string[];
  /** What it is if it is not given. */
  readonly fallback?: string;
  readonly help: string;
}

export type OptionSpecs = Readonly<Record<string, OptionSpec>>;

export class Options {
  private readonly values: Readonly<Record<string, string | boolean | undefined>>;

  constructor(values: Readonly<Record<string, string | boolean | undefined>>) {
    this.values = values;
  }

  flag(name: string): boolean {
    return this.values[name] === true;
  }

  /** The option's value, its fallback, or null. */
  value(name: string): string | null {
    const value = this.values[name];
    return typeof value === 'string' ? value : null;
  }
}

export interface Command {
  readonly name: string;
  readonly summary: string;
  /** A paragraph for its help. */
  readonly about: string;
  readonly options: OptionSpecs;
  /** Returns the exit code; trouble is thrown as FalconError. `directory` is its one argument. */
  run(directory: string, options: Options, output: Output): Promise<number>;
}

export const helpRequested = Symbol('help requested');

/** Reads what follows the verb. Errors: USAGE. */
export function parseCommandLine(
  command: Command,
  args: readonly string[],
): { directory: string; options: Options } | typeof helpRequested {
  const specs = Object.entries(command.options);
  let parsed;
  try {
    parsed = parseArgs({
      args: [...args],
      strict: true,
      allowPositionals: true,
      options: {
        help: { type: 'boolean', short: 'h' },
        ...Object.fromEntries(specs.map(([name, spec]) => [name, { type: spec.type }] as const)),
      },
    });
  } catch (error) {
    throw usage(command, firstSentence(messageOf(error)));
  }
  const given: Readonly<Record<string, string | boolean | undefined>> = parsed.values;
  if (given['help'] === true) return helpRequested;
  const values = Object.fromEntries(
    specs.map(([name, spec]) => [name, given[name] ?? spec.fallback] as const),
  );
  for (const [name, spec] of specs) checkChoice(command, name, spec, values[name]);
  const [directory, ...rest] = parsed.positionals;
  if (directory === undefined || directory === '') throw usage(command, 'DIR is missing');
  if (rest[0] !== undefined) throw usage(command, `unexpected argument ${JSON.stringify(rest[0])}`);
  return { directory, options: new Options(values) };
}

export function commandHelp(command: Command, program = 'falcon'): string {
  const head = command.name === '' ? program : `${program} ${command.name}`;
  const rows = Object.entries(command.options).map(
    ([name, spec]) => [optionLabel(name, spec), optionHelp(spec)] as const,
  );
  const lines = [
    `Usage: ${head} DIR [options]`,
    '',
    command.about,
    '',
    'Options:',
    ...columns([...rows, ['-h, --help', 'show this text']]),
  ];
  return lines.join('\n');
}

export function overview(commands: readonly Command[]): string {
  return [
    'Usage: falcon COMMAND DIR [options]',
    '',
    'Keeps a virtual machine serving its clients when the host under it dies. DIR is a cluster directory.',
    '',
    'Commands:',
    ...columns(commands.map((command) => [command.name, command.summary] as const)),
    '',
    'Options:',
    ...columns([
      ['-h, --help', 'show this text; after a command, its options'],
      ['--version', 'show the version'],
    ]),
    '',
    'Exit codes:',
    ...columns(exitCodeTable.map(([code, meaning]) => [String(code), meaning] as const)),
  ].join('\n');
}

function usage(command: Command, what: string): FalconError {
  const help = command.name === '' ? '--help' : `falcon ${command.name} --help`;
  return new FalconError('USAGE', `${what} (${help} lists what there is)`);
}

function checkChoice(command: Command, name: string, spec: OptionSpec, value: unknown): void {
  if (spec.choices === undefined || typeof value !== 'string' || spec.choices.includes(value)) return;
  throw usage(command, `--${name} must be ${spec.choices.join(' or ')}, not ${JSON.stringify(value)}`);
}

function optionLabel(name: string, spec: OptionSpec): string {
  if (spec.type === 'boolean') return `--${name}`;
  return `--${name} ${spec.choices?.join('|') ?? spec.value ?? 'VALUE'}`;
}

function optionHelp(spec: OptionSpec): string {
  return spec.fallback === undefined ? spec.help : `${spec.help} [${spec.fallback}]`;
}

/** Node's own messages go on to explain; one sentence is enough here. */
function firstSentence(message: string): string {
  return (message.split(/\. |\n/)[0] ?? message).replace(/\.$/, '');
}

/** Two aligned columns. */
function columns(rows: readonly (readonly [left: string, right: string])[]): string[] {
  const width = Math.max(...rows.map(([left]) => left.length));
  return rows.map(([left, right]) => `  ${left.padEnd(width)}  ${right}`);
}
