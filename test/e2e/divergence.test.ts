/** The demo of a divergence, as its users run it: a fault in one guest's memory is found, healed, and not seen. */
import { join } from 'node:path';

import t from 'tap';

import { repositoryRoot } from '../../src/lib/root.js';
import { runLong } from '../support/live-cluster.js';
import { whyNoNamespaces } from '../support/network.js';

const cannot = whyNoNamespaces();
const skip = cannot === null ? {} : { skip: cannot };
const demo = join(repositoryRoot, 'cluster/demo/run');
t.setTimeout(240_000);

t.test('a bit flips in the memory of a guest', skip, async (t) => {
  const { status, out, err } = await runLong(demo, ['divergence'], { SEED: '6', WRITE: '2', JSON: '1' });
  t.equal(status, 0, err.slice(-2000));
  const lines = out.trimEnd().split('\n');
  t.comment(lines.slice(0, -1).join('\n'));
  const report = JSON.parse(lines.at(-1) ?? '') as Report;
  t.match(report, {
    ok: true,
    fault: { node: /^h\d$/, key: Number, was: /^[0-9a-f]{32}$/ },
    detection: { in_time: true, first_different: Number },
    // Though there is a common point: the dirty logs do not know of a bit that no guest wrote.
    heal: { based: false, memory_mended: true },
    afterwards: { diverged: 0 },
    lost: 0,
    wrong: 0,
    connection_survived: true,
  });
  const { fault, detection, heal, afterwards, failover } = report;
  const text = (hex: string): string => Buffer.from(hex, 'hex').toString('latin1');
  t.match(text(detection.expected), fault.was, 'what the guests should say');
  t.match(text(detection.found), fault.is, 'what the faulty one said');
  t.ok(heal.pages > 1000 && heal.sent > 0 && heal.sent < heal.pages, `${heal.sent} of ${heal.pages} pages`);
  t.ok(afterwards.agreed > 0, `${afterwards.agreed} checks agreed afterwards`);
  t.equal(failover.served, fault.node, 'the healed guest has served');
  t.not(failover.killed, fault.node);
  t.ok(report.acked > 100, `${report.acked} writes acknowledged`);
});

t.test('wrong usage', async (t) => {
  t.match(await runLong(demo, ['divergence', '--help']), { status: 0, out: /demo-divergence/ });
  t.match(await runLong(demo, ['divergence'], { WRITE: '0', JSON: '1' }), {
    status: 2,
    err: /USAGE/,
    out: /"ok":false/,
  });
});

interface Report {
  readonly fault: { readonly node: string; readonly was: string; readonly is: string };
  readonly detection: { readonly expected: string; readonly found: string };
  readonly heal: { readonly pages: number; readonly sent: number };
  readonly afterwards: { readonly agreed: number };
  readonly failover: { readonly killed: string; readonly served: string };
  readonly acked: number;
}
