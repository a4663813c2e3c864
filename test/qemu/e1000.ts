// The little of an e1000 driver that moves frames: legacy descriptors, no interrupts.
import type { Machine } from './machine.js';

const PCI_DEVICE = 0x80000000 + (4 << 11);
const BAR = 0xe0000000;
const RX_RING = 0x100000;
const TX_RING = 0x110000;
const RX_BUFFERS = 0x200000;
const TX_BUFFERS = 0x300000;
const BUFFER_BYTES = 2048;
const DESCRIPTOR_BYTES = 16;
const TX_DESCRIPTORS = 128;
const REG = {
  RCTL: 0x100,
  TCTL: 0x400,
  RDBAL: 0x2800,
  TDBAL: 0x3800,
  LEN: 8,
  HEAD: 0x10,
  TAIL: 0x18,
} as const;
const RCTL_ON_PROMISCUOUS_STRIP_CRC = 0x0400801a;
const TCTL_ON = 0x0a;
const DESCRIPTOR_DONE = 1;
const TX_END_OF_PACKET_REPORT = 0x09;

export class E1000 {
  /** Where the driver's memory is. */
  static readonly memory = {
    receiveRing: RX_RING,
    receiveBuffers: RX_BUFFERS,
    bufferBytes: BUFFER_BYTES,
  } as const;

  private readonly machine: Machine;
  private readonly rxDescriptors: number;
  private rxNext = 0;
  private txNext = 0;

  private constructor(machine: Machine, rxDescriptors: number) {
    this.machine = machine;
    this.rxDescriptors = rxDescriptors;
  }

  /** `rxDescriptors` is a multiple of 8; the NIC fills one fewer before it waits for `release`. */
  static async start(machine: Machine, rxDescriptors: number): Promise<E1000> {
    const nic = new E1000(machine, rxDescriptors);
    await nic.pci(0x10, BAR);
    await nic.pci(0x04, 0x06);
    for (let i = 0; i < rxDescriptors; i++) {
      await nic.write(RX_RING + i * DESCRIPTOR_BYTES, descriptor(RX_BUFFERS + i * BUFFER_BYTES, 0, 0));
    }
    await nic.setRing(REG.RDBAL, RX_RING, rxDescriptors);
    await nic.setRing(REG.TDBAL, TX_RING, TX_DESCRIPTORS);
    await nic.register(REG.RDBAL + REG.TAIL, rxDescriptors - 1);
    await nic.register(REG.TCTL, TCTL_ON);
    await nic.register(REG.RCTL, RCTL_ON_PROMISCUOUS_STRIP_CRC);
    // The device takes nothing in the first second after its receiver was switched on.
    await machine.qtestCommand('clock_step 2000000000');
    return nic;
  }

  /** The frames that have arrived since the last call; their descriptors stay taken until `release`. */
  async received(): Promise<Buffer[]> {
    const frames: Buffer[] = [];
    while (frames.length < this.rxDescriptors) {
      const index = this.rxNext % this.rxDescriptors;
      const bytes = await this.read(RX_RING + index * DESCRIPTOR_BYTES, DESCRIPTOR_BYTES);
      if (!((bytes[12] ?? 0) & DESCRIPTOR_DONE)) break;
      frames.push(await this.read(RX_BUFFERS + index * BUFFER_BYTES, bytes.readUInt16LE(8)));
      await this.write(
        RX_RING + index * DESCRIPTOR_BYTES,
        descriptor(RX_BUFFERS + index * BUFFER_BYTES, 0, 0),
      );
      this.rxNext++;
    }
    return frames;
  }

  /** Gives all descriptors that were read back to the device. */
  async release(): Promise<void> {
    const tail = (this.rxNext + this.rxDescriptors - 1) % this.rxDescriptors;
    await this.register(REG.RDBAL + REG.TAIL, tail);
  }

  /** At most TX_DESCRIPTORS - 1 frames at once. */
  async send(frames: readonly Uint8Array[]): Promise<void> {
    for (const frame of frames) {
      const index = this.txNext++ % TX_DESCRIPTORS;
      const buffer = TX_BUFFERS + index * BUFFER_BYTES;
      await this.write(buffer, frame);
      const bytes = descriptor(buffer, frame.length, TX_END_OF_PACKET_REPORT);
      await this.write(TX_RING + index * DESCRIPTOR_BYTES, bytes);
    }
    await this.register(REG.TDBAL + REG.TAIL, this.txNext % TX_DESCRIPTORS);
  }

  private async setRing(base: number, address: number, descriptors: number): Promise<void> {
    await this.register(base, address);
    await this.register(base + 4, 0);
    await this.register(base + REG.LEN, descriptors * DESCRIPTOR_BYTES);
    await this.register(base + REG.HEAD, 0);
    await this.register(base + REG.TAIL, 0);
  }

  private async pci(register: number, value: number): Promise<void> {
    await this.machine.qtestCommand(`outl 0xcf8 ${PCI_DEVICE + register}`);
    await this.machine.qtestCommand(`outl 0xcfc ${value}`);
  }

  private async register(offset: number, value: number): Promise<void> {
    await this.machine.qtestCommand(`writel ${BAR + offset} ${value}`);
  }

  private async write(address: number, bytes: Uint8Array): Promise<void> {
    const hex = Buffer.from(bytes).toString('hex');
    await this.machine.qtestCommand(`write ${address} ${bytes.length} 0x${hex}`);
  }

  private async read(address: number, count: number): Promise<Buffer> {
    const answer = await this.machine.qtestCommand(`read ${address} ${count}`);
    return Buffer.from(answer.slice(2), 'hex');
  }
}

function descriptor(buffer: number, length: number, command: number): Buffer {
  const bytes = Buffer.alloc(DESCRIPTOR_BYTES);
  bytes.writeUInt32LE(buffer, 0);
  bytes.writeUInt16LE(length, 8);
  bytes[11] = command;
  return bytes;
}
