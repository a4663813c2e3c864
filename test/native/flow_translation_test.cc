// Sequence and acknowledgement numbers, SACK blocks and windows between wire space and guest space.
#include "flow_fixture.h"

namespace falcon::test {
namespace {

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

TEST(an_implausible_acknowledgement_in_the_log_moves_nothing) {
  Replica r(7000);
  r.Open(500);
  r.FromGuest(r.Guest(1, 1, kTcpAck, "12345"));
  r.Deliver(r.Client(1, 501 + 0x40000000, kTcpAck));
  CHECK(r.table->counters().clamped_acks == 0 && r.table->counters().retained_bytes == 5);
  CHECK(Last(r.sink.guest).ack == 7001 + 0x40000000);  // the guest sees what it is
}

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

TEST(each_side_may_wrap_alone) {
  const Seq edge = 0xFFFFFE00;  // 512 numbers before the wrap
  for (const int who : {0, 1, 2}) {
    Replica r(who == 0 ? edge : 3'000'000'000);
    r.client_iss = who == 1 ? edge : 1000;
    const Seq wire = who == 2 ? edge : 77;
    r.Open(wire);
    for (Seq at = 1; at < 2000; at += 100) {
      const std::string question(100, static_cast<char>('a' + at / 100)),
          answer(100, static_cast<char>('A' + at / 100));
      r.Deliver(r.Client(at, wire + at, kTcpAck, question));
      CHECK(PayloadText(r.sink.guest.back()) == question &&
            Last(r.sink.guest).seq == r.client_iss + at);
      CHECK(Last(r.sink.guest).ack == r.iss + at);
      r.FromGuest(r.Guest(at, at + 100, kTcpAck, answer));
      CHECK(Last(r.sink.wire).seq == wire + at && Last(r.sink.wire).ack == r.client_iss + at + 100);
    }
    // And with what is held, clamped, offered again and retained on both sides of the wrap.
    Replica late(who == 0 ? edge : 3'000'000'000);
    late.client_iss = r.client_iss;
    late.Open(wire, 1000);
    for (Seq at = 1; at < 1500; at += 300)
      late.Deliver(late.Client(at, wire + 1200, kTcpAck, std::string(300, 'x')));
    CHECK(late.table->counters().held == 2 && late.table->counters().clamped_acks == 3);
    late.sink.Clear();
    late.FromGuest(late.Guest(1, 1501 - 600, kTcpAck, std::string(1400, 'y'), 2000 >> 2));
    std::string given;
    for (const Bytes& frame : late.sink.guest) given += PayloadText(frame);
    CHECK(given == std::string(600, 'x') && Last(late.sink.guest).ack == late.iss + 1200);
    CHECK(late.table->counters().retained_bytes == 201 && late.table->counters().held_bytes == 600);
    late.FromGuest(late.Guest(1401, 1501, kTcpAck));
    CHECK(late.table->counters().held_bytes == 0);
    late.sink.Clear();
    late.table->SetRole(FlowRole::kPrimary);
    late.table->TakeOver(late.now);
    REQUIRE(late.sink.wire.size() == 1);
    CHECK(Last(late.sink.wire).seq == wire + 1200 &&
          PayloadText(late.sink.wire[0]) == std::string(201, 'y'));
  }
}

TEST(a_tagged_flow_keeps_its_tag_in_all_that_is_made_here) {
  for (const int tags : {1, 2}) {
    Replica r(7000);
    r.vlan_tags = tags;
    r.Open(500, 4);
    r.Deliver(r.Client(1, 511, kTcpAck, "12345678"));  // clamped, held
    r.FromGuest(r.Guest(1, 1, kTcpAck, "0123456789abcdef", 100));
    r.Wait(25 * kMillisecond);
    r.table->SetRole(FlowRole::kPrimary);
    r.table->TakeOver(r.now);
    CHECK(r.sink.guest.size() >= 3 && r.sink.wire.size() == 2);
    for (const auto* frames : {&r.sink.guest, &r.sink.wire}) {
      for (const Bytes& frame : *frames) {
        const Packet p = ParseFrame(frame);
        CHECK(p.kind == PacketKind::kTcp && p.link_bytes == 14 + 4 * static_cast<size_t>(tags));
        CHECK(Load16(frame, p.link_bytes - 4) == 7);
      }
    }
    CHECK(PayloadText(r.sink.wire[1]) == "abcdef" && Last(r.sink.wire).seq == 511);
  }
}

TEST(ip_fragments_of_a_known_flow_pass_both_ways_as_they_are) {
  Replica r(7000);
  r.Open(500);
  for (const uint16_t field : {uint16_t{0x2000}, uint16_t{0x2003}, uint16_t{3}}) {
    Bytes in = r.Client(1, 501, kTcpAck, "abcdefgh"), out = r.Guest(1, 1, kTcpAck, "abcdefgh");
    for (Bytes* frame : {&in, &out}) Store16(*frame, 14 + 6, field);
    Bytes admitted;
    CHECK(r.Admit(in, &admitted) == Admission::kPropose && admitted == in);
    r.Deliver(in);
    r.FromGuest(out);
    CHECK(r.sink.guest.back() == in && r.sink.wire.back() == out);
  }
  r.v6 = true;
  r.Open(500);
  Bytes in = r.Client(1, 501, kTcpAck, "abcdefgh"), out = r.Guest(1, 1, kTcpAck, "abcdefgh");
  for (Bytes* frame : {&in, &out}) {
    const Bytes header = FromHex("0600000100000001");  // TCP, offset 0, more follow
    frame->insert(frame->begin() + 54, header.begin(), header.end());
    (*frame)[20] = std::byte{44};
    Store16(*frame, 18, static_cast<uint16_t>(frame->size() - 54));
  }
  Bytes admitted;
  CHECK(r.Admit(in, &admitted) == Admission::kPropose && admitted == in);
  r.Deliver(in);
  r.FromGuest(out);
  CHECK(r.sink.guest.back() == in && r.sink.wire.back() == out);
  const FlowCounters c = r.table->counters();
  CHECK(c.held_bytes == 0 && c.retained_bytes == 0 && c.flows == 2 && c.malformed == 0);
}

TEST(datagrams_and_unknown_protocols_pass_both_ways_as_they_are) {
  const std::string to_vm =
                        "525400000001"
                        "02000000000a",
                    to_client =
                        "02000000000a"
                        "525400000001";
  const char* const rest[] = {
      "0800"
      "4500001d000000004011aaaa"
      "0a0900020a090001"
      "0007000700090000"
      "58",  // UDP
      "0800"
      "4500001c00000000400166c30a0900020a090001"
      "0800f7ff00000000",  // ICMP echo
      "86dd"
      "6000000000083a40"
      "fd000000000000000000000000000002"
      "fd000000000000000000000000000001"
      "80000000"
      "00010001",
      "86dd"
      "6000000000091140"
      "fd000000000000000000000000000002"
      "fd000000000000000000000000000001"
      "0007000700090000"
      "58",
      "88cc"
      "0207040102030405",  // LLDP
      "8100"
      "0007"
      "88cc"
      "0207"};
  for (const FlowRole role : {FlowRole::kPrimary, FlowRole::kBackup}) {
    Replica r(7000, role);
    for (const char* hex : rest) {
      const Bytes in = FromHex(to_vm + hex), out = FromHex(to_client + hex);
      Bytes admitted;
      CHECK(r.Admit(in, &admitted) == Admission::kPropose && admitted == in);
      r.Deliver(in);
      r.FromGuest(out);
      CHECK(r.sink.guest.back() == in && r.sink.wire.back() == out);
    }
  }
}

TEST(a_damaged_segment_of_the_guest_stays_damaged_and_is_not_kept) {
  Replica r(7000);
  r.Open(500);
  Bytes damaged = r.Guest(1, 1, kTcpAck, "0123456789");
  damaged.back() ^= std::byte{0x20};
  r.sink.expect_right_checksums = false;
  r.FromGuest(damaged);
  REQUIRE(r.sink.wire.size() == 1);
  CHECK(!TcpChecksumsAreRight(r.sink.wire[0], ParseFrame(r.sink.wire[0])));
  CHECK(r.table->counters().retained_bytes == 0 && r.table->counters().malformed == 1);
  r.FromGuest(r.Guest(1, 1, kTcpAck, "0123456789"));  // it is sent again, whole
  r.sink.Clear();
  r.sink.expect_right_checksums = true;
  r.table->SetRole(FlowRole::kPrimary);
  r.table->TakeOver(r.now);
  REQUIRE(r.sink.wire.size() == 1);
  CHECK(PayloadText(r.sink.wire[0]) == "0123456789");
}

TEST(malformed_options_of_segments_do_not_hurt_the_flow) {
  for (const char* list :
       {"05", "0500", "0501", "0503ff", "050a0000001000", "0101050b000000100000002000",
        "0505051205120512", "080a0000000100000002", "ff"}) {
    Replica r(7000);
    r.Open(500);
    r.Deliver(r.Client(1, 501, kTcpAck, "abc", 100, FromHex(list)));
    CHECK(PayloadText(r.sink.guest.back()) == "abc" && Last(r.sink.guest).ack == 7001);
    r.FromGuest(r.Guest(1, 4, kTcpAck, "def", 100, FromHex(list)));
    CHECK(PayloadText(r.sink.wire.back()) == "def" && Last(r.sink.wire).seq == 501);
  }
}

TEST(an_acknowledgement_in_a_segment_out_of_place_moves_nothing) {
  // A forger who does not know the client's numbers; its host would not believe it either.
  Replica r(7000);
  r.Open(500);
  r.FromGuest(r.Guest(1, 1, kTcpAck, "12345"));
  for (const Seq offset : {Seq{0x40000000}, Seq{0x90000000}, Seq{0} - 1'000'000}) {
    r.Deliver(r.Client(offset, 506, kTcpAck, {}, 0));
    r.Deliver(r.Client(offset, 506, kTcpAck, "x", 0));
  }
  CHECK(r.table->counters().retained_bytes == 5);
  r.Deliver(r.Client(0, 506, kTcpAck));  // a keep-alive is in place
  CHECK(r.table->counters().retained_bytes == 0);
}

// Every count is 64 bits wide (none of them wraps in a lifetime).
static_assert(sizeof(FlowCounters) % sizeof(uint64_t) == 0);
static_assert(std::is_same_v<decltype(FlowCounters::frames_to_guest), uint64_t>);

}  // namespace
}  // namespace falcon::test

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
