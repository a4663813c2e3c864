/** What a replica tells about itself: the answer to `status` on the admin socket. */

export type GuestState = 'none' | 'booting' | 'ready' | 'filling' | 'lost';

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
  readonly counters: Readonly<Record<string, number>>;
  readonly lastTakeover?: TakeoverStatus;
}

/** A row of `falcon status`: a replica's answer, or why there is none. */
export type StatusRow =
  | ReplicaStatus
  | { readonly node: string; readonly error: { readonly code: string; readonly message: string } };
