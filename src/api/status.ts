/** What a replica tells about itself: the answer to `status` on the admin socket. */

export type GuestState = 'none' | 'booting' | 'ready' | 'filling' | 'lost';

export interface PeerStatus {
  readonly name: string;
  readonly connected: boolean;
  /** `lost`: this primary cannot feed it. */
  readonly state: 'up' | 'down' | 'lost';
  /** Why it is not up, or was not when it last was not. */
  readonly trouble: {
    readonly code: string;
    readonly detail: string;
    /** ISO 8601, for people to read. */
    readonly at: string;
  } | null;
  /** How often its connection has broken since this replica started. */
  readonly breaks: number;
  /** The highest op that the peer has acknowledged as durable; null: not known here. */
  readonly ackedOp: number | null;
  /** Its log ended before this primary's and began anew at this op when it was connected last; null: it went on. */
  readonly anewFromOp: number | null;
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

/** A session of state transfer that is over, as its source saw it. */
export interface SyncRecord {
  readonly target: string;
  /** When it began. */
  readonly at: string;
  readonly reason: 'fill' | 'diverged' | 'asked';
  readonly ok: boolean;
  /** Why it was given up; empty if it was not. */
  readonly why: string;
  /** Op of the vm-sync entry behind which both guests were equal; 0: it did not come so far. */
  readonly op: number;
  /** Only pages changed since an earlier session were looked at. */
  readonly based: boolean;
  readonly rounds: number;
  /** Pages of 4096 bytes, in all rounds: looked at = equal + sent + found. */
  readonly pages: number;
  readonly equal: number;
  readonly sent: number;
  /** Of those sent: only the blocks that differ. */
  readonly partial: number;
  /** Differed, and the target had their contents at other places of its memory. */
  readonly found: number;
  /** Of contents sent. */
  readonly bytes: number;
  /** Of page sets and digests, both ways. */
  readonly overheadBytes: number;
  /** Of the last round, while both guests stood still. */
  readonly finalPages: number;
  readonly finalSent: number;
  readonly stateBytes: number;
  readonly digestMs: number;
  readonly waitMs: number;
  readonly refineMs: number;
  readonly moveMs: number;
  readonly durationMs: number;
  /** How long the source's guest stood still. */
  readonly pauseMs: number;
  /** What the pause went to. The last round runs while the state is saved; `send` begins when both are done. */
  readonly pauseParts: {
    readonly stopMs: number;
    readonly collectMs: number;
    readonly roundMs: number;
    readonly saveMs: number;
    readonly sendMs: number;
    readonly resumeMs: number;
  };
}

/** Two guests compared at one viewstamp, as the source saw it. Nothing was changed. */
export interface VerifyResult {
  readonly source: string;
  readonly target: string;
  readonly reason: 'verify';
  readonly ok: boolean;
  /** Why it was given up; empty if it was not. */
  readonly why: string;
  /** The viewstamp of the vm-sync entry behind which both guests stood; op 0: it did not come so far. */
  readonly view: number;
  readonly op: number;
  readonly durationMs: number;
  /** How long the source's guest stood still. */
  readonly pauseMs: number;
  /** null: it was given up. */
  readonly findings: {
    /** Pages of 4096 bytes that are not empty on both sides; and the numbers of the first that differ. */
    readonly pages: number;
    readonly equal: number;
    readonly differing: number;
    readonly firstPages: readonly number[];
    /** Devices, and memories beside the main one, that either side has. `trouble`: why they could not be told apart. */
    readonly devices: {
      readonly parts: number;
      readonly differing: readonly { readonly name: string; readonly bytes: number; readonly of: number }[];
      readonly trouble: string | null;
    };
    /** The service of `vm: none`; null: there is none. */
    readonly service: 'equal' | 'different' | null;
    /** Open connections, and those that only one side has, or that have come further on one. */
    readonly flows: number;
    readonly flowsDiffering: number;
    /** Frames that the guests had not taken yet. */
    readonly framesWaiting: { readonly source: number; readonly target: number };
    /** How long delivery stood at the target. */
    readonly targetPauseMs: number;
  } | null;
}

export interface SyncStatus {
  /** The session that runs; null: none. */
  readonly active: {
    readonly role: 'source' | 'target';
    readonly peer: string;
    readonly phase: string;
    readonly rounds: number;
    readonly pages: number;
    readonly sent: number;
  } | null;
  /** Sessions of this replica as the source, newest last. */
  readonly last: readonly SyncRecord[];
  /** The guest is being compared with a peer's; null: it is not. */
  readonly verifying: {
    readonly role: 'source' | 'target';
    readonly peer: string;
    readonly phase: string;
  } | null;
  readonly verified: readonly VerifyResult[];
}

/** The RDMA port of a replica, and what its queue pairs did. */
export interface RdmaStatus {
  readonly device: string;
  readonly port: number;
  /** null: none is used, the LID is the address. */
  readonly gid: string | null;
  readonly gidIndex: number | null;
  readonly linkLayer: string;
  readonly mtuBytes: number;
  /** What the device granted. */
  readonly inlineBytes: number;
  /** Work requests, the fabric's own included, and how many of them asked for a completion. */
  readonly posted: number;
  readonly signaled: number;
  readonly signaledFraction: number;
  /** Of the writes: copied into the work request; copied into registered memory first. */
  readonly inlined: number;
  readonly inlineFraction: number;
  readonly staged: number;
  readonly stagedFraction: number;
  /** Reads of a word, made only to learn of the completion of others. */
  readonly probes: number;
  /** The device's own counters of repeats, by its names, for all that use the port; null: it tells none. */
  readonly retries: Readonly<Record<string, number>> | null;
}

/** What crossed the fabric since the start. */
export interface LinkStatus {
  readonly writes: number;
  readonly writtenBytes: number;
  readonly reads: number;
  readonly wakesSent: number;
  readonly wakesReceived: number;
  /** Operations refused or failed. */
  readonly errors: number;
  /** null: the fabric is not verbs. */
  readonly rdma: RdmaStatus | null;
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
  /** The first op that the log on disk still holds. */
  readonly firstOp: number;
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
  readonly link: LinkStatus;
  /** Who was not let in: wrong secret, wrong version, anything else wrong, gone before a hello was said. */
  readonly refused: {
    readonly secret: number;
    readonly version: number;
    readonly other: number;
    readonly unfinished: number;
  };
  readonly lan: 'flood' | 'learn';
  /** The log lost entries that may have been acknowledged: the replica does not vote until it has caught up. */
  readonly recovering: boolean;
  readonly peers: readonly PeerStatus[];
  readonly sync: SyncStatus;
  readonly outputs: readonly OutputStatus[];
  readonly counters: Readonly<Record<string, number>>;
  readonly lastTakeover?: TakeoverStatus;
}

/** A row of `falcon status`: a replica's answer, or why there is none. */
export type StatusRow =
  | ReplicaStatus
  | { readonly node: string; readonly error: { readonly code: string; readonly message: string } };
