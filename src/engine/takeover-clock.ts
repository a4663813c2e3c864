/** Times of the last take-over, for the report: how long each part of it took, in milliseconds. */

export interface Takeover {
  readonly view: number;
  /** When the gate opened, on the engine's clock. */
  readonly openedAt: number;
  /** From the last heartbeat of the old primary to standing for election. */
  readonly detectMs: number;
  /** To being elected, view-start appended. */
  readonly electMs: number;
  /** To the guest having taken all input of earlier views. */
  readonly catchUpMs: number;
  /** To the first frame that may leave. */
  readonly gateMs: number;
}

export class TakeoverClock {
  last: Takeover | null = null;
  private heardAt: number | null = null;
  private candidateAt: number | null = null;
  private leadingAt: number | null = null;
  private caughtUpAt: number | null = null;

  heard(at: number): void {
    this.heardAt = at;
    this.candidateAt = null;
  }

  suspect(ofPrimary: boolean, now: number): void {
    if (ofPrimary) this.heardAt ??= now;
  }

  candidate(now: number): void {
    this.candidateAt ??= now;
  }

  leading(now: number): void {
    this.leadingAt = now;
    this.caughtUpAt = null;
  }

  caughtUp(at: number): void {
    this.caughtUpAt ??= at;
  }

  gateOpened(view: number, at: number): void {
    const leadingAt = this.leadingAt ?? at;
    const candidateAt = Math.min(this.candidateAt ?? leadingAt, leadingAt);
    const caughtUpAt = this.caughtUpAt ?? at;
    this.last = {
      view,
      openedAt: at,
      detectMs: candidateAt - (this.heardAt ?? candidateAt),
      electMs: leadingAt - candidateAt,
      catchUpMs: caughtUpAt - leadingAt,
      gateMs: at - caughtUpAt,
    };
  }
}
