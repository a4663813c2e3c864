/** The numbers that the event loop reads on every tick mean the same on both sides of the bridge. */
import t from 'tap';

import { progressFields, progressMembers } from '../../src/adapters/native-plane.js';
import { loadNative } from '../../src/adapters/native.js';

void t.test('names and order are the same', (t) => {
  const native = loadNative();
  t.same(native.progressFields, progressFields);
  t.equal(native.progressMembers, progressMembers);
  t.end();
});
