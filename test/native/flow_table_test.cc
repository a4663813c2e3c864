// The flow table, frame by frame.
#include "frame_builder.h"

namespace falcon::test {
namespace {

constexpr Seq kClientIss = 1000;
constexpr Nanoseconds kStart = 10 * kSecond;
const Bytes kSynOptions = FromHex("020405b4010303020402");  // MSS 1460, scale 2, SACK permitted

// One replica: a table, its sink, and short ways to speak for the client (through the log) and for
// the guest.
struct Replica {
  explicit Replica(Seq guest_iss, FlowRole role = FlowRole::kBackup, const FlowOptions& given = {})
      : iss(guest_iss) {
    FlowOptions options = given;
    std::memcpy(options.vm_mac, kVmMac.data(), 6);
    table = MakeFlowTable(options, &sink);
    table->SetRole(role);
  }
  RecordingSink sink;
  std::unique_ptr<FlowTable> table;
  Seq iss;
  Nanoseconds now = kStart;
  bool v6 = false;
  uint16_t port = 40000;
  Seq client_iss = kClientIss;

  Bytes Client(Seq offset, Seq ack, uint8_t flags, const std::string& text = {},
               uint16_t window = 16000, const Bytes& options = {}) {
    return Make({.v6 = v6,
                 .client_port = port,
                 .seq = client_iss + offset,
                 .ack = ack,
                 .flags = flags,
                 .window = window,
                 .options = options,
                 .payload = Text(text)});
  }
  Bytes Guest(Seq offset, Seq ack_offset, uint8_t flags, const std::string& text = {},
              uint16_t window = 16000, const Bytes& options = {}) {
    return Make({.from_guest = true,
                 .v6 = v6,
                 .client_port = port,
                 .seq = iss + offset,
                 .ack = client_iss + ack_offset,
                 .flags = flags,
                 .window = window,
                 .options = options,
                 .payload = Text(text)});
  }
  void Deliver(const Bytes& frame) { table->Deliver(frame, now); }
  void FromGuest(const Bytes& frame) { table->FromGuest(frame, now); }
  void Syn() { Deliver(Client(0, 0, kTcpSyn, {}, 64000, kSynOptions)); }
  void SynAck(uint16_t window = 64000) {
    FromGuest(Guest(0, 1, kTcpSyn | kTcpAck, {}, window, kSynOptions));
  }
  // A connection whose wire ISS is `wire`.
  void Open(Seq wire, uint16_t guest_window = 64000) {
    Syn();
    SynAck(guest_window);
    Deliver(Client(1, wire + 1, kTcpAck));
    sink.Clear();
  }
  Admission Admit(const Bytes& frame, Bytes* normalised = nullptr) {
    Bytes into(frame.size());
    size_t length = 0;
    const Admission admission = table->Admit(frame, into, &length, now);
    into.resize(length);
    if (normalised != nullptr) *normalised = into;
    return admission;
  }
  void Wait(Nanoseconds time) {
    const Nanoseconds until = now + time;
    while (now < until) now = std::min(until, std::max(now + 1, table->Tick(now)));
    table->Tick(now);
  }
};

Packet Last(const std::vector<Bytes>& frames) {
  return frames.empty() ? Packet() : ParseFrame(frames.back());
}

// ---- translation

TEST(a_backups_flow_is_translated_both_ways) {
  for (const bool v6 : {false, true}) {
    for (const Seq wire : {Seq{5000}, Seq{0xFFFFFFFE}, Seq{0x7FFFFFFF}}) {
      Replica r(0xFFFFFFF0);
      r.v6 = v6;
      r.Syn();
      CHECK(r.sink.guest.size() == 1 && Last(r.sink.guest).flags == kTcpSyn);
      r.SynAck();
      CHECK(Last(r.sink.wire).seq == 0xFFFFFFF0);  // the flow is not defined yet
      r.Deliver(r.Client(1, wire + 1, kTcpAck));
      CHECK(Last(r.sink.guest).ack == r.iss + 1);
      r.Deliver(r.Client(1, wire + 1, kTcpAck | kTcpPsh, "GET"));
      CHECK(Last(r.sink.guest).ack == r.iss + 1 && PayloadText(r.sink.guest.back()) == "GET");
      r.FromGuest(r.Guest(1, 4, kTcpAck | kTcpPsh, "VALUE"));
      CHECK(Last(r.sink.wire).seq == wire + 1 && Last(r.sink.wire).ack == kClientIss + 4);
      CHECK(PayloadText(r.sink.wire.back()) == "VALUE");
      r.Deliver(r.Client(4, wire + 6, kTcpAck));
      CHECK(Last(r.sink.guest).ack == r.iss + 6);
      CHECK(r.table->counters().clamped_acks == 0 && r.table->counters().retained_bytes == 0);
    }
  }
}

TEST(sack_blocks_are_translated_and_news_of_unsent_bytes_is_dropped) {
  Replica r(9000);
  r.Open(100);
  r.FromGuest(r.Guest(1, 1, kTcpAck, std::string(50, 'a')));
  // The client misses [101,111), has [111,121) and, from the primary, [151,161).
  Bytes options = FromHex("01010512");
  options.resize(20);
  Store32(options, 4, 111);
  Store32(options, 8, 121);
  Store32(options, 12, 151);
  Store32(options, 16, 161);
  r.Deliver(r.Client(1, 101, kTcpAck, {}, 16000, options));
  const Bytes& frame = r.sink.guest.back();
  const Packet p = ParseFrame(frame);
  CHECK(Load8(frame, p.OptionsAt() + 3) == 10);
  CHECK(Load32(frame, p.OptionsAt() + 4) == 9011 && Load32(frame, p.OptionsAt() + 8) == 9021);
  CHECK(Load8(frame, p.OptionsAt() + 12) == 1);
}

// A real connection (Linux 6.1, both ends; the server without timestamps, as it is when the
// client's SYN offers none).
const char* const kCaptured[] = {
    "52540000000102000000000a08004500003c818c40004006a51b0a0900020a090001b1ee18eb4f30547b00000000a0"
    "02faf029d90000020405b40402080a"
    "78a527f4000000000103030a",
    "02000000000a52540000000108004500003400004000400626b00a0900010a09000218ebb1eed825612e4f30547c80"
    "12faf0b81e0000020405b401010402"
    "0103030a",
    "52540000000102000000000a080045000028818d40004006a52e0a0900020a090001b1ee18eb4f30547cd825612f50"
    "10003ff3a50000",
    "52540000000102000000000a08004500002e818e40004006a5270a0900020a090001b1ee18eb4f30547cd825612f50"
    "18003f47fd000050494e470d0a",
    "02000000000a52540000000108004500002806484000400620740a0900010a09000218ebb1eed825612f4f30548250"
    "10003ff39f0000",
    "02000000000a52540000000108004500002f064940004006206c0a0900010a09000218ebb1eed825612f4f30548250"
    "18003f27e500002b504f4e470d0a",
    "52540000000102000000000a080045000028818f40004006a52c0a0900020a090001b1ee18eb4f305482d825613650"
    "10003ff3980000",
    "52540000000102000000000a080045000028819040004006a52b0a0900020a090001b1ee18eb4f305482d825613650"
    "11003ff3970000",
    "02000000000a525400000001080045000028064a4000400620720a0900010a09000218ebb1eed82561364f30548350"
    "11003ff3960000",
    "52540000000102000000000a080045000028819140004006a52a0a0900020a090001b1ee18eb4f305483d825613750"
    "10003ff3960000"};

TEST(a_captured_connection_passes_a_primary_unchanged_and_a_backup_translated) {
  Replica primary(0, FlowRole::kPrimary), backup(0);
  const Seq delta = 0x12345678;
  for (const char* hex : kCaptured) {
    const Bytes frame = FromHex(hex);
    Packet p = ParseFrame(frame);
    CHECK(p.kind == PacketKind::kTcp && TcpChecksumsAreRight(frame, p));
    if (p.destination_port == 6379) {
      Bytes logged;
      CHECK(primary.Admit(frame, &logged) == Admission::kPropose);
      if (p.Has(kTcpSyn)) {
        CHECK(logged != frame && TcpChecksumsAreRight(logged, ParseFrame(logged)));
      } else {
        CHECK(logged == frame);
      }
      primary.Deliver(logged);
      CHECK(primary.sink.guest.back() == logged);
      backup.Deliver(logged);
      Bytes expected = logged;
      if (!p.Has(kTcpSyn)) ReplaceSeq(expected, p, kAckOffset, p.ack + delta);
      CHECK(backup.sink.guest.back() == expected);
    } else {
      primary.FromGuest(frame);
      CHECK(primary.sink.wire.back() == frame);
      Bytes others = frame;  // what a guest with another ISS sends
      ReplaceSeq(others, p, kSeqOffset, p.seq + delta);
      backup.FromGuest(others);
      CHECK(backup.sink.wire.back() == (p.Has(kTcpSyn) ? others : frame));
    }
  }
  CHECK(primary.table->counters().flows_closed == 1 && backup.table->counters().flows_closed == 1);
  CHECK(backup.table->counters().held_bytes == 0 && backup.table->counters().retained_bytes == 0);
  CHECK(primary.table->counters().frames_to_guest == 6 &&
        backup.table->counters().frames_to_guest == 6);
}

// ---- what may be proposed

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
  r.FromGuest(r.Guest(1, 1, kTcpAck, "12345"));
  CHECK(r.Admit(r.Client(1, 7006, kTcpAck)) == Admission::kPropose);
  CHECK(r.Admit(r.Client(1, 7007, kTcpAck)) == Admission::kHold);
  CHECK(r.Admit(r.Client(1, 7006 + 0x70000000, kTcpAck)) == Admission::kHold);
  CHECK(r.Admit(r.Client(1, 7001, kTcpAck, std::string(1000, 'a'))) == Admission::kPropose);
  r.FromGuest(r.Guest(6, 1, kTcpAck, {}, 1000 >> 2));  // the same edge, scaled
  CHECK(r.Admit(r.Client(1, 7001, kTcpAck, std::string(1002, 'a'))) == Admission::kHold);
  CHECK(r.Admit(r.Client(3000, 7001, kTcpAck, "a")) == Admission::kHold);
  CHECK(r.Admit(r.Client(0, 7001, kTcpAck, "a")) == Admission::kPropose);  // a keep-alive
}

TEST(an_implausible_acknowledgement_in_the_log_moves_nothing) {
  Replica r(7000);
  r.Open(500);
  r.FromGuest(r.Guest(1, 1, kTcpAck, "12345"));
  r.Deliver(r.Client(1, 501 + 0x40000000, kTcpAck));
  CHECK(r.table->counters().clamped_acks == 0 && r.table->counters().retained_bytes == 5);
  CHECK(Last(r.sink.guest).ack == 7001 + 0x40000000);  // the guest sees what it is
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

// ---- handshakes

TEST(the_wire_iss_follows_from_the_log_alone) {
  // A segment of an earlier connection stands between the SYN and the first acknowledgement;
  // replicas differ in when their guests answer.
  Replica early(100), late(200);
  const std::vector<Bytes> log = {early.Client(0, 0, kTcpSyn, {}, 64000, kSynOptions),
                                  early.Client(900000, 77, kTcpAck),
                                  early.Client(1, 0, kTcpRst | kTcpAck, {}, 0),
                                  early.Client(0, 0, kTcpSyn, {}, 64000, kSynOptions),
                                  early.Client(1, 4001, kTcpAck),
                                  early.Client(1, 4002, kTcpAck, "q")};
  for (size_t i = 0; i < log.size(); ++i) {
    early.Deliver(log[i]);
    if (i == 3) early.SynAck();
    late.Deliver(log[i]);
  }
  late.SynAck();
  for (Replica* r : {&early, &late}) {
    r->FromGuest(r->Guest(1, 2, kTcpAck, "a"));
    CHECK(Last(r->sink.wire).seq == 4001);
  }
}

TEST(delivery_waits_for_this_guests_syn_ack) {
  Replica r(7000);
  r.Syn();
  r.Deliver(r.Client(1, 501, kTcpAck));
  r.Deliver(r.Client(1, 501, kTcpAck, "hello "));
  r.Deliver(r.Client(7, 501, kTcpAck, "world"));
  CHECK(r.sink.guest.size() == 1 && r.table->counters().held == 3);
  r.sink.Clear();
  r.Wait(500 * kMillisecond);
  CHECK(r.sink.guest.size() >= 3 &&
        r.sink.guest.size() <= 8);  // the SYN again, less and less often
  for (const Bytes& frame : r.sink.guest) CHECK(ParseFrame(frame).flags == kTcpSyn);
  r.sink.Clear();
  r.SynAck();
  REQUIRE(r.sink.guest.size() == 1);
  CHECK(PayloadText(r.sink.guest[0]) == "hello world" && Last(r.sink.guest).ack == 7001);
  CHECK(Last(r.sink.wire).seq == 500);
  CHECK(r.table->counters().diverged == 0);
}

TEST(a_guest_that_never_answers_diverges_when_the_bound_passes) {
  Replica r(7000);
  r.Syn();
  r.Deliver(r.Client(1, 501, kTcpAck, "x"));
  r.Wait(2900 * kMillisecond);
  CHECK(r.table->counters().diverged == 0);
  r.Wait(200 * kMillisecond);
  CHECK(r.table->counters().diverged == 1 && r.table->counters().held_bytes == 0);
  r.sink.Clear();
  r.Deliver(r.Client(2, 501, kTcpAck, "y"));
  r.Wait(kSecond);
  CHECK(r.sink.guest.empty() && r.table->counters().dropped_to_guest == 1);
  r.table->SetRole(FlowRole::kPrimary);
  r.table->TakeOver(r.now);  // what cannot go on is said to be over
  REQUIRE(r.sink.wire.size() == 1);
  CHECK(Last(r.sink.wire).Has(kTcpRst) && Last(r.sink.wire).seq == 501);
}

TEST(a_repeated_syn_reaches_the_guest_and_changes_nothing) {
  Replica r(7000);
  r.Syn();
  r.Syn();
  CHECK(r.sink.guest.size() == 2 && r.table->counters().flows_opened == 1);
  r.SynAck();
  r.Syn();
  r.SynAck();
  r.Deliver(r.Client(1, 501, kTcpAck));
  r.Syn();
  r.FromGuest(r.Guest(1, 1, kTcpAck, "a"));
  CHECK(Last(r.sink.wire).seq == 501 && r.table->counters().flows_opened == 1);
}

TEST(a_lost_handshake_ack_is_made_again_when_the_guest_repeats_its_syn_ack) {
  Replica r(7000);
  r.Open(500);
  r.SynAck();
  REQUIRE(r.sink.guest.size() == 1);
  CHECK(Last(r.sink.guest).ack == 7001 && Last(r.sink.guest).seq == kClientIss + 1);
}

TEST(port_reuse_replaces_a_closed_flow) {
  Replica r(7000);
  r.Open(500);
  r.Deliver(r.Client(1, 501, kTcpAck | kTcpFin));
  r.FromGuest(r.Guest(1, 2, kTcpAck | kTcpFin));
  r.Deliver(r.Client(2, 502, kTcpAck));
  CHECK(r.table->counters().flows_closed == 1 && r.table->counters().flows == 1);
  r.sink.Clear();
  r.client_iss += 70000;
  r.iss = 90000;
  r.Syn();
  CHECK(r.sink.guest.size() == 1);  // nothing to end in the guest first
  r.SynAck();
  r.Deliver(r.Client(1, 60001, kTcpAck));
  CHECK(Last(r.sink.guest).ack == 90001);
  r.FromGuest(r.Guest(1, 1, kTcpAck, "new"));
  CHECK(Last(r.sink.wire).seq == 60001);
  CHECK(r.table->counters().flows == 1 && r.table->counters().diverged == 0);
}

TEST(a_new_syn_over_a_live_flow_ends_the_old_one_in_the_guest) {
  Replica r(7000);
  r.Open(500);
  r.Deliver(r.Client(1, 501, kTcpAck, "not acknowledged"));
  r.sink.Clear();
  r.client_iss += 70000;
  r.Syn();
  REQUIRE(r.sink.guest.size() == 3);
  CHECK(ParseFrame(r.sink.guest[0]).flags == kTcpRst &&
        ParseFrame(r.sink.guest[0]).seq == kClientIss + 1);
  CHECK(ParseFrame(r.sink.guest[1]).flags == kTcpRst &&
        ParseFrame(r.sink.guest[1]).seq == kClientIss + 17);
  CHECK(ParseFrame(r.sink.guest[2]).flags == kTcpSyn);
  CHECK(r.table->counters().diverged == 1 && r.table->counters().held_bytes == 0);
}

// ---- a backup that lags, a guest that drops

TEST(acknowledgements_of_bytes_not_sent_yet_are_clamped_and_made_up_later) {
  Replica r(7000);
  r.Open(500);
  r.Deliver(r.Client(1, 501, kTcpAck, "GET"));
  r.FromGuest(r.Guest(1, 4, kTcpAck));
  // The primary's guest has answered ten bytes already, and the client goes on.
  r.Deliver(r.Client(4, 511, kTcpAck, "GET", 100));
  Packet p = Last(r.sink.guest);
  CHECK(p.ack == 7001 && PayloadText(r.sink.guest.back()) == "GET");
  CHECK(p.window ==
        100 + 3);  // ten bytes in units of four, rounded up: the right edge is the client's
  CHECK(r.table->counters().clamped_acks == 1);
  r.sink.Clear();
  r.FromGuest(r.Guest(1, 7, kTcpAck, "12345"));
  REQUIRE(r.sink.guest.size() == 1);
  p = Last(r.sink.guest);
  CHECK(p.flags == kTcpAck && p.ack == 7006 && p.seq == kClientIss + 7 && p.PayloadBytes() == 0);
  CHECK(r.table->counters().retained_bytes == 0);
  r.FromGuest(r.Guest(6, 7, kTcpAck, "67890abc"));
  CHECK(Last(r.sink.guest).ack == 7011 && r.table->counters().retained_bytes == 3);
  CHECK(r.table->counters().local_acks == 2);
  r.FromGuest(r.Guest(1, 7, kTcpAck, "12345"));  // it missed the first of them
  CHECK(Last(r.sink.guest).ack == 7011 && r.table->counters().local_acks == 3);
}

TEST(a_clamped_fin_acknowledgement_is_made_up_later) {
  Replica r(7000);
  r.Open(500);
  r.Deliver(r.Client(1, 502, kTcpAck | kTcpFin));
  CHECK(Last(r.sink.guest).ack == 7001);
  r.FromGuest(r.Guest(1, 2, kTcpAck | kTcpFin));
  CHECK(Last(r.sink.guest).ack == 7002 && r.table->counters().flows_closed == 1);
}

TEST(input_beyond_the_guests_window_waits_for_it) {
  Replica r(7000);
  r.Open(500, 10);
  r.Deliver(r.Client(1, 501, kTcpAck, "0123456789"));
  CHECK(PayloadText(r.sink.guest.back()) == "0123456789");
  r.Deliver(r.Client(11, 501, kTcpAck, "abcdefgh"));
  CHECK(r.table->counters().held == 1 && Last(r.sink.guest).PayloadBytes() == 0);
  r.FromGuest(r.Guest(1, 11, kTcpAck, {}, 0));
  r.sink.Clear();
  r.FromGuest(r.Guest(1, 11, kTcpAck, {}, 1));  // four bytes of window
  REQUIRE(r.sink.guest.size() == 1);
  CHECK(PayloadText(r.sink.guest[0]) == "abcd");
  r.FromGuest(r.Guest(1, 15, kTcpAck, {}, 100));
  CHECK(PayloadText(r.sink.guest.back()) == "efgh" && Last(r.sink.guest).seq == kClientIss + 15);
  r.FromGuest(r.Guest(1, 19, kTcpAck, {}, 100));
  CHECK(r.table->counters().held_bytes == 0);
}

TEST(unacknowledged_input_is_offered_again_with_back_off) {
  Replica r(7000);
  r.Open(500);
  r.Deliver(r.Client(1, 501, kTcpAck, "lost"));
  r.sink.Clear();
  r.Wait(21 * kMillisecond);
  REQUIRE(r.sink.guest.size() == 1);
  CHECK(PayloadText(r.sink.guest[0]) == "lost" && Last(r.sink.guest).seq == kClientIss + 1);
  r.Wait(20 * kMillisecond);
  CHECK(r.sink.guest.size() == 1);
  r.Wait(10 * kSecond);
  CHECK(r.sink.guest.size() >= 7 && r.sink.guest.size() <= 12);
  r.FromGuest(r.Guest(1, 5, kTcpAck));
  r.sink.Clear();
  r.Wait(20 * kSecond);
  CHECK(r.sink.guest.empty());
}

TEST(a_closed_window_is_probed_in_case_its_opening_got_lost) {
  Replica r(7000);
  r.Open(500, 4);
  r.Deliver(r.Client(1, 501, kTcpAck, "1234"));
  r.FromGuest(r.Guest(1, 5, kTcpAck, {}, 0));
  r.Deliver(r.Client(5, 501, kTcpAck, "5678"));
  r.sink.Clear();
  r.Wait(25 * kMillisecond);
  REQUIRE(r.sink.guest.size() == 1);
  CHECK(Last(r.sink.guest).seq == kClientIss + 4 && Last(r.sink.guest).PayloadBytes() == 0);
  r.FromGuest(r.Guest(1, 5, kTcpAck, {}, 50));
  CHECK(PayloadText(r.sink.guest.back()) == "5678");
}

TEST(a_full_ring_is_made_up_for_when_it_empties) {
  Replica r(7000);
  r.sink.guest_full = true;
  r.Syn();
  r.sink.guest_full = false;
  r.table->GuestWritable(r.now);
  REQUIRE(r.sink.guest.size() == 1);
  CHECK(Last(r.sink.guest).flags == kTcpSyn);
  r.SynAck();
  r.sink.guest_full = true;
  r.Deliver(r.Client(1, 501, kTcpAck));
  r.Deliver(r.Client(1, 501, kTcpAck, "abc"));
  r.Deliver(r.Client(4, 501, kTcpAck | kTcpFin, "def"));
  r.sink.guest_full = false;
  r.sink.Clear();
  r.table->GuestWritable(r.now);
  REQUIRE(r.sink.guest.size() == 1);
  CHECK(PayloadText(r.sink.guest[0]) == "abcdef" && Last(r.sink.guest).Has(kTcpFin));
  r.sink.guest_full = true;
  r.Deliver(
      FromHex("ffffffffffff02000000000a0806"
              "0001080006040001"
              "02000000000a0a090002"
              "0000000000000a090001"));
  CHECK(r.table->counters().dropped_to_guest == 1);  // nothing keeps what is not of a flow
}

TEST(holes_are_filled_and_what_came_early_is_not_given_twice) {
  Replica r(7000);
  r.Open(500);
  r.Deliver(r.Client(4, 501, kTcpAck, "def"));
  CHECK(PayloadText(r.sink.guest.back()) ==
        "def");  // the guest sorts; it may tell the primary's client of the hole
  r.Deliver(r.Client(1, 501, kTcpAck, "abc"));
  r.Deliver(r.Client(7, 501, kTcpAck, "ghi"));
  CHECK(PayloadText(r.sink.guest.back()) == "ghi" && r.sink.guest.size() == 3);
  r.sink.Clear();
  r.Wait(21 * kMillisecond);
  REQUIRE(!r.sink.guest.empty());
  CHECK(PayloadText(r.sink.guest[0]) == "abcdefghi");
}

TEST(overlapping_segments_with_other_bytes_show_every_guest_the_first) {
  Replica r(7000);
  r.Open(500);
  r.Deliver(r.Client(1, 501, kTcpAck, "abcdef"));
  r.Deliver(r.Client(3, 501, kTcpAck, "XXXXghi"));
  CHECK(PayloadText(r.sink.guest.back()) == "cdefghi");
  r.Deliver(r.Client(14, 501, kTcpAck, "mno"));
  r.Deliver(r.Client(10, 501, kTcpAck, "jjllYYYpq"));
  CHECK(PayloadText(r.sink.guest.back()) == "jjllmnopq");
  r.sink.Clear();
  r.Wait(21 * kMillisecond);
  REQUIRE(!r.sink.guest.empty());
  CHECK(PayloadText(r.sink.guest[0]) == "abcdefghijjllmnopq");
}

TEST(too_many_holes_are_refused_by_every_replica_alike) {
  Replica r(7000);
  r.Open(500);
  for (Seq i = 0; i < 40; ++i) r.Deliver(r.Client(10 + i * 10, 501, kTcpAck, "x"));
  size_t given = 0;
  for (const Bytes& frame : r.sink.guest) given += ParseFrame(frame).PayloadBytes();
  CHECK(given == 16 && r.table->counters().diverged == 0 && r.table->counters().held == 24);
}

TEST(input_past_the_bound_diverges_a_backup) {
  FlowOptions options;
  options.hold_bytes_per_flow = 8192;
  Replica r(7000, FlowRole::kBackup, options);
  r.Open(500, 100);
  for (Seq i = 0; i < 8; ++i)
    r.Deliver(r.Client(1 + i * 1000, 501, kTcpAck, std::string(1000, 'a')));
  CHECK(r.table->counters().diverged == 0 && r.table->counters().held_bytes == 8000);
  r.Deliver(r.Client(8001, 501, kTcpAck, std::string(1000, 'a')));
  CHECK(r.table->counters().diverged == 1 && r.table->counters().held_bytes == 0);
  Replica far(7000, FlowRole::kBackup, options);
  far.Open(500);
  far.Deliver(far.Client(5000, 501, kTcpAck, "far ahead"));  // no replica takes it
  CHECK(far.table->counters().diverged == 0 && far.table->counters().held_bytes == 0);
}

TEST(storage_of_all_flows_together_is_bounded) {
  FlowOptions options;
  options.hold_bytes = 16 * 2048;
  options.retain_bytes = 16 * 2048;
  Replica r(7000, FlowRole::kBackup, options);
  for (uint16_t port = 1; port <= 30; ++port) {
    r.port = port;
    r.Open(500);
    r.Deliver(r.Client(1, 501, kTcpAck, std::string(1000, 'a')));
    r.FromGuest(r.Guest(1, 1, kTcpAck, std::string(1000, 'b')));
  }
  CHECK(r.table->counters().held_bytes == 16'000 && r.table->counters().diverged == 14);
  CHECK(r.table->counters().retained_bytes == 2000 * 8 && r.table->counters().retain_dropped == 0);
}

// ---- output and take-over

TEST(retained_output_is_sent_at_once_at_take_over) {
  Replica r(7000);
  r.Open(500);
  r.FromGuest(r.Guest(1, 1, kTcpAck, std::string(1000, 'a')));
  r.FromGuest(r.Guest(1001, 1, kTcpAck, std::string(1000, 'b')));
  r.FromGuest(r.Guest(2001, 1, kTcpAck | kTcpFin, std::string(10, 'c')));
  r.FromGuest(r.Guest(1, 1, kTcpAck, std::string(1000, 'a')));  // repeated: kept once
  r.Deliver(r.Client(1, 601, kTcpAck));
  CHECK(r.table->counters().retained_bytes == 1910);
  r.sink.Clear();
  r.table->SetRole(FlowRole::kPrimary);
  r.table->TakeOver(r.now);
  REQUIRE(r.sink.wire.size() == 2);
  const Packet first = ParseFrame(r.sink.wire[0]), second = ParseFrame(r.sink.wire[1]);
  CHECK(first.seq == 601 && first.PayloadBytes() == 1460 && !first.Has(kTcpFin) &&
        first.ack == kClientIss + 1);
  CHECK(second.seq == 2061 && second.PayloadBytes() == 450 && second.Has(kTcpFin));
  CHECK(PayloadText(r.sink.wire[0]) == std::string(900, 'a') + std::string(560, 'b'));
  CHECK(PayloadText(r.sink.wire[1]) == std::string(440, 'b') + std::string(10, 'c'));
  CHECK(first.window == 16000 && r.table->counters().retained_resent == 2);
  r.Deliver(r.Client(1, 2512, kTcpAck));
  r.sink.Clear();
  r.table->TakeOver(r.now);
  CHECK(r.sink.wire.empty() && r.table->counters().retained_bytes == 0);
}

TEST(a_fin_alone_is_sent_again_and_an_idle_flow_is_silent) {
  Replica r(7000);
  r.Open(500);
  r.table->TakeOver(r.now);
  CHECK(r.sink.wire.empty());
  r.FromGuest(r.Guest(1, 1, kTcpAck | kTcpFin));
  r.sink.Clear();
  r.table->TakeOver(r.now);
  REQUIRE(r.sink.wire.size() == 1);
  CHECK(Last(r.sink.wire).Has(kTcpFin) && Last(r.sink.wire).seq == 501);
}

TEST(output_beyond_the_bound_leaves_out_the_newest) {
  FlowOptions options;
  options.retain_bytes_per_flow = 2500;
  Replica r(7000, FlowRole::kBackup, options);
  r.Open(500);
  for (Seq i = 0; i < 4; ++i)
    r.FromGuest(r.Guest(1 + i * 1000, 1, kTcpAck, std::string(1000, static_cast<char>('a' + i))));
  CHECK(r.table->counters().retained_bytes == 2500 && r.table->counters().retain_dropped == 1500);
  r.Deliver(r.Client(1, 1501, kTcpAck));
  r.FromGuest(
      r.Guest(2001, 1, kTcpAck, std::string(1000, 'c')));  // the guest repeats what was left out
  CHECK(r.table->counters().retained_bytes == 2000);
  r.sink.Clear();
  r.table->TakeOver(r.now);
  REQUIRE(r.sink.wire.size() == 2);
  CHECK(PayloadText(r.sink.wire[0]).substr(0, 1000) == std::string(1000, 'b'));
}

TEST(the_window_on_the_wire_is_no_larger_than_what_replicas_can_hold) {
  Replica r(7000);
  r.Open(500);
  r.FromGuest(r.Guest(1, 1, kTcpAck, {}, 65535));  // times four
  CHECK(Last(r.sink.wire).window == (512 << 10) / 2 / 4 - (((512 << 10) / 2 / 4 == 65536) ? 1 : 0));
  FlowOptions options;
  options.hold_bytes_per_flow = 64 << 10;
  Replica small(7000, FlowRole::kPrimary, options);
  small.Open(7000);
  small.FromGuest(small.Guest(1, 1, kTcpAck, {}, 65535));
  CHECK(Last(small.sink.wire).window == (32 << 10) / 4);
}

TEST(a_new_primary_still_helps_its_lagging_guest) {
  Replica r(7000);
  r.Open(500, 10);
  r.Deliver(r.Client(1, 501, kTcpAck, "0123456789abcdef"));
  r.table->SetRole(FlowRole::kPrimary);
  r.table->TakeOver(r.now);
  r.sink.Clear();
  r.FromGuest(r.Guest(1, 11, kTcpAck, {}, 100));
  REQUIRE(r.sink.guest.size() == 1);
  CHECK(PayloadText(r.sink.guest[0]) == "abcdef");
  r.Wait(21 * kMillisecond);
  CHECK(r.sink.guest.size() == 2);  // offered again
}

TEST(a_bare_acknowledgement_that_is_held_is_not_answered) {
  // Answered, it would go round between the client and the guest for ever.
  Replica r(7000);
  r.Open(500, 4);
  r.Deliver(r.Client(1, 501, kTcpAck, "12345678"));
  r.FromGuest(r.Guest(1, 5, kTcpAck, {}, 0));
  r.table->SetRole(FlowRole::kPrimary);
  r.table->TakeOver(r.now);
  r.sink.Clear();
  r.Deliver(r.Client(9, 501, kTcpAck));
  for (const Bytes& frame : r.sink.guest) CHECK(ParseFrame(frame).seq == kClientIss + 5);
  r.sink.Clear();
  r.Deliver(r.Client(8, 501, kTcpAck));  // a probe of the closed window
  REQUIRE(r.sink.guest.size() == 1);
  CHECK(Last(r.sink.guest).seq == kClientIss + 4);
}

TEST(on_a_primary_the_client_speaks_for_itself) {
  Replica r(7000, FlowRole::kPrimary);
  r.Open(7000);
  r.Deliver(r.Client(1, 7001, kTcpAck, "abc"));
  r.sink.Clear();
  r.Wait(kSecond);
  CHECK(r.sink.guest.empty());          // the client repeats it
  r.FromGuest(r.Guest(0, 1, kTcpAck));  // a keep-alive
  CHECK(r.sink.guest.empty() && r.sink.wire.size() == 1);
  r.table->SetRole(FlowRole::kBackup);  // deposed: nobody repeats for it any more
  r.Wait(kSecond);
  CHECK(!r.sink.guest.empty() && PayloadText(r.sink.guest[0]) == "abc");
}

// ---- ends of connections, probes

TEST(simultaneous_close_ends_the_flow) {
  Replica r(7000);
  r.Open(500);
  r.Deliver(r.Client(1, 501, kTcpAck | kTcpFin));
  r.FromGuest(r.Guest(1, 1, kTcpAck | kTcpFin));  // has not seen the client's yet
  CHECK(r.table->counters().flows_closed == 0);
  r.FromGuest(r.Guest(2, 2, kTcpAck));
  r.Deliver(r.Client(2, 502, kTcpAck));
  CHECK(r.table->counters().flows_closed == 1);
  r.FromGuest(r.Guest(1, 2, kTcpAck | kTcpFin));  // repeated late: still translated, still answered
  CHECK(Last(r.sink.wire).seq == 501 && Last(r.sink.guest).ack == 7002);
  r.Wait(61 * kSecond);
  CHECK(r.table->counters().flows == 0);
}

TEST(a_clients_reset_waits_for_the_input_before_it) {
  Replica r(7000);
  r.Open(500, 4);
  r.Deliver(r.Client(1, 501, kTcpAck, "12345678"));
  r.Deliver(r.Client(9, 501, kTcpRst | kTcpAck));
  for (const Bytes& frame : r.sink.guest) CHECK(!ParseFrame(frame).Has(kTcpRst));
  r.FromGuest(r.Guest(1, 5, kTcpAck, {}, 100));
  REQUIRE(r.sink.guest.size() >= 2);
  CHECK(PayloadText(r.sink.guest[r.sink.guest.size() - 2]) == "5678");
  CHECK(Last(r.sink.guest).Has(kTcpRst) && Last(r.sink.guest).seq == kClientIss + 9);
  r.sink.Clear();
  r.FromGuest(r.Guest(1, 9, kTcpAck, "it missed the reset"));
  CHECK(Last(r.sink.guest).Has(kTcpRst));
  CHECK(r.table->counters().diverged == 0);
}

TEST(a_reset_that_does_not_fit_closes_nothing) {
  Replica r(7000);
  r.Open(500);
  r.Deliver(r.Client(50, 501, kTcpRst));
  CHECK(r.table->counters().flows_closed == 0 && Last(r.sink.guest).Has(kTcpRst));
  r.FromGuest(r.Guest(1, 1, kTcpAck));
  r.Deliver(r.Client(1, 501, kTcpAck, "on"));
  CHECK(PayloadText(r.sink.guest.back()) == "on");
}

TEST(a_guests_reset_diverges_a_backup_only_if_the_client_goes_on) {
  Replica agrees(7000), differs(7000);
  for (Replica* r : {&agrees, &differs}) {
    r->Open(500);
    r->FromGuest(r->Guest(1, 1, kTcpRst | kTcpAck));
    CHECK(Last(r->sink.wire).Has(kTcpRst) && Last(r->sink.wire).seq == 501);
    r->now += 10 * kMillisecond;
    r->Deliver(r->Client(1, 501, kTcpAck, "sent before the reset came"));
  }
  agrees.Wait(61 * kSecond);
  CHECK(agrees.table->counters().diverged == 0 && agrees.table->counters().flows == 0);
  differs.now += 2 * kSecond;
  differs.Deliver(differs.Client(27, 511, kTcpAck));
  CHECK(differs.table->counters().diverged == 1);
}

TEST(a_refused_connection_is_refused_everywhere) {
  Replica r(7000);
  r.Syn();
  const Bytes refusal =
      Make({.from_guest = true, .seq = 0, .ack = kClientIss + 1, .flags = kTcpRst | kTcpAck});
  r.FromGuest(refusal);
  CHECK(r.sink.wire.back() == refusal && r.table->counters().flows_closed == 1);
  r.sink.Clear();
  r.Wait(10 * kSecond);
  CHECK(r.sink.guest.empty() && r.table->counters().diverged == 0);
}

TEST(keep_alives_pass_and_are_not_answered_for_ever) {
  Replica r(7000);
  r.Open(500);
  r.Deliver(r.Client(0, 501, kTcpAck));  // the client's, without and with a byte
  r.Deliver(r.Client(0, 501, kTcpAck, "x"));
  CHECK(r.sink.guest.size() == 2 && r.table->counters().held_bytes == 0);
  r.sink.Clear();
  for (int i = 0; i < 9; ++i) r.FromGuest(r.Guest(0, 1, kTcpAck));  // the guest's
  CHECK(r.sink.wire.size() == 9 && r.sink.guest.size() == 3);
  CHECK(Last(r.sink.wire).seq == 500);
}

TEST(a_connection_across_the_wrap_of_both_sequence_spaces) {
  Replica r(0xFFFFFF00);
  r.client_iss = 0xFFFFFE00;
  r.Open(0xFFFFFFF8);
  std::string given, sent;
  for (Seq at = 1; at < 4000; at += 100) {
    const std::string text(100, static_cast<char>('a' + at / 100 % 26));
    r.Deliver(r.Client(at, 0xFFFFFFF8 + at, kTcpAck, text));
    given += PayloadText(r.sink.guest.back());
    sent += text;
    CHECK(Last(r.sink.guest).ack == 0xFFFFFF00 + at);
    r.FromGuest(r.Guest(at, at + 100, kTcpAck, text));
    CHECK(Last(r.sink.wire).seq == 0xFFFFFFF8 + at);
  }
  CHECK(given == sent && r.table->counters().retained_bytes == 100 &&
        r.table->counters().held_bytes == 0);
}

// ---- bounds of the table

TEST(a_flood_of_half_open_flows_evicts_the_oldest) {
  FlowOptions options;
  options.max_flows = 64;
  options.max_half_open = 16;
  Replica r(7000, FlowRole::kPrimary, options);
  r.Open(7000);  // an established one must survive
  for (uint16_t port = 1; port <= 500; ++port) {
    const Bytes syn = Make({.client_port = port, .seq = port, .flags = kTcpSyn});
    CHECK(r.Admit(syn) == Admission::kPropose);
    r.Deliver(syn);
    CHECK(r.table->counters().half_open <= 16);
  }
  CHECK(r.table->counters().evicted_half_open == 484 && r.table->counters().refused_full == 0);
  // The guest is told of each that is forgotten.
  size_t resets = 0;
  for (const Bytes& frame : r.sink.guest) resets += ParseFrame(frame).flags == kTcpRst ? 1 : 0;
  CHECK(resets == 484);
  r.Deliver(r.Client(1, 7001, kTcpAck, "alive"));
  CHECK(PayloadText(r.sink.guest.back()) == "alive");
  r.Wait(121 * kSecond);
  CHECK(r.table->counters().half_open == 0 && r.table->counters().flows == 1);
}

TEST(a_table_full_of_open_flows_takes_no_more_syns) {
  FlowOptions options;
  options.max_flows = 8;
  options.max_half_open = 4;
  Replica r(7000, FlowRole::kPrimary, options);
  for (uint16_t port = 1; port <= 8; ++port) {
    r.port = port;
    r.Open(7000);
  }
  r.port = 9;
  const Bytes syn = r.Client(0, 0, kTcpSyn);
  CHECK(r.Admit(syn) == Admission::kHold && r.table->counters().refused_full == 1);
  r.port = 3;  // one ends
  r.Deliver(r.Client(1, 0, kTcpRst));
  CHECK(r.Admit(syn) == Admission::kPropose);
  r.Deliver(syn);
  CHECK(r.table->counters().flows == 8);
}

TEST(idle_flows_and_closed_ones_expire) {
  Replica r(7000);
  r.Open(500);
  r.Wait(23 * 3600 * kSecond);
  CHECK(r.table->counters().flows == 1);
  r.Wait(5 * 3600 * kSecond);
  CHECK(r.table->counters().flows == 0);
}

TEST(reset_forgets_everything) {
  Replica r(7000);
  r.Open(500);
  r.Deliver(r.Client(1, 501, kTcpAck, "abc"));
  r.FromGuest(r.Guest(1, 1, kTcpAck, "abc"));
  r.table->Reset();
  const FlowCounters c = r.table->counters();
  CHECK(c.flows == 0 && c.held_bytes == 0 && c.retained_bytes == 0);
  CHECK(r.table->Tick(r.now) == r.now + kSecond);
  r.Open(900);
  CHECK(r.table->counters().flows == 1);
}

// ---- everything else

TEST(what_is_not_of_a_flow_passes_as_it_is) {
  Replica r(7000);
  Bytes fragment = r.Client(1, 5, kTcpAck, "abcdefgh");
  Store16(fragment, 14 + 6, 0x2000);
  const Bytes unknown = r.Client(1, 5, kTcpAck, "guest-initiated or stale");
  for (const Bytes& frame : {fragment, unknown}) {
    r.Deliver(frame);
    CHECK(r.sink.guest.back() == frame);
  }
  const Bytes outgoing = r.Guest(0, 0, kTcpSyn, {}, 100, FromHex("0402080a0000000100000000"));
  r.FromGuest(outgoing);
  CHECK(r.sink.wire.back() == outgoing && r.table->counters().flows == 0);
  // A fragment of a known flow is not touched either.
  r.Open(500);
  r.Deliver(fragment);
  CHECK(r.sink.guest.back() == fragment);
}

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
