// A 64-bit hash of a run of bytes, for tables that attackers can fill (with a seed that they do not
// know they cannot aim at a bucket), and marks of two words. It multiplies 64-bit words into
// 128-bit products and folds them, which mixes every input bit into every output bit at a few bytes
// per cycle.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace falcon {

inline constexpr uint64_t kMixA = 0x9E3779B97F4A7C15, kMixB = 0xD6E8FEB86659FD93;

[[nodiscard]] inline uint64_t MixWords(uint64_t a, uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

// What tells two words, whole, as those of somebody: of another key, or torn, they have another
// mark. Much cheaper than a checksum where each write is looked at by the thread that waits for it.
[[nodiscard]] inline uint64_t MarkKey(uint64_t a, uint64_t b) {
  return MixWords(a ^ kMixA, b ^ kMixB);
}
[[nodiscard]] inline uint64_t MarkOf(uint64_t key, uint64_t first, uint64_t second) {
  return MixWords(MixWords(key ^ first, kMixB) ^ second, key ^ kMixA);
}

[[nodiscard]] inline uint64_t HashBytes(std::span<const std::byte> data, uint64_t seed) {
  uint64_t state = MixWords(seed ^ kMixA, data.size() ^ kMixB);
  while (data.size() >= 16) {
    uint64_t words[2];
    std::memcpy(words, data.data(), 16);
    state = MixWords(words[0] ^ kMixA ^ state, words[1] ^ kMixB ^ seed);
    data = data.subspan(16);
  }
  uint64_t rest[2] = {};
  if (!data.empty()) std::memcpy(rest, data.data(), data.size());
  state = MixWords(rest[0] ^ kMixB ^ state, rest[1] ^ kMixA ^ seed);
  return MixWords(state ^ kMixA, kMixB);
}

}  // namespace falcon
