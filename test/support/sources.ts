/** The project's own source files, for tests about the sources. */
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';

import { repositoryRoot } from '../../src/lib/root.js';

const generated = new Set(['node_modules', '.git', '.tap']);

/** Absolute paths of all files under the given directories of the repository, in a fixed order. */
export function sourceFiles(directories: readonly string[]): string[] {
  return directories.flatMap((directory) => walk(join(repositoryRoot, directory))).sort();
}

function walk(directory: string): string[] {
  if (!existsSync(directory)) return [];
  return readdirSync(directory, { withFileTypes: true }).flatMap((entry) => {
    const path = join(directory, entry.name);
    if (entry.isDirectory()) return generated.has(entry.name) ? [] : walk(path);
    return entry.isFile() ? [path] : [];
  });
}
