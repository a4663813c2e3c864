/**
 * The file that holds (view, votedFor): what a replica has promised and must not forget.
 *
 * Two slots hold the same record. A write goes to the slot that does not hold the newest record, is forced, and
 * then goes to the other one and is forced again; so whenever a write has returned, both slots hold it. If one
 * slot is unreadable at a start, the other one is therefore always right: either the slot was torn by a crash,
 * and then nobody has heard of what was being written, or it decayed, and then the other one holds the same.
 * With one copy of the newest record, decay would be taken for a torn write and a vote would be forgotten.
 *
 * Slot, little-endian, 512 bytes at 0 and at 4096:
 *   0 magic u32 | 4 CRC32C u32 of bytes 8 to 511 | 8 version u32 | 12 flags u32 (1: recovering) | 16 generation u64 |
 *   24 view u64 | 32 votedFor i32 (-1: nobody) | 36 length of cluster u16 | 38 length of node u16 | 40 cluster, node
 */
import { dirname, join } from 'node:path';

import type { HardState } from '../consensus/types.js';
import { errnoOf, FalconError, messageOf } from '../lib/errors.js';
import type { FileHandle, FileSystem } from '../ports/file-system.js';
import type { HardStateStore } from '../ports/hard-state-store.js';
import type { View } from '../wire/viewstamp.js';
import { crc32c } from '../wire/crc32c.js';

const fileName = 'hard-state';
const magic = 0x48434c46; // "FLCH"
const version = 1;
const slotBytes = 512;
/** Far enough apart that no disk writes both in one sector. */
const slotOffsets = [0, 4096] as const;
const textOffset = 40;
const recoveringFlag = 1;

/** Whose promises the file holds. */
export interface HardStateIdentity {
  readonly cluster: string;
  readonly node: string;
}

interface SlotRecord {
  readonly generation: number;
  readonly identity: HardStateIdentity;
  readonly state: HardState;
}

export const initialHardState: HardState = { view: 0, votedFor: null, recovering: false };

export function hardStatePath(directory: string): string {
  return join(directory, fileName);
}

/** Of a member that takes the place of one whose promises are lost: it votes when it has fetched the log. */
export function readmittedState(view: View): HardState {
  return { view, votedFor: null, recovering: true };
}

/**
 * Makes the file of a node that has never promised anything (or of `state`), in a directory that exists. The file appears whole
 * or not at all. Throws CLUSTER_EXISTS if there is one, HARD_STATE_FAILED if it cannot be made.
 */
export function createHardState(
  fileSystem: FileSystem,
  directory: string,
  identity: HardStateIdentity,
  state: HardState = initialHardState,
): void {
  const path = hardStatePath(directory);
  const unfinished = `${path}.tmp`;
  try {
    fileSystem.remove(unfinished);
    const file = fileSystem.open(unfinished, 'create');
    try {
      const bytes = encode({ generation: 1, identity, state });
      for (const offset of slotOffsets) writeAll(fileSystem, file, bytes, offset);
      fileSystem.sync(file);
    } finally {
      fileSystem.close(file);
    }
    fileSystem.link(unfinished, path);
    fileSystem.remove(unfinished);
    fileSystem.syncDirectory(dirname(path));
  } catch (error) {
    if (errnoOf(error) === 'EEXIST') throw new FalconError('CLUSTER_EXISTS', path, { cause: error });
    throw failed(path, error);
  }
}

/**
 * Opens the file and makes both slots hold the newest state again. Throws HARD_STATE_LOST if there is no file or
 * both slots are unreadable (the node must then be admitted as a new member), WAL_FOREIGN if it is another
 * node's, HARD_STATE_FAILED if it cannot be read or written.
 */
export function openHardState(
  fileSystem: FileSystem,
  directory: string,
  identity: HardStateIdentity,
): HardStateFile {
  const path = hardStatePath(directory);
  let file: FileHandle;
  try {
    file = fileSystem.open(path, 'read-write');
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') throw new FalconError('HARD_STATE_LOST', path, { cause: error });
    throw failed(path, error);
  }
  try {
    return recover(fileSystem, file, path, identity);
  } catch (error) {
    fileSystem.close(file);
    throw error;
  }
}

function recover(
  fileSystem: FileSystem,
  file: FileHandle,
  path: string,
  identity: HardStateIdentity,
): HardStateFile {
  let records: (SlotRecord | null)[];
  try {
    records = slotOffsets.map((offset) => decode(readSlot(fileSystem, file, offset)));
  } catch (error) {
    throw failed(path, error);
  }
  const [first = null, second = null] = records;
  const newestSlot = (second?.generation ?? 0) > (first?.generation ?? 0) ? 1 : 0;
  const newest = newestSlot === 1 ? second : first;
  if (newest === null) throw new FalconError('HARD_STATE_LOST', path);
  if (newest.identity.cluster !== identity.cluster || newest.identity.node !== identity.node) {
    const { node, cluster } = newest.identity;
    throw new FalconError('WAL_FOREIGN', `${path} is of node ${node} of cluster ${cluster}`);
  }
  const store = new HardStateFile(fileSystem, file, path, newest, newestSlot);
  // What was read may be in the page cache only, or in one slot only.
  store.write(newest.state);
  return store;
}

export class HardStateFile implements HardStateStore {
  private readonly fileSystem: FileSystem;
  private readonly file: FileHandle;
  private readonly path: string;
  private readonly identity: HardStateIdentity;
  private current: HardState;
  private generation: number;
  /** The slot that held the newest state when the file was opened; it is written second. */
  private readonly newestSlot: 0 | 1;
  private refusal: FalconError | null = null;
  private closed = false;

  constructor(fileSystem: FileSystem, file: FileHandle, path: string, newest: SlotRecord, newestSlot: 0 | 1) {
    this.fileSystem = fileSystem;
    this.file = file;
    this.path = path;
    this.identity = newest.identity;
    this.current = newest.state;
    this.generation = newest.generation;
    this.newestSlot = newestSlot;
  }

  get state(): HardState {
    return this.current;
  }

  /**
   * Returns when both slots hold `state` on disk. Throws HARD_STATE_FAILED otherwise, now and ever after: nobody
   * knows what is on disk then, and the replica must stop.
   */
  write(state: HardState): void {
    if (this.refusal !== null) throw this.refusal;
    if (this.closed) throw new FalconError('HARD_STATE_FAILED', `${this.path} is closed`);
    const generation = this.generation + 1;
    try {
      const bytes = encode({ generation, identity: this.identity, state });
      const older = this.newestSlot === 0 ? 1 : 0;
      for (const slot of [older, this.newestSlot] as const) {
        writeAll(this.fileSystem, this.file, bytes, slotOffsets[slot]);
        this.fileSystem.sync(this.file);
      }
    } catch (error) {
      this.refusal = failed(this.path, error);
      throw this.refusal;
    }
    this.generation = generation;
    this.current = state;
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    this.fileSystem.close(this.file);
  }
}

function failed(path: string, error: unknown): FalconError {
  return new FalconError('HARD_STATE_FAILED', `${path}: ${messageOf(error)}`, { cause: error });
}

function encode(record: SlotRecord): Uint8Array {
  const bytes = new Uint8Array(slotBytes);
  const view = new DataView(bytes.buffer);
  const cluster = new TextEncoder().encode(record.identity.cluster);
  const node = new TextEncoder().encode(record.identity.node);
  if (textOffset + cluster.length + node.length > slotBytes) throw new RangeError('the names are too long');
  const { state } = record;
  if (!Number.isSafeInteger(state.view) || state.view < 0) throw new RangeError(`view ${state.view}`);
  view.setUint32(0, magic, true);
  view.setUint32(8, version, true);
  view.setUint32(12, state.recovering ? recoveringFlag : 0, true);
  view.setBigUint64(16, BigInt(record.generation), true);
  view.setBigUint64(24, BigInt(state.view), true);
  view.setInt32(32, state.votedFor ?? -1, true);
  view.setUint16(36, cluster.length, true);
  view.setUint16(38, node.length, true);
  bytes.set(cluster, textOffset);
  bytes.set(node, textOffset + cluster.length);
  view.setUint32(4, crc32c(bytes.subarray(8)), true);
  return bytes;
}

function decode(bytes: Uint8Array): SlotRecord | null {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < slotBytes || view.getUint32(0, true) !== magic) return null;
  if (view.getUint32(4, true) !== crc32c(bytes.subarray(8)) || view.getUint32(8, true) !== version)
    return null;
  const votedFor = view.getInt32(32, true);
  const clusterEnd = textOffset + view.getUint16(36, true);
  const nodeEnd = clusterEnd + view.getUint16(38, true);
  if (nodeEnd > slotBytes) return null;
  const text = new TextDecoder();
  return {
    generation: Number(view.getBigUint64(16, true)),
    identity: {
      cluster: text.decode(bytes.subarray(textOffset, clusterEnd)),
      node: text.decode(bytes.subarray(clusterEnd, nodeEnd)),
    },
    state: {
      view: Number(view.getBigUint64(24, true)),
      votedFor: votedFor < 0 ? null : votedFor,
      recovering: (view.getUint32(12, true) & recoveringFlag) !== 0,
    },
  };
}

/** Shorter than a slot if the file ends there. */
function readSlot(fileSystem: FileSystem, file: FileHandle, offset: number): Uint8Array {
  const bytes = new Uint8Array(slotBytes);
  let done = 0;
  while (done < slotBytes) {
    const got = fileSystem.read(file, bytes.subarray(done), offset + done);
    if (got === 0) break;
    done += got;
  }
  return bytes.subarray(0, done);
}

function writeAll(fileSystem: FileSystem, file: FileHandle, bytes: Uint8Array, offset: number): void {
  let done = 0;
  while (done < bytes.length) {
    const written = fileSystem.write(file, bytes.subarray(done), offset + done);
    if (written <= 0) throw new Error('a write that takes nothing');
    done += written;
  }
}
