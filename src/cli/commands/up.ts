import { spawn } from 'node:child_process';
import { join } from 'node:path';

import { loadCluster, nodeNamed, nodePaths } from '../../api/cluster.js';
import type { NodeConfig } from '../../api/config.js';
import { findDaemon, lastLogLine, refuseSecondStart, stopCluster, stopDaemons } from '../../api/lifecycle.js';
import type { ClusterPlace } from '../../api/lifecycle.js';
import type { ReplicaStatus, StatusRow } from '../../api/status.js';
import { bounds } from '../../lib/bounds.js';
import { exitCodes, FalconError } from '../../lib/errors.js';
import { Interrupt } from '../../lib/interrupt.js';
import { repositoryRoot } from '../../lib/root.js';
import { monotonicMs } from '../../lib/time.js';
import type { Command, Output } from '../command.js';
import { answered, fetchAll, primaryOf } from '../replicas.js';

export const up: Command = {
  name: 'up',
  summary: 'start all replicas on this machine',
  about:
    'Starts the daemons through cluster/launch and waits until the cluster serves: there is a primary, its gate is\n' +
    'open, and enough guests are ready. If that fails, everything that was started is stopped again.\n\n' +
    'With --node it brings one replica back into a cluster that runs, and waits until it is a full copy again.',
  options: {
    node: { type: 'string', value: 'NODE', help: 'start this replica alone' },
    foreground: { type: 'boolean', help: 'stay, and stop the cluster on ctrl-C' },
    'no-wait': { type: 'boolean', help: 'do not wait until the cluster serves' },
  },
  async run(directory, options, output) {
    const place = loadCluster(directory);
    const name = options.value('node');
    const started: Started = { place, node: name === null ? null : nodeNamed(place.config, name) };
    await refuseSecondStart(place, nodesOf(started));
    const interrupt = new Interrupt();
    try {
      const launched = await launch(started, interrupt);
      if (launched !== exitCodes.ok) {
        // The launch script has said what was wrong, and has cleaned up, unless the signal met it at its very end.
        if (interrupt.signal !== null) await takeBack(started, output);
        return launched;
      }
      return await serve(started, options.flag('no-wait'), options.flag('foreground'), interrupt, output);
    } finally {
      interrupt.dispose();
    }
  },
};

/** What this command has started: all replicas, or one. */
interface Started {
  readonly place: ClusterPlace;
  readonly node: NodeConfig | null;
}

function nodesOf({ place, node }: Started): readonly NodeConfig[] {
  return node === null ? place.config.nodes : [node];
}

function takeBack(started: Started, output: Output): Promise<void> {
  const { place, node } = started;
  if (node === null) return stopCluster(repositoryRoot, place, output.say);
  return stopDaemons(place, [node], output.say);
}

async function serve(
  started: Started,
  noWait: boolean,
  foreground: boolean,
  interrupt: Interrupt,
  output: Output,
): Promise<number> {
  try {
    const { place, node } = started;
    if (noWait) output.out(`${node?.name ?? place.config.cluster} is starting`);
    else if (node === null) output.out(servingLine(await waitForService(place, interrupt, output)));
    else output.out(await waitForReplica(place, node, interrupt, output));
    if (!foreground) return exitCodes.ok;
    await stay(started, interrupt, output);
  } catch (error) {
    await takeBack(started, output);
    throw error;
  }
  await takeBack(started, output);
  output.out('stopped');
  return exitCodes.ok;
}

/** Runs the launch script to its end; returns its exit code. A signal is passed on, and it cleans up. */
async function launch({ place, node }: Started, interrupt: Interrupt): Promise<number> {
  const only = node === null ? [] : ['--only', node.name];
  const child = spawn(join(repositoryRoot, 'cluster/launch'), [place.directory, ...only], {
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  const ended = new Promise<number>((resolve, reject) => {
    child.once('error', (error) =>
      reject(new FalconError('START_FAILED', `cluster/launch: ${error.message}`, { cause: error })),
    );
    child.once('close', (code, by) =>
      resolve(code ?? (by === null ? exitCodes.failure : exitCodes.interrupted)),
    );
  });
  let passedOn = false;
  for (;;) {
    const code = await Promise.race([ended, interrupt.pause(bounds.progressMs)]);
    if (typeof code === 'number') return code;
    if (interrupt.signal === null) continue;
    if (!passedOn) child.kill('SIGTERM');
    passedOn = true;
    return ended;
  }
}

/** Waits for an open gate. Errors: START_FAILED with the last log line of what failed, INTERRUPTED. */
async function waitForService(
  place: ClusterPlace,
  interrupt: Interrupt,
  output: Output,
): Promise<ReplicaStatus> {
  const { vm } = place.config;
  const limitMs = bounds.primaryWaitMs + (vm.kind === 'qemu' ? vm.readyTimeoutMs + vm.quorumReadyWaitMs : 0);
  const end = monotonicMs() + limitMs;
  let nextReport = monotonicMs() + bounds.progressMs;
  for (;;) {
    interrupt.check();
    const rows = await fetchAll(place);
    const primary = primaryOf(rows);
    if (primary?.gate === 'open' && primary.admitted) return primary;
    failIfOneEnded(place, rows);
    const now = monotonicMs();
    if (now >= end)
      throw new FalconError(
        'START_FAILED',
        `not serving after ${Math.round(limitMs / 1000)} s: ${progress(rows)}`,
      );
    if (now >= nextReport) {
      output.say(`waiting: ${progress(rows)}`);
      nextReport = now + bounds.progressMs;
    }
    await interrupt.pause(bounds.pollMs);
  }
}

/** Waits until one replica is a full copy. Errors: START_FAILED with what it waits for, INTERRUPTED. */
async function waitForReplica(
  place: ClusterPlace,
  node: NodeConfig,
  interrupt: Interrupt,
  output: Output,
): Promise<string> {
  const limitMs = bounds.primaryWaitMs + bounds.adminSyncMs;
  const end = monotonicMs() + limitMs;
  let nextReport = monotonicMs() + bounds.progressMs;
  for (;;) {
    interrupt.check();
    const rows = await fetchAll(place);
    const own = rows.filter((row) => row.node === node.name);
    failIfOneEnded(place, own);
    const [status] = answered(own);
    const { role, guest, primary } = status ?? { role: 'no answer', guest: { state: 'none' }, primary: null };
    if (primary !== null && (guest.state === 'ready' || !node.vm))
      return `${node.name} is back: ${node.vm ? 'its guest is a full copy' : 'it votes and stores'}`;
    const now = monotonicMs();
    const state = `${node.name}: ${role}, primary ${primary ?? 'unknown'}, guest ${guest.state}`;
    if (now >= end)
      throw new FalconError('START_FAILED', `no full copy after ${Math.round(limitMs / 1000)} s: ${state}`);
    if (now >= nextReport) {
      output.say(`waiting: ${state}`);
      nextReport = now + bounds.progressMs;
    }
    await interrupt.pause(bounds.pollMs);
  }
}

/** Errors: START_FAILED if a daemon has ended. */
function failIfOneEnded(place: ClusterPlace, rows: readonly StatusRow[]): void {
  for (const row of rows) {
    if (!('error' in row) || findDaemon(place.directory, row.node) !== null) continue;
    const line = lastLogLine(nodePaths(place.directory, row.node).log) ?? 'it has logged nothing';
    throw new FalconError('START_FAILED', `${row.node} ended: ${line}`);
  }
}

function progress(rows: readonly StatusRow[]): string {
  const primary = primaryOf(rows);
  const head =
    primary === null
      ? 'no primary yet'
      : `${primary.node} is primary of view ${primary.view}, gate ${primary.gate}, input ${primary.admitted ? 'admitted' : 'waits for guests'}`;
  const guests = answered(rows).map((row) => `${row.node} ${row.guest.state}`);
  return `${head}; guests: ${guests.length === 0 ? 'no replica answers' : guests.join(', ')}`;
}

function servingLine(primary: ReplicaStatus): string {
  return `${primary.cluster} serves: ${primary.node} is primary of view ${primary.view}`;
}

/** Until a signal, or until no daemon is left. */
async function stay(started: Started, interrupt: Interrupt, output: Output): Promise<void> {
  output.say('ctrl-C stops the cluster');
  while (interrupt.signal === null) {
    await interrupt.pause(bounds.statusWatchMs);
    if (nodesOf(started).every(({ name }) => findDaemon(started.place.directory, name) === null)) {
      throw new FalconError('START_FAILED', 'all daemons have ended');
    }
  }
}
