// State transfer at two data planes on the simulated fabric, step by step.
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "fabric/sim.h"
#include "os/check.h"
#include "plane/data_plane.h"
#include "plane/transfer_parts.h"
#include "plane_pair.h"

namespace {

using namespace falcon;
using namespace falcon::test;

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

TransferOptions SessionOf(size_t ram_bytes) {
  TransferOptions options;
  options.session = 5;
  options.ram_bytes = ram_bytes;
  options.key = MakeDigestKey();
  return options;
}

// Both sides of a session over the files ram0 and ram1, ready for its first round; *options become
// those of the target.
bool OpenBoth(Pair& pair, const std::string& directory, TransferOptions* options) {
  for (PeerId i : {0, 1}) {
    options->source = i == 0;
    options->peer = 1 - i;
    options->ram_path = directory + "/ram" + std::to_string(i);
    options->inbox_path = directory + "/inbox" + std::to_string(i);
    if (i == 1) options->grant = Opened(pair.member[0], 0);
    pair.member[i].plane->TransferOpen(*options);
    if (!pair.Until(i, PlaneEvent::Kind::kTransferOpened)) return false;
  }
  pair.member[0].plane->TransferAttach(options->session, Opened(pair.member[1], 0),
                                       Opened(pair.member[1], 1));
  return true;
}

// Delivery stands for as long as it takes to look at a guest; two of these threads that did not
// sleep meanwhile would leave no processor to whoever is to end that.
TEST(APlaneWhoseDeliveryStandsSleeps) {
  const Folder folder;
  const std::string directory = folder.path(), state = directory + "/state";
  REQUIRE(WriteFile(state, std::vector<std::byte>(40)).ok());
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
TEST(ThePollingThreadNeitherLocksNorUnlocksMemory) {
  constexpr size_t kRam = 4 << 20;
  SlowMemory memory;
  const Folder folder;
  const std::string& directory = folder.path();
  REQUIRE(WriteFile(directory + "/ram0", std::vector<std::byte>(kRam, std::byte{1})).ok());
  REQUIRE(WriteFile(directory + "/ram1", std::vector<std::byte>(kRam)).ok());
  {
    Pair pair(64 << 10, 3, true, true, memory.Options());
    REQUIRE(pair.Lead());
    TransferOptions options = SessionOf(kRam);
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
    REQUIRE(OpenBoth(pair, directory, &options));
    CHECK(pair.Count(0, PlaneEvent::Kind::kTransferOpened) == 1);
    source.TransferRound(5, 1, RoundPages::kResident, false);
    REQUIRE(pair.Until(0, PlaneEvent::Kind::kTransferRound));
    for (PeerId i : {0, 1}) pair.member[i].plane->TransferClose(5);
    pair.Settle();
    // And one that is still open when everything ends.
    options.session = 6;
    pair.member[1].plane->TransferOpen(options);
    pair.Settle();
    // As a reactor ends: the fabric before the plane.
    for (auto& m : pair.member) m.plane->EndSessions();
    CHECK(memory.locked == 0);
    for (auto& m : pair.member) m.fabric.reset();
  }
  // All that was locked was let go.
  CHECK(memory.by_poller == 0 && memory.locked == 0);
  std::vector<std::byte> filled;
  REQUIRE(ReadFile(directory + "/ram1", kRam + kPageBytes, &filled).ok());
  REQUIRE(filled.size() > kRam);
  filled.resize(kRam);
  CHECK(std::ranges::count(filled, std::byte{1}) == static_cast<ptrdiff_t>(kRam));
}

// The source's thread may be a realtime one, on the processor that the guest would run on.
TEST(ASourceWhoseGuestRunsTakesAQuarterOfTheTime) {
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
  TransferOptions options = SessionOf(kRam);
  REQUIRE(OpenBoth(pair, directory, &options));
  DataPlane& source = *pair.member[0].plane;

  // Between the first and the last poll that moved pages: polls that moved none for each that did.
  uint64_t most = 0;  // by one poll
  const auto resting = [&](uint32_t number, Nanoseconds step, bool final) {
    most = 0;
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
      // Any poll but a step of the session takes 10 us.
      pair.clock.per_look = step;
      pair.Poll(0);
      pair.clock.per_look = 0;
      const uint64_t written = pair.member[0].fabric->counters().written_bytes - before;
      most = std::max(most, written);
      if (written >= least) {
        if (moved++ == 0) first = polls;
        last = polls;
      }
      pair.Poll(1);
      pair.network.DeliverEverything();
    }
    return moved < 2 ? -1.0 : static_cast<double>(last - first + 1 - moved) / moved;
  };
  const auto dirty = [&] {
    fill();
    const int memory = open((directory + "/ram0").c_str(), O_WRONLY | O_CLOEXEC);
    CHECK(pwrite(memory, ram.data(), kRam, 0) == static_cast<ssize_t>(kRam));
    close(memory);
  };
  const double rests = resting(1, kMillisecond / 10, false);
  const uint64_t alone = most;
  dirty();
  const double longest = resting(2, 10 * kMillisecond, false);
  std::printf("# %.1f polls rest for each that moves, %.1f for one that takes long\n", rests,
              longest);
  CHECK(rests >= 22 && longest >= 0 && longest <= 50);
  CHECK(alone < 256 << 10 && most < 256 << 10);
  // Short steps are joined: each wake-up costs more than one of them.
  dirty();
  const double joined = resting(3, 10 * kMicrosecond, false);
  std::printf("# %.1f polls rest for each that joins steps, which moves %d KiB at most\n", joined,
              static_cast<int>(most >> 10));
  CHECK(joined >= 15 && most >= 512 << 10);
  dirty();
  CHECK(resting(4, kMillisecond / 5, true) == 0);
  for (PeerId i : {0, 1}) pair.member[i].plane->TransferClose(5);
  pair.Settle();
}

// Each look takes the processor from the guest; one that stands still waits for the look.
TEST(ASourceThatWaitsLooksRarelyWhileItsGuestRuns) {
  constexpr size_t kRam = 1 << 20;
  const Folder folder;
  const std::string& directory = folder.path();
  for (const char* name : {"/ram0", "/ram1"})
    REQUIRE(WriteFile(directory + name, std::vector<std::byte>(kRam, std::byte{1})).ok());
  for (const bool final : {false, true}) {
    Pair pair(64 << 10, 3, true);
    REQUIRE(pair.Lead());
    TransferOptions options = SessionOf(kRam);
    REQUIRE(OpenBoth(pair, directory, &options));
    DataPlane& source = *pair.member[0].plane;
    source.TransferRound(5, 1, RoundPages::kResident, final);
    // The target says nothing. There are heartbeats, too: the longest look ahead is the session's.
    Nanoseconds ahead = 0;
    for (int polls = 0; polls < 2000; ++polls) {
      pair.Poll(0);
      ahead = std::max(ahead, source.NextDeadline(pair.clock.now) - pair.clock.now);
    }
    const Nanoseconds most = (final ? 100 : 500) * kMicrosecond;
    CHECK(ahead <= most && ahead > most - 100 * kMicrosecond);
    for (PeerId i : {0, 1}) pair.member[i].plane->TransferClose(5);
    pair.Settle();
  }
}

}  // namespace

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
