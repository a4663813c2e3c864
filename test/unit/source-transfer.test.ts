/** The source of a state transfer as it is carried out: what the guest is told waits for what the data plane does. */
import t from 'tap';

import { StateTransfer } from '../../src/engine/state-transfer.js';
import type { StateTransferPorts } from '../../src/engine/types.js';
import type { DataPlane, RoundFigures } from '../../src/ports/data-plane.js';
import type { GuestRunner } from '../../src/ports/guest.js';
import { bounds } from '../../src/lib/bounds.js';
import { transferOptions } from '../../src/transfer/defaults.js';
import { encodeTransfer, sessionId, sessionKeyBytes } from '../../src/wire/transfer-messages.js';

const view = 3;
const peer = 0;
const session = sessionId(view, 1);
const none = new Uint8Array();
const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
const figures: RoundFigures = {
  ...{ pages: 0, equal: 0, sent: 0, partial: 0, found: 0, bytes: 0, overheadBytes: 0 },
  ...{ digestNs: 0, waitNs: 0, refineNs: 0, moveNs: 0 },
};

/** Member 1 leads, and brings member 0 to a copy of its guest. */
class Bench {
  readonly told: string[] = [];
  readonly transfer: StateTransfer;
  private now = 1;

  constructor() {
    const plane = new Proxy(
      {},
      {
        get: (_plane, name: string) => () => {
          this.told.push(name);
        },
      },
    ) as DataPlane;
    const deed = (name: string) => (): Promise<{ pages: number }> => {
      this.told.push(name);
      return nextTurn().then(() => ({ pages: 0 }));
    };
    const guest = {
      pause: deed('pause'),
      resume: deed('resume'),
      dirtyStart: deed('dirtyStart'),
      dirtyCollect: deed('dirtyCollect'),
      saveState: deed('saveState'),
      ramBytes: 0,
    } as unknown as GuestRunner;
    this.transfer = new StateTransfer(
      {
        core: transferOptions(1),
        machine: 'pc',
        files: { inbox: '', dirty: '', state: '' },
        key: () => new Uint8Array(sessionKeyBytes),
        recordsMax: 4,
      },
      {
        plane,
        guest,
        keeper: { state: 'ready', fillable: 'live' } as StateTransferPorts['keeper'],
        cutOff: () => this.told.push('cut off'),
        whole: () => undefined,
        now: () => this.now,
        log: () => undefined,
      },
    );
  }

  async settle(): Promise<void> {
    for (let i = 0; i < 20; i++) await nextTurn();
  }

  tick(ms: number, whole = false): void {
    this.now += ms;
    const peers = [{ node: peer, reachable: true, whole, booting: false, syncOp: 0 }];
    this.transfer.tick({ view, primary: 1, leads: true, peers });
  }

  /** Up to where the vm-sync has been delivered. */
  async untilHeld(): Promise<void> {
    const { transfer } = this;
    this.tick(0);
    transfer.onPlaneEvent({ type: 'transfer-opened', session, inbox: none, ram: none });
    transfer.onMail(peer, encodeTransfer({ type: 'accept', session, based: false, inbox: none, ram: none }));
    await this.settle();
    transfer.onPlaneEvent({ type: 'transfer-round', session, figures });
    await this.settle();
    this.tick(bounds.transferSettleMs);
    this.told.length = 0;
    transfer.onPlaneEvent({ type: 'transfer-held', session, op: 5 });
  }

  /** Up to where the state has been posted, and nobody knows whether it has left. */
  async untilSent(): Promise<void> {
    await this.untilHeld();
    await this.settle();
    this.transfer.onPlaneEvent({ type: 'transfer-round', session, figures });
    await this.settle();
  }
}

void t.test('the guest goes on only when nothing of a lost session is sent any more', async (t) => {
  const bench = new Bench();
  await bench.untilSent();
  t.ok(bench.told.includes('transferSend'), 'the state has been posted');
  bench.told.length = 0;
  bench.transfer.onMail(peer, encodeTransfer({ type: 'abandon', session, reason: 'of the target' }));
  await bench.settle();
  t.match(bench.told.slice(0, 2), ['cut off', 'transferSettle']);
  t.notOk(bench.told.includes('resume'), 'the data plane has not said that it is done');
  bench.transfer.onPlaneEvent({ type: 'transfer-settled', session: sessionId(view, 2) });
  await bench.settle();
  t.notOk(bench.told.includes('resume'), 'nor of this session');
  bench.transfer.onPlaneEvent({ type: 'transfer-settled', session });
  await bench.settle();
  t.ok(bench.told.includes('resume'));
});

void t.test('a guest that is to stand still is asked for everything at once', async (t) => {
  const bench = new Bench();
  await bench.untilHeld();
  // No answer comes in this turn of the event loop.
  for (let i = 0; i < 20; i++) await Promise.resolve();
  t.same(bench.told, ['pause', 'dirtyCollect', 'saveState']);
  await bench.settle();
  t.match(bench.told, ['pause', 'dirtyCollect', 'saveState', 'transferCollected', 'transferRound']);
});

void t.test('what waits for the guest is there when it goes on', async (t) => {
  const bench = new Bench();
  await bench.untilSent();
  bench.told.length = 0;
  bench.transfer.onPlaneEvent({ type: 'transfer-sent', session, bytes: 1 });
  // No answer comes in this turn of the event loop.
  for (let i = 0; i < 20; i++) await Promise.resolve();
  t.same(bench.told, ['resume', 'transferRelease']);
});

void t.test('the rest of a verification begins when the guest has answered', async (t) => {
  const bench = new Bench();
  const { transfer } = bench;
  bench.tick(0, true);
  void transfer.verification.request(peer);
  const session = transfer.verification.sending?.session ?? 0;
  transfer.onPlaneEvent({ type: 'transfer-opened', session, inbox: none, ram: none });
  await bench.settle();
  transfer.onPlaneEvent({ type: 'transfer-taken', session });
  transfer.onMail(peer, encodeTransfer({ type: 'accept', session, based: false, inbox: none, ram: none }));
  transfer.onPlaneEvent({ type: 'transfer-held', session, op: 5 });
  await bench.settle();
  bench.told.length = 0;
  transfer.onPlaneEvent({ type: 'transfer-taken', session });
  for (let i = 0; i < 20; i++) await Promise.resolve();
  t.same(bench.told, ['resume']);
  await bench.settle();
  t.same(bench.told, ['resume', 'transferRelease']);
  t.equal(transfer.verification.sending?.phase, 'comparing');
});

void t.test('what was asked for counts though the session is over', async (t) => {
  const bench = new Bench();
  await bench.untilHeld();
  for (let i = 0; i < 20; i++) await Promise.resolve();
  bench.transfer.onMail(peer, encodeTransfer({ type: 'abandon', session, reason: 'of the target' }));
  await bench.settle();
  t.ok(bench.told.includes('transferCollected'), 'the changes are not lost');
  t.ok(
    bench.told.indexOf('resume') > bench.told.indexOf('saveState'),
    'and the guest goes on behind all of it',
  );
  t.equal(bench.told.filter((what) => what === 'saveState').length, 1);
});

void t.test('a session that is lost before anything of its end was posted cuts nobody off', async (t) => {
  const bench = new Bench();
  const { transfer } = bench;
  bench.tick(0);
  transfer.onPlaneEvent({ type: 'transfer-opened', session, inbox: none, ram: none });
  transfer.onMail(peer, encodeTransfer({ type: 'refuse', session, reason: 'no guest runs here' }));
  await bench.settle();
  t.notOk(bench.told.includes('cut off'));
  t.ok(bench.told.includes('transferClose'));
});
