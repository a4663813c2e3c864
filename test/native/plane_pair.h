// Two data planes on the simulated fabric, step by step.
#pragma once

#include <memory>

#include "check.h"
#include "fabric/sim.h"
#include "log/sim_storage.h"
#include "os/clock.h"
#include "plane/data_plane.h"
#include "vm/vm_rings.h"

namespace falcon::test {

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

}  // namespace falcon::test
