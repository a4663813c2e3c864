/**
 * Frames that fill the log and ask nothing of the guest, run in the client's namespace:
 *   node udp-load.js HOST MEBIBYTES
 * sends datagrams to a port where nobody listens. Prints one JSON object.
 */
import { createSocket } from 'node:dgram';
import { setTimeout as pause } from 'node:timers/promises';

const [host = '', mebibytes = '1'] = process.argv.slice(2);
const discardPort = 9;
const datagram = Buffer.alloc(1400, 'x');
/** A guest under emulation takes thousands of frames a second; more would only be dropped at its tap. */
const burst = 20;
const burstEveryMs = 10;

const socket = createSocket('udp4');
let sent = 0;
while (sent * datagram.length < Number(mebibytes) * 1024 * 1024) {
  for (let i = 0; i < burst; i++, sent++) {
    await new Promise<void>((resolve) => {
      // What a host that answers "unreachable" makes of the next send is no error here.
      socket.send(datagram, discardPort, host, () => resolve());
    });
  }
  await pause(burstEveryMs);
}
socket.close();
console.log(JSON.stringify({ sent }));
