// A whole cluster's data planes in one thread, on the simulated fabric and simulated disks: the
// real log, rings and gates, driven by a test that owns time, the network and every fault.
#pragma once

#include <napi.h>

#include <array>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "addon/sim_guest.h"
#include "fabric/sim.h"
#include "log/sim_storage.h"
#include "plane/data_plane.h"
#include "vm/vm_rings.h"

namespace falcon::addon {

class Simulation : public Napi::ObjectWrap<Simulation> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit Simulation(const Napi::CallbackInfo& info);

 private:
  // Records what the gate let out, with the time at which it did.
  struct Recorder final : WireSink {
    bool Write(Frame frame) override;
    struct Output {
      Nanoseconds at;
      std::vector<std::byte> frame;
    };
    Clock* clock = nullptr;
    std::vector<Output> outputs;
  };
  struct NodeClock final : Clock {
    Nanoseconds Now() override { return now; }
    Nanoseconds now = 0;
  };
  struct Node {
    std::unique_ptr<SimStorage> storage;  // survives the process
    NodeClock clock;
    Recorder wire;
    std::unique_ptr<VmRings> rings;
    RingProducer tap;  // what the network sends
    SimGuest guest;
    std::unique_ptr<Fabric> fabric;
    std::unique_ptr<Wal> wal;
    RecoveredLog recovered;
    std::unique_ptr<DataPlane> plane;  // null: the process is dead
    uint64_t taken_frames = 0;
  };

  // All take the node's index first.
  Napi::Value Start(const Napi::CallbackInfo& info);  // (node, options, vm) -> recovered
  Napi::Value Kill(const Napi::CallbackInfo& info);   // (node, losePower, keepWire)
  Napi::Value LoseDisk(const Napi::CallbackInfo& info);
  Napi::Value Poll(const Napi::CallbackInfo& info);     // (node, nowNs) -> work done
  Napi::Value StepWal(const Napi::CallbackInfo& info);  // (node) -> entries written
  Napi::Value Events(const Napi::CallbackInfo& info);   // (node) -> events
  Napi::Value Command(const Napi::CallbackInfo& info);  // (node, name, ...args)
  Napi::Value Connect(const Napi::CallbackInfo& info);  // (node, peer, connection, descriptor)
  Napi::Value Descriptor(const Napi::CallbackInfo& info);
  Napi::Value Tick(const Napi::CallbackInfo& info);  // (node, nowNs)
  Napi::Value Progress(const Napi::CallbackInfo& info);
  Napi::Value Counters(const Napi::CallbackInfo& info);
  Napi::Value MayRelease(const Napi::CallbackInfo& info);  // (node, nowNs)
  Napi::Value ExpectVm(const Napi::CallbackInfo& info);
  Napi::Value Inject(const Napi::CallbackInfo& info);  // (node, frame) -> taken by the tap
  Napi::Value Outputs(
      const Napi::CallbackInfo& info);  // (node) -> [{atNs, frame}], and forgets them
  Napi::Value Service(const Napi::CallbackInfo& info);  // (node) -> {frames, digest}
  // The guest: (node, ...)
  Napi::Value StartGuest(const Napi::CallbackInfo& info);  // (node, path, pages, seed)
  Napi::Value StopGuest(const Napi::CallbackInfo& info);
  Napi::Value RunGuest(const Napi::CallbackInfo& info);  // (node, run)
  Napi::Value LogDirty(const Napi::CallbackInfo& info);
  Napi::Value TakeDirty(const Napi::CallbackInfo& info);  // (node) -> {pages, set}
  Napi::Value Entries(const Napi::CallbackInfo& info);  // (node, from, until) -> [{view, op, kind,
                                                        // checksum}] from its disk and memory
  // The network: (from, to, ...)
  Napi::Value Pending(const Napi::CallbackInfo& info);
  Napi::Value Deliver(const Napi::CallbackInfo& info);  // (from, to, bytes; 0: whole) -> done
  Napi::Value DeliverStale(const Napi::CallbackInfo& info);
  Napi::Value Cut(const Napi::CallbackInfo& info);
  Napi::Value Break(const Napi::CallbackInfo& info);  // (from, to, known, keepStale)

  Node& At(const Napi::CallbackInfo& info, size_t argument = 0);

  SimNetwork network_{{.lazy_completions = true}};
  std::array<Node, kMaxMembers> nodes_;
  uint64_t disks_ = 0;  // seed of the disk that was made last, of those that replace others
  size_t members_ = 0;
};

}  // namespace falcon::addon
