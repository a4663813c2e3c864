// A real patched QEMU without a guest: the test plays the guest's driver through the qtest protocol.
import { type ChildProcess, spawn } from 'node:child_process';
import { connect, type Socket } from 'node:net';
import { dirname } from 'node:path';
import { Lines, until } from './lines.js';
import { DIES_WITH_US } from './remains.js';

export interface MachineOptions {
  readonly qemu: string;
  readonly namespace: string;
  readonly netdev: string;
  readonly qtestSocket: string;
  readonly more?: readonly string[];
}

export interface Ended {
  readonly code: number | null;
  readonly signal: string | null;
  readonly stderr: string;
}

function commandLine(options: MachineOptions): string[] {
  const nic = 'e1000,netdev=n0,mac=52:54:00:12:34:56,addr=4,romfile=';
  return [
    ...['ip', 'netns', 'exec', options.namespace, options.qemu, '-L', `${dirname(options.qemu)}/share`],
    ...['-M', 'pc', '-accel', 'qtest', '-m', '64', '-nodefaults', '-display', 'none', '-qmp', 'stdio'],
    ...['-qtest', `unix:${options.qtestSocket},server=on,wait=off`, '-qtest-log', '/dev/null'],
    ...['-netdev', options.netdev, '-device', nic, ...(options.more ?? [])],
  ];
}

export class Machine {
  readonly process: ChildProcess;
  readonly ended: Promise<Ended>;
  /** The names of the QMP events that have come, oldest first. */
  readonly events: string[] = [];
  private readonly qmp: Lines;
  private qtest: Lines | null = null;
  private socket: Socket | null = null;

  private constructor(options: MachineOptions) {
    const [setpriv, ...words] = [...DIES_WITH_US, ...commandLine(options)];
    const child = spawn(setpriv, words, { stdio: ['pipe', 'pipe', 'pipe'] });
    let stderr = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
    this.process = child;
    this.ended = new Promise((resolve) => {
      child.on('close', (code, signal) => {
        this.socket?.destroy();
        resolve({ code, signal, stderr });
      });
    });
    this.qmp = new Lines(child.stdout, child.stdin);
  }

  /** For command lines that QEMU must refuse. */
  static run(options: MachineOptions): Promise<Ended> {
    return new Machine(options).ended;
  }

  static async start(options: MachineOptions): Promise<Machine> {
    const machine = new Machine(options);
    await machine.qmp.next();
    await machine.execute('qmp_capabilities');
    machine.socket = await connected(options.qtestSocket);
    machine.qtest = new Lines(machine.socket, machine.socket);
    return machine;
  }

  /** Sends one QMP command. */
  async execute(command: string, parameters: object = {}): Promise<unknown> {
    let line = await this.qmp.ask(JSON.stringify({ execute: command, arguments: parameters }));
    for (;;) {
      const message = JSON.parse(line) as { return?: unknown; error?: { desc: string }; event?: string };
      if (message.error) throw new Error(message.error.desc);
      if ('return' in message) return message.return;
      if (message.event !== undefined) this.events.push(message.event);
      line = await this.qmp.next();
    }
  }

  /** Reads events until QEMU has ended. */
  async drainEvents(): Promise<void> {
    try {
      for (;;) this.events.push((JSON.parse(await this.qmp.next()) as { event: string }).event);
    } catch {
      await this.ended;
    }
  }

  async qtestCommand(command: string): Promise<string> {
    if (!this.qtest) throw new Error('qtest is not connected');
    const answer = await this.qtest.ask(command);
    if (!answer.startsWith('OK')) throw new Error(`qtest: ${command}: ${answer}`);
    return answer.slice(3);
  }

  kill(): void {
    this.process.kill('SIGKILL');
  }
}

async function connected(path: string): Promise<Socket> {
  let socket: Socket | null = null;
  await until(`QEMU listens on ${path}`, async () => {
    socket = await new Promise<Socket | null>((resolve) => {
      const attempt = connect(path);
      attempt.once('connect', () => resolve(attempt));
      attempt.once('error', () => resolve(null));
    });
    return socket !== null;
  });
  if (!socket) throw new Error('unreachable');
  return socket;
}
