/**
 * The few file operations that small durable records need. Blocking on purpose: what is written here must be
 * on disk before the next effect. Failures are thrown as Node throws them, with the system's name of the
 * error in `code`.
 */
export type FileHandle = number;

export interface FileSystem {
  /** `create`: the file must not exist yet; its mode is 0600. */
  open(path: string, how: 'read-write' | 'create'): FileHandle;
  close(file: FileHandle): void;
  /** Bytes read, maybe fewer than asked for; 0 at the end of the file. */
  read(file: FileHandle, into: Uint8Array, position: number): number;
  /** Bytes written, maybe fewer than given. */
  write(file: FileHandle, from: Uint8Array, position: number): number;
  /** Returns when the file's bytes are on disk. After a failure nothing is known about them. */
  sync(file: FileHandle): void;
  /** Returns when the names in the directory are on disk. */
  syncDirectory(path: string): void;
  /** Gives the file a second name; fails with EEXIST if that exists. */
  link(existing: string, path: string): void;
  /** Removing what is not there is no failure. */
  remove(path: string): void;
}
