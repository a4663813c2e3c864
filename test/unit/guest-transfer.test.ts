/**
 * Where state transfer and the life of a guest meet: an engine whose data plane and guest are told what to do by the
 * test. Judged by what the engine says of its guest, and by what the guest was told.
 */
import t from 'tap';
import { setImmediate as nextTurn } from 'node:timers/promises';

import { ReplicaEngine } from '../../src/engine/replica.js';
import { bootModes } from '../../src/engine/boot-policy.js';
import { entryKinds } from '../../src/ports/data-plane.js';
import type { DataPlane, PlaneEvent, PlaneProgress } from '../../src/ports/data-plane.js';
import type { GuestCallbacks, GuestRunner } from '../../src/ports/guest.js';
import { transferOptions } from '../../src/transfer/defaults.js';
import { encodeGuestReport, mailTags } from '../../src/wire/engine-mail.js';
import { encodeMessage } from '../../src/wire/messages.js';
import type { Message } from '../../src/wire/messages.js';
import { noBase } from '../../src/wire/view-table.js';
import { encodeTransfer, sessionId, sessionKeyBytes } from '../../src/wire/transfer-messages.js';
import type { TransferMessage } from '../../src/wire/transfer-messages.js';

const view = 3;
const none = new Uint8Array();

/** Member 1 of three, a backup of primary 0. */
class Bench {
  now = 1000;
  /** What the plane and the guest were told, in order. */
  readonly told: string[] = [];
  callbacks: GuestCallbacks | null = null;
  readonly engine: ReplicaEngine;

  constructor(mode: keyof typeof bootModes) {
    const progress: PlaneProgress = {
      role: 'following',
      promisedView: view,
      lastOp: 0,
      durableOp: 0,
      commitOp: 0,
      deliveredOp: 0,
      base: noBase,
      committed: noBase,
      acked: [null, null, null],
      wordsAt: [null, null, null],
      leaseEndsAt: null,
      gate: 'closed',
      heard: null,
      guest: 'none',
    };
    const plane = new Proxy(
      {},
      {
        get: (_plane, name: string) => (first: unknown) => {
          if (name === 'progress') return progress;
          if (name === 'setGuest' || name === 'follow' || name.startsWith('transfer'))
            this.told.push(
              typeof first === 'object' && first !== null ? name : `${name} ${JSON.stringify(first)}`,
            );
          return undefined;
        },
      },
    ) as DataPlane;
    const deed = (name: string) => (): Promise<void> => {
      this.told.push(name);
      return nextTurn();
    };
    const begin =
      (name: string) =>
      (callbacks: GuestCallbacks): Promise<void> => {
        this.callbacks = callbacks;
        return deed(name)();
      };
    const guest = {
      start: begin('start'),
      prepare: begin('prepare'),
      stop: deed('stop'),
      pause: deed('pause'),
      resume: deed('resume'),
      dirtyStart: deed('dirtyStart'),
      dirtyCollect: () => Promise.reject(new Error('QMP_TIMEOUT nothing within 5000 ms')),
      loadState: deed('loadState'),
      restartRings: deed('restartRings'),
      ramPath: null,
      ramBytes: 0,
      pid: null,
    } as unknown as GuestRunner;
    this.engine = new ReplicaEngine(
      {
        core: {
          self: 1,
          members: [0, 1, 2],
          witnesses: [],
          electionTimeoutMinMs: 1e6,
          electionTimeoutMaxMs: 2e6,
          leaseMs: 40,
          driftMarginMs: 2,
          retryMs: 10,
          random: () => 0.5,
        },
        hardState: { view, votedFor: null, recovering: false },
        tail: { last: { view: 0, op: 0 }, commitOp: 0, table: [] },
        boot: { mode, firstBootWaitMs: 1, rebootWaitMs: 1, quorumReadyWaitMs: 1, fillWaitMs: 1 },
        transfer: {
          core: transferOptions(1),
          machine: 'pc',
          files: { inbox: '', dirty: '', state: '' },
          key: () => new Uint8Array(sessionKeyBytes),
          recordsMax: 4,
        },
        canRunGuest: true,
        reportIntervalMs: 1e6,
        mailSilenceMs: 60_000,
        outputs: { waitMs: 1, primaryDiverged: 'heal-backups' },
      },
      {
        plane,
        store: { write: () => undefined },
        guest,
        clock: { now: () => this.now },
        reconnect: () => undefined,
        fail: (why) => {
          throw new Error(why);
        },
        log: () => undefined,
      },
    );
    this.engine.onPeerUp(0, none, none);
    this.engine.primary = 0;
    this.tick();
  }

  tick(): void {
    this.now++;
    this.engine.stateTransfer.tick({ view, primary: 0, leads: false, peers: [] });
  }

  async settle(): Promise<void> {
    for (let i = 0; i < 20; i++) await nextTurn();
    this.tick();
  }

  hear(message: TransferMessage): void {
    const bytes = Uint8Array.from([mailTags.transfer, ...encodeTransfer(message)]);
    this.events({ type: 'mail', from: 0, generation: 1, bytes });
  }

  offer(count: number): number {
    const session = sessionId(view, count);
    const key = new Uint8Array(sessionKeyBytes);
    this.hear({ type: 'offer', session, view, machine: 'pc', ramBytes: 0, baseOp: 0, key, inbox: none });
    return session;
  }

  /** The primary says that the log here begins anew behind op 100. */
  beginAnew(): void {
    const mail = (message: Message): void =>
      this.events({
        type: 'mail',
        from: 0,
        generation: 1,
        bytes: Uint8Array.from([mailTags.consensus, ...encodeMessage(message)]),
      });
    mail({ type: 'new-view', view });
    const tail = { last: { view: 1, op: 60 }, commitOp: 60, table: [{ view: 1, firstOp: 1 }] };
    this.events({ type: 'promised', view, tail, heartbeatAckedAt: null });
    mail({
      type: 'follow',
      view,
      agreeOp: 100,
      caughtUpOp: 120,
      base: { op: 100, view: 1, checksum: 7 },
    });
  }

  events(...events: PlaneEvent[]): void {
    this.engine.onPlaneEvents(events);
  }

  vmBoot(op: number, mode: keyof typeof bootModes): void {
    const payload = Uint8Array.of(bootModes[mode], 0, 0, 0, 0, 0, 0, 0);
    this.events({ type: 'control', kind: entryKinds.vmBoot, view, op, payload });
  }

  /** Until the state of the session is being loaded, and the data plane is to install it. */
  async load(session: number): Promise<void> {
    await this.settle();
    this.events({ type: 'transfer-opened', session, inbox: none, ram: none });
    this.events({ type: 'transfer-arrived', session, op: 50, bootOp: 10 });
    await this.settle();
  }
}

void t.test('what was loaded is whole', async (t) => {
  const bench = new Bench('each');
  const session = bench.offer(1);
  await bench.load(session);
  t.equal(bench.told.at(-1), `transferInstall ${session}`);
  t.notOk(bench.engine.guest.own.ready);
  bench.events({ type: 'transfer-installed', session });
  await bench.settle();
  t.match(bench.engine.guest.own, { ready: true, syncOp: 50, bootOp: 10 });
});

void t.test('an offer does not take the place of a guest that is being loaded', async (t) => {
  const bench = new Bench('each');
  const session = bench.offer(1);
  await bench.load(session);
  bench.offer(2);
  bench.events({ type: 'transfer-installed', session });
  await bench.settle();
  t.match(bench.engine.guest.own, { ready: true, syncOp: 50 });
  t.equal(bench.told.filter((one) => one === 'prepare').length, 1);
  t.notOk(bench.told.includes('stop'));
});

void t.test('a late word of a session that failed makes no other guest whole', async (t) => {
  const bench = new Bench('each');
  const session = bench.offer(1);
  await bench.load(session);
  bench.callbacks?.onExit('QEMU_LOST it ended');
  await bench.settle();
  bench.offer(2);
  bench.events({ type: 'transfer-installed', session });
  await bench.settle();
  t.equal(bench.told.filter((one) => one === 'prepare').length, 2);
  t.notOk(bench.told.includes('resume'), 'the empty guest does not run');
  t.notOk(bench.engine.guest.own.ready);
});

void t.test('a guest of an earlier boot is no copy when the primary alone boots anew', async (t) => {
  const bench = new Bench('clone');
  const session = bench.offer(1);
  await bench.load(session);
  bench.events({ type: 'transfer-installed', session });
  await bench.settle();
  t.ok(bench.engine.guest.own.ready);
  bench.vmBoot(60, 'clone');
  await bench.settle();
  t.notOk(bench.engine.guest.own.ready, 'the data plane has no guest any more, either');
  t.equal(bench.told.at(-1), 'stop');
});

void t.test('a vm-boot of the past does not boot beside a transfer', async (t) => {
  const bench = new Bench('each');
  const session = bench.offer(1);
  await bench.settle();
  bench.events({ type: 'transfer-opened', session, inbox: none, ram: none });
  bench.vmBoot(10, 'each');
  await bench.settle();
  t.notOk(bench.told.includes('start'));
  t.equal(bench.told.at(-1), 'setGuest "none"', 'delivery does not wait for a guest that is not booted');
  await bench.load(session);
  bench.events({ type: 'transfer-installed', session });
  await bench.settle();
  t.match(bench.engine.guest.own, { ready: true, syncOp: 50 });
});

void t.test('input that was taken before the source died is taken after it', async (t) => {
  const bench = new Bench('each');
  const report = encodeGuestReport({ bootOp: 10, ready: true, admittedBootOp: 10, syncOp: 0 });
  bench.events({ type: 'mail', from: 0, generation: 1, bytes: report });
  const session = bench.offer(1);
  await bench.load(session);
  bench.engine.onPeerDown(0);
  bench.events({ type: 'transfer-installed', session });
  await bench.settle();
  t.match(bench.engine.guest.own, { ready: true, syncOp: 50, admittedBootOp: 10 });
  t.ok(bench.engine.guest.admitted);
});

void t.test('changes that may have been collected and lost are counted against nothing', async (t) => {
  const bench = new Bench('each');
  const filled = bench.offer(1);
  await bench.load(filled);
  bench.events({ type: 'transfer-installed', session: filled });
  await bench.settle();
  bench.told.length = 0;
  // This one leads now, and fills member 2.
  bench.engine.onPeerUp(2, none, none);
  const peers = [{ node: 2, reachable: true, whole: false, booting: false, syncOp: 0 }];
  bench.engine.stateTransfer.tick({ view, primary: 1, leads: true, peers });
  const session = sessionId(view, 1);
  bench.events({ type: 'transfer-opened', session, inbox: none, ram: none });
  const accept = encodeTransfer({ type: 'accept', session, based: false, inbox: none, ram: none });
  bench.events({
    type: 'mail',
    from: 2,
    generation: 1,
    bytes: Uint8Array.from([mailTags.transfer, ...accept]),
  });
  for (let i = 0; i < 20; i++) await nextTurn();
  t.match(bench.engine.stateTransfer.records.at(-1), { ok: false, peer: 2 });
  t.ok(bench.told.includes('transferForget null'), 'nor against the common point with member 0');
});

void t.test('who has asked a replica that leads no more is told', async (t) => {
  const bench = new Bench('clone');
  const asked = bench.engine.sync(0);
  bench.tick();
  t.equal(await asked, null);
});

void t.test('a guest that is whole ends when the log passes over what it has not taken', async (t) => {
  const bench = new Bench('each');
  const session = bench.offer(1);
  await bench.load(session);
  bench.events({ type: 'transfer-installed', session });
  await bench.settle();
  t.ok(bench.engine.guest.own.ready);
  bench.told.length = 0;
  bench.beginAnew();
  await bench.settle();
  t.same(bench.told, ['setGuest "none"', 'transferForget null', `follow ${view}`, 'stop']);
  t.match(bench.engine.guest.own, { ready: false, bootOp: 0 });
  t.equal(bench.engine.guest.state, 'none');
});

void t.test('nor does a guest become whole that was being loaded then', async (t) => {
  const bench = new Bench('each');
  const session = bench.offer(1);
  await bench.load(session);
  bench.events({ type: 'transfer-installed', session });
  bench.beginAnew();
  await bench.settle();
  t.ok(bench.told.indexOf(`transferClose ${session}`) < bench.told.indexOf(`follow ${view}`));
  t.ok(bench.told.includes(`transferClose ${session}`) && bench.told.includes('stop'));
  t.notOk(bench.engine.guest.own.ready);
  t.equal(bench.engine.guest.state, 'none');
  const next = bench.offer(2);
  await bench.load(next);
  bench.events({ type: 'transfer-installed', session: next });
  await bench.settle();
  t.match(bench.engine.guest.own, { ready: true, syncOp: 50 }, 'the next one fills it');
});
