// Conformance: the bytes. What is written arrives where it was meant to, within bounds, in order,
// without torn words, and is counted.
#pragma once

#include <atomic>
#include <thread>
#include <vector>

#include "fabric_bed.h"

namespace falcon::test::conformance {

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
  // Also when there is nothing to write: where no region is, nothing can be addressed.
  CHECK(Is(fabric.Write(1, {2, 0}, {}), "FABRIC_BOUNDS"));
  CHECK(Is(fabric.Write(1, {200, 0}, {}), "FABRIC_BOUNDS"));
  CHECK(Is(fabric.Read(1, {200, 0}, {}), "FABRIC_BOUNDS"));
  CHECK(Is(fabric.Write(1, {1, kRegion1Bytes + 1}, {}), "FABRIC_BOUNDS"));
  Bytes back(64, std::byte{9});
  CHECK(Is(fabric.Read(1, {1, kRegion1Bytes - 63}, back), "FABRIC_BOUNDS"));
  bed.Drive();
  CHECK(fabric.Posted(1) == posted);
  CHECK(fabric.counters().errors == errors + 11);
  CHECK(fabric.Write(1, {1, kRegion1Bytes}, {}).ok());
  bed.Drive();
  CHECK(Holds(bed.at(1), 1, kRegion1Bytes - 64, data));
  CHECK(back == Bytes(64, std::byte{9}));
  CHECK(fabric.State(1) == PeerState::kUp);
}

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
  const uint64_t rounds = bed.concurrent() ? bed.Scaled(kRounds) : 200;
  for (uint64_t i = 1; i <= rounds; ++i) {
    for (const uint64_t offset : {8192, 64, 4096})
      CHECK(WriteOne(bed.at(0), 1, {0, offset}, WordBytes(i)).ok());
    if (bed.concurrent()) {
      while (!AllCompleted(bed.at(0), 1)) bed.at(0).Poll();
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
  const size_t rounds = bed.concurrent() ? bed.Scaled(300000) : 100;
  for (size_t i = 0; i < rounds; ++i) {
    const Span whole = i % 8 == 0 ? Span(sources[i % 256]) : Span(sources[i % 256]).first(8);
    const size_t cut = whole.size() == 8 ? 1 + i % 5 : 1 + i % 97;
    const Span pieces[] = {whole.first(cut), whole.subspan(cut, 1), whole.subspan(cut + 1, 1),
                           whole.subspan(cut + 2)};
    CHECK(bed.at(0).Write(1, {0, 1024}, pieces).ok());
    if (bed.concurrent()) {
      while (!AllCompleted(bed.at(0), 1)) bed.at(0).Poll();
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

}  // namespace falcon::test::conformance
