#include "vm/packet.h"

#include "os/check.h"

namespace falcon {
namespace {

constexpr uint16_t kEtherVlan = 0x8100, kEtherVlanOuter = 0x88A8;
constexpr uint8_t kProtocolTcp = 6, kProtocolIcmp6 = 58;
constexpr uint8_t kHopByHop = 0, kDestinationOptions = 60;
constexpr int kMaxExtensionHeaders = 8;
constexpr size_t kTcpChecksumOffset = 16, kIpv4ChecksumOffset = 10;

// Reads the TCP header that starts at tcp_at; packet->end is known.
void ParseTcp(Frame frame, Packet* packet) {
  const size_t at = packet->tcp_at;
  packet->kind = PacketKind::kMalformed;
  if (packet->end - at < kTcpHeaderBytes) return;
  const size_t header = static_cast<size_t>(Load8(frame, at + 12) >> 4) * 4;
  if (header < kTcpHeaderBytes || header > packet->end - at) return;
  packet->source_port = Load16(frame, at);
  packet->destination_port = Load16(frame, at + 2);
  packet->seq = Load32(frame, at + kSeqOffset);
  packet->ack = Load32(frame, at + kAckOffset);
  packet->flags = Load8(frame, at + 13);
  packet->window = Load16(frame, at + kWindowOffset);
  packet->payload_at = at + header;
  packet->kind = PacketKind::kTcp;
}

void ParseIpv4(Frame frame, Packet* packet) {
  const size_t at = packet->link_bytes;
  packet->kind = PacketKind::kMalformed;
  if (frame.size() - at < kIpv4HeaderBytes) return;
  const uint8_t first = Load8(frame, at);
  const size_t header = static_cast<size_t>(first & 0x0F) * 4;
  const size_t total = Load16(frame, at + 2);
  if (first >> 4 != 4 || header < kIpv4HeaderBytes || total < header || total > frame.size() - at)
    return;
  packet->version = 4;
  packet->end = at + total;
  packet->source = Ipv4Address(frame.data() + at + 12);
  packet->destination = Ipv4Address(frame.data() + at + 16);
  packet->kind = PacketKind::kOther;
  // More-fragments or an offset: a piece, whose bytes mean nothing by themselves.
  if ((Load16(frame, at + 6) & 0x3FFF) != 0) return;
  if (Load8(frame, at + 9) != kProtocolTcp) return;
  packet->tcp_at = at + header;
  ParseTcp(frame, packet);
}

void ParseIpv6(Frame frame, Packet* packet) {
  size_t at = packet->link_bytes;
  packet->kind = PacketKind::kMalformed;
  if (frame.size() - at < kIpv6HeaderBytes || Load8(frame, at) >> 4 != 6) return;
  const size_t length = Load16(frame, at + 4);
  if (length > frame.size() - at - kIpv6HeaderBytes) return;
  packet->version = 6;
  std::memcpy(packet->source.data(), frame.data() + at + 8, 16);
  std::memcpy(packet->destination.data(), frame.data() + at + 24, 16);
  packet->end = at + kIpv6HeaderBytes + length;
  packet->kind = PacketKind::kOther;
  // An IPv4 address in IPv6 clothes must not be taken for the IPv4 host: it never stands in a
  // header rightly.
  if (IsMappedIpv4(packet->source) || IsMappedIpv4(packet->destination)) return;
  uint8_t next = Load8(frame, at + 6);
  at += kIpv6HeaderBytes;
  for (int i = 0; i < kMaxExtensionHeaders && (next == kHopByHop || next == kDestinationOptions);
       ++i) {
    if (packet->end - at < 8) return;
    const size_t bytes = (static_cast<size_t>(Load8(frame, at + 1)) + 1) * 8;
    if (bytes > packet->end - at) return;
    next = Load8(frame, at);
    at += bytes;
  }
  if (next == kProtocolIcmp6) {
    packet->kind = PacketKind::kIcmp6;
    packet->payload_at = at;
  } else if (next == kProtocolTcp) {
    packet->tcp_at = at;
    ParseTcp(frame, packet);
  }
}

uint64_t PseudoHeaderSum(const Packet& packet) {
  std::array<std::byte, 40> pseudo{};
  const size_t length = packet.end - packet.tcp_at;
  size_t size = 40;
  if (packet.version == 4) {
    std::memcpy(pseudo.data(), packet.source.data() + 12, 4);
    std::memcpy(pseudo.data() + 4, packet.destination.data() + 12, 4);
    pseudo[9] = std::byte{kProtocolTcp};
    Store16(pseudo, 10, static_cast<uint16_t>(length));
    size = 12;
  } else {
    std::memcpy(pseudo.data(), packet.source.data(), 16);
    std::memcpy(pseudo.data() + 16, packet.destination.data(), 16);
    Store32(pseudo, 32, static_cast<uint32_t>(length));
    pseudo[39] = std::byte{kProtocolTcp};
  }
  return SumBytes(std::span<const std::byte>(pseudo).first(size));
}

uint16_t LoadRaw16(std::span<const std::byte> bytes, size_t at) {
  uint16_t value = 0;
  std::memcpy(&value, bytes.data() + at, 2);
  return value;
}

void StoreRaw16(std::span<std::byte> bytes, size_t at, uint16_t value) {
  std::memcpy(bytes.data() + at, &value, 2);
}

size_t Ipv4Header(Frame frame, const Packet& packet) {
  return static_cast<size_t>(Load8(frame, packet.link_bytes) & 0x0F) * 4;
}

void FillIpv4Checksum(std::span<std::byte> frame, const Packet& packet) {
  const auto header = frame.subspan(packet.link_bytes, Ipv4Header(frame, packet));
  StoreRaw16(header, kIpv4ChecksumOffset, 0);
  StoreRaw16(header, kIpv4ChecksumOffset, static_cast<uint16_t>(~FoldSum(SumBytes(header))));
}

}  // namespace

Address Ipv4Address(const std::byte* four_bytes) {
  Address address{};
  address[10] = 0xFF;
  address[11] = 0xFF;
  std::memcpy(address.data() + 12, four_bytes, 4);
  return address;
}

bool IsMappedIpv4(const Address& address) {
  constexpr Address kPrefix = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF};
  return std::memcmp(address.data(), kPrefix.data(), 12) == 0;
}

Packet ParseFrame(Frame frame) {
  Packet packet;
  if (frame.size() < kEthernetHeaderBytes || frame.size() > kMaxFrameBytes) {
    packet.kind = PacketKind::kMalformed;
    return packet;
  }
  size_t at = kEthernetHeaderBytes;
  packet.ether_type = Load16(frame, at - 2);
  for (size_t tags = 0; tags < kMaxVlanTags; ++tags) {
    if (packet.ether_type != kEtherVlan && packet.ether_type != kEtherVlanOuter) break;
    if (frame.size() - at < kVlanTagBytes) {
      packet.kind = PacketKind::kMalformed;
      return packet;
    }
    at += kVlanTagBytes;
    packet.ether_type = Load16(frame, at - 2);
  }
  packet.link_bytes = at;
  if (packet.ether_type == kEtherIpv4) ParseIpv4(frame, &packet);
  if (packet.ether_type == kEtherIpv6) ParseIpv6(frame, &packet);
  if (packet.ether_type == kEtherArp) packet.kind = PacketKind::kArp;
  return packet;
}

uint64_t SumBytes(std::span<const std::byte> data) {
  uint64_t sum = 0;
  while (data.size() >= 8) {
    uint32_t words[2];
    std::memcpy(words, data.data(), 8);
    sum += static_cast<uint64_t>(words[0]) + words[1];
    data = data.subspan(8);
  }
  uint32_t rest[2] = {};
  if (!data.empty()) std::memcpy(rest, data.data(), data.size());
  return sum + rest[0] + rest[1];
}

uint16_t FoldSum(uint64_t sum) {
  sum = (sum & 0xFFFFFFFF) + (sum >> 32);
  sum = (sum & 0xFFFFFFFF) + (sum >> 32);
  sum = (sum & 0xFFFF) + (sum >> 16);
  sum = (sum & 0xFFFF) + (sum >> 16);
  return static_cast<uint16_t>(sum);
}

bool TcpChecksumsAreRight(Frame frame, const Packet& packet) {
  if (packet.version == 4 &&
      FoldSum(SumBytes(frame.subspan(packet.link_bytes, Ipv4Header(frame, packet)))) != 0xFFFF) {
    return false;
  }
  const auto segment = frame.subspan(packet.tcp_at, packet.end - packet.tcp_at);
  return FoldSum(PseudoHeaderSum(packet) + SumBytes(segment)) == 0xFFFF;
}

void FillTcpChecksums(std::span<std::byte> frame, const Packet& packet) {
  if (packet.version == 4) FillIpv4Checksum(frame, packet);
  const auto segment = frame.subspan(packet.tcp_at, packet.end - packet.tcp_at);
  StoreRaw16(segment, kTcpChecksumOffset, 0);
  const uint64_t sum = PseudoHeaderSum(packet) + SumBytes(segment);
  StoreRaw16(segment, kTcpChecksumOffset, static_cast<uint16_t>(~FoldSum(sum)));
}

void ReplaceInSegment(std::span<std::byte> frame, const Packet& packet, size_t at,
                      std::span<const std::byte> bytes) {
  FALCON_CHECK(bytes.size() % 2 == 0 && at >= packet.tcp_at && at + bytes.size() <= packet.end);
  const auto field = frame.subspan(at, bytes.size());
  uint16_t before = FoldSum(SumBytes(field));
  uint16_t after = FoldSum(SumBytes(bytes));
  if ((at - packet.tcp_at) % 2 != 0) {  // the field straddles the checksum's 16-bit words
    before = __builtin_bswap16(before);
    after = __builtin_bswap16(after);
  }
  const size_t checksum_at = packet.tcp_at + kTcpChecksumOffset;
  const uint64_t sum =
      static_cast<uint64_t>(static_cast<uint16_t>(~LoadRaw16(frame, checksum_at))) +
      static_cast<uint16_t>(~before) + after;
  std::memmove(field.data(), bytes.data(), bytes.size());
  StoreRaw16(frame, checksum_at, static_cast<uint16_t>(~FoldSum(sum)));
}

void ReplaceSeq(std::span<std::byte> frame, const Packet& packet, size_t offset_in_tcp_header,
                Seq value) {
  std::array<std::byte, 4> bytes;
  Store32(bytes, 0, value);
  ReplaceInSegment(frame, packet, packet.tcp_at + offset_in_tcp_header, bytes);
}

void ReplaceWindow(std::span<std::byte> frame, const Packet& packet, uint16_t window) {
  std::array<std::byte, 2> bytes;
  Store16(bytes, 0, window);
  ReplaceInSegment(frame, packet, packet.tcp_at + kWindowOffset, bytes);
}

size_t DropTcpPayload(std::span<std::byte> frame, Packet* packet) {
  packet->end = packet->payload_at;
  const size_t at = packet->link_bytes;
  if (packet->version == 4) {
    Store16(frame, at + 2, static_cast<uint16_t>(packet->end - at));
  } else {
    Store16(frame, at + 4, static_cast<uint16_t>(packet->end - at - kIpv6HeaderBytes));
  }
  FillTcpChecksums(frame, *packet);
  return packet->end;
}

size_t SegmentHeaderBytes(const TcpSegment& segment) {
  const bool v4 = Load16(segment.link, segment.link.size() - 2) == kEtherIpv4;
  return segment.link.size() + (v4 ? kIpv4HeaderBytes : kIpv6HeaderBytes) + kTcpHeaderBytes;
}

size_t FinishSegment(std::span<std::byte> into, const TcpSegment& segment, size_t payload_bytes) {
  const size_t header = SegmentHeaderBytes(segment);
  FALCON_CHECK(header + payload_bytes <= into.size());
  const size_t at = segment.link.size();
  Packet packet;
  packet.link_bytes = at;
  packet.version = header - at == kIpv4HeaderBytes + kTcpHeaderBytes ? 4 : 6;
  packet.tcp_at = header - kTcpHeaderBytes;
  packet.payload_at = header;
  packet.end = header + payload_bytes;
  packet.source = segment.source;
  packet.destination = segment.destination;
  std::memset(into.data(), 0, header);
  std::memcpy(into.data(), segment.link.data(), at);
  if (packet.version == 4) {
    into[at] = std::byte{0x45};
    Store16(into, at + 2, static_cast<uint16_t>(packet.end - at));
    Store16(into, at + 6, 0x4000);  // don't fragment
    into[at + 8] = std::byte{64};
    into[at + 9] = std::byte{kProtocolTcp};
    std::memcpy(into.data() + at + 12, segment.source.data() + 12, 4);
    std::memcpy(into.data() + at + 16, segment.destination.data() + 12, 4);
  } else {
    into[at] = std::byte{0x60};
    Store16(into, at + 4, static_cast<uint16_t>(packet.end - at - kIpv6HeaderBytes));
    into[at + 6] = std::byte{kProtocolTcp};
    into[at + 7] = std::byte{64};
    std::memcpy(into.data() + at + 8, segment.source.data(), 16);
    std::memcpy(into.data() + at + 24, segment.destination.data(), 16);
  }
  const size_t tcp = packet.tcp_at;
  Store16(into, tcp, segment.source_port);
  Store16(into, tcp + 2, segment.destination_port);
  Store32(into, tcp + kSeqOffset, segment.seq);
  Store32(into, tcp + kAckOffset, segment.ack);
  into[tcp + 12] = std::byte{0x50};
  into[tcp + 13] = std::byte{segment.flags};
  Store16(into, tcp + kWindowOffset, segment.window);
  FillTcpChecksums(into, packet);
  return packet.end;
}

}  // namespace falcon
