// Moving pages: over the simulated network with all its faults, over shm and over tcp.
#include "pages/page_mover.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "fabric/shm.h"
#include "fabric/sim.h"
#include "fabric_tcp_bed.h"
#include "os/clock.h"
#include "os/random.h"
#include "pages/guest_memory.h"

namespace {

using falcon::Fabric;
using falcon::GuestMemory;
using falcon::kPageBytes;
using falcon::PageMover;
using falcon::PageMoverOptions;
using falcon::PageSet;
using falcon::PeerState;
using falcon::Random;
using falcon::SimNetwork;
using falcon::Status;
using falcon::Tear;
using falcon::test::conformance::Is;

constexpr falcon::RegionId kGuest = 2;
constexpr size_t kPages = 700;

void Fill(std::span<std::byte> memory, uint64_t seed) {
  Random random(seed);
  for (size_t at = 0; at < memory.size(); at += 8) {
    const uint64_t word = random.Next();
    std::memcpy(memory.data() + at, &word, 8);
  }
}

PageSet Draw(Random* random) {
  PageSet pages(kPages);
  for (size_t strokes = random->Below(30); strokes > 0; --strokes) {
    const size_t first = random->Below(kPages);
    pages.SetRun({first, random->Below(std::min<size_t>(kPages - first, 60)) + 1});
  }
  return pages;
}

// A directory with the memories of a source and a target guest, full of different bytes.
struct Guests {
  Guests() {
    char name[] = "/dev/shm/falcon-mover-XXXXXX";
    CHECK(mkdtemp(name) != nullptr);
    directory = name;
    CHECK(GuestMemory::Create(directory + "/source", kPages * kPageBytes, &source).ok());
    CHECK(GuestMemory::Create(directory + "/target", kPages * kPageBytes, &target).ok());
    Fill(source.all(), 1);
    Fill(target.all(), 2);
  }
  ~Guests() {
    unlink((directory + "/source").c_str());
    unlink((directory + "/target").c_str());
    rmdir(directory.c_str());
  }
  Guests(const Guests&) = delete;
  Guests& operator=(const Guests&) = delete;

  [[nodiscard]] bool SamePage(size_t page) const {
    return std::memcmp(source.ram().data() + page * kPageBytes,
                       target.ram().data() + page * kPageBytes, kPageBytes) == 0;
  }
  // All of the set is there; and nothing else is, the trailer included.
  [[nodiscard]] bool Moved(const PageSet& pages) const {
    for (size_t page = 0; page < kPages; ++page) {
      if (SamePage(page) != pages.Test(page)) return false;
    }
    return TrailerIs(target.trailer(), 2);
  }
  // Of what is not in the set nothing was touched.
  [[nodiscard]] bool OnlyTouched(const PageSet& pages) const {
    std::vector<std::byte> before(target.all().size());
    Fill(before, 2);
    for (size_t page = 0; page <= kPages; ++page) {
      if (page < kPages && pages.Test(page)) continue;
      if (std::memcmp(before.data() + page * kPageBytes, target.all().data() + page * kPageBytes,
                      kPageBytes) != 0)
        return false;
    }
    return true;
  }
  static bool TrailerIs(std::span<const std::byte> trailer, uint64_t seed) {
    std::vector<std::byte> expected((kPages + 1) * kPageBytes);
    Fill(expected, seed);
    return std::equal(trailer.begin(), trailer.end(), expected.end() - kPageBytes);
  }
  // `owner` (member 1) lends the target to `writer` (member 0).
  [[nodiscard]] bool Lend(Fabric& owner, Fabric& writer) const {
    std::string grant;
    return owner.Expose(kGuest, 0, {target.all(), target.path()}, &grant).ok() &&
           writer.Attach(1, kGuest, grant).ok();
  }
  PageMover Mover(Fabric* fabric, const PageSet& pages,
                  const PageMoverOptions& options = {}) const {
    return {fabric, 1, kGuest, source.ram(), pages, options};
  }

  std::string directory;
  GuestMemory source;
  GuestMemory target;
};

// Moves everything, in steps of any size, with `drive` in between. False: it failed or hung.
bool MoveAll(PageMover* mover, Random* random, const std::function<void()>& drive) {
  const falcon::Nanoseconds give_up = falcon::MonotonicNow() + 60 * falcon::kSecond;
  while (!mover->Done() && falcon::MonotonicNow() < give_up) {
    const size_t most = random->Below(300 << 10);
    size_t posted = 0;
    if (!mover->Step(most, &posted).ok()) return false;
    CHECK(posted <= most && posted % kPageBytes == 0);
    CHECK(mover->progress().completed <= mover->progress().posted);
    drive();
  }
  return mover->Done();
}

struct SimPair {
  explicit SimPair(const falcon::SimOptions& options = {}) : network(options) {
    for (falcon::PeerId member : {0, 1}) {
      fabrics[member] = network.MakeFabric(member);
      CHECK(fabrics[member]->AddRegion(0, 4096).ok());
    }
    Connect(1);
  }
  void Connect(uint64_t connection) {
    CHECK(fabrics[0]->Connect(1, connection, fabrics[1]->Descriptor()).ok());
    CHECK(fabrics[1]->Connect(0, connection, fabrics[0]->Descriptor()).ok());
  }
  SimNetwork network;
  std::array<std::unique_ptr<Fabric>, 2> fabrics;
};

TEST(pages_arrive_and_nothing_else_changes) {
  Random random(1);
  for (int round = 0; round < 60; ++round) {
    const Guests guests;
    SimPair pair;
    REQUIRE(guests.Lend(*pair.fabrics[1], *pair.fabrics[0]));
    const PageSet pages = Draw(&random);
    PageMoverOptions options;
    options.write_bytes = (1 + random.Below(16)) * kPageBytes;
    options.outstanding_bytes = options.write_bytes + random.Below(1 << 20);
    options.outstanding_writes = 1 + random.Below(PageMoverOptions::kMaxWrites);
    PageMover mover = guests.Mover(pair.fabrics[0].get(), pages, options);
    CHECK(MoveAll(&mover, &random, [&] {
      CHECK(pair.network.Pending(0, 1) <= options.outstanding_writes);
      CHECK((mover.progress().posted - mover.progress().completed) * kPageBytes <=
            options.outstanding_bytes);
      for (size_t i = random.Below(8); i > 0; --i)
        pair.network.DeliverPart(0, 1, random.Below(100000));
    }));
    CHECK(guests.Moved(pages));
    const falcon::PageProgress& progress = mover.progress();
    CHECK(progress.pages == pages.Count() && progress.posted == progress.pages);
    CHECK(progress.completed == progress.pages && pair.network.Pending(0, 1) == 0);
  }
}

// Some pages whole, of others some blocks: exactly these bytes arrive, whatever the steps.
TEST(parts_of_pages_arrive_and_nothing_else_changes) {
  Random random(9);
  for (int round = 0; round < 40; ++round) {
    const Guests guests;
    SimPair pair;
    REQUIRE(guests.Lend(*pair.fabrics[1], *pair.fabrics[0]));
    PageSet whole = Draw(&random);
    std::vector<falcon::PagePart> parts;
    std::vector<std::byte> expected(guests.target.ram().begin(), guests.target.ram().end());
    uint64_t bytes = 0;
    const auto take = [&](size_t at, size_t count) {
      std::memcpy(&expected[at], guests.source.ram().data() + at, count);
      bytes += count;
    };
    for (size_t page = 0; page < kPages; ++page) {
      if (whole.Test(page)) take(page * kPageBytes, kPageBytes);
      if (whole.Test(page) || random.Below(3) > 0) continue;
      falcon::PagePart part{page, 0};
      for (size_t i = 1 + random.Below(20); i > 0; --i)
        part.blocks |= uint64_t{1} << random.Below(64);
      if (random.Below(10) == 0) part.blocks = ~uint64_t{0};
      for (size_t i = 0; i < falcon::kPageBlocks; ++i) {
        if ((part.blocks >> i & 1) != 0)
          take(page * kPageBytes + i * falcon::kBlockBytes, falcon::kBlockBytes);
      }
      parts.push_back(part);
    }
    const size_t count = whole.Count() + parts.size();
    PageMover mover = guests.Mover(pair.fabrics[0].get(), whole);
    mover.AddParts(parts);
    const falcon::Nanoseconds give_up = falcon::MonotonicNow() + 60 * falcon::kSecond;
    while (!mover.Done() && falcon::MonotonicNow() < give_up) {
      size_t posted = 0;
      REQUIRE(mover.Step(random.Below(100 << 10), &posted).ok());
      for (size_t i = random.Below(40); i > 0; --i)
        pair.network.DeliverPart(0, 1, random.Below(100000));
    }
    const falcon::PageProgress& progress = mover.progress();
    CHECK(mover.Done() && progress.pages == count && progress.posted == count);
    CHECK(progress.completed == count && progress.bytes == bytes);
    CHECK(std::equal(expected.begin(), expected.end(), guests.target.ram().begin()));
  }
}

TEST(neighbours_go_together) {
  const Guests guests;
  SimPair pair;
  REQUIRE(guests.Lend(*pair.fabrics[1], *pair.fabrics[0]));
  PageSet pages(kPages);
  pages.SetRun({10, 40});  // 16 + 16 + 8
  pages.Set(99);
  PageMover mover = guests.Mover(pair.fabrics[0].get(), pages);
  size_t posted = 0;
  CHECK(mover.Step(kPageBytes - 1, &posted).ok() && posted == 0);
  CHECK(mover.Step(10 << 20, &posted).ok() && posted == 41 * kPageBytes);
  CHECK(mover.progress().writes == 4 && pair.network.Pending(0, 1) == 4 && !mover.Done());
  CHECK(pair.network.NextBytes(0, 1) == falcon::PageMoverOptions{}.write_bytes);
  pair.network.DeliverEverything();
  CHECK(mover.Step(0, &posted).ok() && posted == 0 && mover.Done());
  CHECK(mover.Step(10 << 20, &posted).ok() && posted == 0);
  CHECK(guests.Moved(pages));
}

TEST(an_empty_set_is_done) {
  const Guests guests;
  SimPair pair;
  REQUIRE(guests.Lend(*pair.fabrics[1], *pair.fabrics[0]));
  PageMover mover = guests.Mover(pair.fabrics[0].get(), PageSet(kPages));
  CHECK(mover.Done() && guests.Moved(PageSet(kPages)));
}

// The queue is shared with other traffic, which fills it.
TEST(a_full_queue_is_waited_for) {
  const Guests guests;
  falcon::SimOptions options;
  options.queue_bound = 4;
  SimPair pair(options);
  REQUIRE(guests.Lend(*pair.fabrics[1], *pair.fabrics[0]));
  PageSet pages(kPages);
  pages.SetRun({0, 200});
  PageMover mover = guests.Mover(pair.fabrics[0].get(), pages);
  Random random(4);
  const uint64_t word = 5;
  size_t others = 0;
  CHECK(MoveAll(&mover, &random, [&] {
    const auto bytes = std::as_bytes(std::span(&word, 1));
    while (falcon::test::conformance::WriteOne(*pair.fabrics[0], 1, {0, 0}, bytes).ok()) ++others;
    size_t posted = 1;
    CHECK(mover.Step(1 << 20, &posted).ok() && posted == 0);
    for (size_t i = random.Below(4); i > 0; --i) pair.network.DeliverNext(0, 1);
  }));
  CHECK(guests.Moved(pages) && others > 0);
}

// A page may change while it is sent; what is sent in the next round is what counts.
TEST(a_page_that_changes_is_sent_again) {
  Random random(6);
  const Guests guests;
  SimPair pair;
  REQUIRE(guests.Lend(*pair.fabrics[1], *pair.fabrics[0]));
  PageSet pages(kPages);
  pages.SetAll();
  PageSet dirty(kPages);
  PageMover first = guests.Mover(pair.fabrics[0].get(), pages);
  CHECK(MoveAll(&first, &random, [&] {
    const size_t page = random.Below(kPages);
    dirty.Set(page);
    guests.source.ram()[page * kPageBytes + random.Below(kPageBytes)] ^= std::byte{1};
    pair.network.DeliverPart(0, 1, random.Below(200000), Tear::kWords);
    dirty.Set(page);
  }));
  PageMover second = guests.Mover(pair.fabrics[0].get(), dirty);
  CHECK(MoveAll(&second, &random, [&] { pair.network.DeliverAll(0, 1); }));
  CHECK(!dirty.Empty() && guests.Moved(pages));
}

TEST(a_broken_connection_ends_it_with_a_code) {
  Random random(8);
  for (int round = 0; round < 80; ++round) {
    const Guests guests;
    SimPair pair;
    REQUIRE(guests.Lend(*pair.fabrics[1], *pair.fabrics[0]));
    PageSet pages(kPages);
    pages.SetRun({100, 500});
    PageMover mover = guests.Mover(pair.fabrics[0].get(), pages);
    size_t steps = random.Below(20);
    const bool done = MoveAll(&mover, &random, [&] {
      pair.network.DeliverPart(0, 1, random.Below(300000));
      if (steps-- > 0) return;
      steps = 1000;
      if (round % 4 == 0) pair.network.Break(0, 1);
      if (round % 4 == 1) pair.fabrics[1]->Conceal(kGuest);
      if (round % 4 == 2) pair.fabrics[0]->Disconnect(1);
      if (round % 4 == 3) pair.Connect(2);  // counts begin anew, and nothing is attached
    });
    CHECK(!done && !mover.Done());
    CHECK(Is(mover.failure(), "FABRIC_DOWN") ||
          (round % 4 == 3 && Is(mover.failure(), "FABRIC_BOUNDS")));
    size_t posted = 1;
    CHECK(!mover.Step(1 << 20, &posted).ok() && posted == 0);
    pair.network.DeliverEverything();
    CHECK(guests.OnlyTouched(pages));
    CHECK(mover.progress().completed < mover.progress().pages);
  }
}

// Lost without a word: it never says that it is done.
TEST(what_is_lost_is_never_done) {
  const Guests guests;
  SimPair pair;
  REQUIRE(guests.Lend(*pair.fabrics[1], *pair.fabrics[0]));
  PageSet pages(kPages);
  pages.SetRun({0, 40});
  PageMover mover = guests.Mover(pair.fabrics[0].get(), pages);
  size_t posted = 0;
  CHECK(mover.Step(1 << 20, &posted).ok() && posted == 40 * kPageBytes);
  pair.network.DeliverNext(0, 1);
  pair.network.DropAll(0, 1);
  for (int i = 0; i < 100; ++i) CHECK(mover.Step(1 << 20, &posted).ok() && posted == 0);
  CHECK(!mover.Done() && mover.progress().completed == 16);
  pair.network.Break(0, 1);
  CHECK(Is(mover.Step(1 << 20, &posted), "FABRIC_DOWN"));
}

// What the session does at the end: a marker behind the last page, in the trailer.
TEST(a_marker_comes_behind_the_last_page) {
  Random random(9);
  for (int round = 0; round < 20; ++round) {
    const Guests guests;
    SimPair pair;
    REQUIRE(guests.Lend(*pair.fabrics[1], *pair.fabrics[0]));
    const PageSet pages = Draw(&random);
    PageMover mover = guests.Mover(pair.fabrics[0].get(), pages);
    CHECK(MoveAll(&mover, &random, [&] {
      if (mover.progress().posted < mover.progress().pages)
        pair.network.DeliverPart(0, 1, 50000);
      else
        pair.network.DeliverAll(0, 1);
    }));
    const uint64_t marker = 0xABCD;
    CHECK(falcon::test::conformance::WriteOne(*pair.fabrics[0], 1, {kGuest, kPages * kPageBytes},
                                              std::as_bytes(std::span(&marker, 1)))
              .ok());
    uint64_t seen = 0;
    while (seen != marker) {
      REQUIRE(pair.network.DeliverPart(0, 1, 8) > 0);
      std::memcpy(&seen, guests.target.trailer().data(), 8);
    }
    for (size_t page = 0; page < kPages; ++page) CHECK(guests.SamePage(page) == pages.Test(page));
  }
}

TEST(over_shm) {
  Random random(21);
  for (int round = 0; round < 20; ++round) {
    const Guests guests;
    std::array<std::unique_ptr<Fabric>, 2> fabrics;
    for (falcon::PeerId member : {0, 1}) {
      const falcon::ShmOptions options = {guests.directory, "m" + std::to_string(member), member};
      REQUIRE(MakeShmFabric(options, &fabrics[member]).ok());
      CHECK(fabrics[member]->AddRegion(0, 4096).ok());
    }
    CHECK(fabrics[0]->Connect(1, 1, fabrics[1]->Descriptor()).ok());
    CHECK(fabrics[1]->Connect(0, 1, fabrics[0]->Descriptor()).ok());
    REQUIRE(guests.Lend(*fabrics[1], *fabrics[0]));
    const PageSet pages = Draw(&random);
    PageMover mover = guests.Mover(fabrics[0].get(), pages);
    if (round % 2 == 0) {
      CHECK(MoveAll(&mover, &random, [] {}) && guests.Moved(pages));
      continue;
    }
    size_t posted = 0;
    CHECK(mover.Step(20 * kPageBytes, &posted).ok());
    fabrics[1]->Conceal(kGuest);
    if (mover.Done()) continue;
    CHECK(Is(mover.Step(1 << 20, &posted), "FABRIC_DOWN") && posted == 0 && !mover.Done());
    CHECK(fabrics[0]->State(1) == PeerState::kBroken && guests.OnlyTouched(pages));
  }
}

TEST(over_tcp) {
  using falcon::test::tcp::ConnectBoth;
  using falcon::test::tcp::MakeMember;
  using falcon::test::tcp::PollUntil;
  Random random(22);
  for (int round = 0; round < 12; ++round) {
    const Guests guests;
    const auto writer = MakeMember(0);
    const auto owner = MakeMember(1);
    REQUIRE(writer != nullptr && owner != nullptr && ConnectBoth(*writer, 0, *owner, 1, 1));
    REQUIRE(guests.Lend(*owner, *writer));
    PageSet pages = Draw(&random);
    pages.SetRun({0, 300});
    PageMover mover = guests.Mover(writer.get(), pages);
    const auto drive = [&] {
      writer->Poll();
      owner->Poll();
    };
    if (round % 3 == 0) {
      CHECK(MoveAll(&mover, &random, drive));
      const uint64_t marker = 0xABCD;
      CHECK(falcon::test::conformance::WriteOne(*writer, 1, {kGuest, kPages * kPageBytes},
                                                std::as_bytes(std::span(&marker, 1)))
                .ok());
      CHECK(PollUntil({writer.get(), owner.get()}, [&] {
        return falcon::LoadSharedWord(guests.target.trailer().data()) == marker;
      }));
      for (size_t page = 0; page < kPages; ++page) CHECK(guests.SamePage(page) == pages.Test(page));
      continue;
    }
    size_t steps = 1 + random.Below(4);
    std::vector<std::byte> then;
    const bool done = MoveAll(&mover, &random, [&] {
      drive();
      if (--steps != 0) return;
      if (round % 3 == 1) owner->Conceal(kGuest);
      if (round % 3 == 2) owner->Disconnect(0);
      then.assign(guests.target.all().begin(), guests.target.all().end());
    });
    // All may have been in the kernel before the owner said no; then the writer learns of it later.
    CHECK(done || Is(mover.failure(), "FABRIC_DOWN"));
    CHECK(PollUntil({writer.get(), owner.get()},
                    [&] { return writer->State(1) != PeerState::kUp || then.empty(); }));
    CHECK(then.empty() || std::equal(then.begin(), then.end(), guests.target.all().begin()));
    CHECK(guests.OnlyTouched(pages));
  }
}

}  // namespace

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
