// The write-ahead log: what it keeps, what it tells apart, and that it never lies about either.
#include "log/wal.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

#include "log/log_index.h"
#include "os/spsc_queue.h"
#include "wal_fixture.h"

namespace falcon::test {
namespace {

bool Is(const Status& status, const char* code) { return std::strcmp(status.code(), code) == 0; }

TEST(QueueIsBoundedAndShowsOnlyWhatWasPublished) {
  SpscQueue<int> queue(4);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < 4; ++i) CHECK(queue.Push(round * 4 + i));
    CHECK(!queue.Push(99));
    CHECK(queue.Readable() == 0);
    queue.Publish();
    CHECK(queue.Readable() == 4);
    for (size_t i = 0; i < 4; ++i) CHECK(queue.Peek(i) == round * 4 + static_cast<int>(i));
    queue.Pop(3);
    CHECK(queue.Push(7) && queue.Push(8) && queue.Push(9) && !queue.Push(10));
    queue.Publish();
    CHECK(queue.Peek(1) == 7 && queue.Peek(3) == 9);
    queue.Pop(4);
  }
}

TEST(EmptyLogOpensAndReopens) {
  Harness h;
  REQUIRE(h.Open().ok());
  CHECK(h.recovered.last_op == 0 && h.recovered.first_op == 1 && !h.recovered.damaged);
  CHECK(h.wal->Step() == 0 && h.wal->durable() == 0 && h.wal->wake_fd() == -1);
  Bytes none;
  CHECK(h.wal->Read(1, 10, 1000, &none).ok() && none.empty());
  CHECK(Is(h.wal->Read(0, 10, 1000, &none), "WAL_RELEASED"));
  REQUIRE(h.Open().ok());
  CHECK(h.Holds({}));
}

TEST(WhatArrivesDuringAForceGoesOutTogether) {
  Harness h;
  REQUIRE(h.Open().ok());
  for (int i = 0; i < 50; ++i) CHECK(h.Append(1));
  CHECK(h.wal->Step() == 0);  // not flushed yet
  h.wal->Flush();
  CHECK(h.wal->Step() == 50);
  CHECK(h.wal->durable() == 50);
  CHECK(h.wal->counters().batches == 1 && h.wal->counters().forces == 1);
  CHECK(h.wal->counters().entries == 50 && h.wal->counters().bytes % kWalAlignment == 0);
  REQUIRE(h.Open().ok());
  CHECK(h.Holds(h.log));
}

TEST(BatchesAreBounded) {
  Harness h;
  REQUIRE(h.Open().ok());
  for (int i = 0; i < 5; ++i) CHECK(h.Append(1, kMaxPayloadBytes));
  CHECK(h.Append(1, 3000) && h.Append(1, 3000));
  CHECK(h.Drain());
  CHECK(h.wal->counters().batches == 6);
  CHECK(h.wal->counters().segments == 5);
  REQUIRE(h.Open().ok());
  CHECK(h.Holds(h.log));
}

TEST(FullQueueRefuses) {
  WalOptions options = SmallOptions();
  options.queue_entries = 8;
  Harness h(1, options);
  REQUIRE(h.Open().ok());
  for (int i = 0; i < 8; ++i) CHECK(h.Append(1));
  CHECK(!h.Append(1));
  CHECK(h.Drain());
  CHECK(h.Append(1));
}

TEST(SegmentsRollAndReadCrossesThem) {
  Harness h;
  REQUIRE(h.Open().ok());
  for (int i = 0; i < 400; ++i)
    CHECK(h.AppendAlone(1 + static_cast<View>(i) / 90, 900 + (i % 5) * 300));
  CHECK(h.wal->counters().segments > 3);
  for (Op from = 1; from <= 400; from += 37) CHECK(h.Reads(h.log, from, 401, 5000));
  CHECK(h.Reads(h.log, 100, 101));
  Bytes one;
  CHECK(h.wal->Read(5, 400, 1, &one).ok());  // the first entry even if it is larger
  CHECK(one == *h.log.live()[4]);
  CHECK(h.wal->Read(401, 500, 1000, &one).ok() && one.empty());
  REQUIRE(h.Open().ok());
  CHECK(h.Holds(h.log));
  CHECK(h.AppendAlone(9));
  REQUIRE(h.Open().ok());
  CHECK(h.Holds(h.log));
}

TEST(LaterEntryWinsAfterACut) {
  Harness h;
  REQUIRE(h.Open().ok());
  for (int i = 0; i < 20; ++i) CHECK(h.AppendAlone(1));
  for (int i = 0; i < 5; ++i) CHECK(h.AppendAlone(3));
  // A primary of view 4 that never saw view 3 feeds its entries of view 2: lower than those they
  // replace.
  CHECK(h.AppendAfter(20, 2, 50) && h.Append(4) && h.Drain());
  CHECK(h.wal->counters().batches == 26);
  CHECK(h.Reads(h.log, 1, 23));
  REQUIRE(h.Open().ok());
  CHECK(h.Holds(h.log));
  // Two cuts in one flush, the second one back to the start.
  CHECK(h.Append(4) && h.AppendAfter(10, 5, 10) && h.Append(5) && h.AppendAfter(0, 6, 10) &&
        h.Drain());
  CHECK(h.log.last_op() == 1);
  REQUIRE(h.Open().ok());
  CHECK(h.Holds(h.log));
  for (int i = 0; i < 300; ++i) CHECK(h.AppendAlone(7, 1000));
  CHECK(h.AppendAfter(3, 8, 10) && h.Drain());  // a cut across segments
  REQUIRE(h.Open().ok());
  CHECK(h.Holds(h.log));
}

TEST(AnotherNodesOrClustersLogIsRefused) {
  Harness h;
  REQUIRE(h.Open().ok());
  CHECK(h.AppendAlone(1));
  h.options.node = 1;
  CHECK(Is(h.Open(), "WAL_FOREIGN"));
  h.options.node = 2;
  h.options.cluster = "another";
  CHECK(Is(h.Open(), "WAL_FOREIGN"));
  h.options.cluster = "test cluster";
  CHECK(h.Open().ok());
}

TEST(ImpossibleOptionsAreRefused) {
  Harness h;
  h.options.queue_entries = 1000;
  CHECK(Is(h.Open(), "WAL_OPEN"));
  h.options = SmallOptions();
  h.options.batch_bytes = 1000;
  CHECK(Is(h.Open(), "WAL_OPEN"));
  h.options = SmallOptions();
  h.options.segment_bytes = 64 * 1024;
  CHECK(Is(h.Open(), "WAL_OPEN"));
}

TEST(AFullDiskStopsTheLog) {
  Harness h;
  REQUIRE(h.Open().ok());
  h.storage.SetCapacity(300 * 1024);
  while (h.AppendAlone(1, 2000)) continue;
  CHECK(h.wal->failed() && Is(h.wal->failure(), "WAL_FULL"));
  const size_t durable = h.durable();
  CHECK(durable > 50);
  CHECK(!h.Append(1));
  CHECK(h.wal->Step() == 0);
  h.storage.SetCapacity(UINT64_MAX);
  CHECK(!h.Drain() && h.durable() == durable);  // for ever
  REQUIRE(h.Open().ok());
  CHECK(h.Holds(h.Replay(durable)));
}

TEST(AFailedForceIsNeverRetriedAndNeverDurable) {
  Harness h;
  REQUIRE(h.Open().ok());
  for (int i = 0; i < 4; ++i) CHECK(h.AppendAlone(1));
  h.storage.FailForces(EIO);
  CHECK(!h.AppendAlone(1));
  CHECK(h.wal->failed() && Is(h.wal->failure(), "WAL_FAILED") && h.wal->durable() == 4);
  h.storage.FailForces(0);
  CHECK(h.wal->Step() == 0 && h.wal->durable() == 4);
  CHECK(!h.Append(1));
  // The next start reads the entry out of the page cache. It is not on disk, and no force would
  // write it: the log must make it durable before it counts.
  h.wal.reset();
  h.storage.KillProcess();
  REQUIRE(h.Open().ok());
  CHECK(h.recovered.last_op == 5);
  h.wal.reset();
  h.storage.LosePower();
  REQUIRE(h.Open().ok());
  CHECK(h.recovered.last_op == 5 && !h.recovered.damaged);
}

TEST(FailuresOfWriteAndRead) {
  for (const bool nothing : {false, true}) {
    Harness h;
    REQUIRE(h.Open().ok());
    CHECK(h.AppendAlone(1));
    if (nothing)
      h.storage.WriteNothing(true);
    else
      h.storage.FailWrites(EIO);
    CHECK(!h.AppendAlone(1));
    CHECK(Is(h.wal->failure(), "WAL_FAILED") && h.wal->durable() == 1);
  }
  Harness h;
  REQUIRE(h.Open().ok());
  CHECK(h.AppendAlone(1));
  h.storage.FailReads(EIO);
  Bytes into;
  CHECK(Is(h.wal->Read(1, 2, 1000, &into), "WAL_READ"));
  CHECK(Is(h.Open(), "WAL_READ"));
  h.storage.FailReads(0);
  REQUIRE(h.Open().ok());
  CHECK(h.Holds(h.log));
  h.storage.FlipBit(LastSegment(h.storage), (kSegmentHeaderBytes + 100) * 8);
  CHECK(Is(h.wal->Read(1, 2, 1000, &into), "WAL_READ"));
}

TEST(MemoryDurabilityNeverForces) {
  WalOptions options = SmallOptions();
  options.force = false;
  Harness h(1, options);
  REQUIRE(h.Open().ok());
  h.storage.FailForces(EIO);
  for (int i = 0; i < 300; ++i) CHECK(h.AppendAlone(1, 900));
  CHECK(h.wal->durable() == 300 && h.wal->counters().forces == 0);
  h.storage.KillProcess();
  h.wal.reset();
  REQUIRE(h.Open().ok());
  CHECK(h.Holds(h.log));
}

TEST(ReleaseRemovesWholeSegmentsAndKeepsTheRest) {
  WalOptions options = SmallOptions();
  options.retain_bytes = 3 * options.segment_bytes;
  Harness h(1, options);
  REQUIRE(h.Open().ok());
  for (int i = 0; i < 1000; ++i) CHECK(h.AppendAlone(1 + static_cast<View>(i) / 300, 1000));
  const uint64_t before = h.wal->counters().segments;
  CHECK(before > 8);
  h.wal->Release(900, 0);  // the hard floor wins
  h.wal->Step();
  CHECK(h.wal->counters().segments == before);
  h.wal->Release(900, 200);
  h.wal->Step();
  CHECK(h.wal->counters().segments < before && h.Reads(h.log, 200, 1001));
  h.wal->Release(0, 900);  // what somebody needs is kept a while longer, and not for ever
  h.wal->Step();
  CHECK(h.wal->counters().segments == 5);
  h.wal->Release(900, 900);
  h.wal->Step();
  CHECK(h.wal->counters().segments == 3);
  Bytes into;
  CHECK(Is(h.wal->Read(1, 2, 1000, &into), "WAL_RELEASED"));
  REQUIRE(h.Open().ok());
  CHECK(h.recovered.first_op > 500 && h.recovered.first_op <= 900);
  CHECK(h.Holds(h.log));
  CHECK(h.AppendAfter(h.recovered.first_op - 1, 8, 30) && h.Drain());  // cut to the very start
  REQUIRE(h.Open().ok());
  CHECK(h.Holds(h.log));
}

// Where the machine stops does not matter: for every stopping point and both ways to go down, what
// was durable is there, and what is there was appended.
TEST(EveryStoppingPointInARollAndARelease) {
  WalOptions options = SmallOptions();
  options.retain_bytes = options.segment_bytes;
  size_t stops = 0;
  for (uint64_t stop = 1; stop < 80; ++stop) {
    for (const bool power : {false, true}) {
      Harness h(stop, options);
      REQUIRE(h.Open().ok());
      for (int i = 0; i < 60; ++i) CHECK(h.AppendAlone(1, 2000));
      CHECK(h.AppendAfter(40, 2, 10) && h.Drain());
      h.storage.StopAfter(stop);
      h.wal->Release(40, 40);
      for (int i = 0; i < 30 && !h.wal->failed(); ++i) h.AppendAlone(3, 5000);
      stops += h.storage.stopped() ? 1 : 0;
      const size_t durable = h.durable();
      h.wal.reset();
      if (power)
        h.storage.LosePower();
      else
        h.storage.KillProcess();
      REQUIRE(h.Open().ok());
      CHECK(!h.recovered.damaged);
      const int64_t survived = h.Matches(durable);
      CHECK(survived >= 0);
      if (survived < 0) continue;
      h.TruncateHistory(static_cast<size_t>(survived));
      CHECK(h.AppendAlone(7));
      REQUIRE(h.Open().ok());
      CHECK(!h.recovered.damaged && h.Holds(h.log));
    }
  }
  CHECK(stops > 100);
}

// Entries of a log that has begun anew, one behind the other.
struct Chain {
  LogPosition at;
  std::deque<Bytes> entries;

  bool Append(Harness& h, View view, size_t payload_bytes) {
    Bytes entry = MakeEntry(view, at.op + 1, at.checksum, payload_bytes);
    const EntryHeader header = ReadEntryHeader(entry);
    entries.push_back(std::move(entry));
    if (h.wal->Append(entries.back()) == 0) return false;
    at = {header.op, header.view, header.checksum};
    h.wal->Flush();
    return true;
  }

  // True if the log in `h` is `base` and the first of these entries, at least `least` of them.
  [[nodiscard]] bool IsIn(Harness& h, const LogPosition& base, size_t least) const {
    const RecoveredLog& found = h.recovered;
    if (found.base != base || h.wal->base() != base || found.first_op != base.op + 1) return false;
    const size_t count = found.last_op - base.op;
    if (count < least || count > entries.size()) return false;
    Bytes wanted, all;
    for (size_t i = 0; i < count; ++i)
      wanted.insert(wanted.end(), entries[i].begin(), entries[i].end());
    const Status read = h.wal->Read(base.op + 1, found.last_op + 1, wanted.size() + 1, &all);
    const auto& table = found.view_table;
    return (count == 0 || read.ok()) && all == wanted && !table.empty() &&
           table.front().view == base.view && table.front().first_op == base.op &&
           found.last_view == table.back().view;
  }
};

void Drain(Harness& h) {
  h.wal->Flush();
  while (h.wal->Step() > 0) continue;
}

TEST(ALogBeginsAnew) {
  Harness h;
  REQUIRE(h.Open().ok());
  for (int i = 0; i < 200; ++i) CHECK(h.AppendAlone(1, 2000));
  const uint64_t before = h.wal->counters().segments;
  REQUIRE(before > 2);
  const LogPosition base{1000, 7, 0xABCDEF01};
  const uint64_t sequence = h.wal->Rebase(base);
  CHECK(sequence == 201 && h.wal->durable() == 200 && h.wal->base() == LogPosition{});
  Drain(h);
  CHECK(h.wal->durable() == sequence && h.wal->base() == base);
  Bytes into;
  CHECK(Is(h.wal->Read(200, 201, 1000, &into), "WAL_RELEASED"));
  CHECK(Is(h.wal->Read(1000, 1001, 1000, &into), "WAL_RELEASED"));
  for (uint64_t i = 0; i < before; ++i) h.wal->Step();  // what was there goes bit by bit
  CHECK(h.wal->counters().segments == 1);

  REQUIRE(h.Open().ok());
  Chain chain{base, {}};
  CHECK(h.recovered.last_op == 1000 && h.recovered.last_view == 7);
  CHECK(h.recovered.last_checksum == base.checksum && chain.IsIn(h, base, 0));
  for (int i = 0; i < 200; ++i) CHECK(chain.Append(h, 7 + static_cast<View>(i) / 100, 2000));
  Drain(h);
  REQUIRE(h.Open().ok());
  CHECK(h.recovered.last_op == 1200 && chain.IsIn(h, base, 200));

  // Cut to its very beginning, and begun anew once more.
  chain = {base, {}};
  CHECK(chain.Append(h, 9, 10));
  Drain(h);
  REQUIRE(h.Open().ok());
  CHECK(chain.IsIn(h, base, 1) && h.recovered.last_op == 1001);
  const LogPosition next{5000, 9, 5};
  CHECK(h.wal->Rebase(next) > 0);
  Drain(h);
  chain = {next, {}};
  CHECK(chain.Append(h, 9, 10));
  Drain(h);
  REQUIRE(h.Open().ok());
  CHECK(chain.IsIn(h, next, 1));
}

// Wherever the machine stops, what is found afterwards is the old log or the new one, and the new
// one if it was said to be durable; and it goes on from there, over a release too.
TEST(EveryStoppingPointWhereALogBeginsAnew) {
  WalOptions options = SmallOptions();
  options.retain_bytes = options.segment_bytes;
  size_t stops = 0, old_logs = 0, new_logs = 0, leftovers = 0;
  for (uint64_t stop = 1; stop < 60; ++stop) {
    for (const bool power : {false, true}) {
      Harness h(stop, options);
      REQUIRE(h.Open().ok());
      for (int i = 0; i < 150; ++i) CHECK(h.AppendAlone(1, 2000));
      const LogPosition base{1000, 7, 0xABCDEF01};
      h.storage.StopAfter(stop);
      const uint64_t sequence = h.wal->Rebase(base);
      Drain(h);
      Chain chain{base, {}};
      for (int i = 0; i < 20 && !h.wal->failed(); ++i) {
        if (!chain.Append(h, 8, 3000)) break;
        h.wal->Step();
      }
      stops += h.storage.stopped() ? 1 : 0;
      const uint64_t durable = h.wal->durable();
      h.wal.reset();
      if (power)
        h.storage.LosePower();
      else
        h.storage.KillProcess();
      REQUIRE(h.Open().ok());
      CHECK(!h.recovered.damaged);
      const bool anew = h.recovered.first_op > 1;
      CHECK(anew || durable < sequence);
      if (!anew) {
        ++old_logs;
        CHECK(h.Holds(h.log));
        continue;
      }
      ++new_logs;
      CHECK(chain.IsIn(h, base, durable < sequence ? 0 : durable - sequence));
      if (h.wal->counters().segments > 1) ++leftovers;
      const size_t count = h.recovered.last_op - base.op;
      chain.entries.resize(count);
      chain.at = {h.recovered.last_op, h.recovered.last_view, h.recovered.last_checksum};
      h.wal->Release(chain.at.op, chain.at.op);
      for (int i = 0; i < 200; ++i) {
        CHECK(chain.Append(h, 9, 2000));
        h.wal->Step();
        h.wal->Release(chain.at.op, chain.at.op);
      }
      Drain(h);
      const LogPosition released = h.wal->base();
      CHECK(released.op > base.op);
      REQUIRE(h.Open().ok());
      CHECK(!h.recovered.damaged && h.recovered.last_op == chain.at.op);
      chain.entries.erase(chain.entries.begin(),
                          chain.entries.begin() + static_cast<ptrdiff_t>(released.op - base.op));
      CHECK(chain.IsIn(h, released, chain.at.op - released.op));
    }
  }
  CHECK(stops > 60 && old_logs > 5 && new_logs > 60 && leftovers > 2);
}

// Nothing was written into the first one, so the second one's first batch has the same number.
TEST(ALogBeginsAnewTwiceWithoutAnEntryBetween) {
  for (const bool again : {false, true}) {
    Harness h;
    REQUIRE(h.Open().ok());
    for (int i = 0; i < 10; ++i) CHECK(h.AppendAlone(1));
    CHECK(h.wal->Rebase({1000, 7, 1}) > 0);
    Drain(h);
    if (again) {
      h.storage.LosePower();
      REQUIRE(h.Open().ok());
      CHECK(h.recovered.last_op == 1000);
    }
    const LogPosition base{2000, 8, 2};
    CHECK(h.wal->Rebase(base) > 0);
    Drain(h);
    for (int i = 0; i < 10; ++i) h.wal->Step();  // what was there goes
    CHECK(!h.wal->failed() && h.wal->counters().segments == 1);
    Chain chain{base, {}};
    for (int i = 0; i < 5; ++i) CHECK(chain.Append(h, 8, 100));
    Drain(h);
    h.storage.LosePower();
    REQUIRE(h.Open().ok());
    CHECK(!h.recovered.damaged && h.recovered.last_op == 2005);
    CHECK(chain.IsIn(h, base, 5));
  }
}

TEST(ALogThatCannotBeginAnewFails) {
  Harness h;
  REQUIRE(h.Open().ok());
  CHECK(h.AppendAlone(1));
  h.storage.SetCapacity(h.options.segment_bytes + 4096);
  CHECK(h.wal->Rebase({10, 1, 1}) == 2);
  Drain(h);
  CHECK(h.wal->failed() && Is(h.wal->failure(), "WAL_FULL") && h.wal->durable() == 1);
  h.storage.SetCapacity(UINT64_MAX);
  REQUIRE(h.Open().ok());
  CHECK(h.Holds(h.log));
}

// One random life of a log with everything that may happen to it.
void RandomLife(uint64_t seed) {
  Random random(seed);
  WalOptions options = SmallOptions();
  options.retain_bytes = options.segment_bytes * (1 + random.Below(4));
  Harness h(seed, options);
  h.storage.SetShortIo(random.Chance(1, 2));
  if (!h.Open().ok()) return Fail(__FILE__, __LINE__, "open");
  View view = 1;
  Op floor = 0;
  for (int round = 0; round < 12; ++round) {
    const uint64_t steps = random.Below(40);
    if (random.Chance(2, 3)) h.storage.StopAfter(1 + random.Below(3 * steps + 2));
    for (uint64_t step = 0; step < steps && !h.wal->failed(); ++step) {
      const uint64_t burst = 1 + random.Below(6);
      for (uint64_t i = 0; i < burst; ++i) {
        const size_t payload =
            random.Chance(1, 20) ? random.Below(kMaxPayloadBytes) : random.Below(1500);
        Op after = h.log.last_op();
        if (random.Chance(1, 12) && after > floor) after = floor + random.Below(after - floor + 1);
        view = std::max<View>(h.log.view_at(after), random.Chance(1, 6) ? view + 1 : 1);
        // The same viewstamp is the same entry: a replaced entry gets another view.
        if (after < h.log.last_op()) view = std::max(view, h.log.view_at(h.log.last_op()) + 1);
        h.AppendAfter(after, view, payload);
      }
      if (random.Chance(3, 4)) h.wal->Flush();
      if (random.Chance(1, 2)) h.wal->Step();
      if (random.Chance(1, 4)) {
        h.Drain();
        const Op last = h.log.last_op();
        if (!h.wal->failed() && last > floor + 5) {
          floor += random.Below(3);
          h.wal->Release(random.Chance(1, 2) ? floor : 0, floor);
          CHECK(h.Reads(h.log, floor + 1, last + 1, 1 + random.Below(20000)));
        }
      }
    }
    const size_t durable = h.durable();
    h.wal.reset();
    if (random.Chance(1, 2))
      h.storage.LosePower();
    else
      h.storage.KillProcess();
    const Status opened = h.Open();
    if (!opened.ok()) return Fail(__FILE__, __LINE__, opened.detail());
    if (h.recovered.damaged) return Fail(__FILE__, __LINE__, h.recovered.damage_detail);
    const int64_t survived = h.Matches(durable);
    if (survived < 0) return Fail(__FILE__, __LINE__, "lost or invented entries");
    h.TruncateHistory(static_cast<size_t>(survived));
    floor = std::max(floor, h.recovered.first_op - 1);
  }
}

TEST(RandomLivesAgainstANaiveLog) {
  uint64_t first = 1;
  uint64_t count = 150;
  if (const char* seed = std::getenv("WAL_SEED")) {
    first = std::strtoull(seed, nullptr, 10);
    count = 1;
  }
  for (uint64_t seed = first; seed < first + count; ++seed) {
    RandomLife(seed);
    if (Failures() > 0) {
      std::printf("# failing seed: WAL_SEED=%llu\n", static_cast<unsigned long long>(seed));
      return;
    }
  }
}

// A directory that is removed at the end.
struct TemporaryDirectory {
  TemporaryDirectory() { REQUIRE(::mkdtemp(path) != nullptr); }
  ~TemporaryDirectory() {
    const auto storage = MakePosixStorage();
    std::vector<std::string> names;
    const std::string log = std::string(path) + "/log";
    if (storage->List(log, &names) == 0) {
      for (const std::string& name : names) storage->Remove(log + "/" + name);
      ::rmdir(log.c_str());
    }
    ::rmdir(path);
  }
  char path[32] = "/tmp/falcon-wal-XXXXXX";
};

TEST(AThreadWritesToARealDisk) {
  TemporaryDirectory directory;
  const auto storage = MakePosixStorage();
  WalOptions options = SmallOptions();
  options.directory = std::string(directory.path) + "/log";
  options.queue_entries = 64;
  constexpr Op kEntries = 3000;
  std::vector<Bytes> entries;
  uint32_t previous = 0;
  for (Op op = 1; op <= kEntries; ++op) {
    entries.push_back(MakeEntry(1, op, previous, op % 700));
    previous = ReadEntryHeader(entries.back()).checksum;
  }
  for (const Nanoseconds spin : {Nanoseconds{0}, 20 * kMicrosecond}) {
    options.writer_spin = spin;
    RecoveredLog recovered;
    std::unique_ptr<Wal> wal;
    REQUIRE(OpenWal(*storage, options, &recovered, &wal).ok());
    const Op start = recovered.last_op;
    const Op end = start + kEntries / 2;
    REQUIRE(wal->StartThread().ok());
    REQUIRE(wal->wake_fd() >= 0);
    Op next = start;
    uint64_t slept = 0;
    while (wal->durable() < end - start) {
      uint64_t taken = 0;
      while (next < end && taken < 7 && wal->Append(entries[next]) != 0) ++next, ++taken;
      wal->Flush();
      if (taken > 0 && next < end) {
        Bytes some;
        CHECK(wal->Read(1, next, 3000, &some).ok());
        continue;
      }
      wal->ArmWake();
      if (wal->durable() < end - start && (next == end || taken == 0)) {
        pollfd wake{.fd = wal->wake_fd(), .events = POLLIN, .revents = 0};
        CHECK(::poll(&wake, 1, 5000) == 1);
        ++slept;
      }
      wal->DisarmWake();
    }
    CHECK(slept > 0);
    wal->StopThread();
    CHECK(!wal->failed() && wal->durable() == end - start);
    wal.reset();
    REQUIRE(OpenWal(*storage, options, &recovered, &wal).ok());
    CHECK(recovered.last_op == end && !recovered.damaged && recovered.torn_bytes == 0);
    Bytes first;
    CHECK(wal->Read(end, end + 1, 1, &first).ok() && first == entries[end - 1]);
  }
}

TEST(StoppingTheThreadDrainsTheQueue) {
  Harness h;
  REQUIRE(h.Open().ok());
  REQUIRE(h.wal->StartThread().ok());
  for (int i = 0; i < 200; ++i) CHECK(h.Append(1));
  h.wal->StopThread();
  CHECK(h.wal->durable() == 200);
  REQUIRE(h.wal->StartThread().ok());
  h.storage.FailForces(EIO);
  CHECK(h.Append(1));
  h.wal->ArmWake();
  h.wal->Flush();
  pollfd wake{.fd = h.wal->wake_fd(), .events = POLLIN, .revents = 0};
  CHECK(::poll(&wake, 1, 5000) == 1);  // a failure wakes the owner too
  CHECK(h.wal->failed() && h.wal->durable() == 200);
  h.wal->StopThread();
}

}  // namespace
}  // namespace falcon::test

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
