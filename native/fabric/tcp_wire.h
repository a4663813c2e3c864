// What the tcp fabric sends: the descriptor, the greeting of a stream and the headers of its
// frames. Everything is little-endian and checked before it is believed.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "fabric/fabric.h"
#include "os/crc32c.h"
#include "os/status.h"

namespace falcon {

static_assert(std::endian::native == std::endian::little);

inline constexpr uint32_t kTcpVersion = 2;
inline constexpr uint64_t kTcpHelloMagic = 0x3130'4C48'4E4F'4C46;    // "FLONHL01"
inline constexpr uint64_t kTcpWelcomeMagic = 0x3130'4357'4E4F'4C46;  // "FLONWC01"
inline constexpr uint64_t kMaxTcpRegionBytes = 1ull << 40;
inline constexpr size_t kMaxTcpOperationBytes = 1 << 30;

using TcpToken = std::array<uint8_t, 16>;  // random, of one incarnation of a fabric

// The first bytes of a stream, from the dialler.
struct TcpHello {
  uint64_t magic;
  uint32_t version;
  uint8_t from;
  uint8_t to;
  uint16_t zero;
  uint64_t connection;
  TcpToken token;  // the listener's
  uint32_t zero2;
  uint32_t checksum;
};
static_assert(sizeof(TcpHello) == 48);

// The listener's answer: the frames of this connection are welcome.
struct TcpWelcome {
  uint64_t magic;
  uint32_t version;
  uint32_t zero;
  uint64_t connection;
  uint32_t zero2;
  uint32_t checksum;
};
static_assert(sizeof(TcpWelcome) == 32);

enum class TcpKind : uint8_t { kWrite = 1, kRead = 2, kAnswer = 3 };

// In front of the bytes of a write or of an answer; a read has none behind it.
struct TcpFrame {
  uint64_t offset;
  uint32_t length;
  uint32_t sequence;  // of the operation within its connection, from 1; an answer has its read's
  TcpKind kind;
  uint8_t region;
  uint16_t exposure;  // that the region was attached by; 0: a region of the receiver's own
  uint32_t checksum;
};
static_assert(sizeof(TcpFrame) == 24);

// All three end with the checksum of what is before it.
template <typename Message>
[[nodiscard]] uint32_t TcpChecksum(const Message& message) {
  return Crc32c(std::as_bytes(std::span(&message, 1)).first(offsetof(Message, checksum)));
}

TcpHello MakeTcpHello(PeerId from, PeerId to, uint64_t connection, const TcpToken& token);
TcpWelcome MakeTcpWelcome(uint64_t connection);
TcpFrame MakeTcpFrame(TcpKind kind, RemoteAddress address, size_t length, uint64_t operation,
                      uint16_t exposure = 0);
[[nodiscard]] bool IsSound(const TcpHello& hello, PeerId self, const TcpToken& token);
[[nodiscard]] bool IsSound(const TcpWelcome& welcome, uint64_t connection);
[[nodiscard]] bool IsSound(const TcpFrame& frame, uint64_t operation);

// Everything a peer must know of a member.
struct TcpMember {
  PeerId self = 0;
  std::string address;
  uint16_t port = 0;
  TcpToken token{};
  std::array<uint64_t, kMaxRegions> region_bytes{};  // 0: no such region

  [[nodiscard]] std::string Descriptor() const;
  // Takes a descriptor that anybody may have made up. Errors: FABRIC_CONNECT.
  static Status Parse(std::string_view descriptor, TcpMember* member);
};

// True if `bytes` from `address` on are within regions of these sizes.
[[nodiscard]] bool IsWithin(const std::array<uint64_t, kMaxRegions>& region_bytes,
                            RemoteAddress address, uint64_t bytes);

}  // namespace falcon
