/** What comparing two guests has shown, as the data plane tells it (native/plane/verify.h: VerifyReport). */
import { assert } from '../lib/assert.js';

export interface VerifyReport {
  /** Pages that are not empty here, there, or on both sides; and those of them that differ. */
  readonly pages: number;
  readonly differing: number;
  /** Numbers of the first of them. */
  readonly firstPages: readonly number[];
  /** Connections that either side has, and those that only one has, or that stand elsewhere. */
  readonly flows: number;
  readonly flowsDiffering: number;
  /** Frames that the guest has not taken from its ring. */
  readonly framesWaiting: { readonly source: number; readonly target: number };
  /** The built-in service; null: there is none. */
  readonly service: 'equal' | 'different' | null;
  readonly targetStoodNs: number;
  /** What saving the devices has written. */
  readonly devices: { readonly source: Uint8Array; readonly target: Uint8Array };
}

const headNumbers = 11;

export function decodeVerifyReport(bytes: Uint8Array): VerifyReport {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const number = (index: number): number => Number(view.getBigUint64(8 * index, true));
  assert(bytes.length >= 8 * headNumbers, 'a report has its numbers');
  const [pages, differing, listed, flows, flowsDiffering, here, there, service, targetStoodNs] = Array.from(
    { length: headNumbers - 2 },
    (_unused, index) => number(index),
  ) as [...[number, number, number, number, number, number, number, number, number]];
  const [ownBytes, theirBytes] = [number(headNumbers - 2), number(headNumbers - 1)];
  const devicesAt = 8 * (headNumbers + listed);
  assert(bytes.length === devicesAt + ownBytes + theirBytes, 'a report is as long as it says');
  return {
    pages,
    differing,
    firstPages: Array.from({ length: listed }, (_unused, index) => number(headNumbers + index)),
    flows,
    flowsDiffering,
    framesWaiting: { source: here, target: there },
    service: service === 0 ? null : service === 1 ? 'equal' : 'different',
    targetStoodNs,
    devices: {
      source: bytes.subarray(devicesAt, devicesAt + ownBytes),
      target: bytes.subarray(devicesAt + ownBytes),
    },
  };
}
