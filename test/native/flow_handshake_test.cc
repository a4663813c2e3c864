// How connections begin: the wire ISS, waiting for the own guest's SYN-ACK, ports used again.
#include "flow_fixture.h"

namespace falcon::test {
namespace {

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

TEST(a_flow_of_the_catch_up_is_helped_after_it) {
  // The dead primary proposed the SYN; its client repeats nothing that it saw acknowledged.
  Replica r(7000);
  r.table->SetRole(FlowRole::kPrimary);
  r.Syn();
  r.SynAck(10);
  r.Deliver(r.Client(1, 501, kTcpAck, "0123456789abc"));
  for (const Bytes& frame : r.sink.guest) CHECK(ParseFrame(frame).PayloadBytes() <= 10);
  CHECK(r.Admit(r.Client(14, 501, kTcpAck)) == Admission::kPropose);
  r.table->TakeOver(r.now);
  r.sink.Clear();
  r.Wait(21 * kMillisecond);
  REQUIRE(!r.sink.guest.empty());
  CHECK(PayloadText(r.sink.guest[0]) == "0123456789");
}

TEST(a_half_open_flow_of_the_catch_up_takes_the_clients_word) {
  Replica r(7000);
  r.table->SetRole(FlowRole::kPrimary);
  r.Syn();
  r.SynAck();
  CHECK(r.Admit(r.Client(1, 501, kTcpAck)) == Admission::kPropose);
}

TEST(a_stale_segment_never_defines_a_flow_that_this_primary_opened) {
  Replica primary(7000, FlowRole::kPrimary), backup(9000);
  // In the place of the handshake's last step, acknowledging another connection's numbers.
  const Bytes stale[] = {
      primary.Client(1, 123456, kTcpAck), primary.Client(1, 123456, kTcpAck, "old"),
      primary.Client(1, 7000, kTcpAck | kTcpFin), primary.Client(1, 9001, kTcpAck)};
  std::vector<Bytes> log;
  const auto offer = [&](const Bytes& frame) {
    Bytes logged;
    if (primary.Admit(frame, &logged) != Admission::kPropose) return;
    primary.Deliver(logged);
    backup.Deliver(logged);
    log.push_back(logged);
  };
  offer(primary.Client(0, 0, kTcpSyn, {}, 64000, kSynOptions));
  for (const Bytes& frame : stale) offer(frame);
  primary.SynAck();
  for (const Bytes& frame : stale) offer(frame);
  CHECK(log.size() == 1);
  offer(primary.Client(1, 7001, kTcpAck));
  CHECK(log.size() == 2);
  backup.SynAck();
  backup.FromGuest(backup.Guest(1, 1, kTcpAck, "a"));
  CHECK(Last(backup.sink.wire).seq == 7001);
}

TEST(the_syn_is_offered_again_a_bounded_number_of_times) {
  Replica r(7000);
  r.Syn();
  r.Wait(50 * kSecond);  // nobody acknowledges
  CHECK(r.sink.guest.size() == 6);
  r.Wait(100 * kSecond);
  CHECK(r.table->counters().flows == 0 && r.table->counters().diverged == 0);
  Replica defined(7000);
  defined.Syn();
  defined.Deliver(defined.Client(1, 501, kTcpAck));
  defined.Wait(60 * kSecond);
  CHECK(defined.sink.guest.size() >= 7 && defined.sink.guest.size() <= 10);
  CHECK(defined.table->counters().diverged == 1);
}

}  // namespace
}  // namespace falcon::test

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
