/**
 * The client as a process of its own, so that it can live in another network namespace than its driver.
 *
 *   node client.js HOST PORT SEED [DEPTH [THINK_MS]]
 *
 * Reads one word a line from stdin (write, rest, verify, tally, read:N, quit) and answers each with one line of JSON:
 * the tally. Ends when stdin does, so that it never outlives its driver.
 */
import { createInterface } from 'node:readline';

import { monotonicMs, sleep } from '../../src/lib/time.js';
import { KeyClient } from './key-client.js';
import type { KeyClientOptions } from './key-client.js';

const connectMs = 5_000;
const connectAllMs = 30_000;
const connectPauseMs = 200;

/** Tries again and again: what counts is the connection that was made, and that it lasts. */
async function connected(options: KeyClientOptions): Promise<KeyClient> {
  const end = monotonicMs() + connectAllMs;
  for (;;) {
    try {
      return await KeyClient.connect(options, connectMs);
    } catch (error) {
      if (monotonicMs() >= end) throw error;
      await sleep(connectPauseMs);
    }
  }
}

async function main([host, port, seed, depth, think]: readonly string[]): Promise<void> {
  if (host === undefined || port === undefined || seed === undefined) {
    throw new Error('usage: client.js HOST PORT SEED [DEPTH [THINK_MS]]');
  }
  const options = {
    host,
    port: Number(port),
    seed: Number(seed),
    depth: Number(depth ?? 1),
    thinkMs: Number(think ?? 0),
  };
  const client = await connected(options);
  const answer = (): void => void process.stdout.write(`${JSON.stringify(client.tally())}\n`);
  answer();
  for await (const word of createInterface({ input: process.stdin })) {
    if (word === 'quit') break;
    if (word === 'write') client.write();
    else if (word === 'rest') await client.rest();
    else if (word === 'verify') await client.verify();
    else if (/^read:\d+$/.test(word)) await client.readKey(Number(word.slice('read:'.length)));
    else if (word !== 'tally') throw new Error(`no such word: ${JSON.stringify(word)}`);
    answer();
  }
  client.close();
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  process.stderr.write(`client: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exit(1);
}
