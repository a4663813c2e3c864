/** The hosts' network on one machine: it comes, does what it says, and goes without a trace. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';

import t from 'tap';

import { run, testLan, whyNoNamespaces } from '../support/network.js';
import type { TestLan } from '../support/network.js';

const cannot = whyNoNamespaces();
const skip = cannot === null ? {} : { skip: cannot };

/** One answer is enough: the first question after a cut may still find an address that failed. */
const reaches = (lan: TestLan, from: string, address: string): boolean =>
  lan.exec(from, 'busybox', 'ping', '-c', '3', '-W', '1', address).status === 0;

function received(lan: TestLan, host: string, link: string): number {
  const [shown] = JSON.parse(run('ip', '-n', lan.netns(host), '-s', '-j', 'link', 'show', link).out) as [
    { stats64: { rx: { packets: number } } },
  ];
  return shown.stats64.rx.packets;
}

/** In the place of a guest on `host`: an interface with the VM's addresses, on the host's bridge. */
function standInGuest(lan: TestLan, host: string): void {
  const lines = [
    'link add guest0 type veth peer name port0',
    'link set guest0 address 52:54:00:fa:1c:01',
    'link set port0 master br0',
    'link set port0 up',
    'link set guest0 up',
    'addr add 10.77.1.10/24 dev guest0',
  ];
  for (const line of lines) run('ip', '-n', lan.netns(host), ...line.split(' '));
}

t.test('up makes all hosts, down removes them, twice is no error', skip, async (t) => {
  const lan = testLan(t, { hosts: 3, lan: 'flood' });
  t.match(lan.net('up', lan.directory), { status: 0, err: '' });
  t.same(lan.left(), ['client', 'h1', 'h2', 'h3', 'lan']);
  t.ok(reaches(lan, 'h1', '10.77.0.3'), 'hosts reach each other');
  t.notOk(reaches(lan, 'client', '10.77.0.1'), 'the client does not see the traffic between replicas');
  const tap = lan.exec('h2', 'ip', '-d', '-j', 'link', 'show', 'vm0').out;
  const [shown] = JSON.parse(tap) as [
    { linkinfo: { info_data: { type: string; vnet_hdr: boolean; multi_queue: boolean } } },
  ];
  t.match(shown.linkinfo.info_data, { type: 'tap', vnet_hdr: false, multi_queue: false });
  t.notMatch(lan.exec('h1', 'ip', '-6', 'addr').out, /inet6/, 'no IPv6 that could chatter');

  t.match(lan.net('up', lan.directory), { status: 0 }, 'a second up replaces what an unclean stop left');
  t.match(lan.net('down', lan.directory), { status: 0, err: '' });
  t.same(lan.left(), []);
  t.match(lan.net('down', lan.id), { status: 0, err: '' }, 'down of nothing');
});

t.test('down takes what is left of a cluster, and nothing of another one', skip, async (t) => {
  const lan = testLan(t, { hosts: 3, lan: 'flood' });
  const other = testLan(t, { hosts: 1, lan: 'learn' });
  t.equal(lan.net('up', lan.directory).status, 0);
  t.equal(other.net('up', other.directory).status, 0);
  run('ip', 'netns', 'delete', lan.netns('lan'));
  run('ip', '-n', lan.netns('h2'), 'link', 'delete', 'br0');
  t.equal(lan.net('down', lan.id).status, 0);
  t.same(lan.left(), []);
  t.same(other.left(), ['client', 'h1', 'lan']);
});

t.test('up leaves a cluster alone that processes live in', skip, async (t) => {
  const lan = testLan(t, { hosts: 1, lan: 'flood' });
  t.equal(lan.net('up', lan.directory).status, 0);
  const child = spawn('ip', ['netns', 'exec', lan.netns('h1'), 'sleep', '60']);
  t.teardown(() => child.kill('SIGKILL'));
  await once(child, 'spawn');
  while (run('ip', 'netns', 'pids', lan.netns('h1')).out === '')
    await new Promise((resolve) => setTimeout(resolve, 10));
  t.match(lan.net('up', lan.directory), { status: 1, err: /in use by process/ });
  t.same(lan.left(), ['client', 'h1', 'lan']);
});

t.test('partition cuts one host off from replicas and clients, heal joins it again', skip, async (t) => {
  const lan = testLan(t, { hosts: 3, lan: 'flood' });
  t.equal(lan.net('up', lan.directory).status, 0);
  standInGuest(lan, 'h3');
  t.ok(reaches(lan, 'client', '10.77.1.10'));
  t.equal(lan.net('partition', lan.directory, 'h3').status, 0);
  t.notOk(reaches(lan, 'h1', '10.77.0.3'), 'replica traffic is cut');
  t.notOk(reaches(lan, 'client', '10.77.1.10'), 'the LAN is cut');
  t.ok(reaches(lan, 'h1', '10.77.0.2'), 'the others go on');
  t.equal(lan.net('heal', lan.id, 'h3').status, 0);
  t.ok(reaches(lan, 'h1', '10.77.0.3'));
  t.ok(reaches(lan, 'client', '10.77.1.10'));
  t.match(lan.net('partition', lan.id, 'h9'), { status: 1, err: /no host h9/ });
});

for (const kind of ['flood', 'learn'] as const) {
  t.test(`lan ${kind}: who sees the frames for the VM`, skip, async (t) => {
    const lan = testLan(t, { hosts: 2, lan: kind });
    t.equal(lan.net('up', lan.directory).status, 0);
    standInGuest(lan, 'h1');
    t.ok(reaches(lan, 'client', '10.77.1.10'), 'the switch has seen the VM');
    const pings = 20;
    const before = received(lan, 'h2', 'up0');
    t.equal(lan.exec('client', 'busybox', 'ping', '-c', String(pings), '-i', '0.01', '10.77.1.10').status, 0);
    const seen = received(lan, 'h2', 'up0') - before;
    if (kind === 'flood') t.ok(seen >= pings, `every host sees them: ${seen} of ${pings}`);
    else t.ok(seen < pings / 2, `only its host sees them: ${seen} of ${pings} elsewhere`);

    const ports = JSON.parse(run('bridge', '-n', lan.netns('h2'), '-d', '-j', 'link', 'show').out) as {
      ifname: string;
      learning: boolean;
      flood: boolean;
    }[];
    for (const port of ports.filter(({ ifname }) => ifname !== 'br0')) {
      t.match(port, { flood: true, learning: kind === 'learn' }, `port ${port.ifname} of the host's bridge`);
    }
  });
}

t.test('wrong usage and wrong configuration are told apart from failure', async (t) => {
  const lan = testLan(t, { hosts: 1, lan: 'flood' });
  t.match(lan.net('--help'), { status: 0, out: /partition/ });
  t.match(lan.net(), { status: 2, err: /usage/ });
  t.match(lan.net('frobnicate', lan.directory), { status: 2, err: /unknown verb/ });
  t.match(lan.net('up', lan.id), { status: 2, err: /directory/ });
  t.match(lan.net('up', '/nonexistent'), { status: 2, err: /falcon\.json/ });
  writeFileSync(
    join(lan.directory, 'falcon.json'),
    '{"cluster":"test-0badcafe","nodes":[{"name":"h1","address":"10.77.0.1; true","netns":"falcon-0badcafe-h1"}]}',
  );
  t.match(lan.net('up', lan.directory), { status: 2, err: /nodes\[0\]\.address/ });
});
