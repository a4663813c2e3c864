/**
 * Checkers: they look at a simulated world from outside and know nothing of how replicas decide. Each throws
 * with a sentence that says what a user would have lost.
 */
import { assert } from '../../src/lib/assert.js';
import type { SimNode, World } from './world.js';

const ethernetBytes = 14;

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

export class Checkers {
  private readonly world: World;
  private readonly committed = new Map<number, { view: number; checksum: number }>();
  private readonly checkedOp: number[];
  private readonly viewOf: number[];
  /** By boot and number of frames taken: the digest, the same for every guest. */
  private readonly digests = new Map<string, number>();
  private readonly framesOf: { bootOp: number; frames: number }[];
  private lastAnswer = new Map<number, number>();
  answered = new Set<number>();
  commits = 0;
  outputs = 0;

  constructor(world: World) {
    this.world = world;
    this.checkedOp = world.nodes.map(() => 0);
    this.viewOf = world.nodes.map(() => 0);
    this.framesOf = world.nodes.map(() => ({ bootOp: 0, frames: 0 }));
  }

  restarted(node: SimNode): void {
    this.checkedOp[node.id] = 0;
    // A view that was promised and not yet forced to disk bound nobody: no vote had left.
    this.viewOf[node.id] = node.hard.view;
    this.framesOf[node.id] = { bootOp: 0, frames: 0 };
  }

  check(): void {
    this.oneOpenGate();
    for (const node of this.world.nodes) {
      if (!node.alive) continue;
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
      const { promisedView, commitOp } = this.world.progress(node);
      assert(promisedView >= this.viewOf[node.id]!, `the view of ${node.id} went back`);
      this.viewOf[node.id] = promisedView;
      let from = this.checkedOp[node.id]! + 1;
      while (from <= commitOp) {
        const entries = this.world.sim.entries(node.id, from, Math.min(commitOp + 1, from + 256));
        assert(entries.length > 0, `node ${node.id} cannot read its committed op ${from}`);
        for (const entry of entries) this.sameEntry(node, entry.op, entry.view, entry.checksum);
        from += entries.length;
      }
      this.checkedOp[node.id] = Math.max(this.checkedOp[node.id]!, commitOp);
    }
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
