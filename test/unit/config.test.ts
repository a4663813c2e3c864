/** Every field of the configuration, wrong in every way that it can be. */
import { chmodSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { Test } from 'tap';

import { loadCluster } from '../../src/api/cluster.js';
import { defaultLog, defaultOutput, defaultTiming, defaultVerbs, parseConfig } from '../../src/api/config.js';
import { FalconError } from '../../src/lib/errors.js';
import { repositoryRoot } from '../../src/lib/root.js';
import { temporaryDirectory } from '../support/directory.js';

function nodes(count: number): Record<string, unknown>[] {
  return Array.from({ length: count }, (_, i) => ({ name: `h${i + 1}`, address: `10.77.0.${i + 1}` }));
}

function short(): Record<string, unknown> {
  return { version: 1, cluster: 'demo-0a1b2c3d', nodes: nodes(3), vm: { kind: 'qemu' } };
}

/** `path` of an object set to `value` (undefined: removed); lists are indexed by number. */
function withValue(path: string, value: unknown): unknown {
  const config = short();
  const keys = path.split('.');
  let place: Record<string, unknown> = config;
  for (const key of keys.slice(0, -1)) {
    place[key] ??= {};
    place = place[key] as Record<string, unknown>;
  }
  const last = keys.at(-1) ?? '';
  if (value === undefined) delete place[last];
  else place[last] = value;
  return config;
}

function errorOf(config: unknown): FalconError {
  try {
    parseConfig(config);
  } catch (error) {
    if (error instanceof FalconError) return error;
    throw error;
  }
  throw new Error(`accepted ${JSON.stringify(config)}`);
}

void t.test('a short file is filled in', (t) => {
  const config = parseConfig(short());
  t.match(config, {
    fabric: 'shm',
    durability: 'disk',
    lan: 'flood',
    poll: { mode: 'adaptive', spinUs: 10, realtime: true },
  });
  t.same(config.timing, defaultTiming);
  t.same(config.log, defaultLog);
  t.same(config.nodes[1], {
    name: 'h2',
    address: '10.77.0.2',
    port: 7400,
    incarnation: 1,
    netns: null,
    vm: true,
    rdma: { device: null, port: 1, gidIndex: null },
  });
  t.same(config.verbs, defaultVerbs);
  t.same(config.output, defaultOutput);
  t.match(config.vm, { kind: 'qemu', tap: 'vm0', memoryMiB: 256, prefix: 24, readyTimeoutMs: 120_000 });
  t.match(parseConfig(withValue('vm', undefined)).vm, { kind: 'none', tap: null });
  t.same(parseConfig(config), config, 'what was filled in is accepted as it is');
  t.end();
});

void t.test('a value of the wrong kind or out of range is refused with its path', (t) => {
  const integers: readonly (readonly [path: string, below: number, above: number])[] = [
    ['poll.spinUs', -1, 10_001],
    ['timing.heartbeatMs', 0, 1001],
    ['timing.leaseMs', 4, 30_001],
    ['timing.driftMarginMs', 0, 10_001],
    ['timing.electionTimeoutMinMs', 9, 60_001],
    ['timing.electionTimeoutMaxMs', 10, 120_001],
    ['timing.retryMs', 0, 10_001],
    ['timing.stallMs', 9, 60_001],
    ['log.memoryBytes', 4096, 2 ** 40],
    ['log.ringBytes', 4096, 2 ** 40],
    ['log.segmentBytes', 1024 * 1024, 2 ** 40],
    ['log.retainBytes', 4096, 2 ** 50],
    ['nodes.0.incarnation', 0, 2 ** 31],
    ['verbs.timeout', 7, 21],
    ['verbs.retry', -1, 8],
    ['verbs.rnrRetry', -1, 7],
    ['verbs.minRnrTimer', 0, 32],
    ['verbs.sendQueue', 63, 513],
    ['verbs.inlineBytes', -1, 1025],
    ['nodes.0.rdma.port', 0, 255],
    ['output.queueBytes', 63, 16_385],
    ['output.compareEvery', 0, 1025],
    ['output.checkMs', 9, 3_600_001],
    ['output.waitMs', 9, 30_001],
    ['nodes.0.port', 0, 65_536],
    ['vm.memoryMiB', 31, 2 ** 30],
    ['vm.prefix', 0, 31],
    ['vm.port', 0, 65_536],
    ['vm.readyTimeoutMs', 999, 3_600_001],
    ['vm.quorumReadyWaitMs', -1, 3_600_001],
  ];
  for (const [path, below, above] of integers) {
    for (const value of [below, above, 1.5, '5', null, true, [], {}, Number.MAX_VALUE])
      expectRefused(t, path, value);
  }
  const wrong: readonly (readonly [path: string, values: readonly unknown[]])[] = [
    ['version', [0, 2, '1', null]],
    [
      'cluster',
      [
        '',
        'demo',
        'demo-XYZ',
        'demo-0a1b2c3',
        'De-0a1b2c3d',
        '../x-0a1b2c3d',
        `${'a'.repeat(60)}-0a1b2c3d`,
        5,
      ],
    ],
    ['fabric', ['rdma', '', null, 1]],
    ['verbs', [[], 7, null]],
    ['nodes.1.rdma', [[], 'mlx5_0', null]],
    ['nodes.1.rdma.device', ['', '-x', 'a/b', '..', 'a b', 'x'.repeat(64), 5]],
    ['nodes.1.rdma.gidIndex', [-1, 256, 0.5, '1', true]],
    ['durability', ['none', null]],
    ['lan', ['hub', null]],
    ['poll', [[], 'busy', null]],
    ['poll.mode', ['spin', null]],
    ['timing', [[], 7]],
    ['log', [[], 7]],
    ['output', [[], 7]],
    ['output.masks', [{}, 7]],
    ['output.primaryDiverged', ['stop', null]],
    ['nodes', [{}, 'h1', null]],
    ['nodes.1', ['h2', null]],
    ['nodes.1.name', ['', 'H2', 'a b', '../x', '-a', 'a-', 'x'.repeat(33), 5]],
    ['nodes.1.address', ['', '10.77.0', '10.77.0.256', '10.77.0.1.', '::1', 'host', '10.77.0.01', 5, null]],
    ['nodes.1.netns', ['', 'a b', '../x', 5]],
    ['nodes.1.vm', ['yes', 1, null]],
    ['vm', [[], 'qemu', null]],
    ['vm.kind', ['kvm', null, 1]],
    ['vm.name', ['', 'a b', 5]],
    ['vm.qemu', ['qemu', '', 5]],
    ['vm.kernel', ['vmlinuz', 5]],
    ['vm.initrd', ['initrd', 5]],
    ['vm.append', ['a\nb', 'x'.repeat(1025), 5]],
    ['vm.mac', ['52:54:00:fa:1c', '53:54:00:fa:1c:01', '52:54:00:FA:1C:01', 5]],
    ['vm.address', ['10.77', 5]],
    ['vm.tap', ['', 'a/b', 'x'.repeat(16), 5]],
  ];
  for (const [path, values] of wrong) for (const value of values) expectRefused(t, path, value);
  t.end();
});

function expectRefused(t: Test, path: string, value: unknown): void {
  const error = errorOf(withValue(path, value));
  const expected = path.replace(/\.(\d+)/, '[$1]');
  t.same([error.code, error.path], ['CONFIG_INVALID', expected], `${expected} = ${JSON.stringify(value)}`);
}

void t.test('the defaults of queue pairs are those of the native code', (t) => {
  const header = readFileSync(join(repositoryRoot, 'native/fabric/verbs.h'), 'utf8');
  for (const [name, value] of Object.entries(defaultVerbs) as [string, number][]) {
    const native = name.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
    t.equal(new RegExp(`\\b${native} = (\\d+);`).exec(header)?.[1], String(value), name);
  }
  t.end();
});

void t.test('what is missing and what is unknown', (t) => {
  for (const path of ['version', 'cluster', 'nodes']) expectRefused(t, path, undefined);
  for (const path of ['nodes.1.name', 'nodes.1.address', 'vm.kind']) expectRefused(t, path, undefined);
  for (const path of [
    'colour',
    'poll.colour',
    'timing.colour',
    'log.colour',
    'nodes.2.colour',
    'nodes.2.rdma.colour',
    'verbs.colour',
    'vm.colour',
  ])
    expectRefused(t, path, 1);
  t.equal(errorOf(withValue('odd key', 1)).path, '"odd key"');
  for (const top of [null, [], 'x', 5, undefined]) t.equal(errorOf(top).path, 'top level');
  t.equal(
    errorOf({ ...short(), vm: { kind: 'none', memoryMiB: 64 } }).path,
    'vm.memoryMiB',
    'not with this kind',
  );
  t.end();
});

void t.test('relations between fields', (t) => {
  const date = { start: '\r\nDate: ', bytes: 29 };
  const http = { port: 80, mask: [date] };
  const masks = (list: unknown): Record<string, unknown> => ({ output: { masks: list } });
  t.same(parseConfig({ ...short(), ...masks([http]) }).output.masks, [http]);
  const cases: readonly (readonly [path: string, change: Record<string, unknown>])[] = [
    ['timing.leaseMs', { timing: { leaseMs: 14 } }],
    ['timing.electionTimeoutMinMs', { timing: { leaseMs: 58, driftMarginMs: 2 } }],
    ['timing.electionTimeoutMaxMs', { timing: { electionTimeoutMaxMs: 69 } }],
    ['timing.retryMs', { timing: { retryMs: 61 } }],
    ['timing.stallMs', { timing: { stallMs: 39 } }],
    ['log.memoryBytes', { log: { memoryBytes: 64 * 1024 * 1024 + 1 } }],
    ['log.ringBytes', { log: { ringBytes: 3 * 1024 * 1024 } }],
    ['log.ringBytes', { log: { ringBytes: 128 * 1024 * 1024 } }],
    ['log.retainBytes', { log: { retainBytes: 32 * 1024 * 1024 } }],
    ['output.masks[0].port', masks([{ port: 0, mask: [date] }])],
    ['output.masks[1].port', masks([http, http])],
    ['output.masks[0].mask', masks([{ port: 80, mask: [] }])],
    ['output.masks[0].mask', masks([{ port: 80, mask: [date, date, date, date, date] }])],
    ['output.masks[0].mask[0].start', masks([{ port: 80, mask: [{ start: '', bytes: 1 }] }])],
    ['output.masks[0].mask[0].start', masks([{ port: 80, mask: [{ start: 'é'.repeat(33), bytes: 1 }] }])],
    ['output.masks[0].mask[0].bytes', masks([{ port: 80, mask: [{ start: 'x', bytes: 4097 }] }])],
    ['nodes', { nodes: nodes(0) }],
    ['nodes', { nodes: nodes(2) }],
    ['nodes', { nodes: nodes(4) }],
    ['nodes', { nodes: nodes(9) }],
    ['nodes', { nodes: nodes(3).map((node) => ({ ...node, vm: false })) }],
    ['nodes[2].name', { nodes: nodes(3).map((node, i) => ({ ...node, name: i === 0 ? 'a' : 'b' })) }],
    ['nodes[1].address', { nodes: nodes(3).map((node) => ({ ...node, address: '10.0.0.1' })) }],
    ['nodes[2].netns', { nodes: nodes(3).map((node, i) => ({ ...node, netns: `n${i % 2}` })) }],
    [
      'nodes[1].netns',
      { nodes: nodes(3).map((node, i) => ({ ...node, address: '127.0.0.1', port: 7400 + i })) },
    ],
    ['vm.address', { vm: { kind: 'qemu', address: '10.77.0.2' } }],
  ];
  for (const [path, change] of cases) {
    const error = errorOf({ ...short(), ...change });
    t.same([error.code, error.path], ['CONFIG_INVALID', path], JSON.stringify(change).slice(0, 90));
  }
  for (const count of [1, 3, 5, 7])
    t.equal(parseConfig({ ...short(), nodes: nodes(count) }).nodes.length, count);
  const witness = nodes(3).map((node, i) => ({ ...node, address: '127.0.0.1', port: 7400 + i, vm: i === 0 }));
  t.equal(
    parseConfig({ ...short(), nodes: witness }).nodes.length,
    3,
    'witnesses share a host with a replica',
  );
  t.end();
});

void t.test('the directory', (t) => {
  const directory = temporaryDirectory(t);
  const file = join(directory, 'falcon.json');
  const secret = join(directory, 'secret');
  const codeOf = (where = directory): string => {
    try {
      loadCluster(where);
      return 'OK';
    } catch (error) {
      return error instanceof FalconError ? error.code : String(error);
    }
  };
  t.equal(codeOf(join(directory, 'none')), 'NOT_INITIALISED');
  t.equal(codeOf(), 'NOT_INITIALISED');
  writeFileSync(file, '{ "version": 1,');
  t.equal(codeOf(), 'CONFIG_UNREADABLE');
  writeFileSync(file, 'x'.repeat(300_000));
  t.equal(codeOf(), 'CONFIG_UNREADABLE');
  writeFileSync(file, '{}');
  t.equal(codeOf(), 'CONFIG_INVALID');
  writeFileSync(file, JSON.stringify(short()));
  t.equal(codeOf(), 'SECRET_WRONG');
  writeFileSync(secret, '00ff'.repeat(16), { mode: 0o600 });
  t.equal(codeOf(), 'OK');
  t.equal(loadCluster(directory).secret[1], 255);
  for (const mode of [0o644, 0o640, 0o400, 0o700]) {
    chmodSync(secret, mode);
    t.equal(codeOf(), 'SECRET_MODE', mode.toString(8));
  }
  chmodSync(secret, 0o600);
  for (const text of ['', '00ff', 'zz'.repeat(32), '00'.repeat(33)]) {
    writeFileSync(secret, text);
    t.equal(codeOf(), 'SECRET_WRONG', text.slice(0, 4));
  }
  writeFileSync(secret, '00ff'.repeat(16));
  const link = `${directory}/link`;
  symlinkSync('.', link);
  t.equal(loadCluster(link).directory, directory, 'symbolic links are resolved');
  writeFileSync(
    file,
    JSON.stringify({
      ...short(),
      nodes: nodes(3).map((node, i) => ({ ...node, name: `${'n'.repeat(31)}${i}` })),
    }),
  );
  t.equal(codeOf(), 'OK');
  t.end();
});
