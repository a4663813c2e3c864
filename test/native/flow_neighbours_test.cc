// Address questions of a backup's guest, answered from what the log has shown.
#include "flow_fixture.h"

namespace falcon::test {
namespace {

Bytes Arp(uint16_t operation, const Mac& mac, uint8_t sender, uint8_t target, bool from_guest,
          bool unicast = false) {
  Bytes frame = FromHex(
      "ffffffffffff02000000000a0806"
      "0001080006040001"
      "02000000000a0a090002"
      "0000000000000a090001");
  if (unicast) std::memcpy(frame.data(), from_guest ? kClientMac.data() : kVmMac.data(), 6);
  std::memcpy(frame.data() + 6, mac.data(), 6);
  Store16(frame, 20, operation);
  std::memcpy(frame.data() + 22, mac.data(), 6);
  frame[31] = static_cast<std::byte>(sender);
  frame[41] = static_cast<std::byte>(target);
  return frame;
}

TEST(a_backups_guest_gets_its_neighbour_questions_answered) {
  Replica r(7000);
  const Mac gateway = {2, 0, 0, 0, 0, 0x77};
  r.FromGuest(Arp(1, kVmMac, 1, 77, true));
  CHECK(r.sink.guest.empty());  // nobody has shown it yet
  r.Deliver(Arp(1, gateway, 77, 1, false));
  r.sink.Clear();
  for (const bool unicast : {false, true}) {
    r.FromGuest(Arp(1, kVmMac, 1, 77, true, unicast));
    REQUIRE(!r.sink.guest.empty());
    const Bytes& answer = r.sink.guest.back();
    CHECK(std::memcmp(answer.data(), kVmMac.data(), 6) == 0 &&
          std::memcmp(answer.data() + 6, gateway.data(), 6) == 0);
    CHECK(Load16(answer, 20) == 2 && std::memcmp(answer.data() + 22, gateway.data(), 6) == 0);
    CHECK(Load8(answer, 31) == 77 && Load8(answer, 41) == 1 &&
          std::memcmp(answer.data() + 32, kVmMac.data(), 6) == 0);
  }
  r.sink.Clear();
  r.Deliver(r.Client(1, 5, kTcpAck));  // a client that never asked, known from its frames
  r.sink.Clear();
  r.FromGuest(Arp(1, kVmMac, 1, 2, true));
  CHECK(r.sink.guest.size() == 1 && r.table->counters().neighbour_answers == 3);
  // Its own address: announcement and duplicate address detection.
  r.Deliver(Arp(1, gateway, 1, 1, false));
  r.sink.Clear();
  r.FromGuest(Arp(1, kVmMac, 1, 1, true));
  Bytes probe = Arp(1, kVmMac, 0, 77, true);
  std::memset(probe.data() + 28, 0, 4);
  r.FromGuest(probe);
  CHECK(r.sink.guest.empty() && r.sink.wire.size() == 2);
  r.table->SetRole(FlowRole::kPrimary);
  r.FromGuest(Arp(1, kVmMac, 1, 77, true));
  CHECK(r.sink.guest.empty() && r.sink.wire.size() == 3);
}

TEST(made_up_source_addresses_do_not_push_out_what_arp_has_shown) {
  FlowOptions options;
  options.max_neighbours = 16;
  Replica r(7000, FlowRole::kBackup, options);
  r.Deliver(Arp(2, {2, 0, 0, 0, 0, 0x77}, 77, 1, false));
  for (int i = 0; i < 10'000; ++i) {
    Bytes frame = r.Client(1, 5, kTcpAck);
    Store16(frame, 14 + 14, static_cast<uint16_t>(i));
    FillTcpChecksums(frame, ParseFrame(frame));
    r.Deliver(frame);
  }
  r.sink.Clear();
  r.FromGuest(Arp(1, kVmMac, 1, 77, true));
  CHECK(r.sink.guest.size() == 1);
}

Bytes Discovery(uint8_t type, const Mac& mac, const Address& source, const Address& target,
                uint8_t option, bool to_vm) {
  Bytes frame(14 + 40 + 32);
  const Mac multicast = {0x33, 0x33, 0xFF, 0, 0, 1};
  std::memcpy(frame.data(), to_vm ? kVmMac.data() : multicast.data(), 6);
  std::memcpy(frame.data() + 6, mac.data(), 6);
  Store16(frame, 12, kEtherIpv6);
  frame[14] = std::byte{0x60};
  Store16(frame, 18, 32);
  frame[20] = std::byte{58};
  frame[21] = std::byte{255};
  std::memcpy(frame.data() + 22, source.data(), 16);
  std::memcpy(frame.data() + 38, target.data(), 16);
  frame[54] = static_cast<std::byte>(type);
  std::memcpy(frame.data() + 62, target.data(), 16);
  frame[78] = static_cast<std::byte>(option);
  frame[79] = std::byte{1};
  std::memcpy(frame.data() + 80, mac.data(), 6);
  return frame;
}

TEST(neighbour_solicitations_are_answered_with_a_right_checksum) {
  const Address vm = HostAddress(true, 1), peer = HostAddress(true, 9);
  const Mac mac = {2, 0, 0, 0, 0, 9};
  for (const bool by_advertisement : {true, false}) {
    Replica r(7000);
    r.Deliver(by_advertisement ? Discovery(136, mac, peer, peer, 2, true)
                               : Discovery(135, mac, peer, vm, 1, true));
    r.sink.Clear();
    r.FromGuest(Discovery(135, kVmMac, vm, peer, 1, false));
    REQUIRE(r.sink.guest.size() == 1);
    const Bytes& answer = r.sink.guest[0];
    REQUIRE(answer.size() == 86);
    CHECK(std::memcmp(answer.data(), kVmMac.data(), 6) == 0 && Load8(answer, 54) == 136 &&
          Load8(answer, 58) == 0x60);
    CHECK(std::memcmp(answer.data() + 62, peer.data(), 16) == 0 &&
          std::memcmp(answer.data() + 80, mac.data(), 6) == 0);
    Bytes pseudo(answer.begin() + 22, answer.end());  // addresses and message
    pseudo.insert(pseudo.end(), {std::byte{0}, std::byte{32}, std::byte{0}, std::byte{58}});
    CHECK(FoldSum(SumBytes(pseudo)) == 0xFFFF);
    r.sink.Clear();
    r.FromGuest(Discovery(135, kVmMac, Address{}, peer, 1, false));  // duplicate address detection
    CHECK(r.sink.guest.empty());
  }
}

TEST(made_up_source_addresses_do_not_change_what_arp_has_shown) {
  Replica r(7000);
  const Mac gateway = {2, 0, 0, 0, 0, 0x77}, client = {2, 0, 0, 0, 0, 0x55};
  r.Deliver(Arp(2, client, 2, 1, false));
  Bytes forged = r.Client(1, 5, kTcpAck);  // from elsewhere, with the client's address as source
  std::memcpy(forged.data() + 6, gateway.data(), 6);
  r.Deliver(forged);
  r.sink.Clear();
  r.FromGuest(Arp(1, kVmMac, 1, 2, true));
  REQUIRE(r.sink.guest.size() == 1);
  CHECK(std::memcmp(r.sink.guest[0].data() + 22, client.data(), 6) == 0);
  r.Deliver(Arp(2, gateway, 2, 1, false));  // the address moves, and says so
  r.FromGuest(Arp(1, kVmMac, 1, 2, true));
  CHECK(std::memcmp(r.sink.guest.back().data() + 22, gateway.data(), 6) == 0);
}

TEST(the_table_of_neighbours_is_bounded_and_keeps_the_newest) {
  FlowOptions options;
  options.max_neighbours = 64;
  Replica r(7000, FlowRole::kBackup, options);
  const auto claim = [](int i) {
    Bytes frame =
        Arp(2, {2, 0, 0, 1, static_cast<uint8_t>(i >> 8), static_cast<uint8_t>(i)}, 0, 1, false);
    Store16(frame, 30, static_cast<uint16_t>(i));
    return frame;
  };
  constexpr int kClaims = 5000;
  for (int i = 0; i < kClaims; ++i) r.Deliver(claim(i));
  r.sink.Clear();
  for (int i = 0; i < kClaims; ++i) {
    Bytes question = Arp(1, kVmMac, 1, 0, true);
    Store16(question, 40, static_cast<uint16_t>(i));
    r.FromGuest(question);
    if (i == kClaims - 1) CHECK(!r.sink.guest.empty() && Load16(r.sink.guest.back(), 30) == i);
  }
  CHECK(r.sink.guest.size() <= 64 && r.sink.guest.size() >= 32);
  CHECK(r.table->counters().neighbour_answers == r.sink.guest.size());
}

TEST(neighbour_questions_with_a_vlan_tag_are_answered_with_it) {
  Replica r(7000);
  const auto tagged = [](Bytes frame) {
    const Bytes tag = FromHex("81000007");
    frame.insert(frame.begin() + 12, tag.begin(), tag.end());
    return frame;
  };
  r.Deliver(tagged(Arp(1, {2, 0, 0, 0, 0, 0x77}, 77, 1, false)));
  r.sink.Clear();
  const Bytes question = tagged(Arp(1, kVmMac, 1, 77, true));
  r.FromGuest(question);
  REQUIRE(r.sink.guest.size() == 1);
  const Bytes& answer = r.sink.guest[0];
  CHECK(answer.size() == question.size() && Load32(answer, 12) == 0x81000007 &&
        Load16(answer, 24) == 2);
}

TEST(cut_and_bent_neighbour_frames_teach_nothing) {
  const Address vm = HostAddress(true, 1), peer = HostAddress(true, 9);
  const Mac mac = {2, 0, 0, 0, 0, 9};
  const Bytes arp = Arp(2, mac, 77, 1, false);
  const Bytes advertisement = Discovery(136, mac, HostAddress(true, 8), peer, 2, true);
  for (const Bytes& whole : {arp, advertisement}) {
    const bool v6 = whole.size() > 60;
    for (size_t length = 0; length < whole.size(); ++length) {
      Replica r(7000);
      Bytes cut(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(length));
      // The header says what the frame has, so that the message itself is short.
      if (v6 && length > 54) Store16(cut, 18, static_cast<uint16_t>(length - 54));
      r.Deliver(cut);
      r.sink.Clear();
      r.FromGuest(v6 ? Discovery(135, kVmMac, vm, peer, 1, false) : Arp(1, kVmMac, 1, 77, true));
      CHECK(r.sink.guest.empty() || length == 78);  // without an option it still counts
    }
  }
  Bytes routed = advertisement, endless = advertisement, code = advertisement;
  routed[21] = std::byte{254};  // has crossed a router
  endless[79] = std::byte{0};   // an option of no length
  code[55] = std::byte{1};
  for (const Bytes& bent : {routed, endless, code}) {
    Replica r(7000);
    r.Deliver(bent);
    r.sink.Clear();
    r.FromGuest(Discovery(135, kVmMac, vm, peer, 1, false));
    CHECK(r.sink.guest.empty());
  }
}

}  // namespace
}  // namespace falcon::test

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
