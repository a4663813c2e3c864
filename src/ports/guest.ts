/** What runs the guest of a replica. */
export interface GuestCallbacks {
  /** No earlier guest runs any more, and the new one has not been started. */
  readonly onEmpty: () => void;
  readonly onReady: () => void;
  readonly onExit: (reason: string) => void;
}

/** The guest of a replica: QEMU, or the built-in service. */
export interface GuestRunner {
  /**
   * Starts a fresh guest; one that runs is stopped first, and starts that overlap are carried out one after the
   * other. `onReady` is called once when the service inside answers. `onExit` is called once when the guest ends without having been told to, or is
   * not ready in time; the reason begins with a code.
   */
  start(callbacks: GuestCallbacks): Promise<void>;
  stop(): Promise<void>;
  readonly pid: number | null;

  // ---- state transfer

  /** A fresh guest that stands still, with empty memory, attached to the rings; onReady is not called. */
  prepare(callbacks: GuestCallbacks): Promise<void>;
  pause(): Promise<void>;
  resume(): Promise<void>;
  /** From now on changed pages are noted. */
  dirtyStart(): Promise<void>;
  /** Writes a bitmap of the pages changed since the last call, or since dirtyStart. */
  dirtyCollect(path: string): Promise<{ readonly pages: number }>;
  /** The state of all devices, of a guest that stands still. */
  saveState(path: string): Promise<{ readonly bytes: number }>;
  loadState(path: string): Promise<{ readonly bytes: number }>;
  /** The rings were made empty under a guest that stands still. */
  restartRings(): Promise<void>;
  /** The file that the guest's memory is; null: none. */
  readonly ramPath: string | null;
  readonly ramBytes: number;
}
