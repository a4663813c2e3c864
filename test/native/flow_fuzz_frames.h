// Frames for the fuzzer: mostly such as a few clients and two guests could send, near enough to
// each other to meet in the flow table, then bent.
#pragma once

#include <algorithm>
#include <random>

#include "frame_builder.h"

namespace falcon::test {

// The Internet checksum as RFC 1071 words it, over big-endian words, by itself.
inline uint32_t PlainSum(Frame bytes, uint32_t sum = 0) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    const uint32_t value = Load8(bytes, i);
    sum += i % 2 == 0 ? value << 8 : value;
    sum = (sum & 0xFFFF) + (sum >> 16);
  }
  return sum;
}

inline bool PlainChecksumsAreRight(Frame frame, const Packet& p) {
  const Frame ip = frame.subspan(p.link_bytes);
  const bool v4 = p.version == 4;
  if (v4 && PlainSum(ip.first(static_cast<size_t>(Load8(ip, 0) & 15) * 4)) != 0xFFFF) return false;
  const Frame segment = frame.subspan(p.tcp_at, p.end - p.tcp_at);
  const Frame addresses = v4 ? ip.subspan(12, 8) : ip.subspan(8, 32);
  const auto length = static_cast<uint32_t>(segment.size());
  const uint32_t pseudo = PlainSum(addresses) + 6 + (length & 0xFFFF) + (length >> 16);
  return PlainSum(segment, pseudo) == 0xFFFF;
}

class FuzzFrames {
 public:
  explicit FuzzFrames(uint64_t seed) : random_(seed) {
    for (Talk& talk : talks_) Renew(&talk);
  }

  Bytes OfClient() {
    Talk& talk = talks_[Below(kTalks)];
    if (Below(60) == 0) return Bent(Discovery());
    if (Below(60) == 0) return Bent(Arp(false));
    if (Below(400) == 0) Renew(&talk);  // the ports are used again
    Say say = SayOf(talk);
    const uint64_t what = Below(20);
    say.flags = ClientFlags(what);
    say.seq = what < 2 ? talk.client_iss : Near(talk.client_iss + 1, &talk.client_sent);
    say.ack = what < 2 ? 0 : Near(talk.iss[0] + 1, &talk.guest_sent);
    if (what >= 2) Grow(&talk.client_sent, say.payload.size());
    return Bent(Make(say));
  }

  // Of the guest with this number: it has initial sequence numbers of its own.
  Bytes OfGuest(size_t guest) {
    Talk& talk = talks_[Below(kTalks)];
    if (Below(30) == 0) return Bent(Arp(true));
    if (Below(60) == 0) return Bent(Discovery());
    Say say = SayOf(talk);
    say.from_guest = true;
    const uint64_t what = Below(20);
    say.flags = GuestFlags(what);
    const Seq iss = talk.iss[guest];
    say.seq = what < 5 ? iss : Near(iss + 1, &talk.guest_sent);
    say.ack = what < 5 ? talk.client_iss + 1 : Near(talk.client_iss + 1, &talk.client_sent);
    if (what >= 5) Grow(&talk.guest_sent, say.payload.size());
    if (what < 5) say.payload.clear();
    return Bent(Make(say));
  }

 private:
  // One connection's addresses and numbers; counts of bytes sent are those of both guests together.
  struct Talk {
    uint16_t port = 0;
    uint8_t host = 2;
    bool v6 = false;
    int tags = 0;
    Seq client_iss = 0;
    Seq iss[2] = {};
    uint32_t client_sent = 0, guest_sent = 0;
  };
  static constexpr size_t kTalks = 48;

  uint64_t Below(uint64_t bound) { return random_() % bound; }
  // Often close in front of the wrap.
  Seq AnyIss() {
    return Below(2) == 0 ? static_cast<Seq>(0 - Below(5000)) : static_cast<Seq>(random_());
  }

  void Renew(Talk* talk) {
    const auto number = static_cast<uint16_t>(talk - talks_);
    *talk = Talk();
    talk->port = static_cast<uint16_t>(40000 + number);
    talk->host = static_cast<uint8_t>(2 + number % 5);
    talk->v6 = number % 4 == 0;
    talk->tags = number % 16 == 5 ? 1 : number % 16 == 6 ? 2 : 0;
    talk->client_iss = AnyIss();
    talk->iss[0] = AnyIss();
    talk->iss[1] = AnyIss();
  }

  Say SayOf(const Talk& talk) {
    Say say;
    say.v6 = talk.v6;
    say.vlan_tags = talk.tags;
    say.client_port = talk.port;
    say.client_host = talk.host;
    const uint16_t windows[] = {0, 1, 100, 2000, 65535};
    say.window = windows[Below(std::size(windows))];
    say.options = Options();
    say.payload = Payload();
    return say;
  }

  static uint8_t ClientFlags(uint64_t what) {
    if (what < 2) return kTcpSyn;
    if (what == 2) return kTcpAck | kTcpFin;
    if (what == 3) return kTcpRst;
    if (what == 4) return kTcpRst | kTcpAck;
    if (what == 5) return kTcpPsh;
    if (what == 6) return kTcpSyn | kTcpAck;
    return kTcpAck | kTcpPsh;
  }
  static uint8_t GuestFlags(uint64_t what) {
    if (what < 5) return kTcpSyn | kTcpAck;
    if (what == 5) return kTcpAck | kTcpFin;
    if (what == 6) return kTcpRst | kTcpAck;
    if (what == 7) return kTcpSyn;
    return kTcpAck | kTcpPsh;
  }

  // Mostly the next position, sometimes one that was already passed, or ahead, or anywhere.
  Seq Near(Seq first, const uint32_t* sent) {
    const uint64_t how = Below(40);
    if (how == 0) return static_cast<Seq>(random_());
    if (how < 4) return first + *sent + static_cast<Seq>(Below(3000));
    if (how < 10) return first + *sent - static_cast<Seq>(Below(3000));
    return first + *sent;
  }
  void Grow(uint32_t* sent, size_t bytes) {
    if (Below(8) != 0) *sent += static_cast<uint32_t>(bytes);
  }

  Bytes Options() {
    const uint64_t how = Below(10);
    if (how < 5) return {};
    if (how < 7) return FromHex("020405b40402080a78a527f4000000000103030a");
    if (how == 7) {
      Bytes sack = FromHex("0101051200000000000000000000000000000000");
      for (size_t at = 4; at < 20; at += 4)
        Store32(sack, at, talks_[Below(kTalks)].iss[0] + static_cast<Seq>(Below(9000)));
      return sack;
    }
    Bytes any(Below(41));
    for (std::byte& b : any) b = static_cast<std::byte>(Below(4) == 0 ? random_() : Below(40));
    any.resize(any.size() / 4 * 4);
    return any;
  }

  Bytes Payload() {
    const uint64_t how = Below(200);
    const size_t most = how == 0 ? 60'000 : how < 20 ? 1460 : how < 120 ? 60 : 1;
    return Bytes(Below(most), static_cast<std::byte>(random_()));
  }

  Bytes Arp(bool from_guest) {
    Bytes frame = FromHex(
        "ffffffffffff02000000000a0806"
        "00010800060400010200000000000a090002"
        "0000000000000a090001");
    const Mac& mac = from_guest ? kVmMac : kClientMac;
    std::memcpy(frame.data() + 6, mac.data(), 6);
    std::memcpy(frame.data() + 22, mac.data(), 6);
    frame[21] = static_cast<std::byte>(1 + Below(2));
    frame[31] = static_cast<std::byte>(from_guest ? 1 : 2 + Below(20));
    frame[41] = static_cast<std::byte>(from_guest ? 2 + Below(20) : 1);
    return frame;
  }

  Bytes Discovery() {
    const Address vm = HostAddress(true, 1),
                  peer = HostAddress(true, static_cast<uint8_t>(2 + Below(20)));
    const bool question = Below(2) == 0;
    Bytes frame = FromHex(
        "3333ff000001525400000001"
        "86dd"
        "60000000"
        "00203aff");
    frame.resize(86);
    std::memcpy(frame.data() + 22, question ? vm.data() : peer.data(), 16);
    std::memcpy(frame.data() + 38, question ? peer.data() : vm.data(), 16);
    if (!question) std::memcpy(frame.data() + 6, kClientMac.data(), 6);
    frame[54] = static_cast<std::byte>(question ? 135 : 136);
    std::memcpy(frame.data() + 62, peer.data(), 16);
    frame[78] = static_cast<std::byte>(question ? 1 : 2);
    frame[79] = std::byte{1};
    std::memcpy(frame.data() + 80, frame.data() + 6, 6);
    return frame;
  }

  // Every fourth frame is changed somewhere; half of those get right checksums again.
  Bytes Bent(Bytes frame) {
    if (Below(4) != 0) return frame;
    for (uint64_t times = 1 + Below(3); times > 0; --times) BendOnce(&frame);
    const Packet p = ParseFrame(frame);
    if (p.kind == PacketKind::kTcp && Below(2) == 0) FillTcpChecksums(frame, p);
    return frame;
  }

  void BendOnce(Bytes* frame) {
    const size_t size = frame->size();
    const uint64_t how = Below(12);
    const size_t headers = std::min<size_t>(size, 100);
    if (size == 0 || how == 0) {
      frame->resize(size + Below(40), static_cast<std::byte>(random_()));
    } else if (how == 1) {
      frame->resize(Below(size));
    } else if (how == 2) {
      const size_t from = Below(size), count = Below(size - from) / 2;
      std::copy_n(frame->begin() + static_cast<ptrdiff_t>(from), count,
                  frame->begin() + static_cast<ptrdiff_t>(Below(from + 1)));
    } else if (how < 6) {
      const uint8_t values[] = {0, 1, 0x7F, 0x80, 0xFE, 0xFF};
      (*frame)[Below(headers)] = static_cast<std::byte>(values[Below(std::size(values))]);
    } else {
      (*frame)[Below(headers)] ^= static_cast<std::byte>(1 << Below(8));
    }
  }

  std::mt19937_64 random_;
  Talk talks_[kTalks];
};

}  // namespace falcon::test
