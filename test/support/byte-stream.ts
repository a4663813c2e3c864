/** A TCP connection of a load program: what is awaited must come, and nothing else. */
import { connect } from 'node:net';
import type { Socket } from 'node:net';

/** Longer than any take-over, also on a machine with much else to do. */
const answerMs = 30_000;

export class ByteStream {
  readonly socket: Socket;
  /** The longest that an answer took. */
  static slowestMs = 0;
  private pending: Buffer = Buffer.alloc(0);
  private waiter: (() => void) | null = null;
  private lost: string | null = null;

  private constructor(socket: Socket) {
    this.socket = socket;
    socket.setNoDelay(true);
    socket.on('data', (chunk) => {
      this.pending = this.pending.length === 0 ? chunk : Buffer.concat([this.pending, chunk]);
      this.waiter?.();
    });
    const lose = (why: string): void => {
      this.lost ??= why;
      this.waiter?.();
    };
    socket.on('error', (error) => lose(error.message));
    socket.on('end', () => lose('the server has ended it'));
    socket.on('close', () => lose('it is closed'));
  }

  static open(host: string, port: number): Promise<ByteStream> {
    return new Promise((resolve, reject) => {
      const socket = connect(port, host);
      socket.once('error', reject);
      socket.once('connect', () => {
        socket.off('error', reject);
        resolve(new ByteStream(socket));
      });
    });
  }

  write(bytes: string | Uint8Array): void {
    this.socket.write(bytes);
  }

  /** Everything up to and with `mark`. */
  async until(mark: string): Promise<string> {
    let found = -1;
    await this.when(() => (found = this.pending.indexOf(mark)) >= 0, `${JSON.stringify(mark)}`);
    return this.take(found + mark.length).toString('latin1');
  }

  async read(bytes: number): Promise<Buffer> {
    await this.when(() => this.pending.length >= bytes, `${bytes} bytes`);
    return this.take(bytes);
  }

  /** The next bytes must be these. */
  async expect(bytes: string | Uint8Array): Promise<void> {
    const wanted = Buffer.from(bytes);
    const came = await this.read(wanted.length);
    if (!came.equals(wanted)) throw new Error(`wrong answer: ${shown(came)} instead of ${shown(wanted)}`);
  }

  /** The server ends the connection, and says nothing more before. */
  async expectEnd(): Promise<void> {
    await this.when(() => this.lost !== null, 'the end');
    if (this.pending.length > 0) throw new Error(`${this.pending.length} bytes too much`);
    this.socket.destroy();
  }

  end(): void {
    if (this.pending.length > 0) throw new Error(`${this.pending.length} bytes too much`);
    this.socket.end();
  }

  private take(bytes: number): Buffer {
    const taken = this.pending.subarray(0, bytes);
    this.pending = this.pending.subarray(bytes);
    return taken;
  }

  private async when(holds: () => boolean, what: string): Promise<void> {
    const start = performance.now();
    while (!holds()) {
      const where = `port ${this.socket.localPort}, ${this.pending.length} bytes are there`;
      if (this.lost !== null) throw new Error(`${what}: ${this.lost} (${where})`);
      if (performance.now() - start > answerMs)
        throw new Error(`${what}: not after ${answerMs} ms (${where})`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, 1000);
        this.waiter = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      this.waiter = null;
    }
    ByteStream.slowestMs = Math.max(ByteStream.slowestMs, performance.now() - start);
  }
}

const shown = (bytes: Buffer): string => JSON.stringify(bytes.subarray(0, 200).toString('latin1'));
