/** The guest of a replica: QEMU, or the built-in service. */
export interface GuestRunner {
  /**
   * Starts a fresh guest; one that runs is stopped first. `onReady` is called once when the service inside
   * answers. `onExit` is called once when the guest ends without having been told to.
   */
  start(callbacks: { onReady(): void; onExit(reason: string): void }): Promise<void>;
  stop(): Promise<void>;
  readonly pid: number | null;
}
