/** The machine that a guest runs on: one list of QEMU's arguments, so that what is compared is the same. */
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';

export interface QemuMachine {
  readonly binary: string;
  readonly kernel: string;
  readonly initrd: string;
  readonly append: string;
  readonly memoryMiB: number;
  readonly mac: string;
  /** The guest's static address and prefix, a.b.c.d/n. */
  readonly address: string;
  /** What comes behind `tap,id=net0,` of -netdev. */
  readonly netdev: string;
  /** A file of at least `memoryMiB` for the guest's memory; null for memory that nobody else maps. */
  readonly ramPath: string | null;
  /** What comes behind `-chardev` for the guest's console, without an id: `file,path=...`. */
  readonly console: string;
  /** For the operator. */
  readonly qmpSocket: string;
  /** Where the guest says that its service answers. */
  readonly readySocket: string;
}

export function qemuArguments(machine: QemuMachine): string[] {
  const m = machine;
  const firmware = join(dirname(m.binary), 'share');
  const ram =
    m.ramPath === null ? 'memory-backend-memfd' : `memory-backend-file,mem-path=${escaped(m.ramPath)}`;
  return [
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
    ...(existsSync(firmware) ? ['-L', firmware] : []),
    ...['-machine', 'pc,hpet=off,memory-backend=ram,usb=off'],
    ...['-accel', 'tcg,thread=multi', '-cpu', 'max', '-smp', '1'],
    // Time of day goes by the guest's own clock, so that it is transferred with it.
    ...['-rtc', 'base=utc,clock=vm'],
    ...['-m', `${m.memoryMiB}M`],
    ...['-object', `${ram},id=ram,size=${m.memoryMiB}M,share=on`],
    ...['-kernel', m.kernel, '-initrd', m.initrd],
    ...['-append', `${m.append} falcon.ip=${m.address}`],
    ...['-chardev', `${m.console},id=console`, '-serial', 'chardev:console'],
    ...['-device', 'virtio-serial-pci'],
    ...['-chardev', `socket,id=ready,path=${m.readySocket}`],
    ...['-device', 'virtserialport,chardev=ready,name=falcon.ready'],
    ...['-netdev', `tap,id=net0,${m.netdev}`],
    // A guest that was loaded is the guest that it was: QEMU must not ask it to announce itself.
    ...['-device', `virtio-net-pci,netdev=net0,mac=${m.mac},romfile=,guest_announce=off`],
    ...['-qmp', `unix:${m.qmpSocket},server=on,wait=off`],
  ];
}

/** QEMU's options take a comma for the end of a value, and two for one. */
export function escaped(value: string): string {
  return value.replaceAll(',', ',,');
}
