/**
 * The guest as a QEMU process: patched QEMU on this replica's rings, with the tap that falcond has opened.
 *
 * QEMU attaches to falcond's socket by itself and ends by itself when that socket ends, so neither outlives the
 * other. The guest says that its service answers through a virtio-serial port that ends in a socket here. Its console
 * and QEMU's monitor are pairs of sockets whose other end QEMU inherits.
 */
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { closeSync, existsSync, openSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import type { Server } from 'node:net';
import { join } from 'node:path';
import { Duplex } from 'node:stream';

import { bounds } from '../lib/bounds.js';
import { asFalconError, FalconError, messageOf } from '../lib/errors.js';
import { BoundedLog } from '../lib/log-file.js';
import { monotonicMs, sleep } from '../lib/time.js';
import type { GuestCallbacks, GuestRunner } from '../ports/guest.js';
import { qemuArguments } from './qemu-arguments.js';
import type { QemuMachine } from './qemu-arguments.js';
import { QmpClient } from './qmp.js';
import { clearRamFile, makeRamFile, removeRamFile, removeRamFiles, reserveRamFile } from './ram-file.js';

export interface QemuOptions extends Omit<QemuMachine, 'netdev' | 'ramPath' | 'console'> {
  readonly tapFd: number;
  readonly vmSocket: string;
  readonly readyTimeoutMs: number;
  /** The logs of QEMU and of the guest's console go here. */
  readonly directory: string;
  /** On a memory file system: the guest's memory is a file here, whose name begins with `ramName`. */
  readonly ramDirectory: string;
  readonly ramName: string;
}

/** What the descriptors of the child are. */
const childFd = { tap: 3, console: 4, monitor: 5 } as const;

/** One QEMU process, from its start to its end. */
interface Machine {
  readonly child: ChildProcess;
  readonly qmp: QmpClient;
  readonly ramPath: string;
  readonly readiness: Server;
  readyTimer: NodeJS.Timeout | null;
  /** It may say that it has ended; before, whoever prepares it is told. */
  announced: boolean;
  /** Why it ended before it was announced. */
  ended: string | null;
}

export class QemuGuest implements GuestRunner {
  private readonly options: QemuOptions;
  private machine: Machine | null = null;
  /** The start before. */
  private last: Promise<void> = Promise.resolve();
  /** Of the memory of the machine before. */
  private removal: Promise<void> = Promise.resolve();

  constructor(options: QemuOptions) {
    this.options = options;
    for (const path of [options.binary, options.kernel, options.initrd]) {
      if (!existsSync(path)) throw new FalconError('QEMU_FAILED', `no ${path}`);
    }
  }

  get pid(): number | null {
    return this.machine?.child.pid ?? null;
  }

  get ramPath(): string | null {
    return this.machine?.ramPath ?? null;
  }

  get ramBytes(): number {
    return this.options.memoryMiB * 1024 * 1024;
  }

  private get logPath(): string {
    return join(this.options.directory, 'qemu.log');
  }

  start(callbacks: GuestCallbacks): Promise<void> {
    return this.afterLast(async () => {
      const machine = await this.launch(callbacks, [], reserveRamFile);
      machine.announced = true;
      const { readyTimeoutMs } = this.options;
      machine.readyTimer = setTimeout(() => {
        callbacks.onExit(`GUEST_NOT_READY within ${readyTimeoutMs} ms`);
      }, readyTimeoutMs);
    });
  }

  prepare(callbacks: GuestCallbacks): Promise<void> {
    return this.afterLast(async () => {
      const machine = await this.launch(callbacks, ['-S']);
      try {
        const info = (await machine.qmp.execute('query-falcon')) as { attached?: unknown; status?: unknown };
        if (info.attached !== true || info.status !== 'prelaunch')
          throw new FalconError(
            'QEMU_FAILED',
            `it is ${String(info.status)}, attached: ${String(info.attached)}`,
          );
        // QEMU has put the kernel there for a guest that boots. No processor and no device has been started.
        await clearRamFile(machine.ramPath);
        await reserveRamFile(machine.ramPath);
        if (this.machine !== machine) throw new FalconError('QEMU_FAILED', 'it was stopped');
      } catch (error) {
        // Another machine can only come behind this. What has ended by itself is still being removed.
        await this.end();
        const why = machine.ended ?? asFalconError(error).detail;
        throw new FalconError('QEMU_FAILED', `${why}; see ${this.logPath}`, { cause: error });
      }
      machine.announced = true;
    });
  }

  private afterLast(begin: () => Promise<void>): Promise<void> {
    const started = this.last.then(begin);
    this.last = started.catch(() => undefined);
    return started;
  }

  private async launch(
    callbacks: GuestCallbacks,
    more: readonly string[],
    reserve?: (ramPath: string) => Promise<void>,
  ): Promise<Machine> {
    await this.end();
    callbacks.onEmpty();
    const { directory, readySocket } = this.options;
    const ramPath = await this.makeMemory(reserve);
    let readiness: Server | null = null;
    let child: ChildProcess;
    try {
      readiness = await this.listenForReady(readySocket, () => {
        if (machine.readyTimer !== null) clearTimeout(machine.readyTimer);
        machine.readyTimer = null;
        callbacks.onReady();
      });
      child = this.spawnQemu(ramPath, more);
    } catch (error) {
      readiness?.close();
      await removeRamFile(ramPath);
      throw new FalconError('QEMU_FAILED', messageOf(error), { cause: error });
    }
    const qmp = new QmpClient(streamOf(child, childFd.monitor));
    const machine: Machine = {
      child,
      qmp,
      ramPath,
      readiness,
      readyTimer: null,
      announced: false,
      ended: null,
    };
    this.machine = machine;
    keepConsole(streamOf(child, childFd.console), join(directory, 'console.log'));
    const ended = (reason: string): void => {
      if (this.machine !== machine) return;
      this.machine = null;
      this.release(machine);
      machine.ended = reason;
      if (machine.announced) callbacks.onExit(reason);
    };
    child.once('error', (error) => ended(`QEMU_FAILED ${messageOf(error)}`));
    child.once('exit', (code, signal) => {
      const how = code ?? signal ?? 'nothing';
      ended(`QEMU_LOST it ended with ${how}; see ${this.logPath}`);
    });
    return machine;
  }

  /** What the guest before had is given back when nobody maps it any more, so room is waited for. Errors: QEMU_FAILED. */
  private async makeMemory(reserve?: (ramPath: string) => Promise<void>): Promise<string> {
    const { ramDirectory, ramName } = this.options;
    for (const until = monotonicMs() + bounds.guestMemoryWaitMs; ; await sleep(bounds.guestMemoryRetryMs)) {
      let ramPath: string | null = null;
      try {
        await removeRamFiles(ramDirectory, ramName);
        ramPath = makeRamFile({ directory: ramDirectory, name: ramName, bytes: this.ramBytes });
        await reserve?.(ramPath);
        return ramPath;
      } catch (error) {
        if (ramPath !== null) await removeRamFile(ramPath);
        if (monotonicMs() >= until) throw error;
      }
    }
  }

  private spawnQemu(ramPath: string, more: readonly string[]): ChildProcess {
    const args = qemuArguments({
      ...this.options,
      ramPath,
      netdev: `fd=${childFd.tap},falcon=${this.options.vmSocket}`,
      console: `socket,fd=${childFd.console}`,
    });
    const monitor = ['-chardev', `socket,id=monitor,fd=${childFd.monitor}`];
    const control = ['-mon', 'chardev=monitor,mode=control'];
    const output = openSync(this.logPath, 'w', 0o600);
    try {
      return spawn(this.options.binary, [...args, ...monitor, ...control, ...more], {
        stdio: ['ignore', output, output, this.options.tapFd, 'pipe', 'pipe'],
      });
    } finally {
      closeSync(output);
    }
  }

  /** What runs ends at once, and whatever a start that is under way makes ends after it; the next start waits for both. */
  stop(): Promise<void> {
    const ended = this.end();
    return this.afterLast(async () => {
      await ended;
      await this.end();
    });
  }

  private async end(): Promise<void> {
    const { machine } = this;
    this.machine = null;
    if (machine === null) return this.removal;
    const { child } = machine;
    if (child.pid !== undefined && child.exitCode === null && child.signalCode === null) {
      const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
      child.kill('SIGTERM');
      const timer = setTimeout(() => child.kill('SIGKILL'), bounds.guestStopMs);
      await ended;
      clearTimeout(timer);
    }
    this.release(machine);
    await this.removal;
  }

  /** What a machine that has ended still holds. Whoever maps its memory keeps it. */
  private release({ qmp, readiness, readyTimer, ramPath }: Machine): void {
    if (readyTimer !== null) clearTimeout(readyTimer);
    qmp.close();
    readiness.close();
    this.removal = removeRamFile(ramPath);
  }

  async pause(): Promise<void> {
    // The monitor takes both in this order; the second does not wait for an answer to the first.
    const [, answer] = await Promise.all([this.execute('stop'), this.execute('query-status')]);
    const { status } = answer as { status?: unknown };
    if (status !== 'paused' && status !== 'prelaunch')
      throw new FalconError('GUEST_WRONG_STATE', `it is not paused but ${String(status)}`);
  }

  async resume(): Promise<void> {
    await this.execute('cont');
  }

  async dirtyStart(): Promise<void> {
    await this.execute('falcon-dirty-start');
  }

  async dirtyStop(): Promise<void> {
    await this.execute('falcon-dirty-stop');
  }

  async dirtyCollect(path: string): Promise<{ readonly pages: number }> {
    return { pages: await this.count('falcon-dirty-collect', path, 'pages') };
  }

  async saveState(path: string): Promise<{ readonly bytes: number }> {
    return { bytes: await this.count('falcon-save-state', path, 'bytes') };
  }

  async loadState(path: string): Promise<{ readonly bytes: number }> {
    return { bytes: await this.count('falcon-load-state', path, 'bytes') };
  }

  async restartRings(): Promise<void> {
    await this.execute('falcon-restart-rings');
  }

  private async count(command: string, path: string, key: string): Promise<number> {
    const answer = (await this.execute(command, { path })) as Readonly<Record<string, unknown>>;
    const value = answer[key];
    if (typeof value !== 'number') throw new FalconError('QMP_FAILED', `${command}: no ${key} in its answer`);
    return value;
  }

  private execute(command: string, args: Readonly<Record<string, unknown>> = {}): Promise<unknown> {
    if (this.machine === null)
      return Promise.reject(new FalconError('GUEST_WRONG_STATE', `${command}: no guest runs`));
    return this.machine.qmp.execute(command, args);
  }

  private listenForReady(path: string, onReady: () => void): Promise<Server> {
    rmSync(path, { force: true });
    return new Promise((resolve, reject) => {
      let ready = false;
      const server = createServer((socket) => {
        let text = '';
        socket.on('error', () => socket.destroy());
        socket.on('data', (chunk) => {
          text = (text + chunk.toString('latin1')).slice(-64);
          if (ready || !text.includes('ready\n')) return;
          ready = true;
          onReady();
        });
      });
      server.once('error', reject);
      server.listen(path, () => resolve(server));
    });
  }
}

function streamOf(child: ChildProcess, fd: number): Duplex {
  const stream = child.stdio[fd];
  if (!(stream instanceof Duplex))
    throw new FalconError('INTERNAL', `descriptor ${fd} is no pair of sockets`);
  return stream;
}

/** Writes what the guest says to a file that is turned over at its bound. */
function keepConsole(stream: Duplex, path: string): void {
  const file = openSync(path, 'a', 0o600);
  const log = new BoundedLog(file, bounds.consoleLogMaxBytes);
  stream.on('data', (chunk: Buffer) => log.write(chunk));
  stream.once('error', () => stream.destroy());
  stream.once('close', () => closeSync(file));
}
