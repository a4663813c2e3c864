// Conformance: sleeping. Nobody sleeps through a write, and nobody is rung who does not sleep.
#pragma once

#include <poll.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "fabric_bed.h"
#include "os/clock.h"

namespace falcon::test::conformance {

// A million races (2 s over shm, 30 over tcp, 210 over soft-RoCE), of which over verbs as many as
// fit into ten seconds; or exactly as many as FALCON_WAKE_RACES says.
struct WakeRaces {
  uint64_t count = 1000000;
  Nanoseconds budget;
  explicit WakeRaces(const std::string& fabric) : budget((fabric == "verbs" ? 10 : 120) * kSecond) {
    const char* wanted = std::getenv("FALCON_WAKE_RACES");
    if (wanted == nullptr) return;
    count = std::strtoull(wanted, nullptr, 10);
    budget = 24 * 3600 * kSecond;
  }
};

// Waits until the word at `offset` of our region is `value`: looks a few times, then sleeps by the
// book. False: nobody woke us, although the word has changed or would have.
inline bool AwaitWord(Fabric& fabric, size_t offset, uint64_t value, uint64_t looks) {
  for (uint64_t i = 0; i < looks; ++i) {
    if (Word(fabric, 0, offset) == value) return true;
    fabric.Poll();
  }
  while (true) {
    fabric.ArmWake();
    bool there = Word(fabric, 0, offset) == value;
    bool woken = true;
    if (!there) {
      pollfd wait{fabric.wake_fd(), POLLIN, 0};
      woken = poll(&wait, 1, 5000) == 1;
      there = Word(fabric, 0, offset) == value;
    }
    fabric.DisarmWake();
    if (there || !woken) return there && woken;
  }
}

// A few nanoseconds each, not to be optimised away.
inline void Linger(uint64_t turns) {
  static std::atomic<uint64_t> anything{0};
  for (uint64_t i = 0; i < turns; ++i) static_cast<void>(anything.load(std::memory_order_relaxed));
}

// Sleeper and writer meet, awake, before each round; then one goes to sleep while the other writes
// and rings, at moments that wander past each other.
inline void NoWakeIsLost(FabricBed& bed) {
  bed.StartAll(2);
  if (bed.at(0).wake_fd() < 0 || !bed.sleeps()) {
    SkipReason() = std::string(bed.name()) + " has nobody who could sleep";
    return;
  }
  const WakeRaces races(bed.name());
  const Nanoseconds until = MonotonicNow() + races.budget;
  std::atomic<uint64_t> ready{0};
  std::atomic<uint64_t> last{races.count};
  std::atomic<bool> failed{false};
  std::atomic<bool> over{false};
  std::thread sleeper([&] {
    const Pinned pinned(1);
    for (uint64_t i = 1; i <= last && !failed; ++i) {
      ready.store(i, std::memory_order_release);
      Linger(i * 31 % 509);
      if (!AwaitWord(bed.at(1), 64, i, 0)) failed = true;
    }
    over = true;
  });
  const Pinned pinned(0);
  uint64_t word = 0;
  for (uint64_t i = 1; i <= last && !failed; ++i) {
    if (i % 256 == 0 && MonotonicNow() > until)
      last = i;  // said before the write that ends round i
    for (uint64_t looks = 1; ready.load(std::memory_order_acquire) < i && !failed; ++looks) {
      bed.at(0).Poll();
      if (looks % 4096 == 0) std::this_thread::yield();
    }
    Linger(i * 17 % 251);
    word = i;
    if (!WriteOne(bed.at(0), 1, {0, 64}, WordBytes(word)).ok()) failed = true;
    bed.at(0).Ring(1);
    while (!AllCompleted(bed.at(0), 1) && !failed) bed.at(0).Poll();
  }
  while (!over) bed.at(0).Poll();
  sleeper.join();
  CHECK(!failed);
  std::printf("# %llu races, %llu wakes\n", static_cast<unsigned long long>(word),
              static_cast<unsigned long long>(bed.at(0).counters().wakes_sent));
  CHECK(bed.at(0).counters().wakes_sent <= word);
  CHECK(bed.at(0).counters().wakes_sent > 0 || !bed.rings());
  CHECK(bed.at(1).counters().wakes_received > 0);
}

inline void NobodyIsRungWhoDoesNotSleep(FabricBed& bed) {
  bed.StartAll(2);
  Fabric& writer = bed.at(0);
  Fabric& sleeper = bed.at(1);
  const uint64_t word = 1;
  if (sleeper.wake_fd() < 0) {
    SkipReason() = std::string(bed.name()) + " has nobody who could sleep";
    return;
  }
  const auto readable = [&] {
    pollfd wait{sleeper.wake_fd(), POLLIN, 0};
    return poll(&wait, 1, 0) == 1;
  };
  const auto becomes_readable = [&] {
    pollfd wait{sleeper.wake_fd(), POLLIN, 0};
    return poll(&wait, 1, 5000) == 1;
  };
  const uint64_t one = bed.rings() ? 1 : 0;
  CHECK(WriteOne(writer, 1, {0, 0}, WordBytes(word)).ok());
  writer.Ring(1);
  bed.Drive();
  CHECK(!readable() && writer.counters().wakes_sent == 0);
  bed.Settle(0, 1);
  const uint64_t sent = writer.counters().wakes_sent;
  sleeper.ArmWake();
  bed.Drive();
  writer.Ring(1);  // nothing was written since the last ring
  bed.Drive();
  CHECK(!readable());
  CHECK(WriteOne(writer, 1, {0, 0}, WordBytes(word)).ok());
  writer.Ring(1);
  // A fabric that rings by itself is not driven here: driving would take what wakes it.
  if (bed.rings()) bed.Drive();
  CHECK(becomes_readable() && writer.counters().wakes_sent == sent + one);
  sleeper.DisarmWake();
  bed.Drive();
  CHECK(!readable());
  sleeper.ArmWake();
  sleeper.DisarmWake();
  bed.Drive();
  CHECK(WriteOne(writer, 1, {0, 0}, WordBytes(word)).ok());
  writer.Ring(1);
  bed.Drive();
  CHECK(!readable() && writer.counters().wakes_sent == sent + one);
}

}  // namespace falcon::test::conformance
