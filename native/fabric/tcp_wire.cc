#include "fabric/tcp_wire.h"

#include <cstdio>
#include <cstdlib>

namespace falcon {
namespace {

constexpr size_t kMaxDescriptorBytes = 512;

std::string Hex(std::span<const uint8_t> bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const uint8_t byte : bytes) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

}  // namespace

TcpHello MakeTcpHello(PeerId from, PeerId to, uint64_t connection, const TcpToken& token) {
  TcpHello hello{kTcpHelloMagic, kTcpVersion, from, to, 0, connection, token, 0, 0};
  hello.checksum = TcpChecksum(hello);
  return hello;
}

TcpWelcome MakeTcpWelcome(uint64_t connection) {
  TcpWelcome welcome{kTcpWelcomeMagic, kTcpVersion, 0, connection, 0, 0};
  welcome.checksum = TcpChecksum(welcome);
  return welcome;
}

TcpFrame MakeTcpFrame(TcpKind kind, RemoteAddress address, size_t length, uint64_t operation,
                      uint16_t exposure) {
  TcpFrame frame{address.offset,
                 static_cast<uint32_t>(length),
                 static_cast<uint32_t>(operation),
                 kind,
                 address.region,
                 exposure,
                 0};
  frame.checksum = TcpChecksum(frame);
  return frame;
}

bool IsSound(const TcpHello& hello, PeerId self, const TcpToken& token) {
  if (hello.magic != kTcpHelloMagic || hello.checksum != TcpChecksum(hello)) return false;
  if (hello.version != kTcpVersion || hello.zero != 0 || hello.zero2 != 0) return false;
  if (hello.to != self || hello.from == self || hello.from >= kMaxMembers) return false;
  uint8_t different = 0;  // looked at to the end: the time tells nothing
  for (size_t i = 0; i < token.size(); ++i)
    different = static_cast<uint8_t>(different | (hello.token[i] ^ token[i]));
  return different == 0;
}

bool IsSound(const TcpWelcome& welcome, uint64_t connection) {
  const TcpWelcome expected = MakeTcpWelcome(connection);
  return std::memcmp(&welcome, &expected, sizeof welcome) == 0;
}

bool IsSound(const TcpFrame& frame, uint64_t operation) {
  return frame.checksum == TcpChecksum(frame) && frame.length <= kMaxTcpOperationBytes &&
         frame.sequence == static_cast<uint32_t>(operation);
}

std::string TcpMember::Descriptor() const {
  std::string text = "falcon-tcp " + std::to_string(kTcpVersion) + " self " + std::to_string(self) +
                     " address " + address + " port " + std::to_string(port) + " token " +
                     Hex(token) + " regions";
  for (const uint64_t bytes : region_bytes) text += " " + std::to_string(bytes);
  char sum[32];
  std::snprintf(sum, sizeof sum, " sum %08x\n", Crc32c(std::as_bytes(std::span(text))));
  return text + sum;
}

// Reads what it can and then writes it again: only what Descriptor() would have said is right.
Status TcpMember::Parse(std::string_view descriptor, TcpMember* member) {
  const Status bad = {"FABRIC_CONNECT", "not a descriptor of this version of the tcp fabric"};
  if (descriptor.size() > kMaxDescriptorBytes || descriptor.find('\0') != std::string_view::npos)
    return bad;
  static_assert(kMaxRegions == 4);
  unsigned version = 0;
  unsigned self = 0;
  unsigned port = 0;
  char address[64];
  char token[33];
  std::array<unsigned long long, kMaxRegions> bytes{};
  const std::string text(descriptor);
  if (std::sscanf(text.c_str(),
                  "falcon-tcp %9u self %3u address %63s port %5u token %32s regions %20llu %20llu "
                  "%20llu %20llu",
                  &version, &self, address, &port, token, &bytes[0], &bytes[1], &bytes[2],
                  &bytes[3]) != 9)
    return bad;
  if (version != kTcpVersion || self >= kMaxMembers || port == 0 || port > 65535) return bad;
  TcpMember parsed;
  parsed.self = static_cast<PeerId>(self);
  parsed.address = address;
  parsed.port = static_cast<uint16_t>(port);
  if (std::strlen(token) != 2 * parsed.token.size()) return bad;
  for (size_t i = 0; i < parsed.token.size(); ++i) {
    const char digits[] = {token[2 * i], token[2 * i + 1], 0};
    parsed.token[i] = static_cast<uint8_t>(std::strtoul(digits, nullptr, 16));
  }
  for (RegionId region = 0; region < kMaxRegions; ++region) {
    if (bytes[region] > kMaxTcpRegionBytes) return bad;
    parsed.region_bytes[region] = bytes[region];
  }
  if (parsed.Descriptor() != descriptor) return bad;
  *member = parsed;
  return Ok();
}

bool IsWithin(const std::array<uint64_t, kMaxRegions>& region_bytes, RemoteAddress address,
              uint64_t bytes) {
  if (address.region >= kMaxRegions) return false;
  const uint64_t size = region_bytes[address.region];
  return size > 0 && address.offset <= size && bytes <= size - address.offset;
}

}  // namespace falcon
