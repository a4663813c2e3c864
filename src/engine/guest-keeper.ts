/**
 * The guest of one replica, from boot to loss: whether there is one, since which vm-boot it lives, whether it is
 * a whole copy, and whether input is let in. What the others are told of it is `own`.
 */
import type { GuestRunner } from '../ports/guest.js';
import type { DataPlane } from '../ports/data-plane.js';
import type { Op } from '../wire/viewstamp.js';
import { messageOf } from '../lib/errors.js';
import { noGuest } from '../wire/engine-mail.js';
import type { GuestReport } from '../wire/engine-mail.js';

export type GuestState =
  | 'none'
  | 'booting'
  | 'ready'
  /** A state transfer fills it: it is no copy of anything. */
  | 'filling'
  | 'lost';

export interface GuestPorts {
  readonly plane: DataPlane;
  readonly guest: GuestRunner | null;
  log(level: 'debug' | 'info' | 'warn' | 'error', text: string, fields?: Record<string, unknown>): void;
  fail(why: string): void;
  now(): number;
  /** Whether the guest is a whole copy has changed. */
  changed(whole: boolean): void;
}

export class GuestKeeper {
  state: GuestState = 'none';
  boots = 0;
  /** Frames from the network are proposed when this replica leads. */
  admitted = false;
  own: GuestReport = noGuest;
  lastBootOp: Op = 0;
  /** Since when the guest is ready; null: it is not. */
  readyAt: number | null = null;
  private attached = false;
  private stopped = false;
  private readonly ports: GuestPorts;

  constructor(ports: GuestPorts) {
    this.ports = ports;
  }

  stop(): void {
    this.stopped = true;
  }

  /** A vm-boot has come through the log, and it is this replica's to carry out. */
  boot(op: Op): void {
    const { guest, plane } = this.ports;
    if (guest === null) return;
    this.own = { ...noGuest, bootOp: op };
    this.admitted = false;
    this.state = 'booting';
    this.readyAt = null;
    this.boots++;
    this.attached = false;
    plane.admitInput(false);
    this.ports.log('info', 'the guest boots', { bootOp: op });
    const started = guest.start({
      // Only when the guest of an earlier boot has left the rings are they made empty.
      onEmpty: () => plane.expectGuest(),
      onReady: () => this.onReady(op),
      onExit: (reason) => this.onExit(reason),
    });
    started.catch((error: unknown) => this.ports.fail(`QEMU_FAILED ${messageOf(error)}`));
    this.ports.changed(false);
  }

  private onReady(bootOp: Op): void {
    if (this.stopped || this.own.bootOp !== bootOp || this.state !== 'booting') return;
    this.state = 'ready';
    this.readyAt = this.ports.now();
    this.own = { ...this.own, ready: true };
    this.ports.log('info', 'the guest is ready', { bootOp });
    this.ports.plane.setGuest('running', bootOp);
    this.ports.changed(true);
  }

  /** The guest ended without having been told to. The replica goes on without one, and is filled again. */
  onExit(reason: string): void {
    if (this.stopped || this.state === 'none' || this.state === 'lost') return;
    // What cannot even boot would not be mended by a copy.
    if (this.state === 'booting') return this.ports.fail(reason);
    this.ports.log('error', reason);
    this.leave('lost');
  }

  onAttached(): void {
    this.attached = true;
    this.ports.log('debug', 'the guest has attached');
  }

  onDetached(): void {
    // One that was stopped for a new boot leaves too.
    if (this.attached && (this.state === 'booting' || this.state === 'ready'))
      this.onExit('QEMU_LOST the guest is gone');
    this.attached = false;
  }

  /** A state transfer begins: what this guest holds is no copy any more. */
  beginFilling(): void {
    this.leave('filling');
  }

  /** Whatever was there is ended. */
  leave(state: 'none' | 'filling' | 'lost'): void {
    this.state = state;
    this.readyAt = null;
    this.own = noGuest;
    this.admitted = false;
    this.ports.plane.admitInput(false);
    this.ports.plane.setGuest('none', 0);
    this.ports.changed(false);
  }

  /** The guest is a whole copy as of vm-sync `op`, of one that was booted at `bootOp`. */
  becomeWhole(op: Op, bootOp: Op): void {
    this.state = 'ready';
    this.readyAt = this.ports.now();
    this.own = { bootOp, ready: true, admittedBootOp: 0, syncOp: op };
    this.lastBootOp = Math.max(this.lastBootOp, bootOp);
    this.ports.log('info', 'the guest is a whole copy', { op, bootOp });
    this.ports.changed(true);
  }

  admit(): void {
    if (this.admitted) return;
    this.admitted = true;
    this.own = { ...this.own, admittedBootOp: this.own.bootOp };
    this.ports.plane.admitInput(true);
    this.ports.log('info', 'input is admitted', { bootOp: this.own.bootOp });
  }

  /** For a target: could it be filled, and in place? */
  get fillable(): 'none' | 'busy' | 'live' {
    if (this.state === 'ready') return 'live';
    return this.state === 'booting' ? 'busy' : 'none';
  }
}
