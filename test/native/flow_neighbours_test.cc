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

}  // namespace
}  // namespace falcon::test

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
