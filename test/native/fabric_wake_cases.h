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

// A million races (2 s over shm, 10 over tcp, 90 to 200 over soft-RoCE), or as many as
// FALCON_WAKE_RACES says.
inline uint64_t WakeRaces() {
  const char* wanted = std::getenv("FALCON_WAKE_RACES");
  return wanted == nullptr ? 1000000 : std::strtoull(wanted, nullptr, 10);
}

// Members 1 to kMaxMembers - 1 go to sleep by the book, all on one thread, until the word at
// `offset` of each one's region is `value`. False: somebody was not woken.
inline bool SleepUntil(FabricBed& bed, size_t offset, uint64_t value) {
  std::array<pollfd, kMaxMembers> waits{};  // by member; descriptor -1: awake
  for (pollfd& each : waits) each.fd = -1;
  size_t waiting = 0;
  const auto is_there = [&](PeerId member) { return Word(bed.at(member), 0, offset) == value; };
  const auto sleep = [&](PeerId member) {
    bed.at(member).ArmWake();
    if (is_there(member)) return bed.at(member).DisarmWake();
    waits[member] = {bed.at(member).wake_fd(), POLLIN, 0};
    ++waiting;
  };
  for (PeerId member = 1; member < kMaxMembers; ++member) sleep(member);
  while (waiting > 0) {
    if (poll(waits.data(), waits.size(), 5000) < 1) return false;
    for (PeerId member = 1; member < kMaxMembers; ++member) {
      if (std::exchange(waits[member].revents, 0) == 0) continue;
      const bool there = is_there(member);
      bed.at(member).DisarmWake();
      waits[member].fd = -1;
      --waiting;
      if (!there) sleep(member);
    }
  }
  return true;
}

// Sleepers and writer meet, awake, before each round. Then they go to sleep one after the other
// while it writes to each and rings, in an order and at moments that wander past theirs. There are
// as many as a fabric has members, since most of a round is falling asleep and waking up.
inline void NoWakeIsLost(FabricBed& bed) {
  constexpr uint64_t kSleepers = kMaxMembers - 1;
  for (PeerId member = 0; member < kMaxMembers; ++member) bed.Start(member);
  if (bed.at(0).wake_fd() < 0 || !bed.sleeps()) {
    SkipReason() = std::string(bed.name()) + " has nobody who could sleep";
    return;
  }
  for (PeerId member = 1; member < kMaxMembers; ++member) REQUIRE(bed.Connect(0, member).ok());
  bed.Drive();
  const uint64_t rounds = (WakeRaces() + kSleepers - 1) / kSleepers;
  std::atomic<uint64_t> ready{0};
  std::atomic<bool> failed{false};
  std::atomic<bool> over{false};
  std::thread sleepers([&] {
    const Pinned pinned(1);
    for (uint64_t i = 1; i <= rounds && !failed; ++i) {
      ready.store(i, std::memory_order_release);
      Linger(i * 31 % 509);
      if (!SleepUntil(bed, 64, i)) failed = true;
    }
    over = true;
  });
  const Pinned pinned(0);
  Fabric& writer = bed.at(0);
  // A source stays as it is until its writes have completed; nobody waits for each of them.
  std::array<uint64_t, 64> words{};
  for (uint64_t i = 1; i <= rounds && !failed; ++i) {
    for (uint64_t looks = 1; ready.load(std::memory_order_acquire) < i && !failed; ++looks) {
      writer.Poll();
      if (looks % 4096 == 0) std::this_thread::yield();
    }
    uint64_t& word = words[i % words.size()];
    word = i;
    for (uint64_t turn = 0; turn < kSleepers; ++turn) {
      Linger((i * 17 + turn * 101) % 251);
      const auto member = static_cast<PeerId>(1 + (i + turn) % kSleepers);
      if (!WriteOne(writer, member, {0, 64}, WordBytes(word)).ok()) failed = true;
      writer.Ring(member);
    }
    for (PeerId member = 1; member < kMaxMembers && i % words.size() == 0; ++member) {
      while (!AllCompleted(writer, member) && !failed) writer.Poll();
    }
  }
  while (!over) writer.Poll();
  sleepers.join();
  CHECK(!failed);
  const uint64_t races = rounds * kSleepers;
  const uint64_t sent = writer.counters().wakes_sent;
  uint64_t received = 0;
  for (PeerId member = 1; member < kMaxMembers; ++member)
    received += bed.at(member).counters().wakes_received;
  std::printf("# %llu races, %llu wakes\n", static_cast<unsigned long long>(races),
              static_cast<unsigned long long>(sent));
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
