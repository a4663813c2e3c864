// A test run that has started everything and then waits to be broken off; see remains.test.ts.
import { makeLab, start } from './lab.js';

await start(makeLab({ teardown: () => {} }), 8);
process.stdout.write('ready\n');
setInterval(() => {}, 1000);
