/** What a replica tells about itself: the answer to `status` on the admin socket. */

export type GuestState = 'none' | 'booting' | 'ready' | 'lost';

export interface PeerStatus {
  readonly name: string;
  readonly connected: boolean;
  /** The highest op that the peer has acknowledged as durable; null: not known here. */
  readonly ackedOp: number | null;
  /** Whether the peer has a guest that could take over. */
  readonly guest: boolean;
}

export interface TakeoverStatus {
  readonly view: number;
  /** ISO 8601, for people to read. */
  readonly at: string;
  readonly detectMs: number;
  readonly electMs: number;
  readonly catchUpMs: number;
  readonly gateMs: number;
}

/** What one application (a port of the guest) has said, and this replica's verdicts on it. */
export interface OutputStatus {
  readonly port: number;
  readonly flowsEnded: number;
  readonly flowsCut: number;
  readonly bytes: number;
  readonly datagrams: number;
  readonly datagramBytes: number;
  readonly agreed: number;
  readonly late: number;
  readonly diverged: number;
  readonly skipped: number;
  readonly unchecked: number;
  /** Over all ended connections: equal on replicas whose guests said the same. */
  readonly summary: string;
}

/** One place where a guest said something else than the primary's. */
export interface DivergenceStatus {
  readonly view: number;
  readonly op: number;
  readonly index: number;
  readonly member: string;
  readonly client: string;
  /** Tells connections on the same ports apart. */
  readonly clientIss: number;
  readonly port: number;
  /** This much of the connection's output was compared, and this much had been equal before. */
  readonly position: number;
  readonly agreed: number;
  /** Why the replica had lost the connection before; empty: it had not. */
  readonly cause: string;
  readonly firstDifferent: number | null;
  /** Hexadecimal, from position `from` on; null: this replica does not know. */
  readonly expected: string | null;
  readonly found: string;
  readonly from: number;
}

/** The answer to `divergence` on the admin socket. */
export interface DivergenceReport {
  readonly node: string;
  readonly role: ReplicaStatus['role'];
  readonly checks: number;
  readonly applications: readonly OutputStatus[];
  /** On a primary: verdicts that the others have reported. */
  readonly members: readonly {
    readonly node: string;
    readonly agreed: number;
    readonly late: number;
    readonly diverged: number;
    readonly skipped: number;
  }[];
  readonly healsWanted: number;
  /** The first that were seen, and the newest. */
  readonly divergences: readonly DivergenceStatus[];
}

export interface ReplicaStatus {
  readonly node: string;
  readonly index: number;
  readonly pid: number;
  readonly uptimeMs: number;
  readonly version: string;
  readonly cluster: string;
  readonly role: 'primary' | 'backup' | 'candidate' | 'witness';
  readonly view: number;
  /** Name of the primary of `view`; null: not known. */
  readonly primary: string | null;
  readonly lastOp: number;
  readonly durableOp: number;
  readonly commitOp: number;
  readonly deliveredOp: number;
  /** Committed ops that this replica's guest has not been given yet. */
  readonly lagOps: number;
  readonly lease: { readonly held: boolean; readonly remainingMs: number | null };
  /** `armed`: open as far as the election goes, and waiting for the guest or the lease. */
  readonly gate: 'open' | 'closed' | 'armed';
  /** As a primary it lets input in: enough guests are ready. */
  readonly admitted: boolean;
  readonly guest: {
    readonly state: GuestState;
    /** Counts the boots of this replica's guest. */
    readonly epoch: number;
    readonly pid: number | null;
  };
  readonly durability: 'disk' | 'memory';
  readonly fabric: string;
  readonly lan: 'flood' | 'learn';
  /** The log lost entries that may have been acknowledged: the replica does not vote until it has caught up. */
  readonly recovering: boolean;
  readonly peers: readonly PeerStatus[];
  readonly outputs: readonly OutputStatus[];
  readonly counters: Readonly<Record<string, number>>;
  readonly lastTakeover?: TakeoverStatus;
}

/** A row of `falcon status`: a replica's answer, or why there is none. */
export type StatusRow =
  | ReplicaStatus
  | { readonly node: string; readonly error: { readonly code: string; readonly message: string } };
