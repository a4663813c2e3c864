// Conformance: sleeping. Nobody sleeps through a write, and nobody is rung who does not sleep.
#pragma once

#include <poll.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <utility>

#include "fabric_bed.h"
#include "os/clock.h"

namespace falcon::test::conformance {

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

// A million races (2 s over shm, 10 over tcp), or as many as FALCON_WAKE_RACES says. Over soft-RoCE
// a million takes 90 s on one device and 200 between several: test/softroce says where.
inline uint64_t WakeRaces(const std::string& fabric) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  uint64_t races = 30'000;
#else
  uint64_t races = fabric == "verbs" ? 30'000 : 1'000'000;
#endif
  const char* wanted = std::getenv("FALCON_WAKE_RACES");
  return wanted == nullptr ? races : std::strtoull(wanted, nullptr, 10);
}

// And no longer than FALCON_WAKE_SECONDS says.
inline Nanoseconds WakeTime() {
  const char* wanted = std::getenv("FALCON_WAKE_SECONDS");
  return (wanted == nullptr ? 3600 : std::strtoll(wanted, nullptr, 10)) * kSecond;
}

// Members 1 to kMaxMembers - 1, who go to sleep by the book, all on one thread.
class Sleepers {
 public:
  static constexpr uint64_t kCount = kMaxMembers - 1;
  explicit Sleepers(FabricBed& bed) : bed_(bed) {
    for (pollfd& each : waits_) each.fd = -1;
  }

  // Whose turn comes as `turn`th in round `i`.
  static PeerId Member(uint64_t i, uint64_t turn) {
    return static_cast<PeerId>(1 + (i + turn) % kCount);
  }
  // Round `i`: each sleeps until the word at `offset` of its region is `i`. False: somebody was not
  // woken.
  bool Round(uint64_t i, size_t offset) {
    for (uint64_t turn = 0; turn < kCount; ++turn) {
      Linger((i * 31 + turn * 67) % 251);
      Sleep(Member(i, turn), i, offset);
    }
    while (waiting_ > 0) {
      if (poll(waits_.data(), waits_.size(), 5000) < 1) return Complain(i);
      for (PeerId member = 1; member < kMaxMembers; ++member) {
        if (std::exchange(waits_[member].revents, 0) == 0) continue;
        const bool there = Word(bed_.at(member), 0, offset) == i;
        bed_.at(member).DisarmWake();
        waits_[member].fd = -1;
        --waiting_;
        ++(there ? woken : woken_early);
        if (!there) Sleep(member, i, offset);
      }
    }
    return true;
  }

  uint64_t never_slept = 0;  // the word was there when they looked once more
  uint64_t woken = 0;
  uint64_t woken_early = 0;  // and slept again

 private:
  void Sleep(PeerId member, uint64_t word, size_t offset) {
    Fabric& fabric = bed_.at(member);
    fabric.ArmWake();
    if (Word(fabric, 0, offset) == word) {
      ++never_slept;
      fabric.DisarmWake();
      return;
    }
    waits_[member] = {fabric.wake_fd(), POLLIN, 0};
    ++waiting_;
  }
  bool Complain(uint64_t round) {
    for (PeerId member = 1; member < kMaxMembers; ++member) {
      if (waits_[member].fd >= 0)
        std::printf("# member %u sleeps on in round %llu\n", member,
                    static_cast<unsigned long long>(round));
    }
    return false;
  }

  FabricBed& bed_;
  std::array<pollfd, kMaxMembers> waits_{};  // by member; descriptor -1: awake
  size_t waiting_ = 0;
};

// Sleepers and writer meet, awake, before each round. Then they go to sleep one after the other,
// and it writes to each and rings, in the same order, at the same time, one ahead or one behind,
// and at moments that wander past theirs. There are as many as a fabric has members, since most of
// a round is falling asleep and waking up.
inline void NoWakeIsLost(FabricBed& bed) {
  constexpr uint64_t kCount = Sleepers::kCount;
  for (PeerId member = 0; member < kMaxMembers; ++member) bed.Start(member);
  if (bed.at(0).wake_fd() < 0 || !bed.sleeps()) {
    SkipReason() = std::string(bed.name()) + " has nobody who could sleep";
    return;
  }
  for (PeerId member = 1; member < kMaxMembers; ++member) REQUIRE(bed.Connect(0, member).ok());
  bed.Drive();
  const uint64_t rounds = (WakeRaces(bed.name()) + kCount - 1) / kCount;
  const Nanoseconds until = MonotonicNow() + WakeTime();
  Sleepers sleepers(bed);
  std::atomic<uint64_t> ready{0};
  std::atomic<uint64_t> last{rounds};
  std::atomic<bool> failed{false};
  std::atomic<bool> over{false};
  std::thread asleep([&] {
    const Pinned pinned(1);
    for (uint64_t i = 1; i <= last && !failed; ++i) {
      ready.store(i, std::memory_order_release);
      if (!sleepers.Round(i, 64)) failed = true;
    }
    over = true;
  });
  const Pinned pinned(0);
  Fabric& writer = bed.at(0);
  // A source stays as it is until its writes have completed; nobody waits for each of them.
  std::array<uint64_t, 64> words{};
  uint64_t races = 0;
  for (uint64_t i = 1; i <= last && !failed; ++i) {
    if (i % 64 == 0 && MonotonicNow() > until) last = i;  // said before the writes that end round i
    for (uint64_t looks = 1; ready.load(std::memory_order_acquire) < i && !failed; ++looks) {
      writer.Poll();
      if (looks % 4096 == 0) std::this_thread::yield();
    }
    uint64_t& word = words[i % words.size()];
    word = i;
    for (uint64_t turn = 0; turn < kCount && !failed; ++turn, ++races) {
      Linger((i * 17 + turn * 101) % 251);
      const PeerId member = Sleepers::Member(i, turn + i % 3 + kCount - 1);
      const Status status = WriteOne(writer, member, {0, 64}, WordBytes(word));
      writer.Ring(member);
      if (status.ok()) continue;
      std::printf("# to member %u: %s %s\n", member, status.code(), status.detail().c_str());
      failed = true;
    }
    for (PeerId member = 1; member < kMaxMembers && i % words.size() == 0; ++member) {
      while (!AllCompleted(writer, member) && !failed) writer.Poll();
    }
  }
  while (!over) writer.Poll();
  asleep.join();
  CHECK(!failed);
  const uint64_t sent = writer.counters().wakes_sent;
  uint64_t received = 0;
  for (PeerId member = 1; member < kMaxMembers; ++member)
    received += bed.at(member).counters().wakes_received;
  std::printf(
      "# %llu races: %llu woken (%llu too early), %llu never slept; %llu wakes\n",
      static_cast<unsigned long long>(races), static_cast<unsigned long long>(sleepers.woken),
      static_cast<unsigned long long>(sleepers.woken_early),
      static_cast<unsigned long long>(sleepers.never_slept), static_cast<unsigned long long>(sent));
  // Neither side always comes first. (Over tcp the word comes only with the next look.)
  CHECK(sleepers.woken + sleepers.woken_early > races / 1000);
  CHECK(sleepers.never_slept > races / 1000);
  CHECK(sent <= races);
  CHECK(sent > 0 || !bed.rings());
  CHECK(received > 0);
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
