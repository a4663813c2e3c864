/** What an engine knows of the other members beside consensus: connections, what broke them, and their guests. */
import type { Milliseconds, NodeId } from '../consensus/types.js';
import type { PlaneProgress } from '../ports/data-plane.js';
import type { PeerFacts } from '../transfer/types.js';
import { noGuest } from '../wire/engine-mail.js';
import type { GuestReport } from '../wire/engine-mail.js';
import type { Op } from '../wire/viewstamp.js';

/** Why a peer's connection, or its feed, came to an end. */
export interface PeerTrouble {
  readonly code: string;
  readonly detail: string;
  readonly at: Milliseconds;
}

export interface PeerLinkState {
  readonly trouble: PeerTrouble | null;
  readonly breaks: number;
}

export type LinkProgress = Pick<PlaneProgress, 'heard' | 'acked' | 'wordsAt' | 'commitOp'>;

export class Peers {
  readonly connected = new Set<NodeId>();
  readonly reports = new Map<NodeId, GuestReport>();
  /** Connections made to each peer, counted as the data plane counts them. */
  private readonly generations = new Map<NodeId, number>();
  /** When a peer's mail came last, and when anything else showed that it lives. */
  private readonly mailAt = new Map<NodeId, Milliseconds>();
  private readonly lifeAt = new Map<NodeId, Milliseconds>();
  /** When a follower's log had all that is committed, or grew, last. */
  private readonly levelAt = new Map<NodeId, Milliseconds>();
  private readonly ackedOp = new Map<NodeId, Op | null>();
  private watchedAt: Milliseconds = 0;
  private readonly links = new Map<NodeId, PeerLinkState>();

  up(peer: NodeId, now: Milliseconds): void {
    this.mailAt.set(peer, now);
    this.lifeAt.set(peer, now);
    this.levelAt.set(peer, now);
    this.generations.set(peer, (this.generations.get(peer) ?? 0) + 1);
    this.connected.add(peer);
  }

  down(peer: NodeId, trouble: PeerTrouble): void {
    if (this.connected.delete(peer)) this.note(peer, trouble, true);
    this.reports.delete(peer);
  }

  mail(peer: NodeId, now: Milliseconds): void {
    this.mailAt.set(peer, now);
  }

  /**
   * Connected members that live and to whom, or from whom, something does not get through for longer than `silenceMs`:
   * mail, which all send at short intervals, or committed entries. A record that was damaged in a ring, by a late write
   * of an earlier connection say, is waited for for ever: only a new connection has an end of it.
   */
  silent(now: Milliseconds, silenceMs: Milliseconds, progress: LinkProgress): NodeId[] {
    const { heard, acked, wordsAt, commitOp } = progress;
    if (heard !== null) this.lifeAt.set(heard.from, Math.max(heard.at, this.lifeAt.get(heard.from) ?? 0));
    for (const peer of this.connected) {
      const op = acked[peer] ?? null;
      const moved = op !== this.ackedOp.get(peer);
      this.lifeAt.set(peer, Math.max(wordsAt[peer] ?? 0, this.lifeAt.get(peer) ?? 0));
      if (op !== null && moved) this.lifeAt.set(peer, now);
      if (op === null || op >= commitOp || moved) this.levelAt.set(peer, now);
      this.ackedOp.set(peer, op);
      // What came while this process stood still has not been read yet.
      if (now - this.watchedAt > silenceMs / 4) {
        this.mailAt.set(peer, now);
        this.levelAt.set(peer, now);
      }
    }
    this.watchedAt = now;
    return [...this.connected].filter(
      (peer) =>
        (this.lifeAt.get(peer) ?? 0) - (this.mailAt.get(peer) ?? 0) > silenceMs ||
        // By its mail it lives; one that is paused is none of this.
        (this.mailAt.get(peer) ?? 0) - (this.levelAt.get(peer) ?? 0) > silenceMs,
    );
  }

  /** What an earlier incarnation of the peer said must not be taken for this one's word. */
  isCurrent(peer: NodeId, generation: number): boolean {
    return generation === this.generations.get(peer);
  }

  note(peer: NodeId, trouble: PeerTrouble, broke: boolean): void {
    this.links.set(peer, { trouble, breaks: this.link(peer).breaks + (broke ? 1 : 0) });
  }

  link(peer: NodeId): PeerLinkState {
    return this.links.get(peer) ?? { trouble: null, breaks: 0 };
  }

  report(peer: NodeId): GuestReport {
    return this.reports.get(peer) ?? noGuest;
  }

  /** Those that are there and whose guest is a whole copy. */
  withGuest(): NodeId[] {
    return [...this.reports.keys()].filter((peer) => this.report(peer).ready && this.connected.has(peer));
  }

  /** For the source of a state transfer. `acked`: by member, null for those that do not follow. */
  facts(nodes: readonly NodeId[], acked: readonly (Op | null)[]): PeerFacts[] {
    return nodes.map((node) => {
      const { ready, bootOp, syncOp } = this.report(node);
      const reachable = this.connected.has(node) && this.reports.has(node) && acked[node] !== null;
      return { node, reachable, whole: ready, booting: !ready && bootOp > 0, syncOp };
    });
  }
}
