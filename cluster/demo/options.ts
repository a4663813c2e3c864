/** What the demo is asked for, in environment variables, so that `make demo SEED=7` just works. */
import { FalconError } from '../../src/lib/errors.js';

export interface DemoOptions {
  readonly hosts: number;
  readonly kills: number;
  /** A killed host is started again, and made a full copy, before the next kill. */
  readonly revive: boolean;
  readonly seed: number;
  /** How long the client rests before each kill, in seconds. */
  readonly idleS: number;
  /** How long it writes before the first kill and after each, in seconds. */
  readonly writeS: number;
  readonly depth: number;
  readonly lan: 'flood' | 'learn';
  readonly durability: 'disk' | 'memory';
  readonly json: boolean;
  /** Where the logs of daemons and guests are left; null: nowhere. */
  readonly logs: string | null;
}

export const demoHelp = `usage: make demo [NAME=VALUE]...

Starts a cluster of network namespaces on this machine, kills the primary under a client, and reports.

  HOSTS=N        3, 5 or 7 hosts                                    [3]
  KILLS=N        how many primaries are killed, one after another   [1]
  REVIVE=1       bring a killed host back before the next is killed [1 if there are too few hosts for KILLS]
  SEED=N         decides the moments of the kills and the values    [random]
  IDLE=SECONDS   the client rests this long before each kill        [0]
  WRITE=SECONDS  it writes this long before and after               [3]
  DEPTH=N        requests in flight                                 [1]
  LAN=flood      or learn                                           [flood]
  DURABILITY=disk or memory                                         [disk]
  JSON=1         the last line is one JSON object
  LOGS=DIR       leave the logs of daemons and guests there

Exit status: 0 if nothing was lost, nothing was wrong and the connection survived; 1 if not; 2 wrong usage.`;

export interface DivergenceDemoOptions {
  readonly seed: number;
  /** How long the client writes before the fault, and between the steps, in seconds. */
  readonly writeS: number;
  readonly depth: number;
  readonly durability: 'disk' | 'memory';
  readonly json: boolean;
  readonly logs: string | null;
}

export const divergenceDemoHelp = `usage: make demo-divergence [NAME=VALUE]...

Starts a cluster of three on this machine, flips one bit in the memory of one backup's guest under a client, and shows
how that is found and healed; then kills the primary, lets the healed guest serve, and reads everything back.

  SEED=N         decides which backup, which key and which bit      [random]
  WRITE=SECONDS  the client writes this long before and after       [3]
  DEPTH=N        requests in flight                                 [1]
  DURABILITY=disk or memory                                         [disk]
  JSON=1         the last line is one JSON object
  LOGS=DIR       leave the logs of daemons and guests there

Exit status: 0 if the fault was found by the first check of the bytes, no later than half a second beyond the checking
period, and healed, and the client saw nothing of it; 1 if not; 2 wrong usage.`;

type Environment = Readonly<Record<string, string | undefined>>;

/** Errors: USAGE. */
export function demoOptions(env: Environment, randomSeed: number): DemoOptions {
  const kills = integer(env, 'KILLS', 1, 1, 1000);
  const hosts = integer(env, 'HOSTS', 3, 3, 7);
  if (hosts % 2 === 0) wrong('HOSTS', 'must be 3, 5 or 7');
  const survives = (hosts - 1) / 2;
  const revive = choice(env, 'REVIVE', kills > survives ? ['1', '0'] : ['0', '1']) === '1';
  if (kills > survives && !revive)
    wrong('KILLS', `${hosts} hosts survive ${survives} at most, without REVIVE=1`);
  return {
    hosts,
    kills,
    revive,
    seed: integer(env, 'SEED', randomSeed, 0, 2 ** 32 - 1),
    idleS: integer(env, 'IDLE', 0, 0, 3600),
    writeS: integer(env, 'WRITE', 3, 1, 600),
    depth: integer(env, 'DEPTH', 1, 1, 256),
    lan: choice(env, 'LAN', ['flood', 'learn']),
    durability: choice(env, 'DURABILITY', ['disk', 'memory']),
    json: choice(env, 'JSON', ['0', '1']) === '1',
    logs: given(env, 'LOGS') ?? null,
  };
}

/** Errors: USAGE. */
export function divergenceDemoOptions(env: Environment, randomSeed: number): DivergenceDemoOptions {
  return {
    seed: integer(env, 'SEED', randomSeed, 0, 2 ** 32 - 1),
    writeS: integer(env, 'WRITE', 3, 1, 600),
    depth: integer(env, 'DEPTH', 1, 1, 256),
    durability: choice(env, 'DURABILITY', ['disk', 'memory']),
    json: choice(env, 'JSON', ['0', '1']) === '1',
    logs: given(env, 'LOGS') ?? null,
  };
}

/** An empty value is none: make passes those on. */
function given(env: Environment, name: string): string | undefined {
  const value = env[name];
  return value === '' ? undefined : value;
}

function integer(env: Environment, name: string, fallback: number, min: number, max: number): number {
  const value = given(env, name);
  if (value === undefined) return fallback;
  const number = Number(value);
  if (!/^\d+$/.test(value) || number < min || number > max)
    wrong(name, `must be ${min} to ${max}, not ${value}`);
  return number;
}

function choice<const T extends string>(env: Environment, name: string, allowed: readonly [T, ...T[]]): T {
  const value = given(env, name) ?? allowed[0];
  return allowed.find((one) => one === value) ?? wrong(name, `must be ${allowed.join(' or ')}, not ${value}`);
}

function wrong(name: string, what: string): never {
  throw new FalconError('USAGE', `${name} ${what}`);
}
