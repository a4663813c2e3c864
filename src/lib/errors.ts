/**
 * Every error that Falcon reports, in one table.
 *
 * A code is what the command line, the logs, the admin interface and the native code have in common; the
 * wording lives here and nowhere else. What went wrong in particular (a path, a peer, errno's text) is the
 * `detail` that comes with the code.
 */

export type Severity =
  /** Something is wrong, and the work goes on. */
  | 'warning'
  /** What was asked for was not done. */
  | 'error'
  /** The replica stops: a silent replica is safe. */
  | 'fatal';

export const exitCodes = {
  ok: 0,
  failure: 1,
  usage: 2,
  configuration: 3,
  unreachable: 4,
  alreadyRunning: 5,
  notInitialised: 6,
  timeout: 7,
  refused: 8,
  storage: 9,
  interrupted: 130,
} as const;

/** The exit codes as `--help` and the manual list them. */
export const exitCodeTable: readonly (readonly [code: number, meaning: string])[] = [
  [exitCodes.ok, 'done'],
  [exitCodes.failure, 'failed'],
  [exitCodes.usage, 'wrong usage'],
  [exitCodes.configuration, 'wrong configuration or secret'],
  [exitCodes.unreachable, 'a daemon does not answer'],
  [exitCodes.alreadyRunning, 'already running, or the cluster exists already'],
  [exitCodes.notInitialised, 'the directory holds no cluster'],
  [exitCodes.timeout, 'not done in time'],
  [exitCodes.refused, 'refused by the daemon'],
  [exitCodes.storage, 'log or vote file lost, damaged or not writable'],
  [exitCodes.interrupted, 'interrupted'],
];

interface ErrorRow {
  readonly severity: Severity;
  readonly exit: number;
  readonly text: string;
}

const x = exitCodes;

export const errorTable = {
  // the command line and the configuration
  USAGE: { severity: 'error', exit: x.usage, text: 'wrong usage' },
  CONFIG_INVALID: { severity: 'error', exit: x.configuration, text: 'the configuration is not valid' },
  CONFIG_UNREADABLE: { severity: 'error', exit: x.configuration, text: 'the configuration cannot be read' },
  SECRET_MODE: { severity: 'error', exit: x.configuration, text: 'the secret must be a file of mode 0600' },
  SECRET_WRONG: { severity: 'error', exit: x.configuration, text: 'the cluster secret is missing or wrong' },
  CLUSTER_EXISTS: {
    severity: 'error',
    exit: x.alreadyRunning,
    text: 'the directory already holds a cluster',
  },
  NOT_INITIALISED: { severity: 'error', exit: x.notInitialised, text: 'the directory holds no cluster' },
  ALREADY_RUNNING: { severity: 'error', exit: x.alreadyRunning, text: 'already running' },
  START_FAILED: { severity: 'error', exit: x.failure, text: 'the cluster did not start' },
  STOP_FAILED: { severity: 'error', exit: x.failure, text: 'the cluster could not be stopped' },
  INTERRUPTED: { severity: 'error', exit: x.interrupted, text: 'interrupted' },

  // the admin interface
  DAEMON_UNREACHABLE: { severity: 'error', exit: x.unreachable, text: 'the daemon does not answer' },
  DAEMON_TIMEOUT: { severity: 'error', exit: x.timeout, text: 'the daemon did not answer in time' },
  REQUEST_INVALID: { severity: 'error', exit: x.refused, text: 'the request is not valid' },
  REQUEST_TOO_LARGE: { severity: 'error', exit: x.refused, text: 'the request or its answer is too large' },
  REQUEST_SLOW: { severity: 'error', exit: x.refused, text: 'the request did not arrive in time' },
  METHOD_UNKNOWN: { severity: 'error', exit: x.refused, text: 'the daemon has no such method' },
  ADMIN_BUSY: { severity: 'error', exit: x.refused, text: 'too many connections to the daemon' },

  // the log and the vote
  LOG_DAMAGED: { severity: 'error', exit: x.storage, text: 'the log is damaged below its durable mark' },
  RECORD_RING_FULL: { severity: 'warning', exit: x.failure, text: 'the ring of records is full' },
  WAL_OPEN: { severity: 'fatal', exit: x.storage, text: 'the log cannot be opened' },
  WAL_FOREIGN: { severity: 'fatal', exit: x.storage, text: 'the log belongs to another cluster or node' },
  WAL_READ: { severity: 'error', exit: x.storage, text: 'the log cannot be read' },
  WAL_RELEASED: { severity: 'warning', exit: x.storage, text: 'the log no longer holds these entries' },
  WAL_FAILED: { severity: 'fatal', exit: x.storage, text: 'the log could not be written' },
  WAL_FULL: { severity: 'fatal', exit: x.storage, text: 'the disk of the log is full' },
  HARD_STATE_LOST: { severity: 'fatal', exit: x.storage, text: 'both copies of the vote file are lost' },
  HARD_STATE_FAILED: { severity: 'fatal', exit: x.storage, text: 'the vote file could not be written' },

  // the fabric and the peers
  FABRIC_UNKNOWN: { severity: 'fatal', exit: x.configuration, text: 'there is no such fabric' },
  VERBS_OPEN: { severity: 'fatal', exit: x.configuration, text: 'the RDMA device cannot be used' },
  FABRIC_CONNECT: { severity: 'error', exit: x.failure, text: 'the fabric cannot reach a peer' },
  FABRIC_BUSY: { severity: 'warning', exit: x.failure, text: 'the fabric takes no more work now' },
  FABRIC_DOWN: { severity: 'warning', exit: x.failure, text: 'the connection to a peer is down' },
  FABRIC_REGION: { severity: 'fatal', exit: x.failure, text: 'a memory region cannot be registered' },
  FABRIC_BOUNDS: { severity: 'error', exit: x.failure, text: 'a remote access is out of bounds' },
  FABRIC_GRANT: { severity: 'error', exit: x.failure, text: 'memory of a peer cannot be attached' },
  SHM_OPEN: { severity: 'fatal', exit: x.failure, text: 'the shared memory cannot be opened' },
  SHM_BUSY: { severity: 'error', exit: x.alreadyRunning, text: 'the shared memory is in use' },
  PEER_STREAM: { severity: 'warning', exit: x.failure, text: 'what a peer writes does not fit' },
  PEER_REFUSED: { severity: 'warning', exit: x.failure, text: 'a peer was refused' },
  VERSION_MISMATCH: { severity: 'error', exit: x.configuration, text: 'the versions do not match' },

  // the guest
  GUEST_MEMORY: { severity: 'error', exit: x.failure, text: 'the memory of the guest cannot be used' },
  PAGE_SET: { severity: 'error', exit: x.failure, text: 'a set of pages is not valid' },
  QEMU_FAILED: { severity: 'error', exit: x.failure, text: 'QEMU did not start' },
  QEMU_LOST: { severity: 'error', exit: x.failure, text: 'QEMU ended' },
  VM_LINK: { severity: 'error', exit: x.failure, text: 'the link to QEMU failed' },
  FLOW_STATE: { severity: 'error', exit: x.failure, text: 'the state of the connections is not valid' },
  TAP_OPEN: { severity: 'fatal', exit: x.failure, text: 'the tap cannot be opened' },
  GUEST_WRONG_STATE: { severity: 'error', exit: x.refused, text: 'the guest is in no state for this' },
  GUEST_STATE_INVALID: { severity: 'error', exit: x.failure, text: 'the guest state is not valid here' },
  GUEST_PROTECTED: { severity: 'error', exit: x.refused, text: 'the guest is protected' },
  QMP_FAILED: { severity: 'error', exit: x.failure, text: 'QEMU refused a command' },
  QMP_TIMEOUT: { severity: 'error', exit: x.timeout, text: 'QEMU did not answer in time' },
  GUEST_NOT_READY: { severity: 'fatal', exit: x.timeout, text: 'the guest is not ready' },

  // state transfer
  SYNC_REFUSED: { severity: 'error', exit: x.refused, text: 'the state transfer was refused' },
  SYNC_ABANDONED: { severity: 'warning', exit: x.failure, text: 'the state transfer was given up' },
  SYNC_MEMORY: { severity: 'error', exit: x.failure, text: 'memory or files of the state transfer fail' },
  SYNC_PEER: { severity: 'error', exit: x.failure, text: 'the other side of the state transfer is wrong' },
  VERIFY_REFUSED: { severity: 'error', exit: x.refused, text: 'comparing the guests was refused' },
  VERIFY_ABANDONED: { severity: 'warning', exit: x.failure, text: 'comparing the guests was given up' },
  // the outputs
  OUTPUT_DIVERGED: { severity: 'warning', exit: x.failure, text: 'a guest said something else' },
  PRIMARY_DIVERGED: {
    severity: 'error',
    exit: x.failure,
    text: 'a majority of guests says something else than the primary',
  },

  // leadership
  MEMBER_REFUSED: { severity: 'error', exit: x.refused, text: 'the member cannot be replaced' },
  NOT_PRIMARY: { severity: 'error', exit: x.refused, text: 'this replica is not the primary' },
  LEADERSHIP_LOST: { severity: 'warning', exit: x.failure, text: 'leadership was lost' },
  TRANSFER_REFUSED: { severity: 'error', exit: x.refused, text: 'the leadership transfer was refused' },
  TRANSFER_ABANDONED: { severity: 'warning', exit: x.timeout, text: 'the leadership transfer was abandoned' },

  // the program itself
  ADDON_MISSING: { severity: 'fatal', exit: x.failure, text: 'the native addon is missing or does not load' },
  INVARIANT_BROKEN: { severity: 'fatal', exit: x.failure, text: 'an invariant is broken' },
  INTERNAL: { severity: 'fatal', exit: x.failure, text: 'internal error' },
} as const satisfies Record<string, ErrorRow>;

export type ErrorCode = keyof typeof errorTable;

export function isErrorCode(code: unknown): code is ErrorCode {
  return typeof code === 'string' && Object.hasOwn(errorTable, code);
}

export interface FalconErrorOptions {
  /** Path of the wrong value: `nodes[1].address`. */
  readonly path?: string;
  readonly cause?: unknown;
}

export class FalconError extends Error {
  readonly code: ErrorCode;
  readonly detail: string;
  readonly path: string | undefined;

  constructor(code: ErrorCode, detail = '', options: FalconErrorOptions = {}) {
    const parts = [errorTable[code].text, options.path ?? '', detail].filter((part) => part !== '');
    super(oneLine(parts.join(': ')), options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'FalconError';
    this.code = code;
    this.detail = detail;
    this.path = options.path;
  }

  get severity(): Severity {
    return errorTable[this.code].severity;
  }

  /** What the process exits with if this error ends it. */
  get exit(): number {
    return errorTable[this.code].exit;
  }
}

/** Any thrown value as a FalconError: what is none of ours becomes INTERNAL. */
export function asFalconError(error: unknown): FalconError {
  if (error instanceof FalconError) return error;
  return new FalconError('INTERNAL', messageOf(error), { cause: error });
}

/** The error that another process or the native code reported; a code we do not know becomes INTERNAL. */
export function remoteError(code: unknown, detail: string): FalconError {
  if (isErrorCode(code)) return new FalconError(code, withoutPrefix(detail, `${errorTable[code].text}: `));
  return new FalconError('INTERNAL', `${String(code)}: ${detail}`);
}

/** `falcon: CODE: message`, always one line. */
export function formatError(error: unknown, program = 'falcon'): string {
  const known = asFalconError(error);
  return `${program}: ${known.code}: ${known.message}`;
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The system's name of an error (`ENOENT`), or null. */
export function errnoOf(error: unknown): string | null {
  if (!(error instanceof Error) || !('code' in error)) return null;
  return typeof error.code === 'string' ? error.code : null;
}

function withoutPrefix(text: string, prefix: string): string {
  if (text === prefix.slice(0, -2)) return '';
  return text.startsWith(prefix) ? text.slice(prefix.length) : text;
}

function oneLine(text: string): string {
  return text.replaceAll(/\s*[\r\n]+\s*/g, ' ').trim();
}
