/**
 * A client of the built-in service, and somebody who listens at every host's cable: what went in, what came out,
 * from where and in which order.
 *
 * The service numbers the frames that it takes and answers each with that number and a digest of all payloads up
 * to it. So a single answer tells the whole order before it, and whoever answers the same number twice, or an
 * older one after a newer one, has let out what it must not.
 */
import { spawn } from 'node:child_process';
import type { ChildProcessByStdio } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';

import { repositoryRoot } from '../../src/lib/root.js';
import { crc32c } from '../../src/wire/crc32c.js';
import { waitUntil } from '../../src/lib/time.js';

const native = process.env['FALCON_NATIVE'] ?? join(repositoryRoot, 'build/native');
const ethernetBytes = 14;
const ethertype = 0x88b5;
const requestBytes = 32;
const answerBytes = 16 + requestBytes;
const clientMac = '02fa1c000064';

export interface Answer {
  /** CLOCK_MONOTONIC, nanoseconds. */
  readonly at: bigint;
  /** Where it was seen. */
  readonly interface: string;
  /** How many frames the service had taken, this one included, and the digest of their payloads in order. */
  readonly frames: number;
  readonly digest: number;
  /** The beginning of the request, as text. */
  readonly request: string;
}

type Probe = ChildProcessByStdio<Writable, Readable, null>;

function startProbe(netns: string, interfaces: readonly string[]): Probe {
  const command = ['netns', 'exec', netns, join(native, 'lan_probe'), ...interfaces];
  return spawn('ip', command, { stdio: ['pipe', 'pipe', 'inherit'] });
}

/** null: not an answer (the request itself, on its way). */
function parseAnswer(line: string): Answer | null {
  const [at = '', name = '', hex = ''] = line.split(' ');
  const frame = Buffer.from(hex, 'hex');
  if (frame.length < ethernetBytes + answerBytes || frame.readUInt16BE(12) !== ethertype) return null;
  if (frame.subarray(0, 6).toString('hex') !== clientMac) return null;
  const request = frame.subarray(ethernetBytes + 16, ethernetBytes + answerBytes).toString('latin1');
  return {
    at: BigInt(at),
    interface: name,
    frames: Number(frame.readBigUInt64LE(ethernetBytes)),
    digest: frame.readUInt32LE(ethernetBytes + 8),
    request: request.replace(/\0+$/, ''),
  };
}

export class FrameLan {
  /** What the client heard, and what came in from the hosts' cables, each in its order. */
  readonly heard: Answer[] = [];
  readonly emitted: Answer[] = [];
  /** Requests that were answered, in the order of asking. */
  readonly answered: { readonly request: string; readonly answer: Answer }[] = [];
  asked = 0;
  private flooded = 1_000_000;
  private readonly client: Probe;
  private readonly observer: Probe;
  private readonly vmMac: string;

  private constructor(client: Probe, observer: Probe, vmMac: string) {
    this.client = client;
    this.observer = observer;
    this.vmMac = vmMac.replaceAll(':', '');
  }

  /** `id`: of the cluster, whose network namespaces are there; `hosts`: how many. */
  static async start(id: string, hosts: number, vmMac: string): Promise<FrameLan> {
    const cables = Array.from({ length: hosts }, (_, i) => `lan${i + 1}`);
    const lan = new FrameLan(
      startProbe(`falcon-${id}-client`, ['cl0']),
      startProbe(`falcon-${id}-lan`, cables),
      vmMac,
    );
    await Promise.all([lan.read(lan.client, lan.heard), lan.read(lan.observer, lan.emitted)]);
    return lan;
  }

  stop(): void {
    this.client.kill('SIGKILL');
    this.observer.kill('SIGKILL');
  }

  /** Asks until an answer comes, and again every `repeatMs`. Returns null after `timeoutMs`. */
  async ask(timeoutMs: number, repeatMs = 200): Promise<Answer | null> {
    const request = `request ${++this.asked}`;
    const end = performance.now() + timeoutMs;
    while (performance.now() < end) {
      this.send(request);
      const seen = await waitUntil(() => this.heard.some((one) => one.request === request), {
        timeoutMs: repeatMs,
        everyMs: 2,
      });
      if (!seen) continue;
      const answer = this.heard.find((one) => one.request === request)!;
      this.answered.push({ request, answer });
      return answer;
    }
    return null;
  }

  /** Frames that nobody waits for, as many as the wire takes: a log that grows. */
  flood(count: number): void {
    for (let i = 0; i < count; i++) this.send(`request ${4 * ++this.flooded}`);
  }

  /** Interfaces in the order in which they began to speak: a cable that falls silent and speaks again is there twice. */
  speakers(): string[] {
    return this.emitted
      .map((one) => one.interface)
      .filter((name, index, all) => index === 0 || all[index - 1] !== name);
  }

  /** What was let out although something newer had been let out before, by anybody. */
  late(): string[] {
    const wrong: string[] = [];
    let newest: Answer | null = null;
    for (const one of this.emitted) {
      if (newest !== null && one.frames <= newest.frames)
        wrong.push(`${one.interface} says ${one.frames} after ${newest.interface} said ${newest.frames}`);
      else newest = one;
    }
    return wrong;
  }

  private send(request: string): void {
    const head = Buffer.from(`${this.vmMac}${clientMac}${ethertype.toString(16)}`, 'hex');
    this.client.stdin.write(`${Buffer.concat([head, payloadOf(request)]).toString('hex')}\n`);
  }

  private read(probe: Probe, into: Answer[]): Promise<void> {
    return new Promise((resolve, reject) => {
      probe.once('error', reject);
      probe.once('exit', (code) => reject(new Error(`lan_probe ended with ${code}`)));
      createInterface({ input: probe.stdout }).on('line', (line) => {
        if (line === 'ready') return resolve();
        const answer = parseAnswer(line);
        if (answer !== null) into.push(answer);
      });
    });
  }
}

/** At least as long as an Ethernet frame has to be, so that nobody pads it; every fourth is a large one. */
function payloadOf(request: string): Buffer {
  const large = Number(request.split(' ')[1]) % 4 === 0;
  const payload = Buffer.alloc((large ? 1400 : 60) - ethernetBytes);
  payload.write(request, 'latin1');
  return payload;
}

/** The payload of a frame of the service in the log; null: another frame. */
export function servicePayload(frame: Uint8Array): Uint8Array | null {
  const bytes = Buffer.from(frame.buffer, frame.byteOffset, frame.byteLength);
  if (bytes.length < ethernetBytes || bytes.readUInt16BE(12) !== ethertype) return null;
  return bytes.subarray(ethernetBytes);
}

/** What is wrong with answers, if the service took `payloads` in this order. */
export function judgeAnswers(
  payloads: readonly Uint8Array[],
  answered: readonly { readonly request: string; readonly answer: Answer }[],
): string[] {
  const digests: number[] = [];
  for (const payload of payloads) digests.push(crc32c(payload, digests.at(-1) ?? 0));
  const wrong: string[] = [];
  for (const { request, answer } of answered) {
    const payload = payloads[answer.frames - 1];
    if (payload === undefined) wrong.push(`${request}: answered as ${answer.frames} of ${payloads.length}`);
    else if (Buffer.compare(payload, payloadOf(request)) !== 0)
      wrong.push(`${request}: another one stands at ${answer.frames}`);
    else if (digests[answer.frames - 1] !== answer.digest)
      wrong.push(`${request}: the digest at ${answer.frames} is another one`);
  }
  return wrong;
}
