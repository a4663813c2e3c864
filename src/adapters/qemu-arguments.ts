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
  readonly qmpSocket: string;
  /** Where the guest says that its service answers. */
  readonly readySocket: string;
  /** The logs of QEMU and of the guest's console go here. */
  readonly directory: string;
}

export function qemuArguments(machine: QemuMachine): string[] {
  const m = machine;
  const firmware = join(dirname(m.binary), 'share');
  return [
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
    ...(existsSync(firmware) ? ['-L', firmware] : []),
    ...['-machine', 'pc,hpet=off,memory-backend=ram,usb=off'],
    ...['-accel', 'tcg,thread=multi', '-cpu', 'max', '-smp', '1'],
    ...['-m', `${m.memoryMiB}M`],
    ...['-object', `memory-backend-memfd,id=ram,size=${m.memoryMiB}M,share=on`],
    ...['-kernel', m.kernel, '-initrd', m.initrd],
    ...['-append', `${m.append} falcon.ip=${m.address}`],
    ...['-serial', `file:${join(m.directory, 'console.log')}`],
    ...['-device', 'virtio-serial-pci'],
    ...['-chardev', `socket,id=ready,path=${m.readySocket}`],
    ...['-device', 'virtserialport,chardev=ready,name=falcon.ready'],
    ...['-netdev', `tap,id=net0,${m.netdev}`],
    ...['-device', `virtio-net-pci,netdev=net0,mac=${m.mac},romfile=`],
    ...['-qmp', `unix:${m.qmpSocket},server=on,wait=off`],
  ];
}
