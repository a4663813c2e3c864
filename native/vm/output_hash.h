// The hash that output chains are made of: BLAKE2b-256 of libsodium. Not OpenSSL's: its symbols
// would meet those of the program that loads this code.
#pragma once

#include <sodium.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace falcon {

using OutputHash = std::array<uint8_t, 32>;

[[nodiscard]] inline OutputHash HashOutput(std::span<const std::byte> bytes,
                                           std::span<const std::byte> more = {}) {
  OutputHash hash;
  crypto_generichash_state state;
  crypto_generichash_init(&state, nullptr, 0, hash.size());
  const auto add = [&state](std::span<const std::byte> part) {
    crypto_generichash_update(&state, reinterpret_cast<const unsigned char*>(part.data()),
                              part.size());
  };
  add(bytes);
  if (!more.empty()) add(more);
  crypto_generichash_final(&state, hash.data(), hash.size());
  return hash;
}

// The next link: H(last || H(queue)); the queue's bytes may lie in two pieces.
[[nodiscard]] inline OutputHash NextLink(const OutputHash& last, std::span<const std::byte> queue,
                                         std::span<const std::byte> rest) {
  const OutputHash inner = HashOutput(queue, rest);
  return HashOutput(std::as_bytes(std::span(last)), std::as_bytes(std::span(inner)));
}

}  // namespace falcon
