// What every fabric must do, as one suite of cases over a bed: a few connected members of one
// fabric. A test program for a fabric makes a FabricBed of it and calls
// AddConformanceCases<ItsBed>() before Main.
#pragma once

#include <dirent.h>
#include <poll.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "fabric/fabric.h"
#include "fabric/shared_copy.h"
#include "os/clock.h"

namespace falcon::test {

inline constexpr size_t kRegion0Bytes = 512 << 10;
inline constexpr size_t kRegion1Bytes = 64 << 10;

// Members of one fabric, each with region 0 and region 1 of the sizes above.
class FabricBed {
 public:
  virtual ~FabricBed() = default;
  [[nodiscard]] virtual const char* name() const = 0;

  // A new incarnation of `member` with its regions, not connected to anybody. The one before (if
  // any) was closed with Close or Kill.
  virtual void Start(PeerId member) = 0;
  [[nodiscard]] virtual Fabric& at(PeerId member) = 0;
  virtual void Close(PeerId member) = 0;  // in order, as a daemon stops
  virtual void Kill(PeerId member) = 0;   // as a process dies

  virtual void Drive() = 0;  // until everything that was posted has arrived
  virtual bool Step() = 0;   // a small piece of the same; false: nothing was left

  // Makes what is on its way from one member to another arrive late: at the next call of
  // DeliverLate, which comes after the connection was replaced.
  virtual void KeepLate(PeerId from, PeerId to) = 0;
  virtual void DeliverLate(PeerId from, PeerId to) = 0;

  [[nodiscard]] virtual bool concurrent() const = 0;     // members may live on threads of their own
  [[nodiscard]] virtual size_t queue_bound() const = 0;  // of the send queue; 0: never full
  [[nodiscard]] virtual size_t Leftovers()
      const = 0;  // files and the like that exist for the members

  void StartAll(size_t members) {
    for (PeerId member = 0; member < members; ++member) Start(member);
    for (PeerId from = 0; from < members; ++from) {
      for (PeerId to = 0; to < members; ++to) {
        if (from != to) CHECK(Connect(from, to).ok());
      }
    }
  }
  Status Connect(PeerId from, PeerId to) {
    return at(from).Connect(to, ++connections_, at(to).Descriptor());
  }

 private:
  uint64_t connections_ = 0;
};

namespace conformance {

using Span = std::span<const std::byte>;
using Bytes = std::vector<std::byte>;

inline Bytes Pattern(uint64_t seed, size_t length) {
  Bytes bytes(length);
  uint64_t state = seed * 0x9E3779B97F4A7C15ull + 0x1234567;
  for (std::byte& each : bytes) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    each = static_cast<std::byte>(state >> 24);
  }
  return bytes;
}

inline bool Is(const Status& status, const char* code) {
  return std::string(status.code()) == code;
}

inline Status WriteOne(Fabric& fabric, PeerId peer, RemoteAddress to, Span bytes) {
  const Span pieces[] = {bytes};
  return fabric.Write(peer, to, pieces);
}

inline Span WordBytes(const uint64_t& word) { return std::as_bytes(std::span(&word, 1)); }

inline uint64_t Word(Fabric& fabric, RegionId region, size_t offset) {
  return LoadSharedWord(fabric.region(region).data() + offset);
}

inline bool Holds(Fabric& fabric, RegionId region, size_t offset, Span expected) {
  Bytes copy(expected.size());
  CopyFromShared(copy, fabric.region(region).data() + offset);
  return std::equal(expected.begin(), expected.end(), copy.begin());
}

inline bool IsZero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

inline void WritesAndReadsReachTheRightRegion(FabricBed& bed) {
  bed.StartAll(2);
  CHECK(bed.at(1).region(0).size() == kRegion0Bytes);
  CHECK(bed.at(1).region(1).size() == kRegion1Bytes);
  CHECK(bed.at(1).region(2).empty());
  CHECK(IsZero(bed.at(1).region(0)) && IsZero(bed.at(1).region(1)));
  CHECK(reinterpret_cast<uintptr_t>(bed.at(1).region(0).data()) % 8 == 0);
  const Bytes data = Pattern(1, 333);
  const Bytes other = Pattern(2, 77);
  CHECK(WriteOne(bed.at(0), 1, {0, 101}, data).ok());
  CHECK(WriteOne(bed.at(0), 1, {1, 16}, other).ok());
  bed.Drive();
  CHECK(Holds(bed.at(1), 0, 101, data));
  CHECK(Holds(bed.at(1), 1, 16, other));
  CHECK(IsZero(bed.at(1).region(0).first(101)) && IsZero(bed.at(1).region(0).subspan(101 + 333)));
  CHECK(IsZero(bed.at(0).region(0)));
  Bytes back(333);
  CHECK(bed.at(0).Read(1, {0, 101}, back).ok());
  bed.Drive();
  CHECK(back == data);
}

inline void PiecesAreJoined(FabricBed& bed) {
  bed.StartAll(2);
  const Bytes data = Pattern(3, 96);
  const size_t cuts[][3] = {{0, 0, 0},   {1, 2, 3},    {8, 16, 24},  {3, 11, 13}, {7, 7, 9},
                            {5, 70, 96}, {96, 96, 96}, {40, 48, 49}, {2, 4, 90}};
  for (const auto& cut : cuts) {
    for (size_t offset = 64; offset < 74; ++offset) {
      const Span whole(data);
      const Span pieces[] = {whole.first(cut[0]), whole.subspan(cut[0], cut[1] - cut[0]),
                             whole.subspan(cut[1], cut[2] - cut[1]), whole.subspan(cut[2])};
      const Bytes before(bed.at(1).region(0).begin(), bed.at(1).region(0).begin() + 256);
      CHECK(bed.at(0).Write(1, {0, offset}, pieces).ok());
      bed.Drive();
      CHECK(Holds(bed.at(1), 0, offset, data));
      CHECK(Holds(bed.at(1), 0, 0, Span(before).first(offset)));
      CHECK(Holds(bed.at(1), 0, offset + 96, Span(before).subspan(offset + 96)));
    }
  }
}

inline void BigWritesArriveWhole(FabricBed& bed) {
  bed.StartAll(2);
  const Bytes data = Pattern(4, 256 << 10);
  CHECK(WriteOne(bed.at(0), 1, {0, 8}, data).ok());
  bed.Drive();
  CHECK(Holds(bed.at(1), 0, 8, data));
  const Bytes whole = Pattern(5, kRegion0Bytes);
  CHECK(WriteOne(bed.at(0), 1, {0, 0}, whole).ok());
  bed.Drive();
  CHECK(Holds(bed.at(1), 0, 0, whole));
  Bytes back(kRegion0Bytes);
  CHECK(bed.at(0).Read(1, {0, 0}, back).ok());
  bed.Drive();
  CHECK(back == whole);
}

inline void NothingIsWrittenBeyondARegion(FabricBed& bed) {
  bed.StartAll(2);
  Fabric& fabric = bed.at(0);
  const Bytes data = Pattern(6, 64);
  CHECK(WriteOne(fabric, 1, {1, kRegion1Bytes - 64}, data).ok());
  bed.Drive();
  CHECK(Holds(bed.at(1), 1, kRegion1Bytes - 64, data));
  const uint64_t posted = fabric.Posted(1);
  const uint64_t errors = fabric.counters().errors;
  const Bytes other = Pattern(7, 64);
  const Span pieces[] = {Span(other).first(8), Span(other).subspan(8)};
  CHECK(Is(fabric.Write(1, {1, kRegion1Bytes - 63}, pieces), "FABRIC_BOUNDS"));
  CHECK(Is(fabric.Write(1, {1, kRegion1Bytes - 8}, pieces), "FABRIC_BOUNDS"));
  CHECK(Is(fabric.Write(1, {1, kRegion1Bytes}, pieces), "FABRIC_BOUNDS"));
  CHECK(Is(fabric.Write(1, {1, ~uint64_t{0} - 32}, pieces), "FABRIC_BOUNDS"));
  CHECK(Is(fabric.Write(1, {2, 0}, pieces), "FABRIC_BOUNDS"));
  CHECK(Is(fabric.Write(1, {200, 0}, pieces), "FABRIC_BOUNDS"));
  Bytes back(64, std::byte{9});
  CHECK(Is(fabric.Read(1, {1, kRegion1Bytes - 63}, back), "FABRIC_BOUNDS"));
  bed.Drive();
  CHECK(fabric.Posted(1) == posted);
  CHECK(fabric.counters().errors == errors + 7);
  CHECK(Holds(bed.at(1), 1, kRegion1Bytes - 64, data));
  CHECK(back == Bytes(64, std::byte{9}));
  CHECK(fabric.State(1) == PeerState::kUp);
}

// Keeps the calling thread on one of the processors it may use, the first or the second, for as
// long as this lives: two threads that share a processor never race. Does nothing where there is
// only one.
class Pinned {
 public:
  explicit Pinned(int which) {
    if (sched_getaffinity(0, sizeof before_, &before_) != 0 || CPU_COUNT(&before_) < 2) return;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &before_) || which-- > 0) continue;
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(cpu, &one);
      pinned_ = sched_setaffinity(0, sizeof one, &one) == 0;
      return;
    }
  }
  ~Pinned() {
    if (pinned_) sched_setaffinity(0, sizeof before_, &before_);
  }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

 private:
  cpu_set_t before_{};
  bool pinned_ = false;
};

// The reader looks at the word written later first: what was written before it must be there.
inline bool OrderHolds(Fabric& reader) {
  const uint64_t later = Word(reader, 0, 4096);
  AcquireFence();
  const uint64_t middle = Word(reader, 0, 64);
  AcquireFence();
  return Word(reader, 0, 8192) >= middle && middle >= later;
}

inline void WritesOfOneConnectionKeepTheirOrder(FabricBed& bed) {
  bed.StartAll(2);
  constexpr uint64_t kRounds = 20000;
  std::atomic<bool> done{false};
  std::atomic<uint64_t> looks{0};
  std::atomic<uint64_t> wrong{0};
  std::thread watcher;
  if (bed.concurrent()) {
    watcher = std::thread([&] {
      const Pinned pinned(1);
      while (!done) {
        if (!OrderHolds(bed.at(1))) ++wrong;
        ++looks;
      }
    });
  }
  while (watcher.joinable() && looks == 0) std::this_thread::yield();
  const Pinned pinned(0);
  const uint64_t rounds = bed.concurrent() ? kRounds : 200;
  for (uint64_t i = 1; i <= rounds; ++i) {
    for (const uint64_t offset : {8192, 64, 4096})
      CHECK(WriteOne(bed.at(0), 1, {0, offset}, WordBytes(i)).ok());
    if (bed.concurrent()) {
      while (bed.at(0).Completed(1) < bed.at(0).Posted(1)) bed.at(0).Poll();
      continue;
    }
    do {
      if (!OrderHolds(bed.at(1))) ++wrong;
      ++looks;
    } while (bed.Step());
  }
  bed.Drive();
  done = true;
  if (watcher.joinable()) watcher.join();
  CHECK(wrong == 0);
  CHECK(looks > 0);
  CHECK(Word(bed.at(1), 0, 4096) == rounds);
}

// Every word of the area holds eight times the same byte, whatever was written last.
inline bool WordsAreWhole(Fabric& reader, size_t bytes) {
  for (size_t offset = 1024; offset < 1024 + bytes; offset += 8) {
    const uint64_t word = Word(reader, 0, offset);
    if (word != (word & 0xFF) * 0x0101010101010101ull) return false;
  }
  return true;
}

// Long writes, and short ones whose single word comes from four pieces.
inline void AlignedWordsNeverTear(FabricBed& bed) {
  bed.StartAll(2);
  std::atomic<bool> done{false};
  std::atomic<uint64_t> looks{0};
  std::atomic<uint64_t> wrong{0};
  std::thread watcher;
  if (bed.concurrent()) {
    watcher = std::thread([&] {
      const Pinned pinned(1);
      for (; !done; ++looks) {
        if (!WordsAreWhole(bed.at(1), looks % 16 == 0 ? 256 : 8)) ++wrong;
      }
    });
  }
  while (watcher.joinable() && looks == 0) std::this_thread::yield();
  std::vector<Bytes> sources;
  for (unsigned i = 0; i < 256; ++i) sources.emplace_back(256, static_cast<std::byte>(i));
  const Pinned pinned(0);
  const size_t rounds = bed.concurrent() ? 300000 : 100;
  for (size_t i = 0; i < rounds; ++i) {
    const Span whole = i % 8 == 0 ? Span(sources[i % 256]) : Span(sources[i % 256]).first(8);
    const size_t cut = whole.size() == 8 ? 1 + i % 5 : 1 + i % 97;
    const Span pieces[] = {whole.first(cut), whole.subspan(cut, 1), whole.subspan(cut + 1, 1),
                           whole.subspan(cut + 2)};
    CHECK(bed.at(0).Write(1, {0, 1024}, pieces).ok());
    if (bed.concurrent()) {
      while (bed.at(0).Completed(1) < bed.at(0).Posted(1)) bed.at(0).Poll();
      continue;
    }
    while (bed.Step()) {
      if (!WordsAreWhole(bed.at(1), 256)) ++wrong;
    }
  }
  bed.Drive();
  done = true;
  if (watcher.joinable()) watcher.join();
  CHECK(wrong == 0);
}

inline void PeersDoNotDisturbEachOther(FabricBed& bed) {
  bed.StartAll(3);
  std::vector<Bytes> sources;
  for (uint64_t i = 0; i < 6; ++i) sources.push_back(Pattern(10 + i, 3000));
  for (uint64_t round = 0; round < 8; ++round) {
    CHECK(WriteOne(bed.at(1), 0, {0, 0 + round * 3000}, sources[0]).ok());
    CHECK(WriteOne(bed.at(2), 0, {0, 40000 + round * 3000}, sources[1]).ok());
    CHECK(WriteOne(bed.at(0), 1, {0, round * 3000}, sources[2]).ok());
    CHECK(WriteOne(bed.at(0), 2, {0, round * 3000}, sources[3]).ok());
    CHECK(WriteOne(bed.at(2), 1, {1, round * 3000}, sources[4]).ok());
    bed.Drive();
    CHECK(Holds(bed.at(0), 0, round * 3000, sources[0]));
    CHECK(Holds(bed.at(0), 0, 40000 + round * 3000, sources[1]));
    CHECK(Holds(bed.at(1), 0, round * 3000, sources[2]));
    CHECK(Holds(bed.at(2), 0, round * 3000, sources[3]));
    CHECK(Holds(bed.at(1), 1, round * 3000, sources[4]));
  }
  CHECK(bed.at(0).Posted(1) == 8 && bed.at(0).Posted(2) == 8 && bed.at(2).Posted(1) == 8);
  bed.at(0).Disconnect(1);
  CHECK(bed.at(0).State(1) == PeerState::kDown && bed.at(0).State(2) == PeerState::kUp);
  CHECK(WriteOne(bed.at(0), 2, {0, 0}, sources[5]).ok());
  bed.Drive();
  CHECK(Holds(bed.at(2), 0, 0, sources[5]));
}

inline void OperationsAreCounted(FabricBed& bed) {
  bed.StartAll(2);
  Fabric& fabric = bed.at(0);
  CHECK(fabric.Posted(1) == 0 && fabric.Completed(1) == 0);
  const Bytes data = Pattern(20, 40);
  Bytes back(40);
  for (uint64_t i = 1; i <= 50; ++i) {
    CHECK(WriteOne(fabric, 1, {0, 0}, data).ok());
    CHECK(fabric.Posted(1) == 2 * i - 1);
    CHECK(fabric.Read(1, {0, 0}, back).ok());
    CHECK(fabric.Posted(1) == 2 * i);
    CHECK(fabric.Completed(1) <= fabric.Posted(1));
  }
  bed.Drive();
  fabric.Poll();
  CHECK(fabric.Completed(1) == 100);
  CHECK(fabric.counters().writes == 50 && fabric.counters().reads == 50);
  CHECK(fabric.counters().written_bytes == 50 * 40);
  CHECK(back == data);
  CHECK(fabric.Poll() == 0);
  CHECK(bed.Connect(0, 1).ok());  // both counts belong to the connection, the totals do not
  CHECK(fabric.Posted(1) == 0 && fabric.Completed(1) == 0);
  CHECK(fabric.counters().writes == 50);
}

inline void AFullQueueSaysSo(FabricBed& bed) {
  bed.StartAll(2);
  Fabric& fabric = bed.at(0);
  const size_t bound = bed.queue_bound();
  const size_t posts = bound > 0 ? bound : 10000;
  const Bytes data = Pattern(21, 16);
  for (size_t i = 0; i < posts; ++i) CHECK(WriteOne(fabric, 1, {0, i * 16}, data).ok());
  if (bound > 0) {
    const Bytes other = Pattern(22, 16);
    CHECK(Is(WriteOne(fabric, 1, {1, 0}, other), "FABRIC_BUSY"));
    Bytes back(16);
    CHECK(Is(fabric.Read(1, {1, 0}, back), "FABRIC_BUSY"));
    CHECK(fabric.Posted(1) == posts);
    bed.Drive();
    CHECK(IsZero(bed.at(1).region(1)));
    CHECK(WriteOne(fabric, 1, {1, 0}, other).ok());
    bed.Drive();
    CHECK(Holds(bed.at(1), 1, 0, other));
  }
  CHECK(fabric.State(1) == PeerState::kUp);
}

inline void AWriterMayDieInTheMiddle(FabricBed& bed) {
  bed.StartAll(3);
  const Bytes first = Pattern(30, 4096);
  const Bytes second = Pattern(31, 4096);
  CHECK(WriteOne(bed.at(1), 0, {0, 0}, first).ok());
  bed.Drive();
  CHECK(WriteOne(bed.at(1), 0, {0, 0}, second).ok());
  bed.Step();
  bed.Kill(1);
  bed.Drive();
  // A front of new words, then old ones.
  const std::span<std::byte> area = bed.at(0).region(0).first(4096);
  size_t front = 0;
  while (front < 4096 && std::equal(second.begin() + static_cast<ptrdiff_t>(front),
                                    second.begin() + static_cast<ptrdiff_t>(front) + 8,
                                    area.begin() + static_cast<ptrdiff_t>(front)))
    front += 8;
  CHECK(std::equal(area.begin() + static_cast<ptrdiff_t>(front), area.end(),
                   first.begin() + static_cast<ptrdiff_t>(front)));
  // Writing to the dead does no harm, whatever it is answered; the living still talk.
  for (int i = 0; i < 50; ++i) {
    const Status status = WriteOne(bed.at(0), 1, {0, 0}, first);
    CHECK(status.ok() || Is(status, "FABRIC_DOWN") || Is(status, "FABRIC_BUSY"));
    bed.at(0).Ring(1);
  }
  bed.Drive();
  CHECK(WriteOne(bed.at(2), 0, {1, 0}, second).ok());
  CHECK(WriteOne(bed.at(0), 2, {1, 0}, first).ok());
  bed.Drive();
  CHECK(Holds(bed.at(0), 1, 0, second) && Holds(bed.at(2), 1, 0, first));
  bed.at(0).Disconnect(1);
  CHECK(bed.at(0).State(1) == PeerState::kDown);
}

inline void LateWritesDoNotReachANewIncarnation(FabricBed& bed) {
  bed.StartAll(2);
  const std::string old_descriptor = bed.at(1).Descriptor();
  const Bytes late = Pattern(40, 512);
  const Bytes fresh = Pattern(41, 512);
  CHECK(WriteOne(bed.at(0), 1, {0, 0}, late).ok());
  bed.KeepLate(0, 1);
  bed.Kill(1);
  bed.Start(1);
  CHECK(bed.at(1).Descriptor() != old_descriptor);
  // Through the connection that still points at the old incarnation.
  const Status status = WriteOne(bed.at(0), 1, {0, 1024}, late);
  CHECK(status.ok() || Is(status, "FABRIC_DOWN"));
  bed.Drive();
  bed.DeliverLate(0, 1);
  CHECK(IsZero(bed.at(1).region(0)));
  CHECK(Is(bed.at(0).Connect(1, 1000, old_descriptor), "FABRIC_CONNECT"));
  CHECK(bed.at(0).State(1) == PeerState::kDown);
  CHECK(Is(WriteOne(bed.at(0), 1, {0, 0}, fresh), "FABRIC_DOWN"));
  CHECK(bed.Connect(0, 1).ok());
  CHECK(bed.Connect(1, 0).ok());
  CHECK(WriteOne(bed.at(0), 1, {0, 0}, fresh).ok());
  CHECK(WriteOne(bed.at(1), 0, {1, 0}, fresh).ok());
  bed.Drive();
  CHECK(Holds(bed.at(1), 0, 0, fresh) && Holds(bed.at(0), 1, 0, fresh));
  CHECK(IsZero(bed.at(1).region(0).subspan(512)));
}

// 100 000 races or as many as fit into a few seconds, for a machine that is busy with something
// else; or exactly as many as FALCON_WAKE_RACES says.
struct WakeRaces {
  uint64_t count = 100000;
  Nanoseconds budget = 3 * kSecond;
  WakeRaces() {
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
  if (bed.at(0).wake_fd() < 0 || !bed.concurrent()) {
    SkipReason() = std::string(bed.name()) + " has nobody who could sleep";
    return;
  }
  const WakeRaces races;
  const Nanoseconds until = MonotonicNow() + races.budget;
  std::atomic<uint64_t> ready{0};
  std::atomic<uint64_t> last{races.count};
  std::atomic<bool> failed{false};
  std::thread sleeper([&] {
    const Pinned pinned(1);
    for (uint64_t i = 1; i <= last && !failed; ++i) {
      ready.store(i, std::memory_order_release);
      Linger(i * 31 % 509);
      if (!AwaitWord(bed.at(1), 64, i, 0)) failed = true;
    }
  });
  const Pinned pinned(0);
  uint64_t word = 0;
  for (uint64_t i = 1; i <= last && !failed; ++i) {
    if (i % 256 == 0 && MonotonicNow() > until)
      last = i;  // said before the write that ends round i
    for (uint64_t looks = 1; ready.load(std::memory_order_acquire) < i && !failed; ++looks) {
      if (looks % 4096 == 0) std::this_thread::yield();
    }
    Linger(i * 17 % 251);
    word = i;
    if (!WriteOne(bed.at(0), 1, {0, 64}, WordBytes(word)).ok()) failed = true;
    bed.at(0).Ring(1);
    while (bed.at(0).Completed(1) < bed.at(0).Posted(1) && !failed) bed.at(0).Poll();
  }
  sleeper.join();
  CHECK(!failed);
  std::printf("# %llu races, %llu wakes\n", static_cast<unsigned long long>(word),
              static_cast<unsigned long long>(bed.at(0).counters().wakes_sent));
  CHECK(bed.at(0).counters().wakes_sent <= word);
  CHECK(bed.at(0).counters().wakes_sent > 0 && bed.at(1).counters().wakes_received > 0);
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
  CHECK(WriteOne(writer, 1, {0, 0}, WordBytes(word)).ok());
  writer.Ring(1);
  CHECK(!readable() && writer.counters().wakes_sent == 0);
  sleeper.ArmWake();
  writer.Ring(1);  // nothing was written since the last ring
  CHECK(!readable());
  CHECK(WriteOne(writer, 1, {0, 0}, WordBytes(word)).ok());
  writer.Ring(1);
  CHECK(readable() && writer.counters().wakes_sent == 1);
  sleeper.DisarmWake();
  CHECK(!readable());
  sleeper.ArmWake();
  sleeper.DisarmWake();
  CHECK(WriteOne(writer, 1, {0, 0}, WordBytes(word)).ok());
  writer.Ring(1);
  CHECK(!readable() && writer.counters().wakes_sent == 1);
}

inline void MembersCloseInEveryState(FabricBed& bed) {
  const Bytes data = Pattern(50, 64);
  bed.Start(0);
  bed.Close(0);
  bed.StartAll(2);
  bed.at(0).Disconnect(1);
  bed.at(0).Disconnect(1);
  bed.at(0).Disconnect(5);
  bed.Close(0);  // not connected, but connected to
  bed.Close(1);
  bed.StartAll(2);
  CHECK(WriteOne(bed.at(0), 1, {0, 0}, data).ok());
  CHECK(WriteOne(bed.at(1), 0, {0, 0}, data).ok());
  bed.Step();
  bed.at(0).ArmWake();
  bed.Close(0);  // asleep, with writes in flight both ways
  CHECK(bed.at(1).Posted(0) == 1);
  bed.at(1).Ring(0);
  bed.Drive();
  bed.Close(1);
  bed.StartAll(2);
  bed.Kill(1);
  bed.Close(0);
  CHECK(bed.Leftovers() <=
        1);  // a process that was killed could not clean up; its member's next start does
  bed.Start(1);
  bed.Close(1);
  CHECK(bed.Leftovers() == 0);
}

inline size_t OpenDescriptors() {
  size_t count = 0;
  DIR* listing = opendir("/proc/self/fd");
  if (listing == nullptr) return 0;
  while (readdir(listing) != nullptr) ++count;
  closedir(listing);
  return count;
}

// Shared mappings of files only: what an allocator or a sanitizer maps is not ours.
inline size_t SharedMappings() {
  std::ifstream maps("/proc/self/maps");
  std::string line;
  size_t count = 0;
  while (std::getline(maps, line)) count += line.size() > 27 && line.find("s ") < 40 ? 1 : 0;
  return count;
}

inline void NothingLeaksOverManyConnections(FabricBed& bed) {
  bed.StartAll(3);
  const Bytes data = Pattern(60, 256);
  const size_t descriptors = OpenDescriptors();
  const size_t mappings = SharedMappings();
  const size_t leftovers = bed.Leftovers();
  for (int cycle = 0; cycle < 200; ++cycle) {
    switch (cycle % 4) {
      case 0:
        bed.at(0).Disconnect(1);
        CHECK(bed.Connect(0, 1).ok());
        break;
      case 1:
        CHECK(bed.Connect(2, 0).ok());  // over a live one
        break;
      case 2:
        CHECK(Is(bed.at(0).Connect(1, 1, "nonsense"), "FABRIC_CONNECT"));
        CHECK(bed.Connect(0, 1).ok());
        break;
      default:
        bed.Close(1);
        bed.Start(1);
        CHECK(bed.Connect(1, 0).ok() && bed.Connect(1, 2).ok());
        CHECK(bed.Connect(0, 1).ok() && bed.Connect(2, 1).ok());
    }
    CHECK(WriteOne(bed.at(0), 1, {0, 0}, data).ok());
    bed.Drive();
  }
  CHECK(OpenDescriptors() == descriptors);
  CHECK(SharedMappings() == mappings);
  CHECK(bed.Leftovers() == leftovers);
  for (PeerId member = 0; member < 3; ++member) bed.Close(member);
  CHECK(bed.Leftovers() == 0);
}

inline void BadDescriptorsAreRefused(FabricBed& bed) {
  bed.StartAll(3);
  Fabric& fabric = bed.at(0);
  fabric.Disconnect(1);
  const std::string good = bed.at(1).Descriptor();
  CHECK(good.size() <= 4096);
  const auto refused = [&](std::string_view descriptor) {
    return Is(fabric.Connect(1, 7, descriptor), "FABRIC_CONNECT") &&
           fabric.State(1) == PeerState::kDown;
  };
  for (size_t length = 0; length < good.size(); ++length) CHECK(refused(good.substr(0, length)));
  CHECK(refused(good + "x"));
  CHECK(refused(good + good));
  CHECK(refused(std::string(4097, 'a')));
  CHECK(refused(std::string(1 << 20, '\0')));
  CHECK(refused(bed.at(2).Descriptor()));
  CHECK(refused(fabric.Descriptor()));
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const Bytes noise = Pattern(seed, good.size());
    CHECK(refused({reinterpret_cast<const char*>(noise.data()), noise.size()}));
  }
  // One wrong bit: a fabric may not be able to tell, but it must survive.
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    std::string flipped = good;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    static_cast<void>(fabric.Connect(1, 7, flipped).ok());
  }
  CHECK(fabric.Connect(1, 8, good).ok());
  const Bytes data = Pattern(70, 64);
  CHECK(WriteOne(fabric, 1, {0, 0}, data).ok());
  bed.Drive();
  CHECK(Holds(bed.at(1), 0, 0, data));
}

inline void RegionsAreMadeOnceAndEarly(FabricBed& bed) {
  bed.StartAll(2);
  CHECK(Is(bed.at(0).AddRegion(0, 4096), "FABRIC_REGION"));
  CHECK(Is(bed.at(0).AddRegion(2, 4096), "FABRIC_REGION"));  // after the first Connect
  bed.Start(2);
  CHECK(Is(bed.at(2).AddRegion(kMaxRegions, 4096), "FABRIC_REGION"));
  CHECK(Is(bed.at(2).AddRegion(2, 0), "FABRIC_REGION"));
  CHECK(bed.at(2).AddRegion(2, 100).ok());
  CHECK(bed.at(2).region(2).size() == 100);
  CHECK(bed.Connect(0, 2).ok());
  const Bytes data = Pattern(80, 100);
  CHECK(WriteOne(bed.at(0), 2, {2, 0}, data).ok());
  CHECK(Is(WriteOne(bed.at(0), 2, {2, 1}, data), "FABRIC_BOUNDS"));
  bed.Drive();
  CHECK(Holds(bed.at(2), 2, 0, data));
}

}  // namespace conformance

template <typename Bed, void (*Run)(FabricBed&)>
void AddConformanceCase(const char* name) {
  Cases().push_back({name, [] {
                       Bed bed;
                       Run(bed);
                     }});
}

template <typename Bed>
void AddConformanceCases() {
  namespace c = conformance;
  AddConformanceCase<Bed, c::WritesAndReadsReachTheRightRegion>(
      "writes_and_reads_reach_the_right_region");
  AddConformanceCase<Bed, c::PiecesAreJoined>("pieces_are_joined");
  AddConformanceCase<Bed, c::BigWritesArriveWhole>("big_writes_arrive_whole");
  AddConformanceCase<Bed, c::NothingIsWrittenBeyondARegion>("nothing_is_written_beyond_a_region");
  AddConformanceCase<Bed, c::WritesOfOneConnectionKeepTheirOrder>(
      "writes_of_one_connection_keep_their_order");
  AddConformanceCase<Bed, c::AlignedWordsNeverTear>("aligned_words_never_tear");
  AddConformanceCase<Bed, c::PeersDoNotDisturbEachOther>("peers_do_not_disturb_each_other");
  AddConformanceCase<Bed, c::OperationsAreCounted>("operations_are_counted");
  AddConformanceCase<Bed, c::AFullQueueSaysSo>("a_full_queue_says_so");
  AddConformanceCase<Bed, c::AWriterMayDieInTheMiddle>("a_writer_may_die_in_the_middle");
  AddConformanceCase<Bed, c::LateWritesDoNotReachANewIncarnation>(
      "late_writes_do_not_reach_a_new_incarnation");
  AddConformanceCase<Bed, c::NoWakeIsLost>("no_wake_is_lost");
  AddConformanceCase<Bed, c::NobodyIsRungWhoDoesNotSleep>("nobody_is_rung_who_does_not_sleep");
  AddConformanceCase<Bed, c::MembersCloseInEveryState>("members_close_in_every_state");
  AddConformanceCase<Bed, c::NothingLeaksOverManyConnections>(
      "nothing_leaks_over_many_connections");
  AddConformanceCase<Bed, c::BadDescriptorsAreRefused>("bad_descriptors_are_refused");
  AddConformanceCase<Bed, c::RegionsAreMadeOnceAndEarly>("regions_are_made_once_and_early");
}

}  // namespace falcon::test
