import { spawn } from 'node:child_process';
import { join } from 'node:path';

import { loadCluster, nodePaths } from '../../api/cluster.js';
import { findDaemon, lastLogLine, refuseSecondStart, stopCluster } from '../../api/lifecycle.js';
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
    'open, and enough guests are ready. If that fails, everything that was started is stopped again.',
  options: {
    foreground: { type: 'boolean', help: 'stay, and stop the cluster on ctrl-C' },
    'no-wait': { type: 'boolean', help: 'do not wait until the cluster serves' },
  },
  async run(directory, options, output) {
    const place = loadCluster(directory);
    await refuseSecondStart(place, place.config.nodes);
    const interrupt = new Interrupt();
    try {
      const launched = await launch(place, interrupt);
      if (launched !== exitCodes.ok) {
        // The launch script has said what was wrong, and has cleaned up, unless the signal met it at its very end.
        if (interrupt.signal !== null) await stopCluster(repositoryRoot, place, output.say);
        return launched;
      }
      return await serve(place, options.flag('no-wait'), options.flag('foreground'), interrupt, output);
    } finally {
      interrupt.dispose();
    }
  },
};

async function serve(
  place: ClusterPlace,
  noWait: boolean,
  foreground: boolean,
  interrupt: Interrupt,
  output: Output,
): Promise<number> {
  try {
    if (noWait) output.out(`${place.config.cluster} is starting`);
    else output.out(servingLine(await waitForService(place, interrupt, output)));
    if (!foreground) return exitCodes.ok;
    await stay(place, interrupt, output);
  } catch (error) {
    await stopCluster(repositoryRoot, place, output.say);
    throw error;
  }
  await stopCluster(repositoryRoot, place, output.say);
  output.out('stopped');
  return exitCodes.ok;
}

/** Runs the launch script to its end; returns its exit code. A signal is passed on, and it cleans up. */
async function launch(place: ClusterPlace, interrupt: Interrupt): Promise<number> {
  const child = spawn(join(repositoryRoot, 'cluster/launch'), [place.directory], {
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
async function stay(place: ClusterPlace, interrupt: Interrupt, output: Output): Promise<void> {
  output.say('ctrl-C stops the cluster');
  while (interrupt.signal === null) {
    await interrupt.pause(bounds.statusWatchMs);
    if (place.config.nodes.every(({ name }) => findDaemon(place.directory, name) === null)) {
      throw new FalconError('START_FAILED', 'all daemons have ended');
    }
  }
}
