// Two data planes on the simulated fabric, step by step: what the cluster simulation meets only by
// luck.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "fabric/sim.h"
#include "log/sim_storage.h"
#include "os/check.h"
#include "plane/data_plane.h"
#include "plane/transfer_parts.h"
#include "plane_pair.h"
#include "vm/vm_rings.h"

namespace {

using namespace falcon;
using namespace falcon::test;

// An entry of this payload and its record are 128 bytes, so that records of every lap lie at the
// same places.
constexpr size_t kPayload = 56;
const std::vector<std::byte> payload(kPayload, std::byte{7});

TEST(EntriesAreReplicatedAndCommitted) {
  Pair pair(8 << 10);
  REQUIRE(pair.Lead());
  for (int i = 0; i < 500; ++i) {
    REQUIRE(pair.member[0].plane->Propose(EntryKind::kNoop, payload));
    pair.Settle();
  }
  CHECK(pair.member[1].plane->last_op() == 501);
  CHECK(pair.member[0].plane->commit_op() == 501);
  // The last entry commits, and is known to be committed, without a next one.
  CHECK(pair.member[1].plane->commit_op() == 501);
}

uint64_t EntriesWritten(Pair& pair) {
  PlaneSnapshot snapshot;
  pair.member[0].plane->FillSnapshot(&snapshot);
  return snapshot.wal.entries;
}

// Nobody waits for the file of a log in memory, so its writer gets many entries at once: to wake it
// costs the thread that everybody waits for a system call, or its processor.
TEST(TheWriterOfALogInMemoryIsNotWokenForEachEntry) {
  Pair pair(64 << 10, 3, false, false);
  REQUIRE(pair.Lead());
  DataPlane& primary = *pair.member[0].plane;
  PlaneSnapshot before, after;
  primary.FillSnapshot(&before);
  for (int i = 0; i < 100; ++i) {  // a millisecond
    REQUIRE(primary.Propose(EntryKind::kNoop, payload));
    pair.Poll(0);
  }
  primary.FillSnapshot(&after);
  CHECK(after.wal.batches - before.wal.batches <= 2);
  // Without another entry all of them get there, soon.
  for (int i = 0; i < 150; ++i) pair.Poll(0);
  CHECK(EntriesWritten(pair) == primary.last_op());
  // Whoever goes to sleep leaves nothing behind.
  for (int i = 0; i < 2; ++i) {
    REQUIRE(primary.Propose(EntryKind::kNoop, payload));
    pair.Poll(0);
  }
  CHECK(EntriesWritten(pair) < primary.last_op());
  primary.ArmWake();
  pair.member[0].wal->Step();
  CHECK(EntriesWritten(pair) == primary.last_op());
  primary.DisarmWake();
  // A promise waits for the file.
  REQUIRE(primary.Propose(EntryKind::kNoop, payload));
  primary.Promise(2);
  for (int i = 0; i < 3; ++i) pair.Poll(0);
  CHECK(EntriesWritten(pair) == primary.last_op());
}

// The header of a record arrives before its payload, and where the payload will be lie whole
// entries of an earlier lap.
TEST(TornRecordOverAnEarlierLapIsNotTaken) {
  Pair pair(8 << 10);
  REQUIRE(pair.Lead());
  for (int i = 0; i < 300; ++i) {
    REQUIRE(pair.member[0].plane->Propose(EntryKind::kNoop, payload));
    pair.Poll(0);
    while (pair.network.NextBytes(0, 1) > 0) {
      pair.network.DeliverPart(0, 1, kRecordHeaderBytes);
      pair.Poll(1);
    }
    pair.Settle();
    REQUIRE(pair.Count(1, PlaneEvent::Kind::kStreamBroken) == 0);
  }
  CHECK(pair.member[1].plane->last_op() == 301);
}

// Several entries in a record, in pieces of every size: nothing is taken before all of it is there.
TEST(TornRecordOfSeveralEntriesIsNotTaken) {
  Pair pair(8 << 10);
  REQUIRE(pair.Lead());
  Op last = pair.member[1].plane->last_op();
  for (size_t i = 0; i < 200; ++i) {
    for (size_t n = 0; n < 2 + i % 3; ++n)
      REQUIRE(pair.member[0].plane->Propose(EntryKind::kNoop, payload));
    pair.Poll(0);
    while (pair.network.NextBytes(0, 1) > 0) {
      CHECK(pair.member[1].plane->last_op() == last);
      pair.network.DeliverPart(0, 1, 8 + 8 * (i % 11));
      pair.Poll(1);
      if (pair.member[1].plane->last_op() != last) break;
    }
    last = pair.member[0].plane->last_op();
    CHECK(pair.member[1].plane->last_op() == last);
    pair.Settle();
    REQUIRE(pair.Count(1, PlaneEvent::Kind::kStreamBroken) == 0);
  }
}

// A network may take its time between a record's header and the rest of it.
TEST(RecordThatIsLongOnItsWayIsWaitedFor) {
  Pair pair(8 << 10);
  REQUIRE(pair.Lead());
  for (int i = 0; i < 3; ++i) REQUIRE(pair.member[0].plane->Propose(EntryKind::kNoop, payload));
  pair.Poll(0);
  REQUIRE(pair.network.DeliverPart(0, 1, 64) == 64);
  for (int i = 0; i < 100; ++i) {
    pair.clock.now += kSecond;
    pair.Poll(1);
  }
  CHECK(pair.Count(1, PlaneEvent::Kind::kStreamBroken) == 0);
  CHECK(pair.member[1].plane->last_op() + 3 == pair.member[0].plane->last_op());
  pair.Settle();
  CHECK(pair.member[1].plane->last_op() == pair.member[0].plane->last_op());
}

// What was written behind a record is seen behind it: if the record is not whole then, it never is.
TEST(RecordThatStaysTornBreaksItsStream) {
  Pair pair(8 << 10);
  REQUIRE(pair.Lead());
  const Op last = pair.member[1].plane->last_op();
  REQUIRE(pair.member[0].plane->Propose(EntryKind::kNoop, payload));
  pair.Poll(0);
  pair.network.DeliverAll(0, 1);
  const RegionLayout layout{8 << 10};
  const std::span<std::byte> ring =
      pair.member[1].fabric->region(0).subspan(layout.RingAt(0), 8 << 10);
  // The last entry in the ring; its payload is of sevens.
  const auto found = std::find_end(ring.begin(), ring.end(), payload.begin(), payload.end());
  REQUIRE(found != ring.end());
  *found = std::byte{8};
  for (int i = 0; i < 50; ++i) pair.Poll(1);
  CHECK(pair.Count(1, PlaneEvent::Kind::kStreamBroken) == 0);
  pair.clock.now += kSecond;  // a heartbeat is due
  pair.Poll(0);
  pair.network.DeliverAll(0, 1);
  for (int i = 0; i < 2; ++i) pair.Poll(1);  // reads the words, and looks at the record once more
  CHECK(pair.Count(1, PlaneEvent::Kind::kStreamBroken) == 1);
  CHECK(pair.member[1].plane->last_op() == last);
}

// After promise(v) nothing of a lower view is accepted or acknowledged, whatever still lands.
TEST(PromiseFencesTheOldPrimary) {
  Pair pair(8 << 10);
  REQUIRE(pair.Lead());
  pair.member[1].plane->Promise(2);
  const Op last = pair.member[1].plane->last_op();
  for (int i = 0; i < 10; ++i) REQUIRE(pair.member[0].plane->Propose(EntryKind::kNoop, payload));
  pair.Settle();
  CHECK(pair.member[1].plane->last_op() == last);
  CHECK(pair.member[0].plane->commit_op() == last);
  PlaneSnapshot snapshot;
  pair.member[1].plane->FillSnapshot(&snapshot);
  const Nanoseconds heard = snapshot.heard_at;
  pair.clock.now += 100 * kMillisecond;
  pair.Settle();
  pair.member[1].plane->FillSnapshot(&snapshot);
  CHECK(snapshot.heard_at == heard);
  CHECK(!pair.member[0].plane->MayRelease());
}

// A write or force that fails stops the replica: it leads no more and says why once.
TEST(FailedForceStopsTheReplica) {
  Pair pair(8 << 10);
  REQUIRE(pair.Lead());
  pair.member[0].storage.FailForces(EIO);
  REQUIRE(pair.member[0].plane->Propose(EntryKind::kNoop, payload));
  const Op committed = pair.member[0].plane->commit_op();
  pair.Settle();
  CHECK(pair.Count(0, PlaneEvent::Kind::kFailed) == 1);
  CHECK(!pair.member[0].plane->leading());
  CHECK(pair.member[0].plane->commit_op() == committed);
}

// A backup that takes nothing holds back only itself: proposals are refused at the bound, nothing
// spins or is lost.
TEST(SlowBackupIsBackPressure) {
  Pair pair(8 << 10);
  REQUIRE(pair.Lead());
  pair.network.Cut(1, 0, true);
  int proposed = 0;
  while (pair.member[0].plane->CanPropose() &&
         pair.member[0].plane->Propose(EntryKind::kNoop, payload)) {
    ++proposed;
    if (proposed % 64 == 0) {
      for (int i = 0; i < 4; ++i) {
        pair.Poll(0);
        pair.network.DeliverAll(0, 1);
        pair.Poll(1);
      }
    }
    REQUIRE(proposed < 100000);
  }
  CHECK(proposed > 1000);
  pair.network.Cut(1, 0, false);
  for (int i = 0; i < 400; ++i) pair.Settle();
  CHECK(pair.member[0].plane->commit_op() == pair.member[0].plane->last_op());
  CHECK(pair.member[1].plane->last_op() == pair.member[0].plane->last_op());
}

// What an old primary posted last holds its memory only until it has left, whoever leads by then.
TEST(AnOldPrimaryTakesMoreThanItsMemoryAfterwards) {
  Pair pair(64 << 10);
  REQUIRE(pair.Lead());
  for (int i = 0; i < 20; ++i) REQUIRE(pair.member[0].plane->Propose(EntryKind::kNoop, payload));
  pair.Poll(0);  // posted, and nothing has arrived
  for (auto& m : pair.member) m.plane->Promise(2);
  pair.Settle();
  pair.member[1].plane->Lead(2);
  pair.Settle();
  const Op agree = pair.member[1].plane->last_op() - 1;
  pair.member[1].plane->Feed(0, 2, agree);
  pair.member[0].plane->Follow(2, 1, agree);
  pair.Settle();
  const std::vector<std::byte> large(4000, std::byte{9});
  for (int i = 0; i < 600; ++i) {  // more than twice log_bytes
    for (int wait = 0; wait < 50 && !pair.member[1].plane->Propose(EntryKind::kNoop, large); ++wait)
      pair.Settle();
    pair.Settle();
  }
  CHECK(pair.member[1].plane->last_op() > 600);
  CHECK(pair.member[0].plane->last_op() == pair.member[1].plane->last_op());
}

// A backup that promised its own view again is fed again, on a new connection: the old records
// still lie in its ring and would pass for the new stream's.
TEST(FedAgainInOneViewNeedsANewConnection) {
  Pair pair(8 << 10);
  REQUIRE(pair.Lead());
  for (int i = 0; i < 10; ++i) REQUIRE(pair.member[0].plane->Propose(EntryKind::kNoop, payload));
  pair.Settle();
  pair.member[1].plane->Promise(1);
  pair.Settle();
  const Op agree = pair.member[1].plane->last_op();
  pair.member[0].plane->Feed(1, 1, agree);
  pair.member[1].plane->Follow(1, 0, agree);
  pair.Settle();
  REQUIRE(pair.Count(0, PlaneEvent::Kind::kStreamBroken) == 1);
  REQUIRE(pair.member[0].plane->Connect(1, 79, pair.member[1].fabric->Descriptor()).ok());
  REQUIRE(pair.member[1].plane->Connect(0, 79, pair.member[0].fabric->Descriptor()).ok());
  pair.member[1].plane->Promise(1);
  pair.Settle();
  pair.member[0].plane->Feed(1, 1, agree);
  pair.member[1].plane->Follow(1, 0, agree);
  pair.Settle();
  for (int i = 0; i < 100; ++i) {
    REQUIRE(pair.member[0].plane->Propose(EntryKind::kNoop, payload));
    pair.Settle();
  }
  CHECK(pair.member[1].plane->last_op() == pair.member[0].plane->last_op());
}

std::string TextOf(const PlaneEvent& event) {
  const auto* begin = reinterpret_cast<const char*>(event.bytes.data());
  return {begin, begin + event.bytes.size()};
}

const PlaneEvent* Find(Pair& pair, PeerId i, PlaneEvent::Kind kind) {
  for (const PlaneEvent& event : pair.member[i].plane->events()) {
    if (event.kind == kind) return &event;
  }
  return nullptr;
}

// What the primary's own disk cannot give is told as that, not as something that was released.
TEST(AFeedThatCannotBeReadSaysWhy) {
  Pair pair(64 << 10);
  REQUIRE(pair.Lead());
  const std::vector<std::byte> large(4000, std::byte{9});
  for (int i = 0; i < 600; ++i) {  // more than twice log_bytes
    REQUIRE(pair.member[0].plane->Propose(EntryKind::kNoop, large));
    pair.Settle();
  }
  REQUIRE(pair.member[0].plane->EntryInMemory(2).empty());
  REQUIRE(pair.member[0].plane->Connect(1, 80, pair.member[1].fabric->Descriptor()).ok());
  REQUIRE(pair.member[1].plane->Connect(0, 80, pair.member[0].fabric->Descriptor()).ok());
  pair.member[0].storage.FailReads(EIO);
  pair.member[0].plane->Feed(1, 1, 0);
  pair.Settle();
  REQUIRE(pair.Count(0, PlaneEvent::Kind::kFeedLost) == 1);
  const PlaneEvent* lost = Find(pair, 0, PlaneEvent::Kind::kFeedLost);
  CHECK(lost->peer == 1 && lost->view == 1 && lost->op == 2);
  CHECK(TextOf(*lost).starts_with("WAL_READ "));
  PlaneSnapshot snapshot;
  pair.member[0].plane->FillSnapshot(&snapshot);
  CHECK(!snapshot.acks[1]);
}

LogPosition PositionOf(Pair& pair, PeerId i, Op op) {
  const EntryHeader header = ReadEntryHeader(pair.member[i].plane->EntryInMemory(op));
  return {header.op, header.view, header.checksum};
}

void Reconnect(Pair& pair, uint64_t connection) {
  CHECK(pair.member[0].plane->Connect(1, connection, pair.member[1].fabric->Descriptor()).ok());
  CHECK(pair.member[1].plane->Connect(0, connection, pair.member[0].fabric->Descriptor()).ok());
}

// A backup's log begins anew behind an entry that it never had, is fed from there, can be cut to
// its very beginning, and is what a restart finds.
TEST(ALogThatBeginsAnewIsFedFromThere) {
  Pair pair(64 << 10, 5);  // two of five: nothing is committed by being acknowledged
  REQUIRE(pair.Lead());
  pair.member[1].plane->Disconnect(0);
  for (int i = 0; i < 100; ++i) REQUIRE(pair.member[0].plane->Propose(EntryKind::kNoop, payload));
  pair.Settle();
  REQUIRE(pair.member[1].plane->last_op() == 1);
  const LogPosition base = PositionOf(pair, 0, 50);
  Reconnect(pair, 78);
  pair.member[1].plane->Promise(1);
  pair.Settle();
  pair.member[0].plane->Feed(1, 1, 50);
  pair.member[1].plane->Follow(1, 0, 50, base);
  pair.Settle();
  CHECK(pair.member[1].plane->last_op() == 101 && pair.member[1].wal->base() == base);
  PlaneSnapshot snapshot;
  pair.member[1].plane->FillSnapshot(&snapshot);
  CHECK(snapshot.base == base && snapshot.commit_op == 50 && snapshot.delivered_op == 50);
  CHECK(snapshot.durable_op == 101);
  std::vector<std::byte> kept;
  CHECK(pair.member[1].wal->Read(51, 52, 0, &kept).ok() && ReadEntryHeader(kept).op == 51);

  for (auto& m : pair.member) m.plane->Promise(2);
  pair.Settle();
  Reconnect(pair, 79);
  pair.member[0].plane->Lead(2);
  pair.Settle();
  pair.member[0].plane->Feed(1, 2, 50);
  pair.member[1].plane->Follow(2, 0, 50);
  pair.Settle();
  CHECK(pair.Count(1, PlaneEvent::Kind::kFailed) == 0);
  CHECK(pair.member[1].plane->last_op() == 102);

  RecoveredLog found;
  std::unique_ptr<Wal> reopened;
  WalOptions options;
  options.directory = "/wal";
  options.cluster = "test";
  options.node = 1;
  options.segment_bytes = 4 << 20;
  pair.member[1].wal->Step();
  REQUIRE(OpenWal(pair.member[1].storage, options, &found, &reopened).ok());
  CHECK(found.base == base && found.first_op == 51 && found.last_op == 102 && !found.damaged);
}

// A promise that comes while the disk still forgets the old log tells of the new one.
TEST(APromiseWaitsForALogThatBeginsAnew) {
  Pair pair(64 << 10);
  REQUIRE(pair.Lead());
  pair.member[1].plane->Promise(1);
  pair.Settle();
  pair.member[1].plane->events().clear();
  const LogPosition base{1000, 1, 77};
  pair.member[1].plane->Follow(1, 0, base.op, base);
  pair.member[1].plane->PollOnce(pair.clock.now);
  CHECK(pair.member[1].wal->base() == LogPosition{});
  PlaneSnapshot snapshot;
  pair.member[1].plane->FillSnapshot(&snapshot);
  CHECK(snapshot.base == base && snapshot.commit_op == base.op);
  pair.member[1].plane->Promise(2);
  pair.member[1].plane->PollOnce(pair.clock.now);
  CHECK(Find(pair, 1, PlaneEvent::Kind::kPromised) == nullptr);
  pair.Settle();
  const PlaneEvent* promised = Find(pair, 1, PlaneEvent::Kind::kPromised);
  REQUIRE(promised != nullptr);
  CHECK(promised->op == base.op && promised->last_view == 1 && promised->commit_op == base.op);
  CHECK(promised->table.size() == 1 && promised->table[0].first_op == base.op);
  CHECK(pair.Count(1, PlaneEvent::Kind::kFollowing) == 0 && pair.member[1].wal->base() == base);
}

// A connection that came to nothing before it reached the plane counts like any other, so that both
// sides number their connections alike.
TEST(AConnectionThatCameToNothingCounts) {
  Pair pair(8 << 10);
  pair.member[0].plane->NotConnected(1, {"FABRIC_CONNECT", "nobody answers"});
  const PlaneEvent* broken = Find(pair, 0, PlaneEvent::Kind::kStreamBroken);
  REQUIRE(broken != nullptr);
  CHECK(broken->op == 2 && TextOf(*broken) == "FABRIC_CONNECT nobody answers");
  CHECK(!pair.member[0].plane->SendMail(1, payload));
  REQUIRE(pair.member[0].plane->Connect(1, 78, pair.member[1].fabric->Descriptor()).ok());
  REQUIRE(pair.member[1].plane->Connect(0, 78, pair.member[0].fabric->Descriptor()).ok());
  CHECK(pair.member[1].plane->SendMail(0, payload));
  pair.Settle();
  const PlaneEvent* mail = Find(pair, 0, PlaneEvent::Kind::kMail);
  REQUIRE(mail != nullptr);
  CHECK(mail->op == 3);
}

}  // namespace

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
