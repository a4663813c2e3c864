/**
 * The bootstrap: how two replicas find each other before they can write into each other's memory.
 *
 * One TLS-PSK connection per pair of members, keyed by the cluster secret, dialled by the one with the higher
 * index. Both say hello (who they are, how their memory is reached, a nonce); the two nonces name the
 * incarnation of the connection, the same on both sides. Then nothing more is sent: everything else crosses the
 * fabric. The connection stays open because its end is the quickest hint that the peer is gone; a hint only,
 * since leases decide.
 */
import { createHash, randomBytes } from 'node:crypto';
import type { Socket } from 'node:net';
import { connect as tlsConnect, createServer } from 'node:tls';
import type { Server, TLSSocket } from 'node:tls';

import { pack, unpack } from 'msgpackr';

import { bounds } from '../lib/bounds.js';
import { errnoOf, FalconError, messageOf } from '../lib/errors.js';

export const bootstrapVersion = 6;

export interface BootstrapMember {
  readonly index: number;
  readonly name: string;
  readonly address: string;
  readonly port: number;
  /** Grows when another host takes the member's place: an earlier one is refused. */
  readonly incarnation: number;
}

export interface BootstrapOptions {
  readonly cluster: string;
  /** Shared by all members; who has it may join. */
  readonly secret: Uint8Array;
  readonly self: BootstrapMember;
  readonly members: readonly BootstrapMember[];
  readonly fabric: string;
  /** How peers reach this replica's memory. */
  /** Of this member's memory, asked for whenever a peer is met: after some failures to connect it is another one. */
  readonly descriptor: () => Uint8Array;
  onPeerUp(peer: number, connection: Uint8Array, descriptor: Uint8Array): void;
  onPeerDown(peer: number): void;
  /** Something that an operator should see; rate-limited by the bootstrap. */
  onRefused(code: 'PEER_REFUSED' | 'SECRET_WRONG' | 'VERSION_MISMATCH', text: string): void;
}

/** Connections refused since the start, by why. */
export interface Refusals {
  /** The TLS handshake failed: no secret, another one, or no TLS at all. */
  readonly secret: number;
  readonly version: number;
  readonly other: number;
  /** Left before they had said a hello: by themselves, out of time, or to make room for newer ones. */
  readonly unfinished: number;
}

export const noRefusals: Refusals = { secret: 0, version: 0, other: 0, unfinished: 0 };

interface Redial {
  timer: NodeJS.Timeout | null;
  delayMs: number;
  /** performance.now() of the hello of the connection that is, or was last; null: none since the last dial. */
  metAt: number | null;
}

interface Stranger {
  readonly socket: Socket;
  /** Counted as something else than unfinished. */
  refused: boolean;
}

interface Hello {
  readonly version: number;
  readonly cluster: string;
  readonly node: number;
  readonly fabric: string;
  readonly nonce: Uint8Array;
  readonly descriptor: Uint8Array;
  readonly incarnation: number;
}

// TLS 1.2 because Node offers external pre-shared keys there only; ephemeral keys, so that a secret that leaks
// later opens no recorded hello.
const tlsOptions = {
  minVersion: 'TLSv1.2',
  maxVersion: 'TLSv1.2',
  ciphers: 'ECDHE-PSK-CHACHA20-POLY1305',
} as const;
const nonceBytes = 16;

export class Bootstrap {
  readonly refused: { -readonly [Key in keyof Refusals]: number } = { ...noRefusals };
  private readonly options: BootstrapOptions;
  private readonly links = new Map<number, TLSSocket>();
  private readonly redials = new Map<number, Redial>();
  private readonly server: Server;
  private readonly open = new Set<Socket>();
  /** Connections that came in and have not said a right hello, by peerName, oldest first. */
  private readonly strangers = new Map<string, Stranger>();
  /** By index; as the configuration has them, or newer. */
  private readonly members: Map<number, BootstrapMember>;
  private closed = false;
  private nextWarningAt = 0;

  private constructor(options: BootstrapOptions) {
    this.options = options;
    this.members = new Map(options.members.map((member) => [member.index, member]));
    this.server = createServer({
      ...tlsOptions,
      handshakeTimeout: bounds.bootstrapHandshakeMs,
      pskIdentityHint: options.cluster,
      pskCallback: (_socket, identity) => (identity === options.cluster ? Buffer.from(options.secret) : null),
    });
    this.server.on('connection', (socket: Socket) => this.admit(socket));
    this.server.on('secureConnection', (socket) => this.greet(socket, null));
    this.server.on('tlsClientError', (error, socket) => {
      // Whoever just left is counted when its connection closes.
      if (!isTlsError(error)) return;
      const stranger = this.strangers.get(peerName(socket));
      if (stranger !== undefined) stranger.refused = true;
      this.refuse('SECRET_WRONG', `${messageOf(error)} (from ${socket.remoteAddress ?? 'nowhere'})`);
    });
  }

  /** Listens, and dials the members with lower indices. Errors: START_FAILED (address in use or not ours). */
  static async start(options: BootstrapOptions): Promise<Bootstrap> {
    const bootstrap = new Bootstrap(options);
    const { address, port } = options.self;
    await new Promise<void>((resolve, reject) => {
      bootstrap.server.once('error', (error) => {
        reject(
          new FalconError('START_FAILED', `listen on ${address}:${port}: ${messageOf(error)}`, {
            cause: error,
          }),
        );
      });
      bootstrap.server.listen({ host: address, port }, resolve);
    });
    for (const member of options.members) {
      if (member.index < options.self.index) bootstrap.dial(member);
    }
    return bootstrap;
  }

  /** Connections that have not said a right hello; never more than bounds.bootstrapConnectionsMax. */
  get strangersNow(): number {
    return this.strangers.size;
  }

  /** Drops the connection to a peer; it is made anew with a new incarnation. */
  reset(peer: number): void {
    this.links.get(peer)?.destroy();
  }

  /** Another host has taken a member's place. The one before is let in no more. */
  replace(member: BootstrapMember): void {
    const before = this.members.get(member.index);
    if (before === undefined || member.incarnation <= before.incarnation) return;
    this.members.set(member.index, member);
    this.links.get(member.index)?.destroy();
  }

  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    for (const { timer } of this.redials.values()) if (timer !== null) clearTimeout(timer);
    for (const socket of this.open) socket.destroy();
    await new Promise<void>((resolve) => {
      this.server.close(() => resolve());
    });
  }

  /**
   * A stranger may not keep a member out: one that has not said a right hello in time is sent away, and when too
   * many wait at once, the one that has waited longest.
   */
  private admit(socket: Socket): void {
    this.track(socket);
    const name = peerName(socket);
    const stranger = { socket, refused: false };
    this.strangers.set(name, stranger);
    const deadline = setTimeout(() => {
      if (this.strangers.get(name) === stranger) socket.destroy();
    }, bounds.bootstrapHandshakeMs);
    socket.once('close', () => {
      clearTimeout(deadline);
      if (this.strangers.get(name) !== stranger) return;
      this.strangers.delete(name);
      if (!stranger.refused) this.refused.unfinished++;
    });
    if (this.strangers.size <= bounds.bootstrapConnectionsMax) return;
    // Several may come before the first of them has closed: out of the book at once.
    for (const [oldest, longest] of this.strangers) {
      this.strangers.delete(oldest);
      longest.socket.destroy();
      if (!longest.refused) this.refused.unfinished++;
      return;
    }
  }

  private track(socket: Socket): void {
    this.open.add(socket);
    socket.once('close', () => this.open.delete(socket));
    socket.on('error', () => socket.destroy());
  }

  private dial(member: BootstrapMember): void {
    if (this.closed) return;
    const socket = tlsConnect({
      ...tlsOptions,
      host: member.address,
      port: member.port,
      checkServerIdentity: () => undefined,
      pskCallback: () => ({ psk: Buffer.from(this.options.secret), identity: this.options.cluster }),
    });
    this.track(socket);
    socket.once('error', (error: Error) => {
      // Not reached is no news; an alert of the other side is.
      if (isTlsError(error))
        this.refuse('SECRET_WRONG', `${messageOf(error)} (from ${member.name} at ${member.address})`);
    });
    socket.setTimeout(bounds.bootstrapHandshakeMs, () => socket.destroy());
    socket.once('secureConnect', () => {
      socket.setTimeout(0);
      this.greet(socket, member.index);
    });
    socket.once('close', () => this.redial(member));
  }

  /** Soon after a connection that lasted; one that breaks as soon as it is made is not made again without end. */
  private redial(member: BootstrapMember): void {
    if (this.closed) return;
    const state = this.redialOf(member.index);
    if (state.timer !== null) clearTimeout(state.timer);
    if (state.metAt !== null && performance.now() - state.metAt >= bounds.bootstrapSettledMs)
      state.delayMs = bounds.bootstrapRedialMinMs;
    state.metAt = null;
    // Another host may have taken its place meanwhile.
    state.timer = setTimeout(() => this.dial(this.members.get(member.index) ?? member), state.delayMs);
    state.delayMs = Math.min(state.delayMs * 2, bounds.bootstrapRedialMaxMs);
  }

  private redialOf(member: number): Redial {
    const known = this.redials.get(member);
    if (known !== undefined) return known;
    const made: Redial = { timer: null, delayMs: bounds.bootstrapRedialMinMs, metAt: null };
    this.redials.set(member, made);
    return made;
  }

  /** Says hello and waits for the other's. `expected`: the index that was dialled; null: whoever came. */
  private greet(socket: TLSSocket, expected: number | null): void {
    const { self, cluster, fabric, descriptor } = this.options;
    socket.setNoDelay(true);
    socket.setKeepAlive(true, bounds.bootstrapKeepAliveMs);
    const nonce = randomBytes(nonceBytes);
    const hello = pack([
      bootstrapVersion,
      cluster,
      self.index,
      fabric,
      nonce,
      descriptor(),
      self.incarnation,
    ]);
    const head = Buffer.alloc(4);
    head.writeUInt32LE(hello.length);
    socket.write(Buffer.concat([head, hello]));
    const deadline = setTimeout(() => socket.destroy(), bounds.bootstrapHandshakeMs);
    socket.once('close', () => clearTimeout(deadline));
    let received = Buffer.alloc(0);
    const onData = (chunk: Buffer): void => {
      received = Buffer.concat([received, chunk]);
      if (received.length < 4) return;
      const length = received.readUInt32LE();
      if (length > bounds.bootstrapHelloMaxBytes)
        return this.drop(socket, 'PEER_REFUSED', `a hello of ${length} bytes`);
      if (received.length < 4 + length) return;
      clearTimeout(deadline);
      socket.off('data', onData);
      if (received.length > 4 + length) return this.drop(socket, 'PEER_REFUSED', 'bytes behind the hello');
      this.welcome(socket, expected, nonce, received.subarray(4));
    };
    socket.on('data', onData);
  }

  private welcome(socket: TLSSocket, expected: number | null, nonce: Buffer, body: Buffer): void {
    const hello = parseHello(body);
    if (hello === null) return this.drop(socket, 'PEER_REFUSED', 'a malformed hello');
    const { self, cluster, fabric } = this.options;
    const member = this.members.get(hello.node);
    if (hello.version !== bootstrapVersion) {
      return this.drop(
        socket,
        'VERSION_MISMATCH',
        `the peer speaks version ${hello.version}, this node ${bootstrapVersion}`,
      );
    }
    const known = member !== undefined && hello.node !== self.index;
    // Who was dialled must answer; who comes must be one that dials.
    const right = expected === null ? hello.node > self.index : hello.node === expected;
    if (hello.cluster !== cluster || !known || !right) {
      return this.drop(socket, 'PEER_REFUSED', `node ${hello.node} of cluster ${hello.cluster}`);
    }
    if (hello.fabric !== fabric)
      return this.drop(socket, 'PEER_REFUSED', `fabric ${hello.fabric}, here ${fabric}`);
    if (hello.incarnation < member.incarnation) {
      const text = `${member.name} was replaced: incarnation ${hello.incarnation}, now ${member.incarnation}`;
      return this.drop(socket, 'PEER_REFUSED', text);
    }
    this.members.set(hello.node, { ...member, incarnation: hello.incarnation });
    this.strangers.delete(peerName(socket));
    if (expected !== null) this.redialOf(hello.node).metAt = performance.now();
    this.links.get(hello.node)?.destroy();
    this.links.set(hello.node, socket);
    socket.once('close', () => {
      if (this.links.get(hello.node) !== socket) return;
      this.links.delete(hello.node);
      if (!this.closed) this.options.onPeerDown(hello.node);
    });
    // Nothing more may come.
    socket.on('data', () => this.drop(socket, 'PEER_REFUSED', 'data behind the hello'));
    const [low, high] = hello.node < self.index ? [hello.nonce, nonce] : [nonce, hello.nonce];
    const digest = createHash('sha256').update(low).update(high).digest();
    this.options.onPeerUp(hello.node, Uint8Array.from(digest.subarray(0, 8)), hello.descriptor);
  }

  private drop(socket: TLSSocket, code: 'PEER_REFUSED' | 'VERSION_MISMATCH', text: string): void {
    const stranger = this.strangers.get(peerName(socket));
    if (stranger !== undefined) stranger.refused = true;
    this.refuse(code, `${text} (from ${socket.remoteAddress ?? 'nowhere'})`);
    socket.destroy();
  }

  private refuse(code: 'PEER_REFUSED' | 'SECRET_WRONG' | 'VERSION_MISMATCH', text: string): void {
    const counter = code === 'SECRET_WRONG' ? 'secret' : code === 'VERSION_MISMATCH' ? 'version' : 'other';
    this.refused[counter]++;
    const now = performance.now();
    if (now < this.nextWarningAt) return;
    this.nextWarningAt = now + bounds.bootstrapWarningEveryMs;
    this.options.onRefused(code, text);
  }
}

/** The same for a connection and for the TLS on it. */
function peerName(socket: Socket): string {
  return `${socket.remoteAddress}:${socket.remotePort}`;
}

function isTlsError(error: Error): boolean {
  const code = errnoOf(error) ?? '';
  return code.startsWith('ERR_SSL_') || code === 'EPROTO';
}

function parseHello(body: Uint8Array): Hello | null {
  let value: unknown;
  try {
    value = unpack(body);
  } catch {
    return null;
  }
  if (!Array.isArray(value) || value.length !== 7) return null;
  const [version, cluster, node, fabric, nonce, descriptor, incarnation] = value as unknown[];
  if (typeof version !== 'number' || typeof cluster !== 'string' || typeof fabric !== 'string') return null;
  if (
    !Number.isInteger(node) ||
    !Number.isInteger(incarnation) ||
    !(nonce instanceof Uint8Array) ||
    !(descriptor instanceof Uint8Array)
  )
    return null;
  if (nonce.length !== nonceBytes || descriptor.length > bounds.descriptorMaxBytes) return null;
  // Copies: the unpacked views share the receive buffer.
  return {
    version,
    cluster,
    node: node as number,
    fabric,
    nonce: nonce.slice(),
    descriptor: descriptor.slice(),
    incarnation: incarnation as number,
  };
}
