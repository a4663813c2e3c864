/** What an engine knows of the other members beside consensus: connections, what broke them, and their guests. */
import type { Milliseconds, NodeId } from '../consensus/types.js';
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

export class Peers {
  readonly connected = new Set<NodeId>();
  readonly reports = new Map<NodeId, GuestReport>();
  /** Connections made to each peer, counted as the data plane counts them. */
  private readonly generations = new Map<NodeId, number>();
  private readonly links = new Map<NodeId, PeerLinkState>();

  up(peer: NodeId): void {
    this.generations.set(peer, (this.generations.get(peer) ?? 0) + 1);
    this.connected.add(peer);
  }

  down(peer: NodeId, trouble: PeerTrouble): void {
    if (this.connected.delete(peer)) this.note(peer, trouble, true);
    this.reports.delete(peer);
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

  /** For the source of a state transfer. `acked`: by member, null for those that do not follow. */
  facts(nodes: readonly NodeId[], acked: readonly (Op | null)[]): PeerFacts[] {
    return nodes.map((node) => {
      const { ready, bootOp, syncOp } = this.report(node);
      const reachable = this.connected.has(node) && this.reports.has(node) && acked[node] !== null;
      return { node, reachable, whole: ready, booting: !ready && bootOp > 0, syncOp };
    });
  }
}
