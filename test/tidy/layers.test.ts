/** Imports point one way: who may import what is one table. */
import { readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import t from 'tap';

import { repositoryRoot } from '../../src/lib/root.js';
import { sourceFiles } from '../support/sources.js';

/** What each layer may import besides itself. */
const layers: Readonly<Record<string, readonly string[]>> = {
  lib: [],
  wire: ['lib'],
  ports: ['lib', 'wire'],
  consensus: ['lib', 'wire', 'ports'],
  output: ['lib', 'wire', 'ports'],
  transfer: ['lib', 'wire', 'ports'],
  engine: ['lib', 'wire', 'ports', 'consensus', 'output', 'transfer'],
  adapters: ['lib', 'wire', 'ports', 'consensus', 'output', 'transfer'],
  api: ['lib', 'wire'],
  cli: ['lib', 'api', 'adapters'],
  daemon: ['lib', 'wire', 'ports', 'consensus', 'output', 'transfer', 'engine', 'adapters', 'api'],
};

/** Cores: no clock, no randomness, no input or output, no promises. */
const pure = ['consensus', 'output', 'transfer'];
const impure: readonly (readonly [pattern: RegExp, what: string])[] = [
  [/\bfrom '(node:(?!assert\b)[^']+|[a-z@][^'.]*)'/, 'imports what is not its own'],
  [/\bDate\b(?!\w)/, 'reads a clock'],
  [/\bperformance\b/, 'reads a clock'],
  [/\bMath\.random\b/, 'rolls dice'],
  [/\b(setTimeout|setInterval|setImmediate|queueMicrotask)\b/, 'waits'],
  [/\b(async|await|Promise)\b/, 'waits'],
  [/\bprocess\./, 'looks at the process'],
  [/\bconsole\./, 'logs'],
];

interface Import {
  readonly from: string;
  readonly specifier: string;
  readonly typesOnly: boolean;
}

function importsOf(path: string): Import[] {
  const text = withoutComments(readFileSync(path, 'utf8'));
  const found = text.matchAll(/\b(import|export)(\s+type)?\b(?:[^;'"]*?\bfrom)?\s*\(?\s*'([^']+)'/g);
  return [...found].map(([, , type, specifier = '']) => ({
    from: path,
    specifier,
    typesOnly: type !== undefined,
  }));
}

function withoutComments(text: string): string {
  return text.replaceAll(/\/\*[\s\S]*?\*\//g, '').replaceAll(/(^|\s)\/\/.*$/gm, '$1');
}

/** The layer of a path below src, or null. */
function layerOf(path: string): string | null {
  const [top, layer] = relative(repositoryRoot, path).split('/');
  return top === 'src' ? (layer ?? null) : null;
}

/** Types that the seams speak in; they are gone when the program runs. */
const vocabulary = 'src/consensus/types.ts';
const speaksIt = ['ports', 'output', 'transfer'];

/** Why an import is not allowed; null if it is. */
function objection({ from, specifier, typesOnly }: Import): string | null {
  if (specifier.startsWith('#src/')) return 'uses #src in src: a relative path says the same';
  if (!specifier.startsWith('.')) return null;
  const own = layerOf(from) ?? '';
  const target = layerOf(join(dirname(from), specifier));
  if (target === null) return 'leaves src';
  if (target === own || (layers[own] ?? []).includes(target)) return null;
  const file = relative(repositoryRoot, join(dirname(from), specifier)).replace(/\.js$/, '.ts');
  if (speaksIt.includes(own) && file === vocabulary && typesOnly) return null;
  return `${own} may not import ${target}`;
}

const files = sourceFiles(['src']).filter((path) => path.endsWith('.ts'));

void t.test('every layer is in the table, and keeps to it', (t) => {
  t.ok(files.length > 10);
  for (const path of files) {
    const layer = layerOf(path) ?? '';
    if (!Object.hasOwn(layers, layer)) t.fail(`${path}: no layer ${layer}`);
    for (const found of importsOf(path)) {
      const why = objection(found);
      if (why !== null) t.fail(`${relative(repositoryRoot, path)}: ${why} (${found.specifier})`);
    }
  }
  t.end();
});

void t.test('the cores are pure', (t) => {
  for (const path of files.filter((file) => pure.includes(layerOf(file) ?? ''))) {
    const text = withoutComments(readFileSync(path, 'utf8')).replaceAll(/'[^'\n]*'(?!;)|`[^`]*`/g, "''");
    for (const [pattern, what] of impure) {
      const hit = pattern.exec(text);
      if (hit !== null) t.fail(`${relative(repositoryRoot, path)}: ${what}: ${hit[0]}`);
    }
  }
  t.end();
});

void t.test('the native code keeps foreign headers in their places', (t) => {
  const places: readonly (readonly [header: RegExp, place: string])[] = [
    [/#include\s*[<"](napi|node_api|js_native_api)[^>"]*[>"]/, 'native/addon/'],
    [/#include\s*[<"](infiniband|rdma)\/[^>"]*[>"]/, 'native/fabric/'],
  ];
  for (const path of sourceFiles(['native', 'test/native'])) {
    if (!/\.(h|cc|c)$/.test(path)) continue;
    const text = readFileSync(path, 'utf8');
    for (const [header, place] of places) {
      const hit = header.exec(text);
      if (hit !== null && !relative(repositoryRoot, path).startsWith(place))
        t.fail(`${path}: ${hit[0]} belongs into ${place}`);
    }
  }
  t.end();
});

void t.test('the test itself finds what it looks for', (t) => {
  const at = (path: string, specifier: string, typesOnly = false): string | null =>
    objection({ from: join(repositoryRoot, path), specifier, typesOnly });
  t.equal(at('src/lib/x.ts', '../wire/y.js'), 'lib may not import wire');
  t.equal(at('src/engine/x.ts', '../adapters/y.js'), 'engine may not import adapters');
  t.equal(at('src/adapters/x.ts', '../engine/y.js'), 'adapters may not import engine');
  t.equal(at('src/cli/commands/x.ts', '../../daemon/main.js'), 'cli may not import daemon');
  t.equal(at('src/cli/x.ts', '../../cluster/launch.js'), 'leaves src');
  t.equal(at('src/daemon/main.ts', '../engine/y.js'), null);
  t.equal(at('src/ports/x.ts', '../consensus/types.js', true), null);
  t.equal(at('src/ports/x.ts', '../consensus/types.js'), 'ports may not import consensus');
  t.equal(at('src/ports/x.ts', '../consensus/core.js', true), 'ports may not import consensus');
  t.equal(withoutComments("a // import 'x'\n/* b */c 'http://x'"), "a \nc 'http://x'");
  for (const [pattern] of impure.slice(1))
    t.ok(pattern.test('Date performance Math.random setTimeout await process. console.'));
  t.end();
});
