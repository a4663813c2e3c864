// Output that is kept for a take-over, and what a new primary does with it.
#include "flow_fixture.h"

namespace falcon::test {
namespace {

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

}  // namespace
}  // namespace falcon::test

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
