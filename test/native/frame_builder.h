// Frames for tests: TCP segments with options, written plainly, and a table's sink that records
// what comes out.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "check.h"
#include "vm/flow_table.h"
#include "vm/packet.h"

namespace falcon::test {

using Bytes = std::vector<std::byte>;

inline constexpr Mac kVmMac = {0x52, 0x54, 0, 0, 0, 1};
inline constexpr Mac kClientMac = {2, 0, 0, 0, 0, 0x0A};

inline Bytes FromHex(const std::string& hex) {
  Bytes bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<std::byte>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

inline Bytes Text(const std::string& text) {
  Bytes bytes(text.size());
  std::ranges::transform(text, bytes.begin(), [](char c) { return static_cast<std::byte>(c); });
  return bytes;
}

// One side of a conversation and what it says; the other side is the mirror image.
struct Say {
  bool from_guest = false;
  bool v6 = false;
  int vlan_tags = 0;
  uint16_t client_port = 40000;
  uint16_t vm_port = 6379;
  uint8_t client_host = 2;
  Seq seq = 0, ack = 0;
  uint8_t flags = 0;
  uint16_t window = 64000;
  Bytes options{};  // padded here with no-operations to a multiple of 4
  Bytes payload{};
};

inline Address HostAddress(bool v6, uint8_t host) {
  if (v6) return {0xFD, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host};
  const std::byte four[4] = {std::byte{10}, std::byte{9}, std::byte{0}, std::byte{host}};
  return Ipv4Address(four);
}

inline Bytes Make(const Say& say) {
  Bytes link(kEthernetHeaderBytes);
  const Mac& to = say.from_guest ? kClientMac : kVmMac;
  const Mac& from = say.from_guest ? kVmMac : kClientMac;
  std::memcpy(link.data(), to.data(), 6);
  std::memcpy(link.data() + 6, from.data(), 6);
  for (int i = 0; i < say.vlan_tags; ++i) {
    link.resize(link.size() + kVlanTagBytes);
    Store16(link, link.size() - 6, i + 1 < say.vlan_tags ? 0x88A8 : 0x8100);
    Store16(link, link.size() - 4, 7);
  }
  Store16(link, link.size() - 2, say.v6 ? kEtherIpv6 : kEtherIpv4);
  TcpSegment segment;
  segment.link = link;
  const Address client = HostAddress(say.v6, say.client_host), vm = HostAddress(say.v6, 1);
  segment.source = say.from_guest ? vm : client;
  segment.destination = say.from_guest ? client : vm;
  segment.source_port = say.from_guest ? say.vm_port : say.client_port;
  segment.destination_port = say.from_guest ? say.client_port : say.vm_port;
  segment.seq = say.seq;
  segment.ack = say.ack;
  segment.flags = say.flags;
  segment.window = say.window;
  Bytes options = say.options;
  while (options.size() % 4 != 0) options.push_back(std::byte{1});
  const size_t header = SegmentHeaderBytes(segment);
  Bytes frame(header + options.size() + say.payload.size());
  std::copy(options.begin(), options.end(), frame.begin() + static_cast<ptrdiff_t>(header));
  std::copy(say.payload.begin(), say.payload.end(),
            frame.begin() + static_cast<ptrdiff_t>(header + options.size()));
  FinishSegment(frame, segment, options.size() + say.payload.size());
  frame[header - kTcpHeaderBytes + 12] =
      static_cast<std::byte>((kTcpHeaderBytes + options.size()) / 4 << 4);
  FillTcpChecksums(frame, ParseFrame(frame));
  return frame;
}

inline std::string PayloadText(const Bytes& frame) {
  const Packet packet = ParseFrame(frame);
  return {reinterpret_cast<const char*>(frame.data()) + packet.payload_at, packet.PayloadBytes()};
}

// Keeps every frame that comes out, and checks that each TCP segment among them has right
// checksums.
struct RecordingSink : FlowSink {
  bool guest_full = false;
  bool expect_right_checksums = true;
  std::vector<Bytes> guest, wire;

  bool ToGuest(Frame frame) override {
    if (guest_full) return false;
    Record(frame, &guest);
    return true;
  }
  void ToWire(Frame frame) override { Record(frame, &wire); }
  void Record(Frame frame, std::vector<Bytes>* into) {
    const Packet packet = ParseFrame(frame);
    if (packet.kind == PacketKind::kTcp && expect_right_checksums)
      CHECK(TcpChecksumsAreRight(frame, packet));
    into->emplace_back(frame.begin(), frame.end());
  }
  void Clear() {
    guest.clear();
    wire.clear();
  }
};

}  // namespace falcon::test
