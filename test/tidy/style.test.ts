/** Habits of the project that a machine can check. */
import { readFileSync } from 'node:fs';
import { relative } from 'node:path';
import t from 'tap';

import { repositoryRoot } from '../../src/lib/root.js';
import { sourceFiles } from '../support/sources.js';

const fileMaxLines = 500;
/** QEMU's own way: a device is a file. */
const qemuFileMaxLines = 600;
/** A test may list many cases of one idea. */
const testMaxLines = 700;
const code = /\.(ts|js|cc|h|c|py|sh)$/;

/** Put together here, so that this file does not find itself. */
const word = (...parts: string[]): RegExp => new RegExp(`\\b${parts.join('')}\\b`);
const banned: readonly (readonly [pattern: RegExp, why: string])[] = [
  [word('TO', 'DO'), 'work that is left is not left in the source'],
  [word('FIX', 'ME'), 'work that is left is not left in the source'],
  [word('X', 'XX'), 'work that is left is not left in the source'],
  [word('can never ', 'fail'), 'say what happens when it does'],
  [word('should never ', 'happen'), 'assert it'],
  [/\/work\/(main|shared)|\/tmp\/plan/, 'a path of one machine'],
];
const bannedTypeScript: readonly (readonly [pattern: RegExp, why: string])[] = [
  [/^export default/m, 'exports have names'],
  [/^(export )?(const )?enum /m, 'a tagged union or an `as const` table'],
  [word('@ts-', '(ignore|nocheck)'), 'fix the type'],
  [word('as ', 'any'), 'fix the type'],
  [/\bt\.(test|ok|equal)[^\n]*\bskip: true/, 'a skipped test says why'],
];
const bannedNative: readonly (readonly [pattern: RegExp, why: string])[] = [
  [/\bvolatile\b(?!\s*\()/, 'use std::atomic'],
  [/\b(try\s*\{|catch\s*\()/, 'there are no exceptions'],
  [/\bthrow\s+\w/, 'there are no exceptions'],
  [/\busing namespace std\b/, 'name what is used'],
];

function expectNone(
  t: { fail(message: string): unknown },
  path: string,
  text: string,
  rules: typeof banned,
): void {
  for (const [pattern, why] of rules) {
    const hit = pattern.exec(text);
    if (hit !== null) {
      const line = text.slice(0, hit.index).split('\n').length;
      t.fail(`${relative(repositoryRoot, path)}:${line}: ${JSON.stringify(hit[0])}: ${why}`);
    }
  }
}

const files = sourceFiles(['src', 'native', 'test', 'cluster', 'bench']);

void t.test('a file is one idea', (t) => {
  for (const path of files.filter((file) => code.test(file))) {
    const lines = readFileSync(path, 'utf8').split('\n').length;
    const name = relative(repositoryRoot, path);
    const most = name.startsWith('test/')
      ? testMaxLines
      : name.startsWith('native/qemu/')
        ? qemuFileMaxLines
        : fileMaxLines;
    if (lines > most) t.fail(`${relative(repositoryRoot, path)} has ${lines} lines, ${most} at most`);
  }
  t.end();
});

void t.test('words that are not wanted', (t) => {
  for (const path of files) {
    const text = readFileSync(path, 'utf8');
    if (text.includes('\0')) continue;
    // A patch quotes code that is not ours.
    if (path.endsWith('.patch') || path.endsWith('tidy/style.test.ts')) continue;
    expectNone(t, path, text, banned);
    if (path.endsWith('.ts')) expectNone(t, path, text, bannedTypeScript);
    if (/native\/.*\.(cc|h)$/.test(path) && !path.includes('native/qemu/'))
      expectNone(t, path, withoutComments(text), bannedNative);
  }
  t.end();
});

function withoutComments(text: string): string {
  return text
    .replaceAll(/\/\*[\s\S]*?\*\//g, (comment) => comment.replaceAll(/[^\n]/g, ' '))
    .replaceAll(/\/\/.*$/gm, '');
}

void t.test('every TypeScript file of the program says what it is for', (t) => {
  for (const path of files.filter(
    (file) => /\/src\/.*\.ts$/.test(file) && !file.includes('/cli/commands/'),
  )) {
    const text = readFileSync(path, 'utf8').replace(/^#!.*\n/, '');
    if (!/^(?:import [^;]*;\s*)*\/(\*\*|\/)/.test(text))
      t.fail(`${relative(repositoryRoot, path)} does not open with its purpose`);
  }
  t.end();
});

void t.test('every native header says what it is for', (t) => {
  for (const path of files.filter((file) => /\/native\/.*\.h$/.test(file) && !file.includes('/qemu/'))) {
    if (!/^\/[/*]/.test(readFileSync(path, 'utf8')))
      t.fail(`${relative(repositoryRoot, path)} does not open with its purpose`);
  }
  t.end();
});

void t.test('scripts stop at the first error', (t) => {
  for (const path of files) {
    const text = readFileSync(path, 'utf8');
    if (!/^#!.*\bbash\b/.test(text)) continue;
    if (!/^set -[eu]*uo pipefail$/m.test(text))
      t.fail(`${relative(repositoryRoot, path)}: no "set -euo pipefail"`);
  }
  t.end();
});
