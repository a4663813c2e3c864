/** Whether a cluster serves: a client that writes (cluster/demo) goes on being acknowledged. */
import type t from 'tap';

import type { Tally } from '../../cluster/demo/key-client.js';
import type { RemoteClient } from '../../cluster/demo/remote-client.js';
import { waitUntil } from '../../src/lib/time.js';

type Test = Parameters<Parameters<typeof t.test>[0]>[0];

const answerMs = 40_000;

/** Waits until more has been acknowledged than at `before` (now, if it is not given), or the connection is dead. */
export async function served(client: RemoteClient, before?: Tally): Promise<{ before: Tally; after: Tally }> {
  const from = before ?? (await client.say('tally', answerMs));
  let after = from;
  await waitUntil(
    async () => {
      after = await client.say('tally', answerMs);
      return after.acked > from.acked + 20 || !after.alive;
    },
    { timeoutMs: 15_000, everyMs: 100 },
  );
  return { before: from, after };
}

/** Asserts it; returns the client's last word. */
export async function expectServed(t: Test, client: RemoteClient): Promise<Tally> {
  const { before, after } = await served(client);
  t.ok(after.acked > before.acked, `${after.acked - before.acked} more writes acknowledged`);
  t.match(after, { wrong: 0, alive: true });
  return after;
}
