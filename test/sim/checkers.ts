/**
 * Checkers: they look at a simulated world from outside and know nothing of how replicas decide. Each throws
 * with a sentence that says what a user would have lost.
 */
import { assert } from '../../src/lib/assert.js';
import type { VerifyRecord } from '../../src/transfer/verify-types.js';
import type { LogBase } from '../../src/wire/view-table.js';
import type { SimNode, World } from './world.js';

const ethernetBytes = 14;
const pageBytes = 4096;

interface Answer {
  readonly frames: number;
  readonly digest: number;
  readonly request: number;
}

function parseAnswer(frame: Uint8Array): Answer | null {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
  if (frame.length < ethernetBytes + 48 || view.getUint16(12) !== 0x88b5) return null;
  return {
    frames: Number(view.getBigUint64(ethernetBytes, true)),
    digest: view.getUint32(ethernetBytes + 8, true),
    request: view.getUint32(ethernetBytes + 16, true),
  };
}

function differingPages(a: Uint8Array, b: Uint8Array): number[] {
  const pages = [];
  for (let at = 0; at < Math.max(a.length, b.length); at += pageBytes) {
    if (Buffer.compare(a.subarray(at, at + pageBytes), b.subarray(at, at + pageBytes)) !== 0)
      pages.push(at / pageBytes);
  }
  return pages;
}

function pagesDiffering(a: Uint8Array, b: Uint8Array): string {
  const pages = differingPages(a, b);
  return `${pages.length} of ${a.length / pageBytes} pages: ${pages.slice(0, 8).join(', ')}`;
}

export class Checkers {
  private readonly world: World;
  private readonly committed = new Map<number, { view: number; checksum: number }>();
  private readonly checkedOp: number[];
  private readonly viewOf: number[];
  /** By boot and number of frames taken: the digest, the same for every guest. */
  private readonly digests = new Map<string, number>();
  private readonly framesOf: { bootOp: number; frames: number }[];
  private readonly syncOf: number[];
  private lastAnswer = new Map<number, number>();
  answered = new Set<number>();
  commits = 0;
  outputs = 0;
  /** State transfers whose copy was compared with its source. */
  copies = 0;

  /** Comparisons of two guests that said what there was to find, and those that found nothing. */
  compared = 0;
  foundEqual = 0;

  constructor(world: World) {
    this.world = world;
    this.checkedOp = world.nodes.map(() => 0);
    this.viewOf = world.nodes.map(() => 0);
    this.syncOf = world.nodes.map(() => 0);
    this.framesOf = world.nodes.map(() => ({ bootOp: 0, frames: 0 }));
  }

  restarted(node: SimNode): void {
    this.checkedOp[node.id] = 0;
    // A view that was promised and not yet forced to disk bound nobody: no vote had left.
    this.viewOf[node.id] = node.hard.view;
    this.syncOf[node.id] = 0;
    this.framesOf[node.id] = { bootOp: 0, frames: 0 };
  }

  check(): void {
    this.oneOpenGate();
    for (const node of this.world.nodes) {
      if (!node.alive) continue;
      this.wholeCopies(node);
      this.sameGuests(node);
      this.collect(node);
    }
  }

  /** At most one replica may let output out at any instant, paused ones not excepted: they may go on at once. */
  private oneOpenGate(): void {
    const open = this.world.nodes.filter(
      (node) => node.alive && this.world.sim.mayRelease(node.id, this.world.localNs(node)),
    );
    assert(open.length <= 1, `gates of ${open.map((node) => node.id).join(' and ')} are open at once`);
  }

  /** A guest that becomes a copy as of a vm-sync is what the source's was behind that entry, to the last byte. */
  private wholeCopies(node: SimNode): void {
    const op = node.engine?.guest.own.syncOp ?? 0;
    if (op === this.syncOf[node.id]) return;
    this.syncOf[node.id] = op;
    if (op === 0) return;
    const source = this.world.captures.get(op);
    assert(source !== undefined, `the guest of ${node.id} is a copy as of op ${op}, of which none was made`);
    const who = `the copy on ${node.id} of the guest of ${source.node} as of op ${op}`;
    const { frames, digest } = this.world.sim.service(node.id);
    assert(
      frames === source.frames && digest === source.digest,
      `${who} has taken ${frames} frames, not ${source.frames}, or others`,
    );
    const copy = node.guest?.image() ?? null;
    assert(copy !== null, `${who} has no memory`);
    if (copy.hash !== source.image.hash)
      assert(false, `${who} differs in ${pagesDiffering(copy.bytes, source.image.bytes)}`);
    this.copies++;
  }

  /** What comparing two guests has told is what a look at both, byte by byte, would have. */
  comparison(source: SimNode, { peer, op, findings }: VerifyRecord): void {
    if (findings === null) return;
    const [ours, theirs] = [source.id, peer].map((id) => this.world.stood.get(op)?.get(id));
    assert(
      ours !== undefined && theirs !== undefined,
      `guests of ${source.id} and ${peer} were compared behind op ${op}, and did not stand there`,
    );
    const pages = differingPages(ours.image.bytes, theirs.image.bytes);
    const told = [findings.differing, ...findings.firstPages].join(' ');
    const wanted = [pages.length, ...pages.slice(0, findings.firstPages.length)].join(' ');
    assert(told === wanted, `of the guests of ${source.id} and ${peer} differ ${wanted}, not ${told}`);
    assert(findings.firstPages.length === Math.min(pages.length, 16), 'the first pages are told');
    const service = ours.frames === theirs.frames && ours.digest === theirs.digest ? 'equal' : 'different';
    assert(findings.service === service, `the services are ${service}, not ${findings.service}`);
    this.compared++;
    if (pages.length === 0) this.foundEqual++;
  }

  /** Guests of one boot that have taken n frames have taken the same n frames. */
  private sameGuests(node: SimNode): void {
    if (node.bootOp === 0) return;
    const { frames, digest } = this.world.sim.service(node.id);
    const before = this.framesOf[node.id]!;
    if (before.bootOp === node.bootOp && before.frames === frames) return;
    assert(
      before.bootOp !== node.bootOp || frames > before.frames,
      `the guest of ${node.id} went back in time`,
    );
    this.framesOf[node.id] = { bootOp: node.bootOp, frames };
    this.sameDigest(node.bootOp, frames, digest, `the guest of ${node.id}`);
  }

  private sameDigest(bootOp: number, frames: number, digest: number, who: string): void {
    if (frames === 0) return;
    const key = `${bootOp}:${frames}`;
    const known = this.digests.get(key);
    if (known === undefined) this.digests.set(key, digest);
    else
      assert(known === digest, `${who} has taken other frames, or in another order, up to frame ${frames}`);
  }

  private collect(node: SimNode): void {
    for (const { frame } of this.world.sim.outputs(node.id)) {
      const answer = parseAnswer(frame);
      if (answer === null) continue;
      this.outputs++;
      this.sameDigest(node.bootOp, answer.frames, answer.digest, `an answer of ${node.id}`);
      // What a client has been answered stays taken: a later primary's guest is never older.
      const last = this.lastAnswer.get(node.bootOp) ?? 0;
      this.lastAnswer.set(node.bootOp, Math.max(last, answer.frames));
      this.answered.add(answer.request);
    }
  }

  /** The committed prefix is the same everywhere and never changes; viewstamps grow. */
  checkLogs(): void {
    for (const node of this.world.nodes) {
      if (!node.alive) continue;
      const { promisedView, commitOp, base } = this.world.progress(node);
      assert(promisedView >= this.viewOf[node.id]!, `the view of ${node.id} went back`);
      this.viewOf[node.id] = promisedView;
      if (base.op > this.checkedOp[node.id]!) this.standsBehind(node, base);
      let from = Math.max(this.checkedOp[node.id]!, base.op) + 1;
      while (from <= commitOp) {
        const entries = this.world.sim.entries(node.id, from, Math.min(commitOp + 1, from + 256));
        assert(entries.length > 0, `node ${node.id} cannot read its committed op ${from}`);
        for (const entry of entries) this.sameEntry(node, entry.op, entry.view, entry.checksum);
        from += entries.length;
      }
      this.checkedOp[node.id] = Math.max(this.checkedOp[node.id]!, commitOp);
    }
  }

  /** A log that begins behind an entry begins behind one that was committed. */
  private standsBehind(node: SimNode, { op, view, checksum }: LogBase): void {
    const known = this.committed.get(op);
    if (known === undefined) return this.sameEntry(node, op, view, checksum);
    assert(
      known.view === view && known.checksum === checksum,
      `the log of ${node.id} begins behind op ${op} of view ${view}, committed was one of view ${known.view}`,
    );
  }

  private sameEntry(node: SimNode, op: number, view: number, checksum: number): void {
    const known = this.committed.get(op);
    if (known === undefined) {
      const before = this.committed.get(op - 1);
      assert(before === undefined || before.view <= view, `viewstamps go back at op ${op}`);
      this.committed.set(op, { view, checksum });
      this.commits++;
    } else {
      assert(
        known.checksum === checksum,
        `op ${op} of ${node.id} (view ${view}) is not what was committed (view ${known.view})`,
      );
    }
  }

  /** No answer that a client saw is forgotten by the guest that serves now. */
  nothingForgotten(primary: SimNode): void {
    const seen = this.lastAnswer.get(primary.bootOp) ?? 0;
    const { frames } = this.world.sim.service(primary.id);
    assert(
      frames >= seen,
      `the guest of ${primary.id} has taken ${frames} frames; clients have seen answers to ${seen}`,
    );
  }
}
