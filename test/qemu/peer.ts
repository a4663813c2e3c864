// The TypeScript end of peer.c: a falcond that does what the test says.
import { type ChildProcess, spawn } from 'node:child_process';
import { Lines } from './lines.js';
import { DIES_WITH_US } from './remains.js';

export type Ring = 'ingress' | 'deliver' | 'egress';

export interface RingState {
  readonly tail: number;
  readonly head: number;
  readonly produced: number;
  readonly consumed: number;
  readonly producerWaiting: boolean;
  readonly consumerWaiting: boolean;
}

export interface PeerOptions {
  readonly binary: string;
  readonly namespace: string;
  readonly socket: string;
  readonly mode: string;
  readonly tap: string;
  /** Bytes of each ring, a power of two. */
  readonly capacity: number;
}

export class Peer {
  readonly process: ChildProcess;
  private readonly lines: Lines;

  private constructor(child: ChildProcess, lines: Lines) {
    this.process = child;
    this.lines = lines;
  }

  static async start(options: PeerOptions): Promise<Peer> {
    const { binary, namespace, socket, capacity, mode, tap } = options;
    const command = ['ip', 'netns', 'exec', namespace, binary, socket, `${capacity}`, mode, tap];
    const [setpriv, ...words] = [...DIES_WITH_US, ...command];
    const child = spawn(setpriv, words, { stdio: ['pipe', 'pipe', 'inherit'] });
    const peer = new Peer(child, new Lines(child.stdout, child.stdin));
    await peer.lines.next();
    return peer;
  }

  async attached(): Promise<boolean> {
    return (await this.lines.ask('attached')) === '1';
  }

  async push(frame: Uint8Array): Promise<boolean> {
    return (await this.lines.ask(`push ${hex(frame)}`)) === 'ok';
  }

  async pushMany(first: number, count: number, size: number): Promise<number> {
    return Number(await this.lines.ask(`push-many ${first} ${count} ${size}`));
  }

  async take(ring: Ring, count: number): Promise<Buffer[]> {
    return frames(await this.lines.ask(`take ${ring} ${count}`));
  }

  async arm(ring: Ring, side: 'consumer' | 'producer'): Promise<void> {
    await this.lines.ask(`arm ${ring} ${side}`);
  }

  async ring(): Promise<void> {
    await this.lines.ask('ring');
  }

  async rings(): Promise<number> {
    return Number(await this.lines.ask('rings'));
  }

  async state(ring: Ring): Promise<RingState> {
    const words = (await this.lines.ask(`state ${ring}`)).split(' ').map(Number);
    const [tail = NaN, head = NaN, produced = NaN, consumed = NaN, producer, consumer] = words;
    return {
      tail,
      head,
      produced,
      consumed,
      producerWaiting: producer === 1,
      consumerWaiting: consumer === 1,
    };
  }

  async poke(ring: Ring, what: 'tail' | 'head' | 'length', value: number): Promise<void> {
    await this.lines.ask(`poke ${ring} ${what} ${value}`);
  }

  async inject(frame: Uint8Array): Promise<boolean> {
    return (await this.lines.ask(`inject ${hex(frame)}`)) === 'ok';
  }

  async injectMany(first: number, count: number, size: number): Promise<number> {
    return Number(await this.lines.ask(`inject-many ${first} ${count} ${size}`));
  }

  async sniff(count: number): Promise<Buffer[]> {
    return frames(await this.lines.ask(`sniff ${count}`));
  }

  async hangup(): Promise<void> {
    await this.lines.ask('hangup');
  }

  async talk(): Promise<void> {
    await this.lines.ask('talk');
  }
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex');
}

function frames(line: string): Buffer[] {
  return line === '' ? [] : line.split(' ').map((text) => Buffer.from(text, 'hex'));
}

/** The same bytes that peer.c makes for a numbered frame. */
export function numberedFrame(seq: number, size: number): Buffer {
  const frame = Buffer.alloc(size);
  for (let i = 0; i < size; i++) frame[i] = (seq * 31 + i) & 0xff;
  Buffer.from('52540012345602000000000188b5', 'hex').copy(frame);
  frame.writeUInt32BE(seq, 14);
  return frame;
}
