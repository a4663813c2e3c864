// The adapter that falcond uses: real QEMUs on real rings, one that boots and one that is filled from it.
import { execFileSync } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';

import t from 'tap';

import { loadNative } from '../../src/adapters/native.js';
import { QemuGuest } from '../../src/adapters/qemu.js';
import { bounds } from '../../src/lib/bounds.js';
import { asFalconError } from '../../src/lib/errors.js';
import type { GuestCallbacks } from '../../src/ports/guest.js';
import { temporaryDirectory } from '../support/directory.js';
import { cannotRun, qemuBinary } from './lab.js';
import { pause, until } from './lines.js';
import { copyPages, differingPages } from './pages.js';
import { guestImage } from './redis-guest.js';
import { remember } from './remains.js';
import { setBits } from './tiny.js';

t.setTimeout(1_200_000);
const skip = cannotRun();
const READY_MS = 120_000;

interface Test {
  teardown(handler: () => void | Promise<void>): void;
}

let hosts = 0;

/** One replica's rings and tap, and the guest on them. */
class Host implements GuestCallbacks {
  readonly directory: string;
  readonly guest: QemuGuest;
  readonly happened: string[] = [];
  readonly dirtyPath: string;
  readonly statePath: string;
  private readonly replica;

  constructor(t: Test) {
    const number = hosts++;
    this.directory = temporaryDirectory(t);
    this.dirtyPath = join(this.directory, 'dirty');
    this.statePath = join(this.directory, 'state');
    const vmSocket = join(this.directory, 'vm.sock');
    const ramDirectory = join(this.directory, 'memory');
    mkdirSync(join(this.directory, 'wal'));
    this.replica = new (loadNative().Replica)({
      self: 0,
      promisedView: 0,
      members: 1,
      force: false,
      logBytes: 1 << 24,
      logEntries: bounds.logEntriesMax,
      ringBytes: 1 << 22,
      inflightEntries: bounds.inflightEntriesMax,
      heartbeatNs: 10_000_000,
      leaseNs: 100_000_000,
      deciderStallNs: 1_000_000_000,
      keepUnproposed: false,
      hashSeed: randomInt(1, 2 ** 48 - 1),
      vmMac: Uint8Array.from([0x52, 0x54, 0, 0xfa, 0x1c, 1]),
      vmAddress: Uint8Array.from([10, 77, 1, 10]),
      cluster: `adapter-${process.pid}`,
      walDirectory: join(this.directory, 'wal'),
      walSalt: 1,
      segmentBytes: 1 << 24,
      retainBytes: 1 << 26,
      fabric: 'shm',
      fabricAddress: '',
      shmDirectory: join(this.directory, 'shm'),
      shmName: 'n1',
      vm: true,
      builtin: false,
      vmSocket,
      tap: `fq${process.pid % 1_000_000}-${number}`,
      busy: false,
      spinNs: 0,
      realtime: false,
      verbs: null,
      outputQueueBytes: 4096,
      outputCompareEvery: 16,
      outputCheckNs: 1e9,
      outputWaitNs: 1e9,
      outputMasks: [],
    });
    this.replica.start(() => undefined);
    this.guest = new QemuGuest({
      binary: qemuBinary(),
      ...guestImage(),
      mac: '52:54:00:fa:1c:01',
      address: '10.77.1.10/24',
      tapFd: this.replica.tapFd(),
      vmSocket,
      qmpSocket: join(this.directory, 'qmp.sock'),
      readySocket: join(this.directory, 'ready.sock'),
      directory: this.directory,
      ramDirectory,
      ramName: 'n1',
      readyTimeoutMs: READY_MS,
    });
    const killed = remember(() => this.kill());
    t.teardown(async () => {
      await this.guest.stop();
      killed();
      this.replica.close();
    });
  }

  onEmpty = (): void => {
    this.happened.push('empty');
    this.replica.expectVm();
  };

  onReady = (): void => {
    this.happened.push('ready');
  };

  onExit = (reason: string): void => {
    this.happened.push(reason);
  };

  kill(): void {
    const { pid } = this.guest;
    if (pid !== null) process.kill(pid, 'SIGKILL');
  }

  /** The console's log so far. */
  console(): string {
    return readFileSync(join(this.directory, 'console.log'), 'latin1');
  }

  memories(): string[] {
    return readdirSync(join(this.directory, 'memory'));
  }

  /** The guest's memory. */
  get ram(): string {
    if (this.guest.ramPath === null) throw new Error('no guest');
    return this.guest.ramPath;
  }

  async dirty(): Promise<number[]> {
    const { pages } = await this.guest.dirtyCollect(this.dirtyPath);
    const set = setBits(readFileSync(this.dirtyPath));
    if (pages !== set.length) throw new Error(`${pages} pages, ${set.length} bits`);
    return set;
  }
}

async function refusal(call: Promise<unknown>): Promise<string> {
  try {
    await call;
    return 'no error';
  } catch (error) {
    const { code, detail } = asFalconError(error);
    return `${code} ${detail}`;
  }
}

void t.test('a guest boots, and another is filled from it', { skip }, async (t) => {
  const [source, target] = [new Host(t), new Host(t)];
  t.match(await refusal(source.guest.pause()), /^GUEST_WRONG_STATE stop: no guest runs/);
  t.same([source.guest.ramPath, source.guest.pid], [null, null]);

  await source.guest.start(source);
  await target.guest.prepare(target);
  t.same(target.happened, ['empty']);
  const { ramBytes } = source.guest;
  t.equal(statSync(target.ram).size, ramBytes + bounds.ramTrailerBytes, 'QEMU leaves the trailer alone');
  t.ok(statSync(target.ram).blocks * 512 >= ramBytes, 'its room is reserved');
  t.equal(
    execFileSync('cmp', ['-n', String(ramBytes), target.ram, '/dev/zero']).length,
    0,
    'and nothing is in it',
  );
  await until('the guest is ready', async () => source.happened.includes('ready'), READY_MS);
  t.same(source.happened, ['empty', 'ready']);

  t.match(await refusal(source.guest.saveState(source.statePath)), /^GUEST_WRONG_STATE .*'running'/);
  t.match(await refusal(source.guest.dirtyStop()), /^GUEST_WRONG_STATE the dirty log is off/);
  await source.guest.dirtyStart();
  await pause(300);
  await source.guest.pause();
  t.ok((await source.dirty()).length > 0, 'a guest that idles writes something');
  const { bytes } = await source.guest.saveState(source.statePath);
  t.equal(statSync(source.statePath).size, bytes);
  copyPages(source.ram, target.ram, differingPages(source.ram, target.ram, ramBytes));
  t.same(await target.guest.loadState(source.statePath), { bytes });
  await target.guest.dirtyStart();
  await target.guest.resume();
  await pause(1000);
  const moved = await target.dirty();
  t.ok(
    moved.length > 0 && moved.length < ramBytes / bounds.guestPageBytes / 2,
    `${moved.length} pages in a second`,
  );
  t.same(target.happened, ['empty'], 'it runs, and does not say again that it is ready');
  t.match(await refusal(target.guest.loadState(source.statePath)), /^GUEST_WRONG_STATE/);
  await target.guest.pause();
  t.match(await refusal(target.guest.loadState(target.dirtyPath)), /^GUEST_STATE_INVALID/);

  // Filled once more: now it is a machine that has run.
  copyPages(source.ram, target.ram, differingPages(source.ram, target.ram, ramBytes));
  await target.guest.loadState(source.statePath);
  await Promise.all([source.guest.resume(), target.guest.resume()]);
  await pause(300);
  t.same([source.happened.length, target.happened.length], [2, 1], 'both run');

  const [old] = target.memories();
  const { ram } = target;
  await target.guest.prepare(target);
  t.same(target.happened, ['empty', 'empty']);
  t.not(target.ram, ram);
  t.ok(
    old !== undefined && target.memories().length === 1 && !target.memories().includes(old),
    'the old one is gone',
  );
  await target.guest.stop();
  t.same(target.memories(), []);
  t.equal(target.guest.ramPath, null);

  t.ok(source.console().length > 0, 'the console is logged');
  source.kill();
  await until('its end is told', async () => source.happened.length === 3);
  t.match(source.happened[2], /^QEMU_LOST it ended with SIGKILL/);
  t.equal(source.guest.ramPath, null);
  await until('its memory is given back', async () => source.memories().length === 0);
  t.match(await refusal(source.guest.resume()), /^GUEST_WRONG_STATE/);
});

void t.test('a QEMU that ends before it can be filled', { skip }, async (t) => {
  const host = new Host(t);
  const prepared = refusal(host.guest.prepare(host));
  await until('QEMU has been started', async () => host.guest.pid !== null);
  host.kill();
  const said = await prepared;
  t.match(said, /^QEMU_FAILED .*; see .*qemu\.log$/);
  t.same(host.happened, ['empty'], 'only the caller is told');
  t.same(host.memories(), []);
  t.equal(host.guest.pid, null);
});
