// Conformance: beginnings and ends. Members die, come back and close in every state; descriptors
// are wrong; nothing leaks.
#pragma once

#include <dirent.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "fabric_bed.h"

namespace falcon::test::conformance {

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
  if (bed.knows_the_dead()) {
    // Refused at once, or as soon as the peer that is there now has said so.
    const Status stale = bed.at(0).Connect(1, 1000, old_descriptor);
    CHECK(stale.ok() || Is(stale, "FABRIC_CONNECT"));
    bed.Drive();
    CHECK(bed.at(0).State(1) == (stale.ok() ? PeerState::kBroken : PeerState::kDown));
    CHECK(Is(WriteOne(bed.at(0), 1, {0, 0}, fresh), "FABRIC_DOWN"));
  }
  CHECK(bed.Connect(0, 1).ok());
  CHECK(bed.Connect(1, 0).ok());
  CHECK(WriteOne(bed.at(0), 1, {0, 0}, fresh).ok());
  CHECK(WriteOne(bed.at(1), 0, {1, 0}, fresh).ok());
  bed.Drive();
  CHECK(Holds(bed.at(1), 0, 0, fresh) && Holds(bed.at(0), 1, 0, fresh));
  CHECK(IsZero(bed.at(1).region(0).subspan(512)));
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

// A fabric may leave unmapping to a thread of its own.
inline bool SoonIs(size_t (*count)(), size_t wanted) {
  for (int i = 0; i < 2000 && count() != wanted; ++i) usleep(1000);
  return count() == wanted;
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
  CHECK(SoonIs(OpenDescriptors, descriptors));
  CHECK(SoonIs(SharedMappings, mappings));
  CHECK(bed.Leftovers() == leftovers);
  for (PeerId member = 0; member < 3; ++member) bed.Close(member);
  CHECK(bed.Leftovers() == 0);
}

// What is prepared for a peer is used by its next Connect or by none.
inline void ConnectionsMayBePreparedByOtherThreads(FabricBed& bed) {
  bed.StartAll(3);
  const Bytes data = Pattern(61, 256);
  const size_t mappings = SharedMappings();
  const auto prepare = [&](PeerId peer, const std::string& descriptor) {
    Status status;
    std::thread([&] { status = bed.at(0).Prepare(peer, descriptor); }).join();
    return status;
  };
  CHECK(prepare(1, bed.at(1).Descriptor()).ok());
  CHECK(bed.Connect(0, 1).ok());
  CHECK(WriteOne(bed.at(0), 1, {0, 0}, data).ok());
  bed.Drive();
  CHECK(Holds(bed.at(1), 0, 0, data));
  // Of an incarnation that has ended, of another peer, nothing at all.
  const std::string ended = bed.at(1).Descriptor();
  CHECK(prepare(1, ended).ok());
  bed.Close(1);
  bed.Start(1);
  CHECK(bed.Connect(1, 2).ok());
  CHECK(bed.Connect(0, 1).ok());
  static_cast<void>(prepare(1, bed.at(2).Descriptor()));
  static_cast<void>(prepare(2, "nonsense"));
  CHECK(bed.Connect(0, 1).ok());
  CHECK(WriteOne(bed.at(0), 1, {0, 512}, data).ok());
  bed.Drive();
  CHECK(Holds(bed.at(1), 0, 512, data));
  CHECK(!Holds(bed.at(1), 0, 0, data));
  CHECK(SoonIs(SharedMappings, mappings));
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
  CHECK(bed.Connect(0, 1).ok());
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

}  // namespace falcon::test::conformance
