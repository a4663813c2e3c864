/** The pages that a test's nginx serves: made the same where they are written and where they are checked. */

const bytesOf = (length: number, seed: number): Buffer => {
  const bytes = Buffer.alloc(length);
  let state = seed;
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    bytes[i] = state >>> 24;
  }
  return bytes;
};

export const pages = {
  '/small.txt': Buffer.from('a small page\n'),
  // It holds what the mask looks for: bytes are hidden there that do not differ.
  '/page.txt': Buffer.from(
    `${'some text of a page\n'.repeat(300)}\r\nDate: not a header, but the end of a page\n`,
  ),
  '/large.bin': bytesOf(700_000, 7),
} as const;

export type PagePath = keyof typeof pages;
