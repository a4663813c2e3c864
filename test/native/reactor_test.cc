// A whole reactor with its threads: what the stepped tests of the plane cannot see.
#include "plane/reactor.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "os/check.h"
#include "os/clock.h"
#include "os/unique_fd.h"
#include "pages/guest_memory.h"
#include "reactor_place.h"

namespace {

std::atomic<uint64_t> allocations{0};

}  // namespace

void* operator new(size_t bytes) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  void* memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) std::abort();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace {

using namespace falcon;
using falcon::test::Place;

ReactorOptions Alone(const Place& place) {
  ReactorOptions o;
  o.plane.members = 1;
  o.plane.log_bytes = 1 << 20;
  o.plane.log_entries = 1 << 12;
  o.plane.ring_bytes = 1 << 16;
  o.plane.heartbeat_interval = kSecond;
  o.plane.lease = 10 * kSecond;
  o.plane.decider_stall = 100 * kSecond;
  o.wal.directory = place.root + "/wal";
  o.wal.cluster = "test";
  o.wal.segment_bytes = 4 << 20;
  o.shm_directory = place.root + "/shm";
  o.shm_name = "alone";
  o.vm = false;
  o.spin = 0;
  return o;
}

PlaneSnapshot SnapshotOf(Reactor& reactor, LoadResult* load) {
  PlaneSnapshot snapshot;
  reactor.TakeSnapshot(&snapshot, load);
  return snapshot;
}

bool Lead(Reactor& reactor) {
  reactor.Post([](DataPlane& plane) { plane.Promise(1); });
  reactor.Post([](DataPlane& plane) { plane.Lead(1); });
  LoadResult load;
  for (int i = 0; i < 2000; ++i) {
    if (SnapshotOf(reactor, &load).commit_op >= 1) return true;
    usleep(1000);
  }
  return false;
}

// What a lone force takes here.
Nanoseconds ForceTime(const Place& place) {
  const std::string path = place.root + "/force";
  const UniqueFd file(open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  std::vector<Nanoseconds> times;
  for (int i = 0; i < 9; ++i) {
    const Nanoseconds from = MonotonicNow();
    FALCON_CHECK(pwrite(file.get(), "falcon", 6, 0) == 6 && fdatasync(file.get()) == 0);
    times.push_back(MonotonicNow() - from);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

TEST(a_forced_entry_wakes_the_reactor) {
  const Place place;
  Reactor reactor;
  CHECK(reactor.Open(Alone(place)).ok());
  CHECK(reactor.Start([] {}).ok());
  CHECK(Lead(reactor));
  LoadOptions options;
  options.entries = 50;
  reactor.StartLoad(options);
  LoadResult load;
  for (int i = 0; i < 5000 && !load.done; ++i) {
    usleep(1000);
    SnapshotOf(reactor, &load);
  }
  CHECK(load.done);
  // A sleep that nothing ends lasts 10 ms.
  CHECK(load.p50 < 5 * kMillisecond + 3 * ForceTime(place));
  reactor.Stop();
}

// The calling thread stays on the first processor that it may use.
void StayOnOneProcessor() {
  cpu_set_t allowed;
  FALCON_CHECK(sched_getaffinity(0, sizeof allowed, &allowed) == 0);
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++i) {
    if (CPU_ISSET(i, &allowed)) CPU_SET(i, &one);
  }
  FALCON_CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
}

// A connection is prepared beside the reactor: it is there some time after the command.
bool Hears(Reactor& reactor, PeerId peer) {
  for (int i = 0; i < 5000; ++i) {
    LoadResult load;
    if (SnapshotOf(reactor, &load).words_at[peer] != 0) return true;
    usleep(1000);
  }
  return false;
}

// A scheduler can leave two reactors that never sleep on one processor for ever. Each of them must
// not wait for the other's answer until its time slice is over.
TEST(busy_reactors_on_one_processor_let_each_other_run) {
  const Place place;
  Reactor reactors[2];
  for (PeerId i = 0; i < 2; ++i) {
    const std::string name = "m" + std::to_string(i);
    ReactorOptions options = Alone(place);
    options.plane.self = i;
    options.plane.members = 2;
    options.plane.force = options.wal.force = false;
    options.wal.directory += name;
    options.shm_name = name;
    options.busy = true;
    CHECK(reactors[i].Open(options).ok());
    CHECK(reactors[i].Start([] {}).ok());
    reactors[i].Post([](DataPlane&) { StayOnOneProcessor(); });
  }
  for (PeerId i = 0; i < 2; ++i) {
    const PeerId other = 1 - i;
    reactors[i].Connect(other, 7, reactors[other].descriptor());
    reactors[i].Post([](DataPlane& plane) { plane.Promise(1); });
  }
  for (PeerId i : {0, 1}) REQUIRE(Hears(reactors[i], 1 - i));
  // Both stand at the beginning of the log, so nothing has to be learned first.
  reactors[0].Post([](DataPlane& plane) { plane.Lead(1); });
  LoadResult load;
  for (int i = 0; i < 2000 && SnapshotOf(reactors[0], &load).role != PlaneRole::kLeading; ++i)
    usleep(1000);
  reactors[0].Post([](DataPlane& plane) { plane.Feed(1, 1, 0); });
  reactors[1].Post([](DataPlane& plane) { plane.Follow(1, 0, 0); });
  for (int i = 0; i < 2000 && SnapshotOf(reactors[0], &load).commit_op == 0; ++i) usleep(1000);
  LoadOptions options;
  options.entries = 200;
  reactors[0].StartLoad(options);
  for (int i = 0; i < 20000 && !load.done; ++i) {
    usleep(1000);
    SnapshotOf(reactors[0], &load);
  }
  std::printf("# p50 %.3f ms, p99 %.3f ms\n", static_cast<double>(load.p50) / 1e6,
              static_cast<double>(load.p99) / 1e6);
  CHECK(load.done);
  CHECK(load.p50 < kMillisecond);
  for (Reactor& reactor : reactors) reactor.Stop();
}

// Append, force, commit, on both threads: the tables have their size from the start.
std::vector<std::byte> EventOf(Reactor& reactor, PlaneEvent::Kind kind) {
  for (int i = 0; i < 5000; ++i) {
    std::vector<PlaneEvent> events;
    std::vector<VmHappened> vm;
    reactor.TakeEvents(&events, &vm);
    for (const PlaneEvent& event : events)
      if (event.kind == kind) return event.bytes;
    usleep(1000);
  }
  return {};
}

// A daemon is told to stop at any moment of a session, which holds memory of the fabric's, maps a
// guest's, and has something done aside. What it touches too late is seen by a sanitizer.
TEST(a_reactor_ends_whatever_its_session_does) {
  constexpr size_t kRam = 8 << 20;
  for (const char* end : {"preparing", "open", "closed"}) {
    const Place place;
    std::filesystem::create_directory(place.root + "/shm");
    std::filesystem::permissions(place.root + "/shm", std::filesystem::perms::owner_all);
    std::vector<std::unique_ptr<Reactor>> reactors;
    std::vector<TransferOptions> options(2);
    for (PeerId i : {0, 1}) {
      const std::string own = std::to_string(i);
      ReactorOptions o = Alone(place);
      o.plane.self = i;
      o.plane.members = 2;
      o.wal.directory += own;
      o.wal.node = i;
      o.shm_name = "member" + own;
      std::filesystem::create_directory(o.wal.directory);
      reactors.push_back(std::make_unique<Reactor>());
      REQUIRE(reactors[i]->Open(o).ok());
      REQUIRE(reactors[i]->Start([] {}).ok());
      options[i].session = 9;
      options[i].source = i == 0;
      options[i].peer = 1 - i;
      options[i].ram_bytes = kRam;
      options[i].ram_path = place.root + "/shm/ram" + own;
      options[i].inbox_path = place.root + "/shm/inbox" + own;
      GuestMemory memory;
      REQUIRE(GuestMemory::Create(options[i].ram_path, kRam, &memory).ok());
    }
    for (PeerId i : {0, 1}) reactors[i]->Connect(1 - i, 7, reactors[1 - i]->descriptor());
    for (PeerId i : {0, 1}) REQUIRE(Hears(*reactors[i], 1 - i));
    for (PeerId i : {0, 1}) {
      reactors[i]->Post([o = options[i]](DataPlane& plane) { plane.TransferOpen(o); });
      if (end == std::string("preparing")) continue;
      const auto grants = EventOf(*reactors[i], PlaneEvent::Kind::kTransferOpened);
      REQUIRE(grants.size() > 2);
      const std::string text(reinterpret_cast<const char*>(grants.data()), grants.size());
      const size_t inbox = static_cast<uint8_t>(text[0]) | static_cast<size_t>(text[1]) << 8;
      if (i == 0) options[1].grant = text.substr(2, inbox);
      if (i == 1) {
        reactors[0]->Post(
            [own = text.substr(2, inbox), ram = text.substr(2 + inbox)](DataPlane& plane) {
              plane.TransferAttach(9, own, ram);
              plane.TransferRound(9, 1, RoundPages::kResident, false);
            });
      }
    }
    if (end == std::string("closed")) {
      for (auto& reactor : reactors)
        reactor->Post([](DataPlane& plane) { plane.TransferClose(9); });
      for (auto& reactor : reactors)
        reactor->Post([](DataPlane& plane) { plane.TransferSettle(9); });
      for (auto& reactor : reactors) (void)EventOf(*reactor, PlaneEvent::Kind::kTransferSettled);
    }
    reactors.clear();
    // Its inboxes have gone with it.
    CHECK(!std::filesystem::exists(options[0].inbox_path));
    CHECK(!std::filesystem::exists(options[1].inbox_path));
  }
}

TEST(entries_allocate_nothing) {
  const Place place;
  ReactorOptions options = Alone(place);
  options.plane.force = options.wal.force = false;
  Reactor reactor;
  CHECK(reactor.Open(options).ok());
  CHECK(reactor.Start([] {}).ok());
  CHECK(Lead(reactor));
  const auto run = [&](uint64_t entries) {
    LoadOptions load_options;
    load_options.entries = entries;
    load_options.depth = 8;
    reactor.StartLoad(load_options);
    LoadResult load;
    for (int i = 0; i < 20000 && (!load.done || load.entries != entries); ++i) {
      usleep(1000);
      SnapshotOf(reactor, &load);
    }
    CHECK(load.done);
  };
  run(2000);
  const uint64_t before_small = allocations.load();
  run(1000);
  const uint64_t small = allocations.load() - before_small;
  const uint64_t before_large = allocations.load();
  run(21000);
  const uint64_t large = allocations.load() - before_large;
  // Starting a load allocates; twenty thousand more entries must not show.
  CHECK(large < small + 200);
  std::printf("# 1000 entries: %llu allocations, 21000 entries: %llu\n",
              static_cast<unsigned long long>(small), static_cast<unsigned long long>(large));
  reactor.Stop();
}

}  // namespace

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
