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

}  // namespace
}  // namespace falcon::test

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
