/**
 * Small checks that turn unknown JSON into typed values. A check either returns the value or throws
 * CONFIG_INVALID with the path of what is wrong; keys that nobody asked for are wrong as well, because a
 * misspelt option that is silently ignored is worse than a refusal.
 */
import { FalconError } from '../lib/errors.js';

export type Check<T> = (value: unknown, path: string) => T;

type Shape = Readonly<Record<string, Check<unknown>>>;
type Checked<S extends Shape> = { readonly [K in keyof S]: ReturnType<S[K]> };

/** Fails at `path`. `got` is shown, shortened. */
export function invalid(path: string, expected: string, got?: unknown): never {
  const shown = got === undefined ? '' : ` (got ${shorten(JSON.stringify(got))})`;
  throw new FalconError('CONFIG_INVALID', `${expected}${shown}`, { path: path === '' ? 'top level' : path });
}

export function integer(range: {
  readonly min: number;
  readonly max: number;
  readonly unit?: string;
}): Check<number> {
  const unit = range.unit === undefined ? '' : ` ${range.unit}`;
  return (value, path) => {
    if (typeof value !== 'number' || !Number.isSafeInteger(value))
      return missingOr(value, path, 'must be a whole number');
    if (value < range.min || value > range.max)
      invalid(path, `must be ${range.min} to ${range.max}${unit}`, value);
    return value;
  };
}

/** `what` completes "must be ...". */
export function text(pattern: RegExp, what: string, maxChars: number): Check<string> {
  return (value, path) => {
    if (typeof value !== 'string') return missingOr(value, path, `must be ${what}`);
    if (value.length > maxChars) invalid(path, `must be at most ${maxChars} characters`, value);
    if (!pattern.test(value)) invalid(path, `must be ${what}`, value);
    return value;
  };
}

export function boolean(): Check<boolean> {
  return (value, path) =>
    typeof value === 'boolean' ? value : missingOr(value, path, 'must be true or false');
}

export function oneOf<const T extends readonly (string | number)[]>(allowed: T): Check<T[number]> {
  const list = allowed.map((item) => JSON.stringify(item)).join(' or ');
  return (value, path) => {
    const found = allowed.find((item) => item === value);
    return found ?? missingOr(value, path, `must be ${list}`);
  };
}

/** JSON null, or what `inner` takes. */
export function nullable<T>(inner: Check<T>): Check<T | null> {
  return (value, path) => (value === null ? null : inner(value, path));
}

/** A missing key stands for `value`, which is not checked again. */
export function withDefault<T>(inner: Check<T>, value: NoInfer<T>): Check<T> {
  return (given, path) => (given === undefined ? value : inner(given, path));
}

export function list<T>(
  inner: Check<T>,
  length: { readonly min: number; readonly max: number },
): Check<readonly T[]> {
  return (value, path) => {
    if (!Array.isArray(value)) return missingOr(value, path, 'must be a list');
    if (value.length < length.min || value.length > length.max) {
      invalid(path, `must have ${length.min} to ${length.max} items`, value.length);
    }
    return value.map((item: unknown, i) => inner(item, `${path}[${i}]`));
  };
}

/** Exactly the keys of `shape`; those whose check takes `undefined` may be missing. */
export function object<const S extends Shape>(shape: S): Check<Checked<S>> {
  return (value, path) => {
    if (!isRecord(value)) return missingOr(value, path, 'must be an object');
    for (const key of Object.keys(value)) {
      if (!Object.hasOwn(shape, key))
        invalid(join(path, key), `is not known here; known: ${Object.keys(shape).join(', ')}`);
    }
    const checked = Object.entries(shape).map(
      ([key, check]) => [key, check(value[key], join(path, key))] as const,
    );
    return Object.fromEntries(checked) as Checked<S>;
  };
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function join(path: string, key: string): string {
  const name = /^[A-Za-z_][A-Za-z0-9_]*$/.test(key) ? key : JSON.stringify(key);
  return path === '' ? name : `${path}.${name}`;
}

function missingOr(value: unknown, path: string, expected: string): never {
  if (value === undefined) invalid(path, `is missing; it ${expected}`);
  invalid(path, expected, value);
}

function shorten(json: string): string {
  return json.length > 60 ? `${json.slice(0, 57)}...` : json;
}
