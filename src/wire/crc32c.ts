/** CRC32C (Castagnoli), as RFC 3720, appendix B.4 defines it; native/os/crc32c.cc is its twin. */
const polynomial = 0x82f63b78;

const table = Uint32Array.from({ length: 256 }, (_, index) => {
  let value = index;
  for (let bit = 0; bit < 8; bit++) value = (value >>> 1) ^ (value & 1 ? polynomial : 0);
  return value >>> 0;
});

/** `seed` is the checksum of the bytes before `bytes` (0 at the start). Unsigned 32 bits. */
export function crc32c(bytes: Uint8Array, seed = 0): number {
  let crc = ~seed;
  for (const byte of bytes) crc = (crc >>> 8) ^ table[(crc ^ byte) & 0xff]!;
  return ~crc >>> 0;
}
