/** TypeScript's view of output checks against the bytes that the native code writes. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';

import { repositoryRoot } from '../../src/lib/root.js';
import { decodeCheck, decodeDue, decodeVerdicts } from '../../src/wire/output-check.js';

const golden = new Map(
  readFileSync(join(repositoryRoot, 'test/golden/output-check.hex'), 'utf8')
    .split('\n')
    .filter((line) => line.includes(': ') && !line.startsWith('#'))
    .map((line) => {
      const [name = '', hex = ''] = line.split(': ');
      return [name, new Uint8Array(Buffer.from(hex, 'hex'))] as const;
    }),
);

const text = (bytes: Uint8Array | undefined): string => Buffer.from(bytes ?? []).toString();

/** What test/native/output_book_test.cc put in. */
void t.test('golden bytes decode to what was said', (t) => {
  const { payload, tails } = decodeDue(golden.get('due') ?? new Uint8Array());
  t.same(tails.map(text), ['hello']);
  const check = decodeCheck(payload);
  t.match(check, {
    proposer: 0,
    items: [{ client: '10.9.0.2:40000', clientIss: 1000, port: 6379, position: 5, final: false }],
  });
  t.match(check?.items[0]?.hash, /^[0-9a-f]{64}$/);
  const [record, ...others] = decodeVerdicts(golden.get('verdicts') ?? new Uint8Array());
  t.same(others, []);
  t.match(record, { op: 77, index: 0, verdict: 'diverged', position: 6, agreed: 0, cause: '' });
  t.equal(text(record?.tail), 'hellO');
  t.match(record?.hash, /^[0-9a-f]{64}$/);
  t.not(record?.hash, check?.items[0]?.hash);
  t.end();
});
