// The parser and the checksums, on whole, cut and bent frames.
#include "frame_builder.h"
#include "vm/tcp_options.h"

namespace falcon::test {
namespace {

TEST(parses_tcp_over_ipv4_ipv6_and_vlan_tags) {
  for (const bool v6 : {false, true}) {
    for (const int tags : {0, 1, 2}) {
      const Bytes frame = Make({.v6 = v6,
                                .vlan_tags = tags,
                                .seq = 7,
                                .ack = 9,
                                .flags = kTcpAck,
                                .window = 11,
                                .options = {std::byte{1}},
                                .payload = Text("hello")});
      const Packet p = ParseFrame(frame);
      CHECK(p.kind == PacketKind::kTcp);
      CHECK(p.link_bytes == kEthernetHeaderBytes + kVlanTagBytes * static_cast<size_t>(tags));
      CHECK(p.version == (v6 ? 6 : 4));
      CHECK(p.seq == 7 && p.ack == 9 && p.flags == kTcpAck && p.window == 11);
      CHECK(p.source_port == 40000 && p.destination_port == 6379);
      CHECK(p.source == HostAddress(v6, 2) && p.destination == HostAddress(v6, 1));
      CHECK(p.OptionBytes() == 4 && PayloadText(frame) == "hello");
      CHECK(TcpChecksumsAreRight(frame, p));
    }
  }
}

TEST(every_cut_of_a_frame_is_refused_and_padding_is_not_payload) {
  for (const bool v6 : {false, true}) {
    const Bytes frame = Make({.v6 = v6, .flags = kTcpAck, .payload = Text("abc")});
    for (size_t length = 0; length < frame.size(); ++length) {
      const Bytes cut(frame.begin(), frame.begin() + static_cast<ptrdiff_t>(length));
      CHECK(ParseFrame(cut).kind == PacketKind::kMalformed);
    }
    Bytes padded = frame;
    padded.resize(frame.size() + 20, std::byte{0xEE});
    const Packet p = ParseFrame(padded);
    CHECK(p.kind == PacketKind::kTcp && PayloadText(padded) == "abc" &&
          TcpChecksumsAreRight(padded, p));
  }
}

TEST(bent_lengths_are_malformed) {
  const auto bend = [](bool v6, size_t at, uint8_t value) {
    Bytes frame = Make({.v6 = v6, .flags = kTcpAck, .payload = Text("abcdef")});
    frame[at] = static_cast<std::byte>(value);
    return ParseFrame(frame).kind;
  };
  CHECK(bend(false, 14, 0x44) == PacketKind::kMalformed);       // header of 16 bytes
  CHECK(bend(false, 14, 0x65) == PacketKind::kMalformed);       // version
  CHECK(bend(false, 16, 0xFF) == PacketKind::kMalformed);       // total length beyond the frame
  CHECK(bend(false, 17, 10) == PacketKind::kMalformed);         // total length inside the header
  CHECK(bend(false, 34 + 12, 0x40) == PacketKind::kMalformed);  // TCP header of 16 bytes
  CHECK(bend(false, 34 + 12, 0xF0) == PacketKind::kMalformed);  // TCP header beyond the packet
  CHECK(bend(true, 14, 0x40) == PacketKind::kMalformed);
  CHECK(bend(true, 18, 0xFF) == PacketKind::kMalformed);
  CHECK(bend(true, 54 + 12, 0x00) == PacketKind::kMalformed);
}

TEST(fragments_are_never_read_as_tcp) {
  for (const uint16_t field :
       {uint16_t{0x2000}, uint16_t{0x0001}, uint16_t{0x2001}, uint16_t{0x1FFF}}) {
    Bytes frame = Make({.flags = kTcpAck, .payload = Text("abcdefgh")});
    Store16(frame, 14 + 6, field);
    CHECK(ParseFrame(frame).kind == PacketKind::kOther);
  }
  Bytes frame = Make({.v6 = true, .flags = kTcpAck});
  frame[14 + 6] = std::byte{44};  // IPv6 fragment header
  CHECK(ParseFrame(frame).kind == PacketKind::kOther);
}

TEST(ipv6_extension_headers_are_walked_and_bounded) {
  const Bytes plain = Make({.v6 = true, .seq = 5, .flags = kTcpAck, .payload = Text("x")});
  for (size_t headers = 1; headers <= 12; ++headers) {
    Bytes frame(plain.begin(), plain.begin() + 54);
    for (size_t i = 0; i < headers; ++i) {
      const size_t at = frame.size();
      frame.resize(at + 8);
      frame[at] = std::byte{i + 1 < headers ? uint8_t{60} : uint8_t{6}};
    }
    frame.insert(frame.end(), plain.begin() + 54, plain.end());
    frame[14 + 6] = std::byte{0};
    Store16(frame, 14 + 4, static_cast<uint16_t>(frame.size() - 54));
    const Packet p = ParseFrame(frame);
    CHECK(p.kind == (headers <= 8 ? PacketKind::kTcp : PacketKind::kOther));
    if (p.kind == PacketKind::kTcp) CHECK(p.seq == 5 && TcpChecksumsAreRight(frame, p));
  }
}

TEST(ipv4_in_ipv6_clothes_is_not_taken_for_ipv4) {
  Bytes frame = Make({.v6 = true, .flags = kTcpAck});
  const Address mapped = HostAddress(false, 2);
  std::memcpy(frame.data() + 14 + 8, mapped.data(), 16);
  CHECK(ParseFrame(frame).kind == PacketKind::kOther);
}

TEST(checksums_find_every_flipped_bit) {
  const Bytes frame = Make({.seq = 1, .ack = 2, .flags = kTcpAck, .payload = Text("payload")});
  for (size_t bit = 14 * 8; bit < frame.size() * 8; ++bit) {
    Bytes bent = frame;
    bent[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    const Packet p = ParseFrame(bent);
    if (p.kind == PacketKind::kTcp) CHECK(!TcpChecksumsAreRight(bent, p));
  }
}

TEST(incremental_checksums_equal_full_ones_at_odd_and_even_places) {
  uint32_t random = 12345;
  for (int round = 0; round < 2000; ++round) {
    Bytes payload(40);
    for (std::byte& b : payload)
      b = static_cast<std::byte>((random = random * 1664525 + 1013904223) >> 24);
    Bytes frame = Make({.v6 = round % 2 == 0,
                        .seq = random,
                        .ack = ~random,
                        .flags = kTcpAck,
                        .payload = payload});
    const Packet p = ParseFrame(frame);
    const size_t at = p.payload_at + random % 30;
    const Bytes bytes(2 + 2 * (random >> 8 & 3), static_cast<std::byte>(round));
    ReplaceInSegment(frame, p, at, bytes);
    ReplaceSeq(frame, p, kAckOffset, random * 7);
    ReplaceWindow(frame, p, static_cast<uint16_t>(round));
    CHECK(TcpChecksumsAreRight(frame, ParseFrame(frame)));
    CHECK(std::memcmp(frame.data() + at, bytes.data(), bytes.size()) == 0);
  }
}

TEST(a_damaged_segment_stays_damaged_when_it_is_rewritten) {
  Bytes frame = Make({.seq = 1, .ack = 2, .flags = kTcpAck, .payload = Text("payload")});
  frame.back() ^= std::byte{1};
  ReplaceSeq(frame, ParseFrame(frame), kSeqOffset, 99);
  CHECK(!TcpChecksumsAreRight(frame, ParseFrame(frame)));
}

TEST(syn_options_lose_what_is_of_one_stack) {
  Bytes options = FromHex("020405b40402080a78a527f4000000000103030a");
  CHECK(CleanSynOptions(options));
  CHECK(options == FromHex("020405b40402010101010101010101010103030a"));
  CHECK(!CleanSynOptions(options));  // once is enough
  const SynOptions read = ReadSynOptions(options);
  CHECK(read.mss == 1460 && read.scale == 10);
  Bytes fast_open = FromHex("020405b42210aabbccddeeff001122334455aabb");
  CHECK(CleanSynOptions(fast_open));
  CHECK(fast_open == FromHex("020405b401010101010101010101010101010101"));
  Bytes broken = FromHex("020405b408ff0000");  // a length beyond the end
  CHECK(CleanSynOptions(broken));
  CHECK(broken == FromHex("020405b401010101"));
  Bytes zero = FromHex("08000204");
  CHECK(CleanSynOptions(zero));
  CHECK(zero == FromHex("01010101"));
  CHECK(ReadSynOptions(FromHex("0303ff01")).scale == kMaxScale);
  CHECK(ReadSynOptions({}).mss == 536 && ReadSynOptions({}).scale == kNoScale);
}

TEST(sack_blocks_move_across_the_wrap_and_those_beyond_the_limit_go) {
  Bytes options = FromHex("0101051200000010000000200000003000000040");
  CHECK(MoveSackBlocks(options, 0xFFFFFFE0, 0x00000000));
  // [10,20) becomes [FFFFFFF0,0); [30,40) would end at 20, beyond the limit.
  CHECK(options == FromHex("0101050afffffff0000000000101010101010101"));
  CHECK(!MoveSackBlocks(options, 0, 0x100));
  Bytes all = FromHex("0101050a0000001000000020");
  CHECK(MoveSackBlocks(all, 0, 0x10));
  CHECK(all == FromHex("010101010101010101010101"));
}

}  // namespace
}  // namespace falcon::test

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
