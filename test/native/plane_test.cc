// Two data planes on the simulated fabric, step by step: what the cluster simulation meets only by
// luck.
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "fabric/sim.h"
#include "log/sim_storage.h"
#include "os/check.h"
#include "plane/data_plane.h"
#include "plane/transfer_parts.h"
#include "vm/vm_rings.h"

namespace {

using namespace falcon;

struct FixedClock final : Clock {
  Nanoseconds Now() override { return now += per_look; }
  Nanoseconds now = kSecond;
  Nanoseconds per_look = 0;  // what happens between two looks takes so long
};

struct Nowhere final : WireSink {
  bool Write(Frame) override { return true; }
};

struct Member {
  VmRings rings;  // empty: it runs no guest
  SimStorage storage{1};
  RecoveredLog recovered;
  std::unique_ptr<Wal> wal;
  std::unique_ptr<Fabric> fabric;
  std::unique_ptr<DataPlane> plane;
};

class Pair {
 public:
  explicit Pair(size_t ring_bytes, size_t members = 3, bool guests = false, bool force = true,
                const SimOptions& sim = {.lazy_completions = true})
      : network(sim) {
    for (PeerId i = 0; i < 2; ++i) {
      PlaneOptions options;
      options.force = force;
      options.self = i;
      options.members = members;
      options.log_bytes = 1 << 20;
      options.log_entries = 1 << 12;
      options.ring_bytes = ring_bytes;
      WalOptions wal;
      wal.directory = "/wal";
      wal.force = force;
      wal.cluster = "test";
      wal.node = i;
      wal.segment_bytes = 4 << 20;
      ready_ = ready_ && OpenWal(member[i].storage, wal, &member[i].recovered, &member[i].wal).ok();
      member[i].fabric = network.MakeFabric(i);
      ready_ = ready_ && member[i].fabric->AddRegion(0, DataPlane::RegionBytes(options)).ok();
      if (guests) ready_ = ready_ && member[i].rings.Make(1 << 20).ok();
      member[i].plane = std::make_unique<DataPlane>(options, &clock, member[i].fabric.get(),
                                                    member[i].wal.get(), member[i].recovered,
                                                    guests ? &member[i].rings : nullptr, &wire);
    }
    ready_ = ready_ && member[0].plane->Connect(1, 77, member[1].fabric->Descriptor()).ok();
    ready_ = ready_ && member[1].plane->Connect(0, 77, member[0].fabric->Descriptor()).ok();
  }

  void Poll(PeerId i) {
    clock.now += 10 * kMicrosecond;
    member[i].plane->Tick(clock.now);
    member[i].plane->PollOnce(clock.now);
    member[i].wal->Step();
  }

  void Settle() {
    for (int round = 0; round < 20; ++round) {
      Poll(0);
      Poll(1);
      network.DeliverEverything();
    }
  }

  // Member 0 leads view 1, member 1 follows it.
  bool Lead() {
    for (auto& m : member) m.plane->Promise(1);
    Settle();
    member[0].plane->Lead(1);
    Settle();
    member[0].plane->Feed(1, 1, 0);
    member[1].plane->Follow(1, 0, 0);
    Settle();
    return ready_ && member[1].plane->last_op() == member[0].plane->last_op();
  }

  int Count(PeerId i, PlaneEvent::Kind kind) {
    int count = 0;
    for (const PlaneEvent& event : member[i].plane->events()) count += event.kind == kind ? 1 : 0;
    return count;
  }

  // Until this has been told there, for what is done by threads of its own.
  bool Until(PeerId i, PlaneEvent::Kind kind, int count = 1) {
    const Nanoseconds give_up = MonotonicNow() + 60 * kSecond;
    while (Count(i, kind) < count) {
      if (Count(i, PlaneEvent::Kind::kTransferFailed) > 0 || MonotonicNow() > give_up) return false;
      Settle();
    }
    return true;
  }

  SimNetwork network;
  FixedClock clock;
  Nowhere wire;
  Member member[2];

 private:
  bool ready_ = true;
};

// An entry of this payload and its record are 128 bytes, so that records of every lap lie at the
// same places.
constexpr size_t kPayload = 40;
const std::vector<std::byte> payload(kPayload, std::byte{7});

// The grants that a plane told when it opened its side.
std::string Opened(const Member& m, size_t which) {
  for (const PlaneEvent& event : m.plane->events()) {
    if (event.kind != PlaneEvent::Kind::kTransferOpened) continue;
    const std::string text(reinterpret_cast<const char*>(event.bytes.data()), event.bytes.size());
    const size_t inbox = static_cast<uint8_t>(text[0]) | static_cast<size_t>(text[1]) << 8;
    return which == 0 ? text.substr(2, inbox) : text.substr(2 + inbox);
  }
  return {};
}

// Gone with all that is in it, also when a test ends early.
class Folder {
 public:
  Folder() { FALCON_CHECK(mkdtemp(path_.data()) != nullptr); }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_ = "/dev/shm/falcon-plane-XXXXXX";
};

// Delivery stands for as long as it takes to look at a guest; two of these threads that did not
// sleep meanwhile would leave no processor to whoever is to end that.
TEST(APlaneWhoseDeliveryStandsSleeps) {
  const Folder folder;
  const std::string directory = folder.path(), state = directory + "/state";
  REQUIRE(WriteFile(state, payload).ok());
  Pair pair(8 << 10, 3, true);
  REQUIRE(pair.Lead());
  REQUIRE(pair.member[0].plane->Propose(EntryKind::kVmBoot, std::vector<std::byte>(8)));
  pair.Settle();
  for (auto& m : pair.member) {
    Op boot = 0;
    for (const PlaneEvent& event : m.plane->events())
      if (event.entry_kind == EntryKind::kVmBoot) boot = event.op;
    m.plane->SetGuest(GuestMode::kRunning, boot);
  }
  pair.Settle();

  TransferOptions options;
  options.session = 5;
  options.verify = true;
  options.source = true;
  options.peer = 1;
  options.inbox_path = directory + "/inbox";
  pair.member[0].plane->TransferOpen(options);
  REQUIRE(pair.Until(0, PlaneEvent::Kind::kTransferOpened));
  options.grant = Opened(pair.member[0], 0);
  options.source = false;
  options.peer = 0;
  pair.member[1].plane->TransferOpen(options);
  REQUIRE(pair.Until(1, PlaneEvent::Kind::kTransferOpened));
  for (auto& m : pair.member) m.plane->TransferLook(5);
  pair.Settle();
  pair.member[0].plane->TransferSync(5);
  pair.Settle();
  pair.clock.now += 5 * kSecond;
  for (auto& m : pair.member) m.plane->events().clear();
  pair.Settle();
  for (PeerId i : {0, 1}) {
    const Nanoseconds next = pair.member[i].plane->NextDeadline(pair.clock.now);
    CHECK(next >= pair.clock.now + 50 * kMicrosecond);
    pair.member[i].plane->TransferTake(5, state);
  }
  pair.Settle();
  for (PeerId i : {0, 1}) {
    CHECK(pair.Count(i, PlaneEvent::Kind::kTransferTaken) == 1);
    pair.member[i].plane->TransferRelease(5);
  }
  CHECK(pair.Until(1, PlaneEvent::Kind::kTransferSent));
  CHECK(pair.Until(0, PlaneEvent::Kind::kTransferVerified));
  CHECK(pair.Count(0, PlaneEvent::Kind::kTransferFailed) == 0);
  for (PeerId i : {0, 1}) pair.member[i].plane->TransferClose(5);
  pair.Settle();
}

// Locks and lets go of memory as slowly as it is told to, and knows who did it.
struct SlowMemory {
  SimOptions Options() {
    return {.lazy_completions = true, .on_lock = [this](bool locks) {
              if (std::this_thread::get_id() == poller) {
                ++by_poller;
              } else if (locks) {
                held.wait(true);
              }
              locked += locks ? 1 : -1;
            }};
  }
  void Go() {
    held.store(false);
    held.notify_all();
  }
  const std::thread::id poller = std::this_thread::get_id();
  std::atomic<bool> held{false};
  std::atomic<int> by_poller{0}, locked{0};
};

// It owes heartbeats, and a guest's memory takes seconds to lock, to unlock and to unmap.
TEST(ThePollingThreadNeitherLocksNorUnmapsMemory) {
  constexpr size_t kRam = 4 << 20;
  SlowMemory memory;
  const Folder folder;
  const std::string& directory = folder.path();
  REQUIRE(WriteFile(directory + "/ram0", std::vector<std::byte>(kRam, std::byte{1})).ok());
  REQUIRE(WriteFile(directory + "/ram1", std::vector<std::byte>(kRam)).ok());
  {
    Pair pair(64 << 10, 3, true, true, memory.Options());
    REQUIRE(pair.Lead());
    TransferOptions options;
    options.ram_bytes = kRam;
    options.key = MakeDigestKey();
    // The first is given up while it is being prepared, and the plane goes on meanwhile.
    memory.held.store(true);
    options.session = 4;
    options.source = true;
    options.peer = 1;
    options.ram_path = directory + "/ram0";
    options.inbox_path = directory + "/inbox0";
    DataPlane& source = *pair.member[0].plane;
    source.TransferOpen(options);
    pair.Settle();
    CHECK(pair.Count(0, PlaneEvent::Kind::kTransferOpened) == 0);
    const Op before = source.last_op();
    REQUIRE(source.Propose(EntryKind::kVmBoot, std::vector<std::byte>(8)));
    pair.Settle();
    CHECK(pair.member[1].plane->last_op() == before + 1);
    // What comes for a session that is not open yet is not its own.
    source.TransferRound(4, 1, RoundPages::kResident, false);
    source.TransferAttach(4, "", "");
    source.TransferClose(4);
    pair.Settle();
    memory.Go();

    options.session = 5;
    for (PeerId i : {0, 1}) {
      options.source = i == 0;
      options.peer = 1 - i;
      options.ram_path = directory + "/ram" + std::to_string(i);
      options.inbox_path = directory + "/inbox" + std::to_string(i);
      if (i == 1) options.grant = Opened(pair.member[0], 0);
      pair.member[i].plane->TransferOpen(options);
      REQUIRE(pair.Until(i, PlaneEvent::Kind::kTransferOpened));
    }
    CHECK(pair.Count(0, PlaneEvent::Kind::kTransferOpened) == 1);
    source.TransferAttach(5, Opened(pair.member[1], 0), Opened(pair.member[1], 1));
    source.TransferRound(5, 1, RoundPages::kResident, false);
    REQUIRE(pair.Until(0, PlaneEvent::Kind::kTransferRound));
    for (PeerId i : {0, 1}) pair.member[i].plane->TransferClose(5);
    pair.Settle();
    // And one that is still open when everything ends.
    options.session = 6;
    pair.member[1].plane->TransferOpen(options);
    pair.Settle();
  }
  // All that was locked was let go, and the three attachments.
  CHECK(memory.by_poller == 0 && memory.locked == -3);
  std::vector<std::byte> filled;
  REQUIRE(ReadFile(directory + "/ram1", kRam + kPageBytes, &filled).ok());
  REQUIRE(filled.size() > kRam);
  filled.resize(kRam);
  CHECK(std::ranges::count(filled, std::byte{1}) == static_cast<ptrdiff_t>(kRam));
}

// The source's thread may be a realtime one, on the processor that the guest would run on.
TEST(ASourceWhoseGuestRunsTakesHalfOfTheTime) {
  constexpr size_t kRam = 20 << 20;  // more than is packed
  const Folder folder;
  const std::string directory = folder.path();
  // Pages that are like no others.
  std::vector<std::byte> ram(kRam);
  std::mt19937_64 random(1);
  const auto fill = [&] {
    for (size_t at = 0; at < kRam; at += 8) {
      const uint64_t word = random();
      std::memcpy(ram.data() + at, &word, 8);
    }
  };
  fill();
  REQUIRE(WriteFile(directory + "/ram0", ram).ok());
  REQUIRE(WriteFile(directory + "/ram1", std::vector<std::byte>(kRam)).ok());
  Pair pair(64 << 10, 3, true);
  REQUIRE(pair.Lead());
  TransferOptions options;
  options.session = 5;
  options.ram_bytes = kRam;
  options.key = MakeDigestKey();
  for (PeerId i : {0, 1}) {
    options.source = i == 0;
    options.peer = 1 - i;
    options.ram_path = directory + "/ram" + std::to_string(i);
    options.inbox_path = directory + "/inbox" + std::to_string(i);
    if (i == 1) options.grant = Opened(pair.member[0], 0);
    pair.member[i].plane->TransferOpen(options);
    REQUIRE(pair.Until(i, PlaneEvent::Kind::kTransferOpened));
  }
  DataPlane& source = *pair.member[0].plane;
  source.TransferAttach(5, Opened(pair.member[1], 0), Opened(pair.member[1], 1));

  // Between the first and the last poll that moved pages: polls that moved none for each that did.
  const auto resting = [&](uint32_t number, bool final) {
    // Less than one poll moves, and more than what is asked for beside it.
    const size_t least = final ? 1 << 19 : 100 << 10;
    source.TransferRound(5, number, RoundPages::kResident, final);
    const Nanoseconds give_up =
        MonotonicNow() + 60 * kSecond;  // the digests have threads of their own
    int polls = 0, first = 0, last = 0, moved = 0;
    for (; pair.Count(0, PlaneEvent::Kind::kTransferRound) < static_cast<int>(number); ++polls) {
      if (pair.Count(0, PlaneEvent::Kind::kTransferFailed) > 0 || MonotonicNow() > give_up)
        return -1.0;
      const uint64_t before = pair.member[0].fabric->counters().written_bytes;
      // A step of the session takes half a millisecond, any other poll a fiftieth of that.
      pair.clock.per_look = kMillisecond / 2;
      pair.Poll(0);
      pair.clock.per_look = 0;
      if (pair.member[0].fabric->counters().written_bytes - before >= least) {
        if (moved++ == 0) first = polls;
        last = polls;
      }
      pair.Poll(1);
      pair.network.DeliverEverything();
    }
    return moved < 2 ? -1.0 : static_cast<double>(last - first + 1 - moved) / moved;
  };
  CHECK(resting(1, false) >= 10);
  fill();
  const int memory = open((directory + "/ram0").c_str(), O_WRONLY | O_CLOEXEC);
  CHECK(pwrite(memory, ram.data(), kRam, 0) == static_cast<ssize_t>(kRam));
  close(memory);
  CHECK(resting(2, true) == 0);
  for (PeerId i : {0, 1}) pair.member[i].plane->TransferClose(5);
  pair.Settle();
}

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
      pair.network.DeliverPart(0, 1, 40);
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
  pair.Poll(1);
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
