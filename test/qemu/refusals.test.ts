// What falcon= must refuse, and in which words.
import t from 'tap';
import { cannotRun, makeLab, TAP } from './lab.js';
import { Machine } from './machine.js';

t.setTimeout(1_200_000);
const skip = cannotRun();
const SCRIPTS = 'script=no,downscript=no';

void t.test('options that do not go together', { skip }, async (t) => {
  const lab = makeLab(t);
  const tap = `tap,id=n0,ifname=${TAP},${SCRIPTS},falcon=${lab.socket}`;
  const cases: [netdev: string, message: RegExp][] = [
    [`${tap},vhost=on`, /falcon= cannot be used with vhost=on$/m],
    [`${tap},vhostforce=on`, /falcon= cannot be used with vhost=on$/m],
    [`${tap},vhostfd=3`, /falcon= cannot be used with vhostfd= or vhostfds=$/m],
    [`${tap},queues=2`, /falcon= cannot be used with queues= greater than 1$/m],
    [`tap,id=n0,fds=3:4,falcon=${lab.socket}`, /falcon= cannot be used with fds=$/m],
    [`${tap},vnet_hdr=on`, /has vnet_hdr enabled, use vnet_hdr=off/],
    [tap, /has vnet_hdr enabled, use vnet_hdr=off/],
  ];
  for (const [netdev, message] of cases) {
    const { code, stderr } = await Machine.run(lab.machineOptions(netdev));
    t.equal(code, 1, netdev.replace(lab.socket, 'SOCKET'));
    t.match(stderr, message);
  }
});

void t.test('a falcond that is not there, or cannot be used', { skip }, async (t) => {
  const cases: [mode: string, message: RegExp][] = [
    ['busy', /falcond at '.*' is busy: another QEMU is attached to it$/m],
    ['version', /ring layout versions differ: this QEMU speaks 1, falcond at '.*' speaks 7$/m],
    ['memory-version', /ring layout versions differ: this QEMU speaks 1, the memory of '.*' has 7$/m],
    ['magic', /what listens on '.*' is not a falcond \(magic 0x00000021\)$/m],
    ['memory-magic', /the memory of '.*' has the wrong magic 0x314d48534e434c47$/m],
    ['status', /falcond at '.*' refused with unknown status 9$/m],
    ['short', /falcond at '.*' closed the connection during the hand-shake$/m],
    ['many-fds', /falcond at '.*' sent too many descriptors$/m],
    ['positions', /the ingress ring of '.*' has bad head and tail$/m],
    ['close', /falcond at '.*' closed the connection during the hand-shake$/m],
    ['nofds', /falcond at '.*' sent 0 descriptors instead of 3$/m],
    ['size', /the memory of '.*' has \d+ bytes, but \d+ are announced$/m],
    ['capacity', /the deliver ring of '.*' has bad bounds \(offset \d+, capacity \d+\)$/m],
    ['bounds', /the egress ring of '.*' has bad bounds/],
    ['overlap', /the deliver ring of '.*' has bad bounds/],
    ['silent', /falcond at '.*' did not complete the hand-shake within 5 seconds$/m],
  ];
  const lab = makeLab(t);
  for (const [mode, message] of cases) {
    const peer = await lab.startPeer(mode);
    const { code, stderr } = await Machine.run(lab.machineOptions(lab.netdev));
    t.equal(code, 1, mode);
    t.match(stderr, message);
    peer.process.kill('SIGKILL');
  }
  // The killed peer's socket is still there, but nobody listens on it any more.
  const dead = await Machine.run(lab.machineOptions(lab.netdev));
  t.match(dead.stderr, /no falcond listens on '.*': Connection refused$/m);
  const absent = await Machine.run(lab.machineOptions(lab.netdev.replace(lab.socket, '/nowhere/falcond')));
  t.match(absent.stderr, /no falcond listens on '\/nowhere\/falcond': No such file or directory$/m);
  const long = await Machine.run(lab.machineOptions(lab.netdev.replace(lab.socket, 'x'.repeat(200))));
  t.match(long.stderr, /socket path 'x+' must have 1 to 107 bytes$/m);
});

void t.test('hubs', { skip }, async (t) => {
  const lab = makeLab(t);
  await lab.startPeer();
  const more = ['-netdev', 'hubport,id=h0,hubid=0,netdev=n0'];
  const { code, stderr } = await Machine.run(lab.machineOptions(lab.netdev, more));
  t.equal(code, 1);
  t.match(stderr, /netdev 'n0' with falcon= cannot be used with a hub$/m);

  const legacy = lab.netdev.replace('id=n0,', '');
  const old = await Machine.run(lab.machineOptions('user,id=n0', ['-net', legacy]));
  t.equal(old.code, 1);
  t.match(old.stderr, /falcon= cannot be used with a hub$/m);
});
