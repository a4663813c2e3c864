// Bounds of the table: flows, half-open flows, kept bytes, time.
#include "flow_fixture.h"

namespace falcon::test {
namespace {

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

TEST(diverged_flows_do_not_keep_new_connections_out) {
  FlowOptions options;
  options.max_flows = 8;
  options.max_half_open = 4;
  Replica r(7000, FlowRole::kBackup, options);
  for (uint16_t port = 1; port <= 8; ++port) {  // a guest that is silent for a while
    r.port = port;
    r.Syn();
    r.Deliver(r.Client(1, 501, kTcpAck));
  }
  r.Wait(4 * kSecond);
  CHECK(r.table->counters().diverged == 8);
  r.table->SetRole(FlowRole::kPrimary);
  r.table->TakeOver(r.now);
  for (uint16_t port = 9; port <= 16; ++port) {
    r.port = port;
    const Bytes syn = r.Client(0, 0, kTcpSyn, {}, 64000, kSynOptions);
    CHECK(r.Admit(syn) == Admission::kPropose);
    r.Open(7000);
  }
  CHECK(r.table->counters().flows == 8 && r.table->counters().refused_full == 0);
  r.sink.Clear();
  r.Deliver(r.Client(1, 7001, kTcpAck, "alive"));
  CHECK(PayloadText(r.sink.guest.back()) == "alive");
}

TEST(a_backup_knows_every_half_open_flow_that_its_primary_knows) {
  FlowOptions options;
  options.max_flows = 64;
  options.max_half_open = 16;
  Replica primary(7000, FlowRole::kPrimary, options), backup(9000, FlowRole::kBackup, options);
  for (uint16_t port = 1; port <= 1000; ++port) {
    const Bytes syn = Make({.client_port = port, .seq = port, .flags = kTcpSyn});
    for (Replica* r : {&primary, &backup}) r->Deliver(syn);
    CHECK(primary.table->counters().half_open <= 16 && backup.table->counters().half_open <= 32);
    CHECK(backup.table->counters().half_open >= primary.table->counters().half_open);
  }
  primary.port = backup.port = 990;  // one of the flood is a client, and finishes
  primary.client_iss = backup.client_iss = 990;
  for (Replica* r : {&primary, &backup}) {
    r->SynAck();
    r->Deliver(r->Client(1, 7001, kTcpAck, "in time"));
    CHECK(PayloadText(r->sink.guest.back()) == "in time" && Last(r->sink.guest).ack == r->iss + 1);
  }
}

}  // namespace
}  // namespace falcon::test

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
