/**
 * The bookkeeping of output checks, one per replica: what was checked, what this replica found, what the others
 * did, and what follows from it. Pure: an event in, effects out.
 *
 * A check is an entry of the log, so every replica knows it, whoever leads. Each keeps its own verdicts on the
 * last checks and reports them to the primary until a primary has acknowledged them; after a change of primary
 * the new one hears what the old one did not.
 */
import { bounds } from '../lib/bounds.js';
import { decodeCheck, hex, verdictNames } from '../wire/output-check.js';
import type { OutputCheck, VerdictRecord } from '../wire/output-check.js';
import { maxDivergedPerReport, noVerdict } from '../wire/output-mail.js';
import type { DivergedItem, VerdictReport } from '../wire/output-mail.js';
import { firstDifference } from './difference.js';
import { judge } from './judge.js';
import type { Divergence, LedgerEffect, LedgerEvent, LedgerOptions, Member, MemberCounts } from './types.js';

interface CheckRecord {
  readonly op: number;
  readonly view: number;
  readonly check: OutputCheck;
  /** What was said before each position, if this replica proposed the check. */
  readonly tails: readonly Uint8Array[];
  /** By member; own verdicts under self. */
  readonly verdicts: Map<Member, Uint8Array>;
  readonly diverged: Map<Member, Map<number, DivergedItem>>;
  version: number;
  reportedVersion: number;
  reportedAt: number;
  acknowledgedVersion: number;
  /** When the first divergence of this check was told; null: none, or it has been judged. */
  divergedAt: number | null;
}

export class OutputLedger {
  /** The first divergences that were seen, and the newest. */
  readonly divergences: Divergence[] = [];
  /** Verdicts on this primary's checks, by member. */
  readonly members = new Map<Member, MemberCounts>();
  checks = 0;

  private readonly options: LedgerOptions;
  private readonly records = new Map<number, CheckRecord>();
  private readonly proposed: { payload: Uint8Array; tails: readonly Uint8Array[] }[] = [];
  private readonly healing = new Set<Member>();
  private guests: readonly Member[] = [];
  private primary: Member | null = null;
  private view = 0;
  private alone = false;

  constructor(options: LedgerOptions) {
    this.options = options;
  }

  get leads(): boolean {
    return this.primary === this.options.self;
  }

  step(event: LedgerEvent, out: LedgerEffect[]): void {
    switch (event.type) {
      case 'due':
        return this.onDue(event.payload, event.tails, out);
      case 'check':
        return this.onCheck(event.op, event.view, event.payload);
      case 'verdicts':
        for (const record of event.records) this.onVerdict(record, event.now, out);
        return;
      case 'mail':
        if (event.mail.type === 'report') return this.onReport(event.from, event.mail, event.now, out);
        return this.onAck(event.mail.op, event.mail.version);
      case 'primary':
        if (event.view < this.view) return;
        if (event.primary !== this.primary) this.proposed.length = 0;
        if (event.view !== this.view) {
          // What was asked for in another view is forgotten with it: whoever diverges still will show it again.
          this.healing.clear();
          this.alone = false;
        }
        this.primary = event.primary;
        this.view = event.view;
        return;
      case 'guests':
        this.guests = event.members;
        return;
      case 'healed':
        this.healing.delete(event.member);
        // What it said before is not said by the guest that it has now.
        for (const record of this.records.values()) record.diverged.delete(event.member);
        this.alone = false;
        return;
      case 'tick':
        return this.onTick(event.now, out);
    }
  }

  private onDue(payload: Uint8Array, tails: readonly Uint8Array[], out: LedgerEffect[]): void {
    if (!this.leads) return;
    if (this.proposed.length === bounds.outputProposedMax) this.proposed.shift();
    this.proposed.push({ payload, tails });
    out.push({ type: 'propose', payload });
  }

  private onCheck(op: number, view: number, payload: Uint8Array): void {
    const check = decodeCheck(payload);
    if (check === null || this.records.has(op)) return;
    this.checks += check.items.length;
    let tails: readonly Uint8Array[] = [];
    if (check.proposer === this.options.self) {
      const mine = this.proposed.findIndex((one) => same(one.payload, payload));
      if (mine >= 0) tails = this.proposed.splice(0, mine + 1)[mine]?.tails ?? [];
    }
    this.records.set(op, {
      op,
      view,
      check,
      tails,
      verdicts: new Map(),
      diverged: new Map(),
      version: 0,
      reportedVersion: 0,
      reportedAt: 0,
      acknowledgedVersion: 0,
      divergedAt: null,
    });
    for (const oldest of this.records.keys()) {
      if (this.records.size <= bounds.outputChecksKept) break;
      this.records.delete(oldest);
    }
  }

  private onVerdict(found: VerdictRecord, now: number, out: LedgerEffect[]): void {
    const record = this.records.get(found.op);
    const { self } = this.options;
    if (record === undefined || found.index >= record.check.items.length) return;
    const verdicts = verdictsOf(record, self);
    verdicts[found.index] = verdictNames.indexOf(found.verdict);
    record.version++;
    if (found.verdict === 'diverged') this.note(record, self, found, now, out);
  }

  private onReport(from: Member, report: VerdictReport, now: number, out: LedgerEffect[]): void {
    if (!this.leads || from === this.options.self) return;
    out.push({ type: 'mail', to: from, mail: { type: 'ack', op: report.op, version: report.version } });
    const record = this.records.get(report.op);
    if (record === undefined || report.verdicts.length !== record.check.items.length) return;
    const known = verdictsOf(record, from);
    const counts = this.countsOf(from);
    report.verdicts.forEach((code, index) => {
      const name = verdictNames[code];
      if (name === undefined || known[index] === code) return;
      const before = verdictNames[known[index] ?? noVerdict];
      if (before !== undefined) counts[before]--;
      counts[name]++;
      known[index] = code;
    });
    for (const item of report.diverged) this.note(record, from, item, now, out);
  }

  private onAck(op: number, version: number): void {
    const record = this.records.get(op);
    if (record !== undefined) record.acknowledgedVersion = Math.max(record.acknowledgedVersion, version);
  }

  /** A divergence of a member that was not known. */
  private note(
    record: CheckRecord,
    member: Member,
    item: DivergedItem,
    now: number,
    out: LedgerEffect[],
  ): void {
    const known = record.diverged.get(member) ?? new Map<number, DivergedItem>();
    if (known.has(item.index) || item.index >= record.check.items.length) return;
    known.set(item.index, item);
    record.diverged.set(member, known);
    record.divergedAt ??= now;
    // A connection that has parted stays apart: what was first tells the most.
    const of = record.check.items[item.index];
    const before = this.divergences.some(
      (one) => one.member === member && one.client === of?.client && one.clientIss === of.clientIss,
    );
    if (before) return;
    const divergence = describe(record, member, item);
    if (this.divergences.length >= bounds.outputDivergencesKept)
      this.divergences.splice(bounds.outputDivergencesKept / 2, 1);
    this.divergences.push(divergence);
    out.push({ type: 'divergence', divergence });
  }

  private onTick(now: number, out: LedgerEffect[]): void {
    if (this.leads) {
      for (const record of this.records.values()) {
        if (record.divergedAt !== null) this.judgeRecord(record, now, out);
      }
      return;
    }
    if (this.primary === null) return;
    let mails = 0;
    for (const record of this.records.values()) {
      if (record.version === record.acknowledgedVersion || mails >= bounds.outputReportsPerTick) continue;
      const news = record.version !== record.reportedVersion;
      if (now - record.reportedAt < (news ? bounds.outputReportMs : bounds.outputReportRetryMs)) continue;
      record.reportedVersion = record.version;
      record.reportedAt = now;
      mails++;
      const { self } = this.options;
      const diverged = [...(record.diverged.get(self)?.values() ?? [])].slice(0, maxDivergedPerReport);
      const verdicts = verdictsOf(record, self);
      const { op, version } = record;
      out.push({ type: 'mail', to: this.primary, mail: { type: 'report', op, version, verdicts, diverged } });
    }
  }

  /** By the verdicts of all, or of those that there are when the wait is over. */
  private judgeRecord(record: CheckRecord, now: number, out: LedgerEffect[]): void {
    const { self, waitMs, primaryDiverged } = this.options;
    const others = this.guests.filter((member) => member !== record.check.proposer);
    const told = (member: Member): boolean =>
      record.verdicts.get(member)?.every((code) => code !== noVerdict && verdictNames[code] !== 'late') ??
      false;
    if (!others.every(told) && now - (record.divergedAt ?? now) < waitMs + bounds.outputReportRetryMs) return;
    record.divergedAt = null;
    for (let index = 0; index < record.check.items.length; index++) {
      const judgement = judge(self, {
        proposer: record.check.proposer,
        agreed: [...record.verdicts].flatMap(([member, codes]) => (codes[index] === 0 ? [member] : [])),
        diverged: [...record.diverged].flatMap(([member, items]) => {
          const item = items.get(index);
          if (item === undefined) return [];
          const length = Math.min(item.position, record.check.items[index]?.position ?? 0);
          return [{ member, hash: `${item.hash} of ${length}` }];
        }),
      });
      const flow = record.check.items[index];
      const where = `port ${flow?.port ?? 0}, ${flow?.client ?? ''}, check ${record.view}/${record.op}`;
      if (judgement.majority.length > 0 && !this.alone) {
        this.alone = true;
        const transferTo = primaryDiverged === 'transfer-leadership' ? (judgement.majority[0] ?? null) : null;
        out.push({ type: 'primary-diverged', reason: where, transferTo });
        if (transferTo !== null) continue;
      }
      if (judgement.majority.length > 0 && primaryDiverged === 'transfer-leadership') continue;
      for (const member of judgement.heal) {
        if (this.healing.has(member)) continue;
        this.healing.add(member);
        out.push({ type: 'heal', member, reason: where });
      }
    }
  }

  private countsOf(member: Member): MemberCounts {
    const counts = this.members.get(member) ?? { agree: 0, late: 0, diverged: 0, skipped: 0 };
    this.members.set(member, counts);
    return counts;
  }
}

function verdictsOf(record: CheckRecord, member: Member): Uint8Array {
  const verdicts = record.verdicts.get(member) ?? new Uint8Array(record.check.items.length).fill(noVerdict);
  record.verdicts.set(member, verdicts);
  return verdicts;
}

function describe(record: CheckRecord, member: Member, item: DivergedItem): Divergence {
  const of = record.check.items[item.index];
  const { view, op } = record;
  const position = of?.position ?? 0;
  const found = { end: Math.min(position, item.position), bytes: item.tail };
  const tail = record.tails[item.index];
  const difference = tail === undefined ? null : firstDifference({ end: position, bytes: tail }, found);
  const shown = difference?.found ?? item.tail.slice(-bounds.outputShownBytes);
  // More was said than was expected, and what was expected is the same, all of it that was not known to be equal.
  const keptFrom = position - Math.min(tail?.length ?? 0, item.tail.length);
  const extra =
    difference?.at === null && item.position > position && keptFrom <= item.agreed ? position : null;
  return {
    view,
    op,
    index: item.index,
    member,
    client: of?.client ?? '',
    clientIss: of?.clientIss ?? 0,
    port: of?.port ?? 0,
    position,
    agreed: item.agreed,
    cause: item.cause,
    firstDifferent: difference?.at ?? extra,
    expected: difference === null ? null : hex(difference.expected),
    found: hex(shown),
    from: difference?.from ?? found.end - shown.length,
  };
}

function same(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}
