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
}
