// Real connections through the tables of a primary and of backups whose guests have other initial
// sequence numbers. What is expected is worked out plainly: fields replaced, checksums made afresh.
#include "flow_fixture.h"
#include "sim_tcp.h"
#include "vm/tcp_options.h"

namespace falcon::test {
namespace {

const char* const kCaptured[] = {
#include "data/linux_connections.hex"
};

std::vector<Bytes> Captured() {
  std::vector<Bytes> frames;
  for (const char* hex : kCaptured) frames.push_back(FromHex(hex));
  return frames;
}

bool FromClient(const Packet& p) { return p.destination_port == 6379; }

// The frame as a guest whose numbers are `delta` ahead of the wire's would send or take it.
Bytes Moved(const Bytes& frame, Seq delta) {
  Bytes moved = frame;
  const Packet p = ParseFrame(frame);
  const bool up = FromClient(p);
  const size_t at = p.tcp_at + (up ? kAckOffset : kSeqOffset);
  Store32(moved, at, Load32(moved, at) + delta);
  // Only the client's SACK blocks tell of the guest's numbers. Linux puts them behind two
  // no-operations.
  if (up && p.OptionBytes() >= 12 && Load8(frame, p.OptionsAt() + 2) == 5) {
    for (size_t block = p.OptionsAt() + 4; block < p.payload_at; block += 4)
      Store32(moved, block, Load32(moved, block) + delta);
  }
  FillTcpChecksums(moved, p);
  return moved;
}

TEST(the_capture_holds_what_it_promises) {
  size_t syns = 0, sacks = 0, ends = 0, again = 0;
  Seq farthest = 0;
  for (const Bytes& frame : Captured()) {
    const Packet p = ParseFrame(frame);
    REQUIRE(p.kind == PacketKind::kTcp);
    CHECK(TcpChecksumsAreRight(frame, p));
    syns += p.flags == kTcpSyn ? 1 : 0;
    ends += p.Has(kTcpFin) ? 1 : 0;
    if (!FromClient(p)) continue;
    if (p.OptionBytes() == 12) ++sacks;
    if (!p.Has(kTcpSyn) && SeqBefore(p.seq, farthest) && p.PayloadBytes() > 0) ++again;
    farthest = p.Has(kTcpSyn) ? p.seq : SeqMax(farthest, p.seq);
  }
  CHECK(syns == 2 && sacks == 3 && ends == 4 && again == 1);
}

TEST(a_captured_connection_passes_a_primary_unchanged_and_a_backup_translated) {
  // The second difference makes the guest's numbers wrap inside the long answer.
  const Bytes syn_ack = Captured()[1];
  const Seq wire_iss = ParseFrame(syn_ack).seq;
  for (const Seq delta :
       {Seq{0x12345678}, Seq{0xFFFFFC00} - wire_iss, Seq{0x7FFFFF00} - wire_iss}) {
    Replica primary(0, FlowRole::kPrimary), backup(0);
    for (const Bytes& frame : Captured()) {
      const Packet p = ParseFrame(frame);
      if (FromClient(p)) {
        Bytes logged;
        REQUIRE(primary.Admit(frame, &logged) == Admission::kPropose);
        CHECK((logged != frame) == p.Has(kTcpSyn));
        primary.Deliver(logged);
        CHECK(primary.sink.guest.back() == logged);
        backup.Deliver(logged);
        CHECK(backup.sink.guest.back() == (p.Has(kTcpSyn) ? logged : Moved(logged, delta)));
      } else {
        primary.FromGuest(frame);
        CHECK(primary.sink.wire.back() == frame);
        const Bytes others = Moved(frame, delta);
        backup.FromGuest(others);
        CHECK(backup.sink.wire.back() == (p.Has(kTcpSyn) ? others : frame));
      }
    }
    for (Replica* r : {&primary, &backup}) {
      const FlowCounters c = r->table->counters();
      CHECK(c.flows_opened == 2 && c.flows_closed == 2 && c.flows == 1 && c.diverged == 0);
      CHECK(c.held_bytes == 0 && c.retained_bytes == 0 && c.clamped_acks == 0 && c.local_acks == 0);
      CHECK(c.frames_to_guest == c.frames_delivered && c.frames_to_wire == c.frames_from_guest);
    }
  }
}

TEST(captured_syns_lose_timestamps_and_fast_open) {
  Replica primary(0, FlowRole::kPrimary);
  Bytes logged;
  REQUIRE(primary.Admit(Captured()[0], &logged) == Admission::kPropose);
  const Packet p = ParseFrame(logged);
  CHECK(TcpChecksumsAreRight(logged, p));
  // MSS 536, SACK permitted, window scale 10; no-operations where kinds 8 and 34 stood.
  CHECK(Bytes(logged.begin() + static_cast<ptrdiff_t>(p.OptionsAt()), logged.end()) ==
        FromHex("020402180402"
                "01010101010101010101"
                "01"
                "03030a"
                "01010101"));
}

// The whole first connection is in the log before the backup's guest has answered the SYN.
TEST(a_captured_connection_reaches_a_guest_that_is_late) {
  for (const size_t buffer : {size_t{60'000}, size_t{300}}) {
    Replica primary(0, FlowRole::kPrimary), backup(0);
    SimTcp guest(true, 0xFFFFFF80, buffer, 536, 0);
    Nanoseconds now = kStart;
    guest.send = [&](const Bytes& frame) { backup.table->FromGuest(frame, now); };
    size_t syns = 0;
    for (const Bytes& frame : Captured()) {
      const Packet p = ParseFrame(frame);
      if (p.flags == kTcpSyn && ++syns == 2) break;
      if (!FromClient(p)) {
        primary.FromGuest(frame);
        continue;
      }
      Bytes logged;
      REQUIRE(primary.Admit(frame, &logged) == Admission::kPropose);
      primary.Deliver(logged);
      backup.Deliver(logged);
    }
    CHECK(backup.table->counters().held > 10);
    std::string read;
    for (int step = 0; step < 2000 && !guest.peer_finished(); ++step) {
      now += kMillisecond;
      backup.table->Tick(now);
      std::vector<Bytes> ring;
      ring.swap(backup.sink.guest);
      for (const Bytes& frame : ring) guest.Take(frame, now);
      read += guest.Read(100, now);
    }
    CHECK(read == "PING\r\nGET a\r\nSET b\r\n" + std::string(2000, 'b') + "QUIT\r\n");
    CHECK(guest.peer_finished() && backup.table->counters().diverged == 0);
    // What it answers now has long been acknowledged: all of it comes back to it at once.
    guest.Write("+PONG\r\n$2500\r\n" + std::string(2500, 'a') + "\r\n+OK\r\n+OK\r\n", now);
    guest.Finish(now);
    for (int step = 0; step < 100 && !guest.all_acknowledged(); ++step) {
      now += kMillisecond;
      std::vector<Bytes> ring;
      ring.swap(backup.sink.guest);
      for (const Bytes& frame : ring) guest.Take(frame, now);
    }
    CHECK(guest.all_acknowledged());
    const FlowCounters c = backup.table->counters();
    CHECK(c.flows_closed == 1 && c.held_bytes == 0 && c.retained_bytes == 0 && c.clamped_acks == 0);
  }
}

}  // namespace
}  // namespace falcon::test

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
