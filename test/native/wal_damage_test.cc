// Torn tails and damage: the log tells the one from the other, loses nothing that was forced
// without saying so, and goes on behind both.
#include <algorithm>

#include "log/wal.h"
#include "wal_fixture.h"

namespace falcon::test {
namespace {

// Batches of one entry each, all forced and marked, and the files as they are then.
struct SmallLog {
  explicit SmallLog(size_t batches) : harness(3) {
    CHECK(harness.Open().ok());
    for (size_t i = 0; i < batches; ++i) CHECK(harness.AppendAlone(1 + i / 4, 40 + i * 30));
    harness.wal.reset();
    harness.storage.KillProcess();
    path = LastSegment(harness.storage);
    image = harness.storage.Contents(path);
    history = harness.history;
    used = image.size();
    while (used > 0 && image[used - 1] == std::byte{0}) --used;
  }
  void Restore() {
    harness.wal.reset();
    harness.storage.KillProcess();
    for (const std::string& each : harness.storage.Paths()) {
      if (each != path) harness.storage.Delete(each);
    }
    harness.storage.SetContents(path, image);
    harness.history = history;
    harness.TruncateHistory(history.size());
  }

  Harness harness;
  std::string path;
  Bytes image;
  std::deque<Bytes> history;
  size_t used = 0;  // bytes up to the last one that is not zero
};

TEST(EveryTruncationIsNoticed) {
  SmallLog small(8);
  Harness& h = small.harness;
  const NaiveLog whole = h.log;
  std::vector<size_t> lengths;
  for (size_t length = 0; length <= small.used + 600; ++length) lengths.push_back(length);
  for (size_t length = small.used; length < small.image.size(); length += 1009)
    lengths.push_back(length);
  for (const size_t length : lengths) {
    small.Restore();
    h.storage.SetContents(small.path, Bytes(small.image.begin(),
                                            small.image.begin() + static_cast<ptrdiff_t>(length)));
    REQUIRE(h.Open().ok());
    if (!h.recovered.damaged)
      Fail(__FILE__, __LINE__, "not noticed: length " + std::to_string(length));
    CHECK(h.recovered.damaged_after_op == h.recovered.last_op);
    const size_t left = h.recovered.last_op;
    CHECK(left == 8 || length < small.used + 8);  // an entry may end with zeros
    CHECK(h.Holds(h.Replay(left)));
  }
}

TEST(EverySingleBitFlipIsNoticedOrHarmless) {
  SmallLog small(5);
  Harness& h = small.harness;
  size_t whole = 0;
  size_t damaged = 0;
  for (uint64_t bit = 0; bit < (small.used + 1024) * 8; ++bit) {
    const uint64_t byte = bit / 8;
    const bool quiet = byte >= 1600 && byte < kSegmentHeaderBytes;  // zeros that nobody looks at
    if (quiet && bit % 64 != 0) continue;
    small.Restore();
    h.storage.FlipBit(small.path, bit);
    REQUIRE(h.Open().ok());
    if (h.recovered.damaged) {
      ++damaged;
      CHECK(h.Holds(h.Replay(h.recovered.last_op)));
      CHECK(h.storage.Contents(small.path).size() == small.image.size());
      continue;
    }
    ++whole;
    if (!h.Holds(h.log)) Fail(__FILE__, __LINE__, "shortened: bit " + std::to_string(bit));
  }
  CHECK(whole > 1000 && damaged > 1000);
}

TEST(ATornTailIsIgnoredAndNeverComesBack) {
  SmallLog small(6);
  Harness& h = small.harness;
  REQUIRE(h.Open().ok());
  // The seventh batch is written and not forced: its force stops the machine, some sectors survive.
  for (uint64_t seed = 0; seed < 60; ++seed) {
    small.Restore();
    REQUIRE(h.Open().ok());
    CHECK(h.Append(3, 3000));
    h.storage.StopAfter(2);
    CHECK(!h.Drain() && h.wal->failed() && h.wal->durable() == 0);
    h.wal.reset();
    h.storage.LosePower();
    REQUIRE(h.Open().ok());
    CHECK(!h.recovered.damaged);
    const int64_t survived = h.Matches(6);
    REQUIRE(survived >= 6);
    h.TruncateHistory(static_cast<size_t>(survived));
    // Another entry with the same op: the torn one must never win over it.
    CHECK(h.AppendAlone(4, 20) && h.AppendAlone(4, 20));
    for (int again = 0; again < 2; ++again) {
      REQUIRE(h.Open().ok());
      CHECK(!h.recovered.damaged && h.recovered.torn_bytes == 0);
      CHECK(h.Holds(h.log));
    }
  }
}

TEST(DamageKeepsItsBytesAndTheLogGoesOn) {
  SmallLog small(8);
  Harness& h = small.harness;
  for (int place = 0; place < 8; ++place) {
    small.Restore();
    h.storage.FlipBit(small.path,
                      (kSegmentHeaderBytes + static_cast<uint64_t>(place) * 512 + 60) * 8);
    REQUIRE(h.Open().ok());
    CHECK(h.recovered.damaged && h.recovered.damaged_after_op == static_cast<Op>(place));
    CHECK(!h.recovered.damage_detail.empty());
    REQUIRE(h.Open().ok());
    CHECK(h.recovered.damaged);  // said again until something is appended
    h.TruncateHistory(static_cast<size_t>(place));
    const Bytes before = h.storage.Contents(small.path);
    for (int i = 0; i < 3; ++i) CHECK(h.AppendAlone(9, 77));
    CHECK(h.storage.Contents(small.path) == before);
    REQUIRE(h.Open().ok());
    CHECK(!h.recovered.damaged);
    CHECK(h.Holds(h.log));
    // Damage again, in the new segment and before the old place.
    h.wal.reset();
    h.storage.FlipBit(LastSegment(h.storage), (kSegmentHeaderBytes + 60) * 8);
    REQUIRE(h.Open().ok());
    CHECK(h.recovered.damaged && h.recovered.damaged_after_op == static_cast<Op>(place));
    if (place < 2) continue;
    h.wal.reset();
    h.storage.FlipBit(small.path, (kSegmentHeaderBytes + 512 + 60) * 8);
    REQUIRE(h.Open().ok());
    CHECK(h.recovered.damaged && h.recovered.damaged_after_op == 1);
    h.TruncateHistory(1);
    CHECK(h.AppendAlone(12));
    REQUIRE(h.Open().ok());
    CHECK(!h.recovered.damaged && h.Holds(h.log));
  }
}

TEST(AMissingSegmentIsDamage) {
  Harness h;
  REQUIRE(h.Open().ok());
  for (int i = 0; i < 500; ++i) CHECK(h.AppendAlone(1, 900));
  h.wal.reset();
  const auto paths = h.storage.Paths();
  REQUIRE(paths.size() >= 4);
  const Bytes kept = h.storage.Contents(paths[1]);
  h.storage.Delete(paths[1]);
  REQUIRE(h.Open().ok());
  CHECK(h.recovered.damaged && h.recovered.last_op > 0 && h.recovered.last_op < 400);
  CHECK(h.Holds(h.Replay(h.recovered.last_op)));
  h.TruncateHistory(h.recovered.last_op);
  CHECK(h.AppendAlone(2));
  REQUIRE(h.Open().ok());
  CHECK(!h.recovered.damaged && h.Holds(h.log));
}

// Without its marks a log still knows: a batch that has a successor was forced.
TEST(ALaterBatchProvesThatABatchWasForced) {
  SmallLog small(6);
  Harness& h = small.harness;
  for (size_t slot = 0; slot < kMarkSlots; ++slot) {
    std::fill_n(small.image.begin() + static_cast<ptrdiff_t>(MarkOffset(slot)), kWalAlignment,
                std::byte{0});
  }
  for (size_t place = 0; place < 6; ++place) {
    small.Restore();
    h.storage.FlipBit(small.path, (kSegmentHeaderBytes + place * 512 + 60) * 8);
    REQUIRE(h.Open().ok());
    CHECK(h.recovered.damaged == (place < 5));
    CHECK(h.recovered.last_op == place);
  }
}

// The process died between force and mark: the next start forces again and sets the mark itself.
TEST(AStartMarksWhatItForces) {
  SmallLog small(4);
  Harness& h = small.harness;
  for (size_t slot = 0; slot < kMarkSlots; ++slot) {
    std::fill_n(small.image.begin() + static_cast<ptrdiff_t>(MarkOffset(slot)), kWalAlignment,
                std::byte{0});
  }
  small.Restore();
  REQUIRE(h.Open().ok());
  CHECK(h.recovered.last_op == 4 && h.wal->counters().forces == 1);
  h.wal.reset();
  h.storage.FlipBit(small.path, (kSegmentHeaderBytes + 3 * 512 + 60) * 8);
  REQUIRE(h.Open().ok());
  CHECK(h.recovered.damaged && h.recovered.damaged_after_op == 3);
}

// A frame holds what looks like a later batch, and the batch with that frame is torn. Who does not
// know the salt cannot make a torn tail look like damage.
TEST(ABatchInsideAFrameIsNoBatch) {
  for (const bool knows_salt : {false, true}) {
    Harness h;
    REQUIRE(h.Open().ok());
    CHECK(h.AppendAlone(1));
    h.wal.reset();
    const std::string path = LastSegment(h.storage);
    Bytes image = h.storage.Contents(path);
    BatchHeader forged{};
    forged.entries = 1;
    forged.number = 9;
    Seal(&forged, knows_salt ? h.options.salt : 0);
    std::memcpy(image.data() + kSegmentHeaderBytes + 3 * kWalAlignment, &forged, sizeof forged);
    h.storage.SetContents(path, image);
    REQUIRE(h.Open().ok());
    CHECK(h.recovered.damaged == knows_salt && h.recovered.last_op == 1);
    CHECK(knows_salt || h.recovered.torn_bytes > 0);
  }
}

}  // namespace
}  // namespace falcon::test

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
