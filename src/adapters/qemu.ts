/**
 * The guest as a QEMU process: patched QEMU on this replica's rings, with the tap that falcond has opened.
 *
 * QEMU attaches to falcond's socket by itself and ends by itself when that socket ends, so neither outlives the
 * other. The guest says that its service answers through a virtio-serial port that ends in a socket here.
 */
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { closeSync, existsSync, openSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import type { Server } from 'node:net';
import { join } from 'node:path';

import { bounds } from '../lib/bounds.js';
import { FalconError, messageOf } from '../lib/errors.js';
import { qemuArguments } from './qemu-arguments.js';
import type { QemuMachine } from './qemu-arguments.js';
import type { GuestCallbacks, GuestRunner } from '../ports/guest.js';

export interface QemuOptions extends Omit<QemuMachine, 'netdev'> {
  readonly tapFd: number;
  readonly vmSocket: string;
  readonly readyTimeoutMs: number;
}

export class QemuGuest implements GuestRunner {
  private readonly options: QemuOptions;
  private child: ChildProcess | null = null;
  /** The start before. */
  private last: Promise<void> = Promise.resolve();
  private readiness: Server | null = null;
  private readyTimer: NodeJS.Timeout | null = null;

  constructor(options: QemuOptions) {
    this.options = options;
    for (const path of [options.binary, options.kernel, options.initrd]) {
      if (!existsSync(path)) throw new FalconError('QEMU_FAILED', `no ${path}`);
    }
  }

  get pid(): number | null {
    return this.child?.pid ?? null;
  }

  start(callbacks: GuestCallbacks): Promise<void> {
    const started = this.last.then(() => this.begin(callbacks));
    this.last = started.catch(() => undefined);
    return started;
  }

  private async begin(callbacks: GuestCallbacks): Promise<void> {
    await this.stop();
    callbacks.onEmpty();
    const { directory, readySocket, tapFd } = this.options;
    let ready = false;
    this.readiness = await this.listenForReady(readySocket, () => {
      if (ready) return;
      ready = true;
      if (this.readyTimer !== null) clearTimeout(this.readyTimer);
      callbacks.onReady();
    });
    const output = openSync(join(directory, 'qemu.log'), 'w', 0o600);
    let child: ChildProcess;
    try {
      // Descriptor 3 in the child is the tap.
      child = spawn(
        this.options.binary,
        qemuArguments({ ...this.options, netdev: `fd=3,falcon=${this.options.vmSocket}` }),
        {
          stdio: ['ignore', output, output, tapFd],
        },
      );
    } finally {
      closeSync(output);
    }
    this.child = child;
    child.once('error', (error) => callbacks.onExit(`QEMU_FAILED ${messageOf(error)}`));
    child.once('exit', (code, signal) => {
      if (this.child !== child) return;
      this.child = null;
      const how = code ?? signal ?? 'nothing';
      callbacks.onExit(`QEMU_LOST it ended with ${how}; see ${join(directory, 'qemu.log')}`);
    });
    this.readyTimer = setTimeout(() => {
      if (!ready) callbacks.onExit(`GUEST_NOT_READY within ${this.options.readyTimeoutMs} ms`);
    }, this.options.readyTimeoutMs);
  }

  async stop(): Promise<void> {
    if (this.readyTimer !== null) clearTimeout(this.readyTimer);
    this.readyTimer = null;
    const { child, readiness } = this;
    this.child = null;
    this.readiness = null;
    readiness?.close();
    if (child === null || child.exitCode !== null || child.signalCode !== null) return;
    const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    child.kill('SIGTERM');
    const timer = setTimeout(() => child.kill('SIGKILL'), bounds.guestStopMs);
    await ended;
    clearTimeout(timer);
  }

  private listenForReady(path: string, onReady: () => void): Promise<Server> {
    rmSync(path, { force: true });
    return new Promise((resolve, reject) => {
      const server = createServer((socket) => {
        let text = '';
        socket.on('error', () => socket.destroy());
        socket.on('data', (chunk) => {
          text = (text + chunk.toString('latin1')).slice(-64);
          if (text.includes('ready\n')) onReady();
        });
      });
      server.once('error', reject);
      server.listen(path, () => resolve(server));
    });
  }
}
