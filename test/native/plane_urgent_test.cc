// What a commit waits for: the entry on its way, a backup's acknowledgement, and that it has come
// back. Two data planes on the simulated fabric, step by step.
#include <cstring>
#include <span>
#include <vector>

#include "check.h"
#include "fabric/sim.h"
#include "os/check.h"
#include "os/crc32c.h"
#include "plane/data_plane.h"
#include "plane_pair.h"

namespace {

using namespace falcon;
using namespace falcon::test;

constexpr size_t kRing = 8 << 10;
constexpr uint64_t kConnection = 77;  // of the pair
const std::vector<std::byte> payload(56, std::byte{7});
const RegionLayout layout{kRing};

Op Acked(Pair& pair) {
  PlaneSnapshot snapshot;
  pair.member[0].plane->FillSnapshot(&snapshot);
  return snapshot.acked[1];
}

// The backup has the entry, and its acknowledgement is on its way.
bool ProposeAndTake(Pair& pair) {
  if (!pair.member[0].plane->Propose(EntryKind::kNoop, payload)) return false;
  pair.Poll(0);
  pair.network.DeliverAll(0, 1);
  pair.Poll(1);
  return pair.member[1].plane->last_op() == pair.member[0].plane->last_op();
}

// Writes one into the primary's memory, as the backup would.
void PutAck(Pair& pair, PeerAck ack, uint64_t connection, View view) {
  ack.mark = AckMark(connection, view, ack);
  std::memcpy(pair.member[0].fabric->region(0).data() + layout.AckAt(1), &ack, sizeof ack);
}

TEST(EachSideNeedsOneRoundForACommit) {
  Pair pair(kRing, 3, false, false);
  REQUIRE(pair.Lead());
  DataPlane& primary = *pair.member[0].plane;
  REQUIRE(primary.Propose(EntryKind::kNoop, payload));
  pair.Poll(0);
  CHECK(pair.network.Pending(0, 1) == 1);
  pair.network.DeliverAll(0, 1);
  pair.Poll(1);
  CHECK(pair.network.Pending(1, 0) == 1);
  pair.network.DeliverAll(1, 0);
  CHECK(primary.commit_op() < primary.last_op());
  pair.Poll(0);
  CHECK(primary.commit_op() == primary.last_op());
}

TEST(AnAcknowledgementIsThreeWords) {
  Pair pair(kRing, 3, false, false);
  REQUIRE(pair.Lead());
  for (int i = 0; i < 600; ++i) {  // its sources are used again
    REQUIRE(ProposeAndTake(pair));
    REQUIRE(pair.network.Pending(1, 0) > 0);  // behind it now and then the answer to a heartbeat
    CHECK(pair.network.NextBytes(1, 0) == sizeof(PeerAck));
    pair.Settle();
    CHECK(pair.member[0].plane->commit_op() == pair.member[0].plane->last_op());
  }
}

TEST(ATornAcknowledgementIsNotTaken) {
  for (size_t cut = 0; cut <= sizeof(PeerAck); cut += 8) {
    Pair pair(kRing, 3, false, false);
    REQUIRE(pair.Lead());
    const Op before = Acked(pair);
    REQUIRE(ProposeAndTake(pair));
    if (cut > 0) REQUIRE(pair.network.DeliverPart(1, 0, cut) == cut);
    pair.Poll(0);
    CHECK(Acked(pair) == (cut < sizeof(PeerAck) ? before : before + 1));
    // One whose mark came first is looked at again.
    pair.network.DeliverAll(1, 0);
    pair.Poll(0);
    CHECK(Acked(pair) == before + 1);
  }
}

// The words of one that was seen torn, in each order.
TEST(AnAcknowledgementIsLookedAtUntilItIsWhole) {
  for (int first = 0; first < 3; ++first) {
    Pair pair(kRing, 3, false, false);
    REQUIRE(pair.Lead());
    const Op before = Acked(pair);
    PeerAck ack{before, 1, 0};
    std::byte* at = pair.member[0].fabric->region(0).data() + layout.AckAt(1);
    PutAck(pair, ack, kConnection, 1);
    pair.Poll(0);
    ack = {before + 5, 2, 0};
    ack.mark = AckMark(kConnection, 1, ack);
    for (int i = 0; i < 3; ++i) {
      CHECK(Acked(pair) == before);
      const auto word = static_cast<size_t>((first + i) % 3) * 8;
      std::memcpy(at + word, reinterpret_cast<const std::byte*>(&ack) + word, 8);
      pair.Poll(0);
    }
    CHECK(Acked(pair) == before + 5);
  }
}

TEST(AnAcknowledgementOfAnotherViewOrConnectionIsNotTaken) {
  Pair pair(kRing, 3, false, false);
  REQUIRE(pair.Lead());
  const Op before = Acked(pair);
  const PeerAck ack{before + 5, 1, 0};
  PutAck(pair, ack, kConnection, 2);
  pair.Poll(0);
  CHECK(Acked(pair) == before);
  PutAck(pair, ack, kConnection + 1, 1);
  pair.Poll(0);
  CHECK(Acked(pair) == before);
  PutAck(pair, ack, kConnection, 1);  // the mark made here is the one that a primary wants
  pair.Poll(0);
  CHECK(Acked(pair) == before + 5);
}

// Writes words into the primary's memory, as the backup would.
void PutWords(Pair& pair, View following, Op durable) {
  static uint64_t sequence = 1 << 20;
  PeerWords words{};
  words.connection = kConnection;
  words.sequence = ++sequence;
  words.following_view = following;
  words.durable_op = durable;
  const auto bytes = std::as_bytes(std::span(&words, 1));
  words.checksum = Crc32c(bytes.first(offsetof(PeerWords, checksum)));
  std::memcpy(pair.member[0].fabric->region(0).data() + layout.WordsAt(1), bytes.data(),
              bytes.size());
}

// Member 0 leads view 2 and feeds member 1, which has said nothing since it followed view 1, in
// which it had 11 entries.
bool LeadAgain(Pair& pair) {
  if (!pair.Lead()) return false;
  for (int i = 0; i < 10; ++i) {
    if (!ProposeAndTake(pair)) return false;
    pair.network.DeliverAll(1, 0);
    pair.Poll(0);
  }
  if (Acked(pair) != 11) return false;
  DataPlane& primary = *pair.member[0].plane;
  primary.Promise(2);
  for (int i = 0; i < 5; ++i) pair.Poll(0);
  primary.Lead(2);
  for (int i = 0; i < 5; ++i) pair.Poll(0);
  primary.Feed(1, 2, 0);
  for (int i = 0; i < 5; ++i) {
    pair.network.DeliverAll(0, 1);
    pair.Poll(0);
  }
  return primary.leading() && primary.last_op() == 12 && Acked(pair) == 0;
}

// One may be read before the words that tell of its view, though these were posted earlier.
TEST(AnAcknowledgementWaitsForTheWordsOfItsView) {
  Pair pair(kRing, 3, false, false);
  REQUIRE(LeadAgain(pair));
  PutAck(pair, {7, 0, 0}, kConnection, 2);
  pair.Poll(0);
  CHECK(Acked(pair) == 0);
  PutWords(pair, 2, 5);
  pair.Poll(0);
  pair.Poll(0);
  CHECK(Acked(pair) == 7);
}

// What a peer had in the view before may have been cut since.
TEST(WhatAPeerHadInTheViewBeforeDoesNotCount) {
  Pair pair(kRing, 3, false, false);
  REQUIRE(LeadAgain(pair));
  PutWords(pair, 2, 5);
  pair.Poll(0);
  CHECK(Acked(pair) == 5);
  PutAck(pair, {12, 0, 0}, kConnection, 2);
  pair.Poll(0);
  CHECK(Acked(pair) == 12 && pair.member[0].plane->commit_op() == 12);
}

// The queue was full when it was due, and what it would have said holds no longer when it is not.
TEST(AnAcknowledgementThatCouldNotBePostedIsForgottenWithItsView) {
  Pair pair(kRing, 3, false, false, {.queue_bound = 3});
  REQUIRE(pair.Lead());
  for (int i = 0; i < 6; ++i) REQUIRE(ProposeAndTake(pair));
  CHECK(pair.network.Pending(1, 0) == 3);
  pair.member[1].plane->Promise(2);
  pair.Poll(1);
  CHECK(pair.network.Pending(1, 0) == 3);
  pair.Settle();
  CHECK(pair.Count(1, PlaneEvent::Kind::kPromised) == 2);
  CHECK(pair.Count(1, PlaneEvent::Kind::kStreamBroken) == 0);
  CHECK(Acked(pair) == 0);  // it follows nobody
}

// Without another entry, and in one round: who goes to sleep behind it has done what it can.
TEST(ACommitThatWordsTellIsTakenInTheirRound) {
  Pair pair(kRing, 3, false, false);
  REQUIRE(pair.Lead());
  REQUIRE(ProposeAndTake(pair));
  pair.network.DeliverAll(1, 0);
  pair.Poll(0);
  REQUIRE(pair.network.DeliverAll(0, 1) == 1);
  DataPlane& backup = *pair.member[1].plane;
  CHECK(backup.commit_op() < backup.last_op());
  CHECK(backup.PollOnce(pair.clock.now) > 0);
  CHECK(backup.commit_op() == backup.last_op());
}

// Heartbeats are answered with all words, which say what was there when they were posted. An
// acknowledgement that was posted behind them may be read before them.
TEST(WordsThatAreReadLateTakeNothingBack) {
  Pair pair(kRing, 3, false, false);
  REQUIRE(pair.Lead());
  const Op before = Acked(pair);
  pair.clock.now += kSecond;  // a heartbeat is due
  pair.Poll(0);
  pair.network.DeliverAll(0, 1);
  pair.Poll(1);
  REQUIRE(pair.network.Pending(1, 0) == 1 && pair.network.NextBytes(1, 0) == sizeof(PeerWords));
  REQUIRE(ProposeAndTake(pair));
  REQUIRE(pair.network.Pending(1, 0) == 2);
  pair.network.DeliverAll(1, 0);
  pair.Poll(0);
  CHECK(Acked(pair) == before + 1);
  pair.Poll(0);
  CHECK(Acked(pair) == before + 1);
}

// ---- what makes a round worth it

struct Spinning : Pair {
  Spinning() : Pair(kRing, 3, false, true, {.lazy_completions = true, .quiet = true}) {}
  bool Due(PeerId i) { return member[i].plane->Due(); }
  // Both have been asked just now, and nothing is new.
  bool AtRest() {
    for (PeerId i = 0; i < 2; ++i) Poll(i);
    return !Due(0) && !Due(1);
  }
};

TEST(NothingNewMakesNoRoundDueForSomeLooks) {
  Spinning pair;
  REQUIRE(pair.Lead());
  REQUIRE(pair.AtRest());
  int looks = 1;
  while (!pair.Due(0) && looks < 10000) ++looks;
  CHECK(looks > 10 && looks < 1000);
  pair.Poll(0);
  CHECK(!pair.Due(0));
}

TEST(WhatHasComeMakesARoundDue) {
  Spinning pair;
  REQUIRE(pair.Lead());
  REQUIRE(pair.AtRest());
  REQUIRE(pair.member[0].plane->Propose(EntryKind::kNoop, payload));
  CHECK(pair.Due(0));
  pair.member[0].plane->PollOnce(pair.clock.now);
  CHECK(!pair.Due(0));
  pair.member[0].wal->Step();
  CHECK(pair.Due(0));  // its own disk has it
  pair.member[0].plane->PollOnce(pair.clock.now);
  CHECK(!pair.Due(1));
  pair.network.DeliverAll(0, 1);
  CHECK(pair.Due(1));  // an entry
  pair.member[1].plane->PollOnce(pair.clock.now);
  pair.network.DeliverAll(1, 0);  // it was taken out of the ring
  CHECK(pair.Due(0));
  pair.member[0].plane->PollOnce(pair.clock.now);
  CHECK(!pair.Due(0) && !pair.Due(1));
  pair.member[1].wal->Step();
  pair.member[1].plane->PollOnce(pair.clock.now);
  pair.network.DeliverAll(1, 0);
  CHECK(pair.Due(0));  // an acknowledgement
  pair.member[0].plane->PollOnce(pair.clock.now);
  CHECK(pair.member[0].plane->commit_op() == pair.member[0].plane->last_op());
  pair.network.DeliverAll(0, 1);
  CHECK(pair.Due(1));  // words
  REQUIRE(pair.AtRest());
  REQUIRE(pair.member[1].plane->SendMail(0, payload));
  pair.network.DeliverAll(1, 0);
  CHECK(pair.Due(0));  // mail
  pair.Settle();
  REQUIRE(pair.AtRest());
  pair.member[1].plane->Promise(2);
  CHECK(pair.Due(1));  // it waits for its disk
}

TEST(AFabricThatMovesOnlyWhenItIsPolledMakesEachRoundDue) {
  Pair pair(kRing);
  REQUIRE(pair.Lead());
  for (int i = 0; i < 100; ++i) {
    CHECK(pair.member[0].plane->Due());
    pair.Poll(0);
  }
}

}  // namespace

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
