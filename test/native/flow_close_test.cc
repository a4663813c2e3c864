// How connections end: FIN, RST, and the probes of those that do not.
#include "flow_fixture.h"

namespace falcon::test {
namespace {

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

TEST(a_late_reset_does_not_end_a_guest_that_lags) {
  // For the primary's guest it lies before the window; this one may have dropped what came since.
  Replica r(7000);
  r.Open(500);
  r.Deliver(r.Client(1, 501, kTcpAck, "12345678"));
  r.sink.Clear();
  r.Deliver(r.Client(1, 501, kTcpRst | kTcpAck));
  CHECK(r.sink.guest.empty() && r.table->counters().flows_closed == 0);
  r.Deliver(r.Client(9, 501, kTcpRst | kTcpAck));
  CHECK(Last(r.sink.guest).Has(kTcpRst) && r.table->counters().flows_closed == 1);
}

TEST(a_reset_on_the_place_of_the_fin_ends_the_flow) {
  // macOS sends it so, and Linux takes it.
  for (const uint16_t window : {uint16_t{64000}, uint16_t{4}}) {
    Replica r(7000);
    r.Open(500, window);
    r.Deliver(r.Client(1, 501, kTcpAck | kTcpFin, "12345678"));
    r.Deliver(r.Client(9, 501, kTcpRst));
    CHECK(r.table->counters().flows_closed == 1);
    if (window == 4) {
      CHECK(!Last(r.sink.guest).Has(kTcpRst));
      r.FromGuest(r.Guest(1, 5, kTcpAck, {}, 100));
    }
    CHECK(Last(r.sink.guest).Has(kTcpRst));
    r.Wait(61 * kSecond);
    CHECK(r.table->counters().flows == 0);
  }
}

TEST(a_reset_of_a_half_open_flow_ends_it_and_its_ports_can_be_used_again) {
  Replica r(7000);
  r.Syn();
  r.SynAck();
  r.Deliver(r.Client(1, 0, kTcpRst));
  CHECK(r.sink.guest.back() == r.Client(1, 0, kTcpRst) && r.table->counters().flows_closed == 1);
  r.SynAck();  // the guest missed it
  CHECK(Last(r.sink.guest).Has(kTcpRst) && Last(r.sink.guest).seq == kClientIss + 1);
  r.client_iss += 5000;
  r.iss += 9000;
  r.Open(60000);
  r.FromGuest(r.Guest(1, 1, kTcpAck, "new"));
  CHECK(Last(r.sink.wire).seq == 60001 && r.table->counters().flows == 1);
}

TEST(a_flow_that_opens_again_is_counted_again) {
  const auto live = [](const Replica& r) {
    const FlowCounters c = r.table->counters();
    return c.flows_opened - c.flows_closed;
  };
  Replica r(7000);
  for (int i = 0; i < 3; ++i) {  // a scanner: SYN, SYN-ACK, RST, and the same again
    r.Syn();
    CHECK(live(r) == 1);
    r.SynAck();
    r.Deliver(r.Client(1, 0, kTcpRst));
    CHECK(live(r) == 0);
  }
  Replica refused(7000);  // its service is late; that of the primary was not
  refused.Syn();
  refused.FromGuest(
      Make({.from_guest = true, .seq = 0, .ack = kClientIss + 1, .flags = kTcpRst | kTcpAck}));
  CHECK(live(refused) == 0);
  refused.Deliver(refused.Client(1, 501, kTcpAck));
  CHECK(live(refused) == 1);
}

}  // namespace
}  // namespace falcon::test

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
