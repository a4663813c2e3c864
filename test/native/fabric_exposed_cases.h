// Conformance: memory that is open to one peer for a while. It is reached while it is open, by that
// peer, within its bounds and in order; afterwards nothing changes it.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>

#include "fabric_bed.h"
#include "fabric_life_cases.h"
#include "os/clock.h"
#include "pages/page_mover.h"

namespace falcon::test::conformance {

inline constexpr RegionId kLent = 2;
inline constexpr size_t kLentBytes = 256 << 10;

// A file of zeroes as long as this lives, mapped; without a name where the bed needs none.
class LentMemory {
 public:
  explicit LentMemory(const FabricBed& bed, size_t bytes = kLentBytes) : bytes_(bytes) {
    static int number = 0;
    int fd = -1;
    if (bed.LendingDirectory().empty()) {
      fd = memfd_create("lent", MFD_CLOEXEC);
    } else {
      path_ = bed.LendingDirectory() + "/ram-" + std::to_string(++number);
      fd = open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    }
    CHECK(fd >= 0 && ftruncate(fd, static_cast<off_t>(bytes)) == 0);
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(at != MAP_FAILED);
    base_ = static_cast<std::byte*>(at);
    close(fd);
  }
  ~LentMemory() {
    munmap(base_, bytes_);
    if (!path_.empty()) unlink(path_.c_str());
  }
  LentMemory(const LentMemory&) = delete;
  LentMemory& operator=(const LentMemory&) = delete;

  [[nodiscard]] std::span<std::byte> bytes() const { return {base_, bytes_}; }
  [[nodiscard]] ExposedMemory exposed() const { return {bytes(), path_}; }
  [[nodiscard]] Bytes Copy() const {
    Bytes copy(bytes_);
    CopyFromShared(copy, base_);
    return copy;
  }
  [[nodiscard]] bool Holds(size_t offset, Span expected) const {
    const Bytes copy = Copy();
    return std::equal(expected.begin(), expected.end(),
                      copy.begin() + static_cast<ptrdiff_t>(offset));
  }

 private:
  size_t bytes_;
  std::string path_;
  std::byte* base_ = nullptr;
};

// Owner 1 lends to writer 0; false: something was refused.
inline bool Lend(FabricBed& bed, const LentMemory& memory, PeerId owner = 1, PeerId writer = 0) {
  std::string grant;
  const Status exposed = bed.at(owner).Expose(kLent, writer, memory.exposed(), &grant);
  CHECK(grant.size() <= kMaxGrantBytes);
  const Status attached = exposed.ok() ? bed.at(writer).Attach(owner, kLent, grant) : exposed;
  if (!attached.ok()) std::printf("# %s %s\n", attached.code(), attached.detail().c_str());
  return attached.ok();
}

// Writes until the writer knows that its connection is broken.
inline bool WritesUntilBroken(FabricBed& bed, Span data) {
  const Nanoseconds give_up = MonotonicNow() + 20 * kSecond;
  while (MonotonicNow() < give_up) {
    const Status status = WriteOne(bed.at(0), 1, {kLent, 0}, data);
    if (Is(status, "FABRIC_DOWN")) return bed.at(0).State(1) == PeerState::kBroken;
    CHECK(status.ok() || Is(status, "FABRIC_BUSY"));
    bed.Drive();
  }
  return false;
}

inline void ExposedMemoryIsWrittenAndRead(FabricBed& bed) {
  bed.StartAll(2);
  const LentMemory memory(bed);
  const Bytes first = Pattern(90, 4096);
  const Bytes last = Pattern(91, 64 << 10);
  CHECK(Is(WriteOne(bed.at(0), 1, {kLent, 0}, first), "FABRIC_BOUNDS"));
  REQUIRE(Lend(bed, memory));
  CHECK(bed.at(1).region(kLent).empty());
  CHECK(WriteOne(bed.at(0), 1, {kLent, 0}, first).ok());
  CHECK(WriteOne(bed.at(0), 1, {kLent, kLentBytes - last.size()}, last).ok());
  const Span cut[] = {Span(first).first(1001), Span(first).subspan(1001)};
  CHECK(bed.at(0).Write(1, {kLent, 8192}, cut).ok());
  bed.Drive();
  CHECK(memory.Holds(0, first) && memory.Holds(8192, first));
  CHECK(memory.Holds(kLentBytes - last.size(), last));
  CHECK(IsZero(memory.bytes().subspan(4096, 4096)));
  Bytes back(5000);
  CHECK(bed.at(0).Read(1, {kLent, kLentBytes - 5000}, back).ok());
  bed.Drive();
  CHECK(std::equal(back.begin(), back.end(), last.end() - 5000));
  // The other regions, and the other direction, are what they were.
  CHECK(WriteOne(bed.at(0), 1, {0, 64}, first).ok() && WriteOne(bed.at(1), 0, {1, 8}, first).ok());
  CHECK(Is(WriteOne(bed.at(1), 0, {kLent, 0}, first), "FABRIC_BOUNDS"));
  bed.Drive();
  CHECK(Holds(bed.at(1), 0, 64, first) && Holds(bed.at(0), 1, 8, first));
  bed.at(0).Detach(1, kLent);
  bed.at(0).Detach(1, kLent);
  CHECK(Is(WriteOne(bed.at(0), 1, {kLent, 0}, last), "FABRIC_BOUNDS"));
  bed.at(1).Conceal(kLent);
  bed.at(1).Conceal(kLent);
  bed.Drive();
  CHECK(memory.Holds(0, first));
  CHECK(bed.at(0).State(1) == PeerState::kUp && bed.at(1).State(0) == PeerState::kUp);
}

inline void ExposedMemoryHasBounds(FabricBed& bed) {
  bed.StartAll(2);
  const LentMemory memory(bed);
  REQUIRE(Lend(bed, memory));
  const Bytes data = Pattern(92, 64);
  Bytes back(64);
  for (const uint64_t offset : {kLentBytes - 63, kLentBytes, kLentBytes + 1, ~size_t{0} - 10}) {
    CHECK(Is(WriteOne(bed.at(0), 1, {kLent, offset}, data), "FABRIC_BOUNDS"));
    CHECK(Is(bed.at(0).Read(1, {kLent, offset}, back), "FABRIC_BOUNDS"));
  }
  CHECK(Is(WriteOne(bed.at(0), 1, {kLent + 1, 0}, data), "FABRIC_BOUNDS"));
  CHECK(WriteOne(bed.at(0), 1, {kLent, kLentBytes - 64}, data).ok());
  CHECK(bed.at(0).Write(1, {kLent, kLentBytes}, {}).ok());
  bed.Drive();
  CHECK(memory.Holds(kLentBytes - 64, data));
  CHECK(bed.at(0).State(1) == PeerState::kUp);
  bed.at(1).Conceal(kLent);
}

inline void ExposuresAreChecked(FabricBed& bed) {
  bed.StartAll(3);
  const LentMemory memory(bed);
  Fabric& owner = bed.at(1);
  std::string grant = "untouched";
  const auto refused = [&](RegionId region, const ExposedMemory& lent) {
    return Is(owner.Expose(region, 0, lent, &grant), "FABRIC_REGION");
  };
  CHECK(refused(0, memory.exposed()) && refused(1, memory.exposed()));
  CHECK(refused(kMaxRegions, memory.exposed()) && refused(255, memory.exposed()));
  CHECK(refused(kLent, {{}, memory.exposed().path}));
  CHECK(Is(owner.Expose(kLent, 5, memory.exposed(), &grant), "FABRIC_DOWN"));
  CHECK(grant == "untouched");
  CHECK(owner.Expose(kLent, 0, memory.exposed(), &grant).ok());
  CHECK(refused(kLent, memory.exposed()));
  std::string other;
  CHECK(Is(owner.Expose(kLent, 2, memory.exposed(), &other), "FABRIC_REGION"));  // to one at a time
  CHECK(Is(bed.at(0).Attach(5, kLent, grant), "FABRIC_DOWN"));
  owner.Conceal(kLent);
  CHECK(owner.Expose(kLent, 2, memory.exposed(), &grant).ok());
  owner.Conceal(kLent);
}

inline void AGrantIsForOnePeerAndConnection(FabricBed& bed) {
  bed.StartAll(3);
  const LentMemory memory(bed);
  std::string grant;
  REQUIRE(bed.at(1).Expose(kLent, 0, memory.exposed(), &grant).ok());
  CHECK(Is(bed.at(2).Attach(1, kLent, grant), "FABRIC_GRANT"));
  CHECK(Is(bed.at(0).Attach(2, kLent, grant), "FABRIC_GRANT"));
  CHECK(Is(bed.at(0).Attach(1, kLent + 1, grant), "FABRIC_GRANT"));
  CHECK(Is(bed.at(0).Attach(1, 0, grant), "FABRIC_GRANT"));
  CHECK(Is(WriteOne(bed.at(2), 1, {kLent, 0}, Pattern(93, 64)), "FABRIC_BOUNDS"));
  CHECK(bed.Connect(0, 1).ok());
  bed.Drive();
  CHECK(Is(bed.at(0).Attach(1, kLent, grant), "FABRIC_GRANT"));
  CHECK(IsZero(memory.bytes()));
  bed.at(1).Conceal(kLent);
}

inline void BadGrantsAreRefused(FabricBed& bed) {
  bed.StartAll(2);
  const LentMemory memory(bed);
  std::string good;
  REQUIRE(bed.at(1).Expose(kLent, 0, memory.exposed(), &good).ok());
  const auto refused = [&](std::string_view grant) {
    return Is(bed.at(0).Attach(1, kLent, grant), "FABRIC_GRANT");
  };
  for (size_t length = 0; length < good.size(); ++length) CHECK(refused(good.substr(0, length)));
  CHECK(refused(good + "x") && refused(good + good));
  CHECK(refused(std::string(kMaxGrantBytes + 1, 'a')) && refused(std::string(1 << 20, '\0')));
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    std::string flipped = good;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    CHECK(refused(flipped));
  }
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const Bytes noise = Pattern(seed, good.size());
    CHECK(refused({reinterpret_cast<const char*>(noise.data()), noise.size()}));
  }
  const Bytes data = Pattern(94, 64);
  CHECK(Is(WriteOne(bed.at(0), 1, {kLent, 0}, data), "FABRIC_BOUNDS"));
  CHECK(bed.at(0).Attach(1, kLent, good).ok());
  CHECK(WriteOne(bed.at(0), 1, {kLent, 0}, data).ok());
  bed.Drive();
  CHECK(memory.Holds(0, data));
  bed.at(1).Conceal(kLent);
}

// Nothing of the late writer changes, and a new connection and a new grant bring it back.
inline void ConcealedMemoryIsLeftAlone(FabricBed& bed) {
  bed.StartAll(3);
  const LentMemory memory(bed);
  REQUIRE(Lend(bed, memory));
  const Bytes data = Pattern(95, 4096);
  const Bytes late = Pattern(96, 4096);
  CHECK(WriteOne(bed.at(0), 1, {kLent, 0}, data).ok());
  bed.Drive();
  bed.at(1).Conceal(kLent);
  CHECK(WritesUntilBroken(bed, late));
  CHECK(memory.Holds(0, data) && IsZero(memory.bytes().subspan(data.size())));
  CHECK(WriteOne(bed.at(2), 1, {0, 0}, data).ok() && WriteOne(bed.at(0), 2, {0, 0}, data).ok());
  bed.Drive();
  CHECK(Holds(bed.at(1), 0, 0, data) && Holds(bed.at(2), 0, 0, data));
  CHECK(bed.Connect(0, 1).ok());
  bed.Drive();
  CHECK(Is(WriteOne(bed.at(0), 1, {kLent, 0}, late), "FABRIC_BOUNDS"));
  REQUIRE(Lend(bed, memory));
  CHECK(WriteOne(bed.at(0), 1, {kLent, 0}, late).ok());
  bed.Drive();
  CHECK(memory.Holds(0, late));
  bed.at(1).Conceal(kLent);
}

// Concealed at every stage of a long write and a read: what is there then, stays.
inline void WhatIsOnItsWayToConcealedMemoryIsDropped(FabricBed& bed) {
  bed.StartAll(2);
  const Bytes data = Pattern(97, kLentBytes);
  for (int steps = 0; steps < 24; ++steps) {
    const LentMemory memory(bed);
    REQUIRE(Lend(bed, memory));
    Bytes back(64 << 10);
    CHECK(WriteOne(bed.at(0), 1, {kLent, 0}, data).ok());
    CHECK(bed.at(0).Read(1, {kLent, 0}, back).ok());
    for (int i = 0; i < steps; ++i) bed.Step();
    bed.at(1).Conceal(kLent);
    const Bytes before = memory.Copy();
    bed.Drive();
    CHECK(memory.Copy() == before);
    // As if it were unmapped and mapped again elsewhere.
    const LentMemory next(bed);
    std::string grant;
    if (bed.at(1).Expose(kLent, 0, next.exposed(), &grant).ok()) bed.Drive();
    CHECK(IsZero(next.bytes()));
    bed.at(1).Conceal(kLent);
    CHECK(bed.Connect(0, 1).ok());
    bed.Drive();
    CHECK(memory.Copy() == before && IsZero(next.bytes()));
  }
}

inline void AnEarlierGrantOpensNothing(FabricBed& bed) {
  bed.StartAll(2);
  const LentMemory first(bed);
  const LentMemory second(bed);
  std::string old_grant;
  REQUIRE(bed.at(1).Expose(kLent, 0, first.exposed(), &old_grant).ok());
  bed.at(1).Conceal(kLent);
  std::string grant;
  REQUIRE(bed.at(1).Expose(kLent, 0, second.exposed(), &grant).ok());
  CHECK(grant != old_grant);
  const Status attached = bed.at(0).Attach(1, kLent, old_grant);
  CHECK(attached.ok() || Is(attached, "FABRIC_GRANT"));
  const Bytes data = Pattern(98, 512);
  if (attached.ok()) CHECK(WritesUntilBroken(bed, data));
  bed.Drive();
  CHECK(IsZero(first.bytes()) && IsZero(second.bytes()));
  if (attached.ok()) {
    bed.at(1).Conceal(kLent);
    CHECK(bed.Connect(0, 1).ok());
    bed.Drive();
    REQUIRE(Lend(bed, second));
  } else {
    CHECK(bed.at(0).Attach(1, kLent, grant).ok());
  }
  CHECK(WriteOne(bed.at(0), 1, {kLent, 0}, data).ok());
  bed.Drive();
  CHECK(IsZero(first.bytes()) && second.Holds(0, data));
  bed.at(1).Conceal(kLent);
}

inline void TheEndOfAConnectionConceals(FabricBed& bed) {
  bed.StartAll(2);
  const LentMemory memory(bed);
  const Bytes data = Pattern(99, 4096);
  for (const bool by_owner : {true, false}) {
    REQUIRE(Lend(bed, memory));
    if (by_owner) {
      bed.at(1).Disconnect(0);
      const Status status = WriteOne(bed.at(0), 1, {kLent, 0}, data);
      CHECK(status.ok() || Is(status, "FABRIC_DOWN"));
    } else {
      bed.at(0).Disconnect(1);
      CHECK(Is(WriteOne(bed.at(0), 1, {kLent, 0}, data), "FABRIC_DOWN"));
    }
    bed.Drive();
    CHECK(IsZero(memory.bytes()));
    CHECK(bed.Connect(0, 1).ok());
    bed.Drive();
    CHECK(Is(WriteOne(bed.at(0), 1, {kLent, 0}, data), "FABRIC_BOUNDS"));
  }
  REQUIRE(Lend(bed, memory));  // the number is free again
  CHECK(WriteOne(bed.at(0), 1, {kLent, 0}, data).ok());
  bed.Drive();
  CHECK(memory.Holds(0, data));
  bed.at(1).Disconnect(0);
}

// Pages, and behind them a word that says how many: whoever sees the word sees the pages.
inline void ExposedMemoryKeepsTheOrder(FabricBed& bed) {
  bed.StartAll(2);
  const LentMemory memory(bed);
  REQUIRE(Lend(bed, memory));
  std::atomic<bool> done{false};
  std::atomic<uint64_t> looks{0};
  std::atomic<uint64_t> wrong{0};
  constexpr size_t kRuns = 3;
  constexpr size_t kRunBytes = 64 << 10;
  const auto holds = [&memory] {
    const uint64_t marker = LoadSharedWord(memory.bytes().data() + kRuns * kRunBytes);
    AcquireFence();
    for (size_t at = kRunBytes - 8; at < kRuns * kRunBytes; at += kRunBytes) {
      if (LoadSharedWord(memory.bytes().data() + at) < marker) return false;
    }
    return true;
  };
  std::thread watcher;
  if (bed.concurrent()) {
    watcher = std::thread([&] {
      const Pinned pinned(1);
      for (; !done; ++looks) {
        if (!holds()) ++wrong;
      }
    });
  }
  while (watcher.joinable() && looks == 0) std::this_thread::yield();
  const Pinned pinned(0);
  const uint64_t rounds = bed.concurrent() ? 300 : 4;
  Bytes run(kRunBytes);
  for (uint64_t round = 1; round <= rounds; ++round) {
    const uint64_t word = round;
    for (size_t at = 0; at < kRunBytes; at += 8) std::memcpy(run.data() + at, &word, 8);
    const auto post = [&](uint64_t offset, Span bytes) {
      Status status = WriteOne(bed.at(0), 1, {kLent, offset}, bytes);
      while (Is(status, "FABRIC_BUSY")) {
        bed.at(0).Poll();
        status = WriteOne(bed.at(0), 1, {kLent, offset}, bytes);
      }
      CHECK(status.ok());
    };
    for (size_t i = 0; i < kRuns; ++i) post(i * kRunBytes, run);
    post(kRuns * kRunBytes, WordBytes(word));
    for (bool more = true; !AllCompleted(bed.at(0), 1) || more; ++looks) {
      if (!holds()) ++wrong;
      more = bed.concurrent() ? (bed.at(0).Poll(), false) : bed.Step();
    }
  }
  bed.Drive();
  done = true;
  if (watcher.joinable()) watcher.join();
  CHECK(wrong == 0 && looks > 0);
  CHECK(LoadSharedWord(memory.bytes().data() + kRuns * kRunBytes) == rounds);
  bed.at(1).Conceal(kLent);
}

// Every other page and two runs, from memory that the fabric was told of and from memory that it
// was not.
inline void AMoverMovesPages(FabricBed& bed) {
  bed.StartAll(2);
  constexpr size_t kPages = kLentBytes / kPageBytes;
  const LentMemory source(bed);
  const Bytes pattern = Pattern(102, kLentBytes);
  std::copy(pattern.begin(), pattern.end(), source.bytes().begin());
  for (const bool told : {true, false}) {
    const LentMemory memory(bed);
    REQUIRE(Lend(bed, memory));
    if (told) CHECK(bed.at(0).AddSource(source.bytes()).ok());
    PageSet pages(kPages);
    pages.SetRun({1, 20});
    pages.SetRun({30, 5});
    for (size_t page = 40; page < kPages; page += 2) pages.Set(page);
    PageMoverOptions options;
    options.outstanding_bytes = 128 << 10;
    options.outstanding_writes = 8;
    PageMover mover(&bed.at(0), 1, kLent, source.bytes(), pages, options);
    const Nanoseconds give_up = MonotonicNow() + 20 * kSecond;
    while (!mover.Done() && mover.failure().ok() && MonotonicNow() < give_up) {
      size_t posted = 0;
      CHECK(mover.Step(96 << 10, &posted).ok());
      if (posted == 0) bed.Drive();
    }
    CHECK(mover.Done() && mover.progress().completed == pages.Count());
    bed.Drive();
    for (size_t page = 0; page < kPages; ++page) {
      const auto bytes = std::span(memory.bytes()).subspan(page * kPageBytes, kPageBytes);
      CHECK(pages.Test(page) ? memory.Holds(page * kPageBytes,
                                            Span(pattern).subspan(page * kPageBytes, kPageBytes))
                             : IsZero(bytes));
    }
    bed.at(0).RemoveSource(source.bytes());
    bed.at(0).Detach(1, kLent);
    bed.at(1).Conceal(kLent);
  }
}

// What takes as long as memory is large may be done by other threads.
inline void MemoryIsLockedAndLetGoByOtherThreads(FabricBed& bed) {
  bed.StartAll(2);
  const LentMemory memory(bed);
  const size_t mappings = SharedMappings();
  const Bytes data = Pattern(102, 4096);
  const Bytes late = Pattern(103, 4096);
  for (int round = 0; round < 3; ++round) {
    ExposedMemory exposed = memory.exposed();
    Status locked;
    std::thread([&] { locked = bed.at(1).LockMemory(&exposed); }).join();
    REQUIRE(locked.ok());
    std::string grant;
    REQUIRE(bed.at(1).Expose(kLent, 0, exposed, &grant).ok());
    REQUIRE(bed.at(0).Attach(1, kLent, grant).ok());
    CHECK(WriteOne(bed.at(0), 1, {kLent, 0}, data).ok());
    bed.Drive();
    CHECK(memory.Holds(0, data));
    if (round == 0) {
      bed.at(0).Detach(1, kLent);
      CHECK(Is(WriteOne(bed.at(0), 1, {kLent, 0}, late), "FABRIC_BOUNDS"));
    }
    if (round == 2) bed.at(1).Disconnect(0);
    bed.at(1).Conceal(kLent);
    std::thread([&] { exposed.locked.reset(); }).join();
    if (round > 0) CHECK(WritesUntilBroken(bed, late));
    CHECK(memory.Holds(0, data));
    CHECK(bed.Connect(0, 1).ok());
    bed.Drive();
    CHECK(SoonIs(SharedMappings, mappings));
  }
}

inline void ManySessionsLeakNothing(FabricBed& bed) {
  bed.StartAll(2);
  const LentMemory memory(bed);
  LentMemory source(bed, 64 << 10);
  const Bytes pattern = Pattern(101, 64 << 10);
  std::copy(pattern.begin(), pattern.end(), source.bytes().begin());
  const size_t descriptors = OpenDescriptors();
  const size_t mappings = SharedMappings();
  const size_t leftovers = bed.Leftovers();
  for (uint64_t session = 0; session < 100; ++session) {
    REQUIRE(Lend(bed, memory));
    CHECK(bed.at(0).AddSource(source.bytes()).ok());
    CHECK(WriteOne(bed.at(0), 1, {kLent, session % 3 * (64 << 10)}, source.bytes()).ok());
    bed.Drive();
    CHECK(memory.Holds(session % 3 * (64 << 10), pattern));
    bed.at(0).RemoveSource(source.bytes());
    if (session % 2 == 0) bed.at(0).Detach(1, kLent);
    bed.at(1).Conceal(kLent);
    if (session % 3 == 0) {
      CHECK(bed.Connect(0, 1).ok());
      bed.Drive();
    }
  }
  bed.at(0).Detach(1, kLent);
  CHECK(SoonIs(OpenDescriptors, descriptors));
  CHECK(SoonIs(SharedMappings, mappings));
  CHECK(bed.Leftovers() == leftovers);
}

}  // namespace falcon::test::conformance
