/**
 * What sessions tell the guest, one after the other, in the order in which it was asked for: a guest must not be resumed
 * before the stop that is under way. And which pages it has changed, which every session that asks takes from all others.
 */
import { messageOf } from '../lib/errors.js';
import type { GuestRunner } from '../ports/guest.js';
import type { SessionId } from '../wire/transfer-messages.js';
import type { StateTransferPorts } from './types.js';

/** The answers of a guest that is made to stand still, in the order in which they come. */
export interface Freeze {
  readonly session: SessionId;
  readonly paused: Promise<void>;
  /** Pages that it had changed by then. */
  readonly collected: Promise<number>;
  readonly saved: Promise<unknown>;
}

export class GuestQueue {
  /** The dirty log is on. */
  tracking = false;
  private readonly ports: Pick<StateTransferPorts, 'plane' | 'guest' | 'keeper' | 'log'>;
  private readonly dirtyFile: string;
  /** What has changed since any common point is not known any more. */
  private readonly lost: () => void;
  private turn = 0;
  private last: Promise<void> = Promise.resolve();
  private queued = 0;

  constructor(
    ports: Pick<StateTransferPorts, 'plane' | 'guest' | 'keeper' | 'log'>,
    dirtyFile: string,
    lost: () => void,
  ) {
    this.ports = ports;
    this.dirtyFile = dirtyFile;
    this.lost = lost;
  }

  get busy(): boolean {
    return this.queued > 0;
  }

  /** Pages changed since the last collection, told to the native side; 0 when only now changes begin to be noted. */
  async collect(guest: GuestRunner, session: SessionId): Promise<number> {
    if (!this.tracking) {
      await guest.dirtyStart();
      this.tracking = true;
      return 0;
    }
    // The one before may not have been read yet. The one before that has: a session that asks has been opened since, or
    // has had an answer to a round.
    this.turn = 1 - this.turn;
    const dirtyFile = `${this.dirtyFile}${this.turn}`;
    try {
      const { pages } = await guest.dirtyCollect(dirtyFile);
      this.ports.plane.transferCollected(session, dirtyFile);
      return pages;
    } catch (error) {
      // It may have been done all the same: then nobody knows of these changes any more, whatever they are counted against.
      this.lost();
      this.ports.plane.transferForget(null);
      throw error;
    }
  }

  /**
   * Stop, changes and state are asked for at once: a guest carries out what it is told in that order, and nobody waits for
   * an answer before the next is asked. What comes of it counts even if its session is given up meanwhile.
   */
  freeze(guest: GuestRunner, session: SessionId, stateFile: string): Freeze {
    // Who has given up asks for none of them.
    const asked = <T>(answer: Promise<T>): Promise<T> => {
      answer.catch(() => undefined);
      return answer;
    };
    const paused = asked(guest.pause());
    const collected = asked(this.collect(guest, session));
    return { session, paused, collected, saved: asked(guest.saveState(stateFile)) };
  }

  enqueue(work: (guest: GuestRunner) => Promise<void>): void {
    const { guest } = this.ports;
    if (guest === null) return;
    this.queued++;
    this.last = this.last
      .then(() => work(guest))
      .catch((error: unknown) => this.ports.log('warn', messageOf(error)))
      .finally(() => this.queued--);
  }

  /** A guest that stands still for ever is none: then this replica is better off without it. */
  async resume(guest: GuestRunner): Promise<void> {
    try {
      await guest.resume();
    } catch (first) {
      this.ports.log('warn', messageOf(first));
      try {
        await guest.resume();
      } catch (error) {
        if (this.ports.keeper.state === 'ready')
          this.ports.keeper.onExit(`QEMU_LOST it does not go on: ${messageOf(error)}`);
        throw error;
      }
    }
  }
}
