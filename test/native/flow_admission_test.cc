// What of the network's traffic may be proposed, and in what form.
#include "flow_fixture.h"

namespace falcon::test {
namespace {

TEST(admit_looks_at_addresses_lengths_and_checksums) {
  Replica r(1, FlowRole::kPrimary);
  const Bytes good = r.Client(1, 5, kTcpAck);
  CHECK(r.Admit(good) == Admission::kPropose);
  Bytes other = good;
  other[5] = std::byte{9};
  CHECK(r.Admit(other) == Admission::kNotForUs);
  Bytes own = good;
  std::memcpy(own.data() + 6, kVmMac.data(), 6);
  CHECK(r.Admit(own) == Admission::kNotForUs);
  Bytes broadcast = FromHex(
      "ffffffffffff02000000000a0806"
      "0001080006040001"
      "02000000000a0a090002"
      "0000000000000a090001");
  CHECK(r.Admit(broadcast) == Admission::kPropose);
  CHECK(r.Admit(Bytes(13)) == Admission::kNotForUs);
  CHECK(r.Admit(Bytes(kMaxFrameBytes + 1)) == Admission::kNotForUs);
  Bytes bad = good;
  bad[50] ^= std::byte{1};  // the TCP checksum
  CHECK(r.Admit(bad) == Admission::kNotForUs);
  CHECK(r.Admit(r.Client(0, 0, kTcpSyn | kTcpFin)) == Admission::kNotForUs);
  Bytes udp = FromHex(
      "52540000000102000000000a0800"
      "4500001d000000004011aaaa"
      "0a0900020a090001"
      "0007000700090000"
      "58");
  CHECK(r.Admit(udp) == Admission::kPropose);  // others' checksums are the guest's business
  CHECK(r.table->counters().malformed == 4);
  size_t length = 7;
  Bytes small(good.size() - 1);
  CHECK(r.table->Admit(good, small, &length, r.now) == Admission::kNotForUs && length == 0);
}

TEST(admit_cleans_syns_and_drops_their_data) {
  Replica r(1, FlowRole::kPrimary);
  Bytes logged;
  const Bytes options = FromHex("020405b40402080a78a527f4000000000103030a");
  CHECK(r.Admit(r.Client(0, 0, kTcpSyn, "early data", 64000, options), &logged) ==
        Admission::kPropose);
  const Packet p = ParseFrame(logged);
  CHECK(p.kind == PacketKind::kTcp && TcpChecksumsAreRight(logged, p) && p.PayloadBytes() == 0);
  Bytes again;
  CHECK(r.Admit(logged, &again) == Admission::kPropose && again == logged);
  Replica pool(2);  // a backup's pool must hold the same bytes
  Bytes pooled;
  pool.Admit(r.Client(0, 0, kTcpSyn, "early data", 64000, options), &pooled);
  CHECK(pooled == logged);
}

TEST(a_primary_admits_only_the_ack_of_its_own_syn_ack) {
  Replica r(7000, FlowRole::kPrimary);
  CHECK(r.Admit(r.Client(0, 0, kTcpSyn)) == Admission::kPropose);
  // The SYN is on its way through the log: a segment of an earlier connection must not come behind
  // it.
  CHECK(r.Admit(r.Client(1, 7001, kTcpAck)) == Admission::kHold);
  r.Syn();
  CHECK(r.Admit(r.Client(1, 7001, kTcpAck)) == Admission::kHold);  // no SYN-ACK yet
  r.SynAck();
  CHECK(r.Admit(r.Client(1, 7000, kTcpAck)) == Admission::kHold);
  CHECK(r.Admit(r.Client(1, 7002, kTcpAck)) == Admission::kHold);
  CHECK(r.Admit(r.Client(1, 0, kTcpRst)) == Admission::kPropose);
  CHECK(r.Admit(r.Client(1, 7001, kTcpAck)) == Admission::kPropose);
  r.table->SetRole(FlowRole::kBackup);
  CHECK(r.Admit(r.Client(1, 7002, kTcpAck)) == Admission::kPropose);  // a backup never holds
}

TEST(a_primary_that_took_over_takes_the_clients_word) {
  Replica r(7000);
  r.Syn();
  r.SynAck();
  r.sink.Clear();
  r.table->SetRole(FlowRole::kPrimary);
  r.table->TakeOver(r.now);
  REQUIRE(r.sink.wire.size() == 1);  // the half-open flow's SYN-ACK
  CHECK(Last(r.sink.wire).flags == (kTcpSyn | kTcpAck) && Last(r.sink.wire).seq == 7000);
  CHECK(r.Admit(r.Client(1, 501, kTcpAck)) == Admission::kPropose);
  r.Deliver(r.Client(1, 501, kTcpAck));
  CHECK(Last(r.sink.guest).ack == 7001);
  r.FromGuest(r.Guest(1, 1, kTcpAck, "x"));
  CHECK(Last(r.sink.wire).seq == 501);
}

TEST(forged_acknowledgements_and_data_beyond_the_window_are_not_proposed) {
  Replica r(7000, FlowRole::kPrimary);
  r.Open(7000, 1000);
  r.FromGuest(r.Guest(1, 1, kTcpAck, "12345", 1000 >> 2));  // the same edge, scaled
  CHECK(r.Admit(r.Client(1, 7006, kTcpAck)) == Admission::kPropose);
  CHECK(r.Admit(r.Client(1, 7007, kTcpAck)) == Admission::kHold);
  CHECK(r.Admit(r.Client(1, 7006 + 0x70000000, kTcpAck)) == Admission::kHold);
  CHECK(r.Admit(r.Client(1, 7001, kTcpAck, std::string(1000, 'a'))) == Admission::kPropose);
  CHECK(r.Admit(r.Client(1, 7001, kTcpAck, std::string(1002, 'a'))) == Admission::kHold);
  CHECK(r.Admit(r.Client(3000, 7001, kTcpAck, "a")) == Admission::kHold);
  CHECK(r.Admit(r.Client(0, 7001, kTcpAck, "a")) == Admission::kPropose);  // a keep-alive
}

TEST(a_syn_on_a_live_flow_is_challenged_and_the_answering_reset_frees_the_ports) {
  Replica r(7000, FlowRole::kPrimary);
  r.Open(7000);
  const Bytes syn = r.Client(500000, 0, kTcpSyn, {}, 64000, kSynOptions);
  CHECK(r.Admit(syn) == Admission::kHold);
  REQUIRE(r.sink.wire.size() == 1);
  const Packet challenge = Last(r.sink.wire);
  CHECK(challenge.flags == kTcpAck && challenge.seq == 7001 && challenge.ack == kClientIss + 1);
  const Bytes reset = r.Client(1, 0, kTcpRst);
  CHECK(r.Admit(reset) == Admission::kPropose);
  r.Deliver(reset);
  CHECK(Last(r.sink.guest).flags == kTcpRst && r.table->counters().flows_closed == 1);
  CHECK(r.Admit(syn) == Admission::kPropose);
  r.Deliver(syn);
  CHECK(r.sink.guest.back() == syn && r.table->counters().flows_opened == 2);
}

TEST(a_backup_keeps_no_syn_that_would_end_a_live_flow) {
  // The primary would challenge it; from the pool it would go into the log unasked at take-over.
  Replica r(7000);
  r.Open(500);
  CHECK(r.Admit(r.Client(500000, 0, kTcpSyn, {}, 64000, kSynOptions)) == Admission::kNotForUs);
  CHECK(r.Admit(r.Client(0, 0, kTcpSyn, {}, 64000, kSynOptions)) == Admission::kPropose);
  r.Deliver(r.Client(1, 0, kTcpRst));
  CHECK(r.Admit(r.Client(500000, 0, kTcpSyn, {}, 64000, kSynOptions)) == Admission::kPropose);
}

TEST(malformed_option_lists_of_syns_are_cleaned_and_stay_syns) {
  const char* const lists[] = {
      "020405b4080a",  // timestamps cut off
      "02",            // a kind alone
      "0200",          // lengths that cannot be
      "0201",
      "020405b422ff01020304",  // Fast Open beyond the end
      "0404050403030a01",      // a length of another kind
      "030e0a010101010101010101010101",
      "08000204fdff",
      "feffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
      "1e0c0081a1b2c3d4e5f60718",              // MPTCP
      "1312000102030405060708090a0b0c0d0e0f",  // MD5
      "22020101020405b4",                      // a request for a cookie
      "fe04f989020405b4"};                     // the experimental Fast Open
  for (const bool v6 : {false, true}) {
    for (const char* list : lists) {
      Replica r(1, FlowRole::kPrimary), backup(1);
      r.v6 = backup.v6 = v6;
      const Bytes syn = r.Client(0, 0, kTcpSyn, {}, 64000, FromHex(list));
      Bytes logged, again, pooled;
      REQUIRE(r.Admit(syn, &logged) == Admission::kPropose);
      const Packet p = ParseFrame(logged);
      CHECK(p.kind == PacketKind::kTcp && p.flags == kTcpSyn && TcpChecksumsAreRight(logged, p));
      CHECK(logged.size() == syn.size());
      for (size_t at = p.OptionsAt(); at < p.payload_at;) {
        const uint8_t kind = Load8(logged, at);
        CHECK(kind == 1 || kind == 2 || kind == 3 || kind == 4);
        at += kind == 1 ? 1 : Load8(logged, at + 1);
        CHECK(at <= p.payload_at);
      }
      CHECK(r.Admit(logged, &again) == Admission::kPropose && again == logged);
      CHECK(backup.Admit(syn, &pooled) == Admission::kPropose && pooled == logged);
    }
  }
}

TEST(damaged_segments_are_refused_and_never_made_right) {
  for (const bool v6 : {false, true}) {
    for (const FlowRole role : {FlowRole::kPrimary, FlowRole::kBackup}) {
      Replica r(7000, role);
      r.v6 = v6;
      const Bytes frames[] = {r.Client(0, 0, kTcpSyn, "early", 64000,
                                       FromHex("020405b40402080a78a527f4000000000103030a")),
                              r.Client(1, 7001, kTcpAck | kTcpPsh, "payload", 100,
                                       FromHex("0101050a0000001000000020"))};
      for (const Bytes& frame : frames) {
        for (size_t bit = 14 * 8; bit < frame.size() * 8; ++bit) {
          Bytes bent = frame;
          bent[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
          Bytes out;
          if (r.Admit(bent, &out) != Admission::kPropose) continue;
          // What is not TCP (any more) is nobody's here: the same bytes, or none. IPv6 has no
          // header checksum, so a few of its fields may change under a right TCP checksum.
          const Packet p = ParseFrame(bent);
          CHECK(p.kind != PacketKind::kTcp || TcpChecksumsAreRight(bent, p));
          if (p.kind != PacketKind::kTcp) CHECK(out == bent);
        }
      }
    }
  }
}

}  // namespace
}  // namespace falcon::test

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
