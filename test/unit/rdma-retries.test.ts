/** What a device tells of repeats, out of a directory that looks like its part of sysfs. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';

import { readRdmaRetries } from '../../src/adapters/rdma-retries.js';
import { temporaryDirectory } from '../support/directory.js';

function device(root: string, directory: string, counters: Record<string, string>): void {
  mkdirSync(join(root, directory), { recursive: true });
  for (const [name, text] of Object.entries(counters)) writeFileSync(join(root, directory, name), text);
}

void t.test('counters of the port and of the device', (t) => {
  const root = temporaryDirectory(t);
  device(root, 'mlx5_0/ports/1/hw_counters', {
    packet_seq_err: '7\n',
    local_ack_timeout_err: '2\n',
    rx_write_requests: '900\n',
    lifespan: '10\n',
  });
  device(root, 'mlx5_0/hw_counters', { packet_seq_err: '99\n', out_of_buffer: '3\n' });
  t.same(readRdmaRetries('mlx5_0', 1, root), {
    local_ack_timeout_err: 2,
    packet_seq_err: 7,
    out_of_buffer: 3,
  });
  t.equal(readRdmaRetries('mlx5_0', 2, root)?.['packet_seq_err'], 99, 'another port: the device alone');
  t.end();
});

void t.test('nothing told, or nothing that makes sense', (t) => {
  const root = temporaryDirectory(t);
  t.equal(readRdmaRetries('none', 1, root), null);
  device(root, 'odd/ports/1/hw_counters', {
    packet_seq_err: '-1\n',
    out_of_buffer: 'many\n',
    lifespan: '10\n',
  });
  t.equal(readRdmaRetries('odd', 1, root), null);
  t.end();
});
