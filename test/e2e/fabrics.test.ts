/** The steps of test/support/fabric-cluster over the fabrics that need no device; verbs: test/softroce. */
import t from 'tap';

import { defaultTiming } from '../../src/api/config.js';
import { fabricSteps } from '../support/fabric-cluster.js';
import type { FabricBed } from '../support/fabric-cluster.js';
import { netScript, run, whyNoNamespaces } from '../support/network.js';

const cannot = whyNoNamespaces();
const timeoutMs = 300_000;
t.setTimeout(2 * timeoutMs + 10_000);

for (const fabric of ['shm', 'tcp'] as const) {
  t.test(fabric, { timeout: timeoutMs, ...(cannot === null ? {} : { skip: cannot }) }, async (t) => {
    let directory = '';
    const net = (verb: string, node: number): void => {
      t.equal(run(netScript, verb, directory, `h${node + 1}`).status, 0, verb);
    };
    const bed: FabricBed = {
      fabric,
      timing: defaultTiming,
      patienceMs: 30_000,
      cut:
        fabric === 'shm'
          ? 'shared memory is not a network: nothing to cut'
          : { off: (node) => net('partition', node), on: (node) => net('heal', node) },
      extra: (_step, cluster) => {
        directory = cluster.live.directory;
        return Promise.resolve();
      },
      comment: (text) => t.comment(text),
      skip: (name, why) => void t.test(name, { skip: why }, () => undefined),
    };
    await fabricSteps(
      async (name, body) => {
        let failure: unknown = null;
        await t.test(name, { timeout: timeoutMs }, async () => {
          try {
            await body();
          } catch (error) {
            failure = error;
            throw error;
          }
        });
        if (failure !== null) throw failure;
      },
      t,
      bed,
    );
  });
}
