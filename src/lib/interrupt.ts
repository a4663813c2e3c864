/** Ctrl-C and SIGTERM as something that can be asked and waited for. */
import { FalconError } from './errors.js';

export class Interrupt {
  private caught: NodeJS.Signals | null = null;
  private waiters: (() => void)[] = [];
  private readonly onSignal = (name: NodeJS.Signals): void => {
    this.caught ??= name;
    for (const wake of this.waiters.splice(0)) wake();
  };

  /** Catches the signals from now on, until dispose(). */
  constructor() {
    process.on('SIGINT', this.onSignal);
    process.on('SIGTERM', this.onSignal);
    process.on('SIGHUP', this.onSignal);
  }

  get signal(): NodeJS.Signals | null {
    return this.caught;
  }

  /** Errors: INTERRUPTED if a signal has come. */
  check(): void {
    if (this.caught !== null) throw new FalconError('INTERRUPTED', `by ${this.caught}`);
  }

  /** Returns after `milliseconds`, or at once when a signal comes. */
  pause(milliseconds: number): Promise<void> {
    if (this.caught !== null) return Promise.resolve();
    return new Promise((resolve) => {
      const timer = setTimeout(() => {
        this.waiters = this.waiters.filter((waiter) => waiter !== wake);
        resolve();
      }, milliseconds);
      const wake = (): void => {
        clearTimeout(timer);
        resolve();
      };
      this.waiters.push(wake);
    });
  }

  /** Lets the signals through again, and wakes who still waits. */
  dispose(): void {
    for (const wake of this.waiters.splice(0)) wake();
    process.off('SIGINT', this.onSignal);
    process.off('SIGTERM', this.onSignal);
    process.off('SIGHUP', this.onSignal);
  }
}
