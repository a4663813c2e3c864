/** Temporary directories for tests. Their paths are short: sockets live in them. */
import { mkdtempSync, rmSync } from 'node:fs';

interface Teardown {
  teardown(handler: () => void): void;
}

/** A fresh directory that goes away with the test. */
export function temporaryDirectory(t: Teardown): string {
  const directory = mkdtempSync('/tmp/falcon-test-');
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}
