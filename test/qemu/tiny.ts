// A patched QEMU whose guest is tiny-guest.S: it writes into exactly the pages that the test asks for.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync, readSync, rmSync, writeSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { Duplex } from 'node:stream';

import { QmpClient } from '../../src/adapters/qmp.js';
import { makeRamFile } from '../../src/adapters/ram-file.js';
import { repositoryRoot } from '../../src/lib/root.js';
import { qemuBinary } from './lab.js';
import { until } from './lines.js';
import { DIES_WITH_US, PREFIX, remember } from './remains.js';
import { temporaryDirectory } from '../support/directory.js';

export const PAGE_BYTES = 4096;
export const RAM_MIB = 16;
const RAM_DIRECTORY = '/dev/shm';
const FIRST_PAGE = 16;
const MASK_ADDRESS = 0x9000;

interface Test {
  teardown(handler: () => void): void;
}

export interface TinyOptions {
  readonly accelerator?: 'tcg,thread=multi' | 'tcg,thread=single' | 'kvm';
  readonly more?: readonly string[];
  readonly memoryMiB?: number;
}

let tinies = 0;

export class Tiny {
  readonly process: ChildProcess;
  readonly qmp: QmpClient;
  readonly ramPath: string;
  readonly directory: string;
  private readonly ram: number;
  stderr = '';

  /** The guest stands before its first instruction. */
  constructor(t: Test, options: TinyOptions = {}) {
    this.directory = temporaryDirectory(t);
    const bios = assemble(this.directory);
    const memoryMiB = options.memoryMiB ?? RAM_MIB;
    const name = `${PREFIX}${process.pid}-${tinies++}`;
    this.ramPath = makeRamFile({ directory: RAM_DIRECTORY, name, bytes: memoryMiB * 1024 * 1024 });
    this.ram = openSync(this.ramPath, 'r+');
    const qemu = qemuBinary();
    const [setpriv, ...words] = [
      ...DIES_WITH_US,
      ...[qemu, '-L', `${dirname(qemu)}/share`, '-nodefaults', '-no-user-config', '-display', 'none', '-S'],
      ...['-machine', 'pc,hpet=off,memory-backend=ram,usb=off', '-m', `${memoryMiB}M`, '-bios', bios],
      ...['-object', `memory-backend-file,id=ram,size=${memoryMiB}M,mem-path=${this.ramPath},share=on`],
      // What a machine's clock shows then is part of its state, not of the host's.
      ...['-rtc', 'clock=vm'],
      ...['-accel', options.accelerator ?? 'tcg,thread=multi'],
      ...['-chardev', 'socket,id=monitor,fd=3', '-mon', 'chardev=monitor,mode=control'],
      ...(options.more ?? []),
    ];
    const child = spawn(setpriv, words, { stdio: ['ignore', 'ignore', 'pipe', 'pipe'] });
    const monitor = child.stdio[3];
    if (!(monitor instanceof Duplex)) throw new Error('no monitor');
    child.stderr?.setEncoding('utf8').on('data', (text: string) => (this.stderr += text));
    this.process = child;
    this.qmp = new QmpClient(monitor);
    t.teardown(
      remember(() => {
        this.process.kill('SIGKILL');
        this.qmp.close();
        closeSync(this.ram);
        rmSync(this.ramPath, { force: true });
      }),
    );
  }

  /** From now on the guest writes these pages, and no other, in each of its rounds. */
  writePages(pages: readonly number[]): void {
    const mask = Buffer.alloc(8);
    let bits = 0n;
    for (const page of pages) bits |= 1n << BigInt(page - FIRST_PAGE);
    mask.writeBigUInt64LE(bits);
    writeSync(this.ram, mask, 0, 8, MASK_ADDRESS);
  }

  /** How often the guest has written the page. */
  counter(page: number): number {
    return this.read(page * PAGE_BYTES, 4).readUInt32LE();
  }

  /** The guest has begun and ended a round since. */
  async rounds(page: number): Promise<void> {
    const before = this.counter(page);
    await until(`the guest writes page ${page}`, async () => this.counter(page) - before >= 3);
  }

  read(at: number, bytes: number): Buffer {
    const buffer = Buffer.alloc(bytes);
    readSync(this.ram, buffer, 0, bytes, at);
    return buffer;
  }

  write(at: number, bytes: Uint8Array): void {
    writeSync(this.ram, bytes, 0, bytes.length, at);
  }

  /** The pages of the bitmap that QEMU has written. */
  async collect(): Promise<number[]> {
    const path = join(this.directory, 'dirty');
    const answer = (await this.qmp.execute('falcon-dirty-collect', { path })) as {
      pages: number;
      total: number;
    };
    const bitmap = readFileSync(path);
    const pages = setBits(bitmap);
    if (answer.pages !== pages.length || answer.total !== bitmap.length * 8)
      throw new Error(
        `${JSON.stringify(answer)} for a bitmap of ${bitmap.length} bytes, ${pages.length} set`,
      );
    return pages;
  }

  async status(): Promise<unknown> {
    return ((await this.qmp.execute('query-status')) as { status: unknown }).status;
  }
}

export function setBits(bitmap: Uint8Array): number[] {
  const set: number[] = [];
  for (const [i, byte] of bitmap.entries()) {
    for (let bit = 0; bit < 8; bit++) if ((byte >> bit) & 1) set.push(8 * i + bit);
  }
  return set;
}

function assemble(directory: string): string {
  const [object, bios] = [join(directory, 'tiny.o'), join(directory, 'tiny.bin')];
  const source = join(repositoryRoot, 'test/qemu/tiny-guest.S');
  execFileSync('as', ['--32', '-o', object, source]);
  execFileSync('ld', ['-m', 'elf_i386', '--oformat', 'binary', '-Ttext=0', '-o', bios, object]);
  return bios;
}

/** Why no guest can run under KVM here, or null: /dev/kvm alone proves nothing. */
export async function whyNoKvm(t: Test): Promise<string | null> {
  try {
    closeSync(openSync('/dev/kvm', 'r+'));
  } catch {
    return 'needs /dev/kvm';
  }
  const tiny = new Tiny(t, { accelerator: 'kvm' });
  try {
    tiny.writePages([FIRST_PAGE]);
    await tiny.qmp.execute('cont');
    await tiny.rounds(FIRST_PAGE);
    return null;
  } catch {
    return `/dev/kvm does not run a guest in real mode ${tiny.stderr}`;
  }
}
