// The state of a guest with Redis moves between two real QEMUs: the second goes on exactly where the first stood.
import { readFileSync } from 'node:fs';

import t from 'tap';

import { whyNoNamespaces } from '../support/network.js';
import { pause } from './lines.js';
import { changedPages, copyOf, copyPages, differingPages } from './pages.js';
import { RedisGuest } from './redis-guest.js';
import { setBits } from './tiny.js';

t.setTimeout(1_200_000);

const skip = whyNoNamespaces() ?? false;

/** Milliseconds of one command. */
async function timed(
  guest: RedisGuest,
  command: string,
  args: Record<string, unknown> = {},
): Promise<number> {
  const began = performance.now();
  await guest.qmp.execute(command, args);
  return performance.now() - began;
}

async function collect(guest: RedisGuest): Promise<Set<number>> {
  await guest.qmp.execute('falcon-dirty-collect', { path: guest.dirtyPath });
  return new Set(setBits(readFileSync(guest.dirtyPath)));
}

const figure = (list: number[]): string => {
  const sorted = [...list].sort((a, b) => a - b);
  const at = (share: number): string => (sorted[Math.floor(share * (sorted.length - 1))] ?? NaN).toFixed(2);
  return `p50 ${at(0.5)}, p90 ${at(0.9)}, max ${at(1)} ms`;
};

void t.test('every page that changes is in the dirty log', { skip }, async (t) => {
  const guest = await RedisGuest.start(t);
  await guest.ready();
  const load = guest.load(1_000_000);
  t.teardown(() => void load.kill('SIGKILL'));
  await pause(500);
  await guest.qmp.execute('stop');
  await guest.qmp.execute('falcon-dirty-start');
  for (let round = 0; round < 5; round++) {
    const before = copyOf(guest.ramPath, guest.ramBytes);
    await guest.qmp.execute('cont');
    const seen = new Set<number>();
    // The guest runs while the log is taken, and it is taken again when the guest stands.
    for (let part = 0; part < 3; part++) {
      await pause(100);
      for (const page of await collect(guest)) seen.add(page);
    }
    await guest.qmp.execute('stop');
    for (const page of await collect(guest)) seen.add(page);
    const changed = changedPages(guest.ramPath, before);
    t.ok(changed.length > 20, `round ${round}: ${changed.length} pages changed, ${seen.size} in the log`);
    t.same(changed.filter((page) => !seen.has(page)).slice(0, 20), [], 'none is missing');
  }
});

void t.test('a second guest goes on where the first stood', { skip }, async (t) => {
  const source = await RedisGuest.start(t);
  const target = await RedisGuest.start(t, ['-S']);
  await source.ready();
  t.equal(source.redis('SET', 'colour', 'green'), 'OK');
  const process = source.info('run_id');
  t.match(process, /^[0-9a-f]{40}$/);
  const steady = source.latencies(300);
  await pause(1500);

  // All of it, into a machine that has never run.
  const uptime = Number(source.info('uptime_in_seconds'));
  const stop = await timed(source, 'stop');
  const save = await timed(source, 'falcon-save-state', { path: source.statePath });
  const all = differingPages(source.ramPath, target.ramPath, source.ramBytes);
  copyPages(source.ramPath, target.ramPath, all);
  const load = await timed(target, 'falcon-load-state', { path: source.statePath });
  t.equal(
    differingPages(source.ramPath, target.ramPath, source.ramBytes).length,
    0,
    'a load leaves the main RAM',
  );
  for (const guest of [source, target]) await guest.qmp.execute('falcon-dirty-start');
  const cont = await timed(target, 'cont');
  const first = target.latencies(300);
  t.equal(target.redis('GET', 'colour'), 'green');
  t.equal(target.info('run_id'), process, 'it is the same process');
  const went = Number(target.info('uptime_in_seconds')) - uptime;
  t.ok(went >= 0 && went < 30, `its uptime goes on: ${uptime} s and ${went} s more`);
  t.ok(target.listening, 'the readiness port stays connected');
  t.equal(target.said, '', 'and the word does not come again');
  t.comment(`${readFileSync(source.statePath).length} bytes of state, ${all.length} pages`);
  t.comment(
    `stop ${stop.toFixed(1)}, save ${save.toFixed(1)}, load ${load.toFixed(1)}, cont ${cont.toFixed(1)} ms`,
  );
  t.comment(`before: ${figure(steady)}; after the load: ${figure(first)}`);
  t.comment(
    `the first requests after the load: ${first
      .slice(0, 8)
      .map((ms) => ms.toFixed(1))
      .join(' ')} ms`,
  );

  // Both go their own ways; then only what either has written is copied.
  await source.qmp.execute('cont');
  source.redis('SET', 'colour', 'blue');
  target.redis('SET', 'colour', 'red');
  target.redis('SET', 'only', 'here');
  await pause(2000);
  const stops = await Promise.all([timed(source, 'stop'), timed(target, 'stop')]);
  const began = performance.now();
  const union = new Set([...(await collect(source)), ...(await collect(target))]);
  const collected = performance.now() - began;
  const differing = differingPages(source.ramPath, target.ramPath, source.ramBytes);
  t.same(
    differing.filter((page) => !union.has(page)).slice(0, 20),
    [],
    `${differing.length} pages differ, ${union.size} are in the logs`,
  );
  copyPages(source.ramPath, target.ramPath, [...union]);
  t.equal(differingPages(source.ramPath, target.ramPath, source.ramBytes).length, 0, 'equal again');
  const times = {
    save: await timed(source, 'falcon-save-state', { path: source.statePath }),
    load: await timed(target, 'falcon-load-state', { path: source.statePath }),
    cont: await timed(target, 'cont'),
  };
  const after = target.latencies(300);
  t.equal(target.redis('GET', 'colour'), 'blue');
  t.equal(target.redis('EXISTS', 'only'), '0');
  t.equal(target.info('run_id'), process);
  t.comment(`stops ${stops.map((ms) => ms.toFixed(1)).join(' ')}, both logs ${collected.toFixed(1)} ms`);
  t.comment(
    Object.entries(times)
      .map(([what, ms]) => `${what} ${ms.toFixed(1)}`)
      .join(', ') + ' ms',
  );
  t.comment(`after the load: ${figure(after)}`);
  t.comment(
    `the first requests: ${after
      .slice(0, 8)
      .map((ms) => ms.toFixed(1))
      .join(' ')} ms`,
  );
});
