/**
 * Text scenarios: commands, `----`, the trace they must give. One handler per verb.
 *
 * A file is blocks separated by empty lines. UPDATE=1 writes the traces that came out into the file. Replicas are
 * named by their index. Effects are printed as they are carried out, `#` starts a comment in the commands and a
 * trace of the core in the output; progress of time is printed only as `+5ms` where something happened.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import type { Effect, Message, NodeId } from '../../src/consensus/types.js';
import { assert } from '../../src/lib/assert.js';
import type { LogTail } from '../../src/wire/view-table.js';
import { formatViewstamp } from '../../src/wire/viewstamp.js';
import type { Entry } from './model.js';
import { World, times } from './world.js';

function formatTail(tail: LogTail): string {
  return `${formatViewstamp(tail.last)} commit=${tail.commitOp} table=[${tail.table.map((row) => formatViewstamp({ view: row.view, op: row.firstOp })).join(' ')}]`;
}

function formatMessage(message: Message): string {
  const parts: string[] = [message.type];
  for (const [name, value] of Object.entries(message) as [string, unknown][]) {
    if (name === 'type' || value === '' || value === null || value === false) continue;
    if (name === 'last') parts.push(`last=${formatViewstamp(value as { view: number; op: number })}`);
    else if (name === 'tail') parts.push(`tail=${formatTail(value as LogTail)}`);
    else if (name === 'base') parts.push(`base=${formatViewstamp(value as { view: number; op: number })}`);
    else if (value === true) parts.push(name);
    else if (typeof value === 'string') parts.push(`"${value}"`);
    else parts.push(`${name}=${Number(value)}`);
  }
  return parts.join(' ');
}

function formatEffect(node: NodeId, effect: Effect): string {
  switch (effect.type) {
    case 'send':
      return `${node} -> ${effect.to} ${formatMessage(effect.message)}`;
    case 'persist':
      return `${node} persist view=${effect.state.view} voted=${effect.state.votedFor ?? 'none'}${effect.state.recovering ? ' recovering' : ''}`;
    case 'role':
      return `${node} role ${effect.role} view=${effect.view} primary=${effect.primary ?? 'none'}: ${effect.reason}`;
    case 'feed':
      return `${node} feed ${effect.peer} view=${effect.view} agree=${effect.agreeOp}`;
    case 'follow':
      return `${node} follow ${effect.primary} view=${effect.view} agree=${effect.agreeOp}${effect.base === null ? '' : ` base=${formatViewstamp(effect.base)}`}`;
    case 'resign':
      return `${node} resign view=${effect.view}: ${effect.reason}`;
    case 'transfer-result':
      return `${node} transfer to ${effect.to ?? 'anybody'} ${effect.ok ? 'done' : 'failed'}: ${effect.reason}`;
    case 'trace':
      return `${node} # ${effect.text}`;
    default:
      return `${node} ${effect.type} view=${effect.view}`;
  }
}

function parseStamp(text: string): { view: number; op: number } {
  const [view, op] = text.split('.').map(Number);
  assert(Number.isInteger(view) && Number.isInteger(op), `${text} is not a viewstamp`);
  return { view: view!, op: op! };
}

type Handler = (scenario: Scenario, words: readonly string[]) => void;

class Scenario {
  world!: World;
  private lines: string[] = [];
  private quiet = false;
  private printedAt = 0;

  /** Runs the commands of one block and gives what they print. */
  block(commands: readonly string[]): string[] {
    this.lines = [];
    for (const command of commands) {
      const words = command
        .replace(/#.*/, '')
        .trim()
        .split(/\s+/)
        .filter((word) => word !== '');
      if (words.length === 0) continue;
      const handler = verbs[words[0]!];
      assert(handler !== undefined, `no verb ${words[0]}`);
      handler(this, words.slice(1));
    }
    return this.lines.length === 0 ? ['ok'] : this.lines;
  }

  make(words: readonly string[]): void {
    const value = (name: string): string | undefined =>
      words.find((word) => word.startsWith(`${name}=`))?.slice(name.length + 1);
    const witnesses = value('witness');
    this.world = new World({
      members: Number(value('n') ?? 3),
      seed: Number(value('seed') ?? 1),
      manualMail: true,
      witnesses: witnesses === undefined ? [] : witnesses.split(',').map(Number),
      onEffect: (node, effect) => this.print(formatEffect(node, effect)),
    });
    this.printedAt = 0;
  }

  print(line: string): void {
    if (this.quiet) return;
    if (this.world.now !== this.printedAt) this.lines.push(`+${this.world.now - this.printedAt}ms`);
    this.printedAt = this.world.now;
    this.lines.push(line);
  }

  quietly(action: () => void): void {
    this.quiet = true;
    action();
    this.quiet = false;
    this.printedAt = this.world.now;
  }

  /** Hands over the first waiting mail that matches, or all that are there and follow from it. */
  deliver(where: string, type: string | undefined, then: 'deliver' | 'drop' | 'repeat'): void {
    const { world } = this;
    if (where === 'all') {
      for (let i = 0; world.mail.length > 0; i++) {
        assert(i < 1000, 'mail without end');
        this.handOver(0, then);
      }
      return;
    }
    const [from, to] = where.split('->').map(Number);
    const index = world.mail.findIndex(
      (item) => item.from === from && item.to === to && (type === undefined || item.message.type === type),
    );
    if (index < 0) this.print(`no mail ${where} ${type ?? ''}`.trim());
    else this.handOver(index, then);
  }

  private handOver(index: number, then: 'deliver' | 'drop' | 'repeat'): void {
    const { world } = this;
    const item = world.mail[index]!;
    if (then !== 'repeat') world.mail.splice(index, 1);
    if (then === 'drop') return;
    const target = world.replicas[item.to]!;
    if (!target.alive || world.isCut(item.from, item.to)) return;
    target.post({ type: 'mail', now: 0, from: item.from, message: item.message });
    this.settle();
  }

  /** Carries out what data planes have answered. Mail stays where it is. */
  settle(): void {
    for (let i = 0; i < 4; i++) for (const replica of this.world.replicas) replica.drainEvents();
  }

  /** Time passes; with `mail`, mail is handed over as it comes. */
  pass(ms: number, mail: boolean, until?: () => boolean): void {
    for (let i = 0; i < ms; i++) {
      this.world.advance();
      if (mail) this.deliver('all', undefined, 'deliver');
      if (until?.() === true) return;
    }
    assert(until === undefined, 'waited in vain');
  }
}

const verbs: Record<string, Handler> = {
  /** cluster n=3 [witness=2] [seed=1]: before `start`. */
  cluster: (s, words) => s.make(words),
  /** log 1 1.1 1.2 2.3: what the log holds before `start`. */
  log: (s, [node, ...stamps]) => {
    const replica = s.world.replicas[Number(node)]!;
    if (stamps.length === 0) {
      s.print(`${node} log ${formatTail(replica.tail())}`);
      return;
    }
    replica.log = stamps.map((text): Entry => ({ ...parseStamp(text), value: text }));
    replica.log.forEach((entry, i) => assert(entry.op === i + 1, 'ops are dense from 1'));
    replica.hard = { ...replica.hard, view: Math.max(replica.hard.view, replica.log.at(-1)!.view) };
  },
  /** hard 1 view=3 voted=0 [recovering]: the hard state before `start`. */
  hard: (s, [node, ...words]) => {
    const text = words.join(' ');
    const voted = /voted=(\d+)/.exec(text)?.[1];
    s.world.replicas[Number(node)]!.hard = {
      view: Number(/view=(\d+)/.exec(text)?.[1] ?? 0),
      votedFor: voted === undefined ? null : Number(voted),
      recovering: text.includes('recovering'),
    };
  },
  start: (s) => {
    s.world.begin();
    s.settle();
  },
  /** elect 0: quietly, until replica 0 leads and all others that are up follow. */
  elect: (s, [node]) => {
    s.quietly(() => {
      const { world } = s;
      const target = world.replicas[Number(node)]!;
      for (const other of world.replicas)
        if (other !== target) other.jsStalledUntil = world.now + times.leaseMs + times.driftMarginMs + 1;
      s.pass(2000, true, () => {
        const asks = target.core.status.phase;
        if (asks === 'starting' || asks === 'waiting')
          for (const other of world.replicas) if (other !== target) other.jsStalledUntil = world.now + 5;
        const up = world.replicas.filter((replica) => replica.alive);
        return (
          target.core.status.followers.length === up.length - 1 &&
          target.gateOpen() &&
          target.commitOp === target.lastOp
        );
      });
      s.pass(10, true);
    });
    verbs['status']!(s, []);
  },
  /** tick 10 [mail] [quiet]: milliseconds; with `mail` mail is handed over at once. */
  tick: (s, [ms, ...flags]) => {
    if (flags.includes('quiet')) s.quietly(() => s.pass(Number(ms), flags.includes('mail')));
    else s.pass(Number(ms), flags.includes('mail'));
  },
  /** Like `tick`, up to the moment when mail waits. */
  'tick-to-mail': (s, [ms]) => s.pass(Number(ms), false, () => s.world.mail.length > 0),
  /** deliver 0->1 [type], deliver all. */
  deliver: (s, [where, type]) => s.deliver(where!, type, 'deliver'),
  drop: (s, [where, type]) => s.deliver(where!, type, 'drop'),
  /** Delivers and keeps a copy that comes late. */
  repeat: (s, [where, type]) => s.deliver(where!, type, 'repeat'),
  /** inject 0->1 {"type":"new-view","view":1}: mail that nobody sent. */
  inject: (s, [where, ...json]) => {
    const [from, to] = where!.split('->').map(Number);
    s.world.replicas[to!]!.post({
      type: 'mail',
      now: 0,
      from: from!,
      message: JSON.parse(json.join(' ')) as Message,
    });
    s.settle();
  },
  /** Which mail waits. */
  mail: (s) => {
    for (const item of s.world.mail)
      s.print(`waiting ${item.from} -> ${item.to} ${formatMessage(item.message)}`);
  },
  cut: (s, [where]) => {
    const [from, to] = where!.split('->').map(Number);
    s.world.cut(from!, to!, true);
  },
  heal: (s) => {
    for (const a of s.world.replicas)
      for (const b of s.world.replicas) if (a !== b) s.world.cut(a.id, b.id, false);
  },
  /** The connection breaks; connect makes a new one. */
  break: (s, [a, b]) => {
    s.world.disconnect(Number(a), Number(b));
    s.settle();
  },
  connect: (s, [a, b]) => {
    s.world.connect(Number(a), Number(b));
    s.settle();
  },
  /** crash 1 [keep=3]: with keep, the disk loses what is behind that op and the scan says so. */
  crash: (s, [node, keep]) => {
    s.world.crash(Number(node), keep === undefined ? undefined : Number(keep.replace('keep=', '')));
    s.settle();
  },
  /** release 0 5: entries up to op 5 are kept no longer. */
  release: (s, [node, op]) => {
    s.world.replicas[Number(node)]!.release(Number(op));
  },
  /** unreadable 0 5: the disk gives nothing back up to op 5. */
  unreadable: (s, [node, op]) => {
    s.world.replicas[Number(node)]!.unreadableOp = Number(op);
  },
  /** replace 2: an empty host takes the place of a dead one. */
  replace: (s, [node]) => {
    s.world.replace(Number(node));
  },
  restart: (s, [node]) => {
    s.world.restart(Number(node));
    s.settle();
  },
  /** stall 1 50: the JS thread of a replica stands for so long; its data plane goes on. */
  stall: (s, [node, ms]) => {
    s.world.replicas[Number(node)]!.jsStalledUntil = s.world.now + Number(ms);
  },
  /** pause 1 50: the whole process stands. */
  pause: (s, [node, ms]) => {
    s.world.replicas[Number(node)]!.pausedUntil = s.world.now + Number(ms);
  },
  propose: (s, [node, count]) => {
    for (let i = 0; i < Number(count ?? 1); i++) {
      if (!s.world.replicas[Number(node)]!.propose(`entry ${s.world.now}.${i}`))
        s.print(`${node} takes no input`);
    }
  },
  transfer: (s, [node, to]) => {
    s.world.replicas[Number(node)]!.post({
      type: 'transfer',
      now: 0,
      to: to === undefined ? null : Number(to),
    });
    s.settle();
  },
  /** guest 0,1 whole|gone: told to all. */
  guest: (s, [nodes, how]) => {
    for (const node of nodes!.split(',').map(Number)) {
      for (const other of s.world.replicas) {
        if (other.id === node) other.post({ type: 'guest', now: 0, whole: how === 'whole' });
        else other.post({ type: 'peer-guest', now: 0, node, whole: how === 'whole' });
      }
    }
    s.settle();
  },
  status: (s) => {
    for (const replica of s.world.replicas) {
      if (!replica.alive) {
        s.print(`${replica.id}: down`);
        continue;
      }
      const status = replica.core.status;
      const extras = [
        `commit=${replica.commitOp}`,
        `last=${formatViewstamp(replica.tail().last)}`,
        replica.base.op === 0 ? '' : `behind=${formatViewstamp(replica.base)}`,
        replica.gateOpen() ? 'gate open' : '',
        status.recovering ? 'recovering' : '',
        status.transfer === null ? '' : `transfer to ${status.transfer.to} ${status.transfer.phase}`,
      ].filter((text) => text !== '');
      s.print(
        `${replica.id}: ${status.role} view=${status.view} primary=${status.primary ?? 'none'} ${status.phase} ${extras.join(' ')}`,
      );
    }
  },
};

export interface BlockResult {
  readonly commands: string;
  readonly expected: string;
  readonly actual: string;
}

/** Runs a scenario file. With `update`, rewrites its traces. */
export function runScenario(path: string, update: boolean): BlockResult[] {
  const scenario = new Scenario();
  const results: BlockResult[] = [];
  const output: string[] = [];
  for (const block of readFileSync(path, 'utf8').split(/\n\n+/)) {
    const lines = block.split('\n');
    const line = lines.indexOf('----');
    if (line < 0) {
      // A paragraph about the scenario.
      assert(
        lines.every((text) => text === '' || text.startsWith('#')),
        `a block without ---- in ${path}: ${block}`,
      );
      output.push(block.trimEnd());
      continue;
    }
    const commands = lines.slice(0, line);
    let actual: string;
    try {
      actual = scenario.block(commands).join('\n');
    } catch (error) {
      actual = `ERROR ${(error as Error).message}`;
    }
    results.push({
      commands: commands.join('\n'),
      expected: lines
        .slice(line + 1)
        .join('\n')
        .trimEnd(),
      actual,
    });
    output.push([...commands, '----', actual].join('\n'));
  }
  if (update) writeFileSync(path, `${output.join('\n\n')}\n`);
  return results;
}
