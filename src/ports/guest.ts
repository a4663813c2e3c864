/** What runs the guest of a replica. */
export interface GuestCallbacks {
  /** No earlier guest runs any more, and the new one has not been started. */
  readonly onEmpty: () => void;
  readonly onReady: () => void;
  readonly onExit: (reason: string) => void;
}

/**
 * What state transfer needs of a guest. Calls are carried out in the order in which they are made, and may be made before
 * the one before has been answered. Every call fails with GUEST_WRONG_STATE if no guest runs, with QMP_TIMEOUT or
 * QMP_FAILED if QEMU does not answer or refuses for a reason of its own.
 */
export interface GuestMemory {
  /**
   * Like `start`, but the guest does not run: its memory is new and empty, its devices are as after power-on, and it is
   * attached to the rings. It waits for its memory to be filled through `ramPath`, for `loadState` and for `resume`.
   * Resolves when it can be filled. A guest that was ready when its state was saved is ready once it is loaded:
   * `onReady` is called only if the service says so afterwards, and nothing here waits for it. `onExit` is called for
   * ends after `prepare` has resolved; before, it rejects with QEMU_FAILED.
   */
  prepare(callbacks: GuestCallbacks): Promise<void>;
  /** Returns when the guest stands: no instruction runs, no device writes memory. */
  pause(): Promise<void>;
  resume(): Promise<void>;
  /** Pages count as clean from now on. Errors: GUEST_WRONG_STATE if the log is on. */
  dirtyStart(): Promise<void>;
  dirtyStop(): Promise<void>;
  /**
   * Writes the bitmap of the pages that the guest or a device has written since the last call, or `dirtyStart`, to the
   * file, and counts them as clean. Bit i % 64 of little-endian 64-bit word i / 64 is page i. What others write through
   * `ramPath` is not seen. The guest may run.
   */
  dirtyCollect(path: string): Promise<{ readonly pages: number }>;
  /** Everything but the main memory, to a file. Errors: GUEST_WRONG_STATE if the guest is not paused. */
  saveState(path: string): Promise<{ readonly bytes: number }>;
  /**
   * What `saveState` of a guest of the same shape has written. Errors: GUEST_WRONG_STATE if the guest is not paused,
   * GUEST_STATE_INVALID if the file is not for this guest; then the guest is as it was.
   */
  loadState(path: string): Promise<{ readonly bytes: number }>;
  /**
   * Deliver and egress ring were made empty under a guest that stands still: it takes them up from their beginnings.
   * Errors: GUEST_WRONG_STATE if the guest is not paused.
   */
  restartRings(): Promise<void>;
  /** The file of the main memory; a trailer of bounds.ramTrailerBytes is behind it. New for each guest; null if none runs. */
  readonly ramPath: string | null;
  /** Size of the main memory, without the trailer. */
  readonly ramBytes: number;
}

/** The guest of a replica: QEMU, or the built-in service. */
export interface GuestRunner extends GuestMemory {
  /**
   * Starts a fresh guest; one that runs is stopped first, and starts that overlap are carried out one after the
   * other. `onReady` is called once when the service inside answers. `onExit` is called once when the guest ends without having been told to, or is
   * not ready in time; the reason begins with a code.
   */
  start(callbacks: GuestCallbacks): Promise<void>;
  stop(): Promise<void>;
  readonly pid: number | null;
}
