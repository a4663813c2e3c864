// Reading and making Ethernet frames. Every byte that is read here may have been chosen by an
// attacker, so each field is read only after its presence is proved, and what cannot be proved is
// not TCP.
//
// Two answers besides "TCP" matter: kOther is passed on as it is (ARP, UDP, fragments, anything
// unknown), and kMalformed is what no guest would take (an IP or TCP header that contradicts the
// frame's length).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "vm/flow_table.h"

namespace falcon {

inline constexpr size_t kEthernetHeaderBytes = 14;
inline constexpr size_t kVlanTagBytes = 4;
inline constexpr size_t kMaxVlanTags = 2;
inline constexpr size_t kMaxLinkBytes = kEthernetHeaderBytes + kMaxVlanTags * kVlanTagBytes;
inline constexpr size_t kMaxFrameBytes = kMaxLinkBytes + 65535;
inline constexpr size_t kIpv4HeaderBytes = 20;
inline constexpr size_t kIpv6HeaderBytes = 40;
inline constexpr size_t kTcpHeaderBytes = 20;
inline constexpr size_t kMaxTcpOptionBytes = 40;

inline constexpr uint16_t kEtherIpv4 = 0x0800;
inline constexpr uint16_t kEtherArp = 0x0806;
inline constexpr uint16_t kEtherIpv6 = 0x86DD;

inline constexpr uint8_t kTcpFin = 0x01, kTcpSyn = 0x02, kTcpRst = 0x04, kTcpPsh = 0x08,
                         kTcpAck = 0x10;

// Sequence numbers live on a circle of 2^32; a is before b if going forward from a reaches b within
// half of it.
using Seq = uint32_t;
[[nodiscard]] constexpr int32_t SeqDistance(Seq from, Seq to) {
  return static_cast<int32_t>(to - from);
}
[[nodiscard]] constexpr bool SeqBefore(Seq a, Seq b) { return SeqDistance(a, b) > 0; }
[[nodiscard]] constexpr Seq SeqMax(Seq a, Seq b) { return SeqBefore(a, b) ? b : a; }
[[nodiscard]] constexpr Seq SeqMin(Seq a, Seq b) { return SeqBefore(a, b) ? a : b; }

using Mac = std::array<uint8_t, 6>;
// An IPv6 address, or an IPv4 address as ::ffff:a.b.c.d.
using Address = std::array<uint8_t, 16>;

[[nodiscard]] Address Ipv4Address(const std::byte* four_bytes);
[[nodiscard]] bool IsMappedIpv4(const Address& address);

[[nodiscard]] inline uint8_t Load8(Frame bytes, size_t at) {
  return static_cast<uint8_t>(bytes[at]);
}
[[nodiscard]] inline uint16_t Load16(Frame bytes, size_t at) {
  return static_cast<uint16_t>(Load8(bytes, at) << 8 | Load8(bytes, at + 1));
}
[[nodiscard]] inline uint32_t Load32(Frame bytes, size_t at) {
  return static_cast<uint32_t>(Load16(bytes, at)) << 16 | Load16(bytes, at + 2);
}
inline void Store16(std::span<std::byte> bytes, size_t at, uint16_t value) {
  bytes[at] = static_cast<std::byte>(value >> 8);
  bytes[at + 1] = static_cast<std::byte>(value & 0xFF);
}
inline void Store32(std::span<std::byte> bytes, size_t at, uint32_t value) {
  Store16(bytes, at, static_cast<uint16_t>(value >> 16));
  Store16(bytes, at + 2, static_cast<uint16_t>(value & 0xFFFF));
}

enum class PacketKind : uint8_t { kOther, kArp, kIcmp6, kTcp, kMalformed };

// Where things are in a frame; offsets are from its first byte. For kOther only link_bytes and
// ether_type (and, with version set, the addresses) mean something.
struct Packet {
  PacketKind kind = PacketKind::kOther;
  uint8_t version = 0;  // 4, 6, or 0: not IP
  uint16_t ether_type = 0;
  size_t link_bytes = 0;  // Ethernet header and VLAN tags
  size_t payload_at = 0;  // of the transport protocol's payload (TCP), or of the ICMPv6 header
  size_t end = 0;         // of the IP packet; what follows is padding
  size_t tcp_at = 0;
  Address source{}, destination{};
  uint16_t source_port = 0, destination_port = 0;
  Seq seq = 0, ack = 0;
  uint8_t flags = 0;
  uint16_t window = 0;

  [[nodiscard]] bool Has(uint8_t flag) const { return (flags & flag) != 0; }
  [[nodiscard]] size_t PayloadBytes() const { return end - payload_at; }
  [[nodiscard]] size_t OptionsAt() const { return tcp_at + kTcpHeaderBytes; }
  [[nodiscard]] size_t OptionBytes() const { return payload_at - OptionsAt(); }
  // Sequence numbers that the segment takes.
  [[nodiscard]] uint32_t SeqLength() const {
    return static_cast<uint32_t>(PayloadBytes()) + (Has(kTcpSyn) ? 1 : 0) + (Has(kTcpFin) ? 1 : 0);
  }
};

[[nodiscard]] Packet ParseFrame(Frame frame);

// The Internet checksum (RFC 1071): sums are kept in the byte order of memory, so nothing is
// swapped.
[[nodiscard]] uint64_t SumBytes(std::span<const std::byte> data);
[[nodiscard]] uint16_t FoldSum(uint64_t sum);

// True if the IPv4 header checksum (v4) and the TCP checksum of a kTcp frame are right.
[[nodiscard]] bool TcpChecksumsAreRight(Frame frame, const Packet& packet);
// Writes both checksums afresh.
void FillTcpChecksums(std::span<std::byte> frame, const Packet& packet);
// Replaces an even number of bytes inside the TCP segment and updates its checksum by the
// difference (RFC 1624), so that a segment that was damaged stays recognisably damaged.
void ReplaceInSegment(std::span<std::byte> frame, const Packet& packet, size_t at,
                      std::span<const std::byte> bytes);
void ReplaceSeq(std::span<std::byte> frame, const Packet& packet, size_t offset_in_tcp_header,
                Seq value);
void ReplaceWindow(std::span<std::byte> frame, const Packet& packet, uint16_t window);
// Shortens a kTcp frame so that it has no payload, and sets both checksums. Returns the frame's new
// length.
size_t DropTcpPayload(std::span<std::byte> frame, Packet* packet);

inline constexpr size_t kSeqOffset = 4, kAckOffset = 8, kWindowOffset = 14;

// A TCP segment without options to be made.
struct TcpSegment {
  Frame link;  // Ethernet header with VLAN tags and the ether type
  Address source{}, destination{};
  uint16_t source_port = 0, destination_port = 0;
  Seq seq = 0, ack = 0;
  uint8_t flags = 0;
  uint16_t window = 0;
};

// Bytes before the payload.
[[nodiscard]] size_t SegmentHeaderBytes(const TcpSegment& segment);
// Writes headers round the payload that the caller has put at into[SegmentHeaderBytes()...].
// Returns the frame's length. `into` must be large enough.
size_t FinishSegment(std::span<std::byte> into, const TcpSegment& segment, size_t payload_bytes);

}  // namespace falcon
