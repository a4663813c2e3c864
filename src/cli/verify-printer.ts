/** What comparing two guests has shown, for people. */
import type { VerifyResult } from '../api/status.js';

/** One session in a line, for the status. */
export function verifyLine(r: VerifyResult): string {
  if (r.findings === null) return `${r.source} gave up comparing its guest with ${r.target}'s: ${r.why}`;
  const { devices, flowsDiffering } = r.findings;
  const parts = [
    pagesText(r.findings),
    ...(devices.trouble === null && devices.parts === 0 ? [] : [devicesText(devices)]),
    ...(flowsDiffering === 0 ? [] : [flowsText(r.findings)]),
  ];
  return `${headText(r)}: ${parts.join(', ')}, pause ${r.pauseMs} ms`;
}

/** All of it. */
export function verifyLines(r: VerifyResult): string[] {
  const { findings } = r;
  if (findings === null) return [verifyLine(r)];
  const { devices, firstPages, differing, framesWaiting, service } = findings;
  const more = differing > firstPages.length ? ', ...' : '';
  return [
    `${headText(r)}:`,
    `  memory       ${pagesText(findings)}`,
    ...(differing === 0 ? [] : [`               ${firstPages.join(', ')}${more}`]),
    ...(service === null ? [] : [`  service      ${service}`]),
    ...(devices.parts === 0 && devices.trouble === null ? [] : [`  devices      ${devicesText(devices)}`]),
    ...devices.differing.map(({ name, bytes, of }) => `               ${name}: ${bytes} of ${of} bytes`),
    `  connections  ${flowsText(findings)}`,
    ...(framesWaiting.source + framesWaiting.target === 0
      ? []
      : [
          `  not taken    ${framesWaiting.source} frames on ${r.source}, ${framesWaiting.target} on ${r.target}`,
        ]),
    `  pause        ${r.pauseMs} ms on ${r.source}, ${findings.targetPauseMs} ms on ${r.target}; ${r.durationMs} ms in all`,
  ];
}

type Findings = NonNullable<VerifyResult['findings']>;

function headText({ source, target, view, op }: VerifyResult): string {
  return `${source} and ${target} behind op ${op} of view ${view}`;
}

function pagesText({ pages, differing }: Findings): string {
  if (pages === 0) return 'no pages';
  return differing === 0 ? `${pages} pages, all equal` : `${differing} of ${pages} pages differ`;
}

function devicesText({ parts, differing, trouble }: Findings['devices']): string {
  if (trouble !== null) return trouble;
  return differing.length === 0
    ? `${parts} devices, all equal`
    : `${differing.length} of ${parts} devices differ`;
}

function flowsText({ flows, flowsDiffering }: Findings): string {
  if (flows === 0) return 'no connections';
  const all = flows === 1 ? '1 connection' : `${flows} connections`;
  return flowsDiffering === 0 ? `${all}, all equal` : `${flowsDiffering} of ${all} differ`;
}
