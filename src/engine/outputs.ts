/** Joins the core of output checking to the data plane and to the other replicas. */
import { OutputLedger } from '../output/ledger.js';
import type { LedgerEffect, LedgerEvent, LedgerOptions } from '../output/types.js';
import type { NodeId } from '../consensus/types.js';
import { messageOf } from '../lib/errors.js';
import type { Clock } from '../ports/clock.js';
import { entryKinds } from '../ports/data-plane.js';
import type { DataPlane } from '../ports/data-plane.js';
import { decodeDue, decodeVerdicts } from '../wire/output-check.js';
import { decodeOutputMail, encodeOutputMail } from '../wire/output-mail.js';

export interface OutputPorts {
  readonly plane: DataPlane;
  readonly clock: Clock;
  log(level: 'debug' | 'info' | 'warn' | 'error', text: string, fields?: Record<string, unknown>): void;
  fail(why: string): void;
  /** A state transfer would make this member's guest right. */
  heal(member: NodeId, reason: string): void;
  transferTo(member: NodeId): void;
}

export class OutputChecks {
  readonly ledger: OutputLedger;
  /** Heals that were asked for, newest last. */
  healsWanted = 0;
  private readonly ports: OutputPorts;

  constructor(options: LedgerOptions, ports: OutputPorts) {
    this.ledger = new OutputLedger(options);
    this.ports = ports;
  }

  onDue(bytes: Uint8Array): void {
    this.step({ type: 'due', now: this.ports.clock.now(), ...decodeDue(bytes) });
  }

  onCheck(view: number, op: number, payload: Uint8Array): void {
    this.step({ type: 'check', now: this.ports.clock.now(), view, op, payload });
  }

  onVerdicts(bytes: Uint8Array): void {
    this.step({ type: 'verdicts', now: this.ports.clock.now(), records: decodeVerdicts(bytes) });
  }

  onMail(from: NodeId, bytes: Uint8Array): void {
    const mail = decodeOutputMail(bytes);
    if (mail === null) return this.ports.log('warn', 'malformed mail', { from });
    this.step({ type: 'mail', now: this.ports.clock.now(), from, mail });
  }

  setPrimary(view: number, primary: NodeId | null): void {
    this.step({ type: 'primary', now: this.ports.clock.now(), view, primary });
  }

  /** The member's guest is a copy of the primary's, or was started anew. */
  healed(member: NodeId): void {
    this.step({ type: 'healed', member });
  }

  tick(guests: readonly NodeId[]): void {
    this.step({ type: 'guests', members: guests });
    this.step({ type: 'tick', now: this.ports.clock.now() });
  }

  private step(event: LedgerEvent): void {
    const effects: LedgerEffect[] = [];
    try {
      this.ledger.step(event, effects);
    } catch (error) {
      return this.ports.fail(`INVARIANT_BROKEN ${messageOf(error)}`);
    }
    for (const effect of effects) this.carryOut(effect);
  }

  private carryOut(effect: LedgerEffect): void {
    const { plane } = this.ports;
    switch (effect.type) {
      case 'propose':
        return plane.propose(entryKinds.outputCheck, effect.payload);
      case 'mail':
        return plane.sendMail(effect.to, encodeOutputMail(effect.mail));
      case 'heal':
        this.healsWanted++;
        this.ports.log('warn', 'OUTPUT_DIVERGED: a backup is to be healed', {
          peer: effect.member,
          why: effect.reason,
        });
        return this.ports.heal(effect.member, effect.reason);
      case 'primary-diverged':
        this.ports.log('error', 'PRIMARY_DIVERGED: a majority of guests says something else', {
          why: effect.reason,
        });
        if (effect.transferTo !== null) this.ports.transferTo(effect.transferTo);
        return;
      case 'divergence': {
        const { member, ...fields } = effect.divergence;
        return this.ports.log('warn', 'OUTPUT_DIVERGED: a guest said something else', {
          peer: member,
          ...fields,
        });
      }
    }
  }
}
