// The fabric of tests: an in-process network on which nothing moves until the test says so.
//
// Every posted write or read becomes a pending operation of its channel, the pair (from, to). The
// test (or a seeded simulator) then delivers it whole, in part, out of order between regions,
// later, or never. Nothing here is random and nothing reads a clock; one thread owns a network and
// all its fabrics.
//
// By default the pieces of a write are read when it is delivered, not when it is posted, as a
// network card would: a buffer that is reused before Completed() allows it sends the wrong bytes,
// and a test sees it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "fabric/fabric.h"

namespace falcon {

class SimFabric;

struct SimOptions {
  size_t queue_bound = 256;       // operations posted and not completed, per channel
  bool capture_at_post = false;   // true: the bytes of a write are those at the time of the post
  bool lazy_completions = false;  // Completed() moves only as far as RequestCompletion has asked
  bool quiet = false;             // what IsQuiet() says
  // Called where LockMemory is called (true), and where what it gave, or what holds an attachment,
  // is let go (false): what takes long on other fabrics. On any thread.
  std::function<void(bool)> on_lock{};
};

// Where a partly delivered write may be torn. kWords keeps the promise of fabric.h that aligned
// 8-byte words arrive whole; kBytes is harsher than any fabric, for readers that claim to need no
// such promise.
enum class Tear : uint8_t { kWords, kBytes };

class SimNetwork {
 public:
  explicit SimNetwork(const SimOptions& options = {});
  ~SimNetwork();
  SimNetwork(const SimNetwork&) = delete;
  SimNetwork& operator=(const SimNetwork&) = delete;

  // A new incarnation of `node`, with no regions yet. The one before must have been destroyed or
  // crashed. The network must outlive its fabrics. Write and Read beyond a region: FABRIC_BOUNDS.
  [[nodiscard]] std::unique_ptr<Fabric> MakeFabric(PeerId node);

  // Operations that can be delivered (0 while they are lost; those of a cut channel count).
  [[nodiscard]] size_t Pending(PeerId from, PeerId to) const;
  [[nodiscard]] size_t PendingOfRegion(PeerId from, PeerId to, RegionId region) const;
  // Bytes of the oldest pending operation that were not delivered yet; 0: nothing is pending.
  [[nodiscard]] size_t NextBytes(PeerId from, PeerId to) const;

  // Delivers the oldest operation (what is left of it). False: nothing to deliver, or the channel
  // is cut.
  bool DeliverNext(PeerId from, PeerId to);
  // Delivers up to `bytes` more of the oldest operation and returns how many it were; the rest
  // stays pending. A read is always delivered whole.
  size_t DeliverPart(PeerId from, PeerId to, size_t bytes, Tear tear = Tear::kWords);
  // Delivers the oldest operation on one region, overtaking older ones on other regions.
  // Completed() still moves in posting order only.
  bool DeliverNextOfRegion(PeerId from, PeerId to, RegionId region);
  // Delivers everything on one channel, or everywhere. Returns operations delivered.
  size_t DeliverAll(PeerId from, PeerId to);
  size_t DeliverEverything();

  // One way; while cut, operations can be posted and wait.
  void Cut(PeerId from, PeerId to, bool cut);
  [[nodiscard]] bool IsCut(PeerId from, PeerId to) const;

  // The wire loses what is pending and whatever is posted later on this connection; the sender does
  // not know yet (operations pile up until FABRIC_BUSY).
  void DropAll(PeerId from, PeerId to);
  // The same, and the sender knows: its State() is kBroken.
  void Break(PeerId from, PeerId to);

  // Copies what is pending on the channel now, as packets that an old connection left in the
  // network: they can be delivered after that connection broke or was replaced, into the memory
  // they were meant for. Returns operations kept.
  size_t KeepStale(PeerId from, PeerId to);
  [[nodiscard]] size_t StalePending(PeerId from, PeerId to) const;
  // Delivers the oldest stale write, or `bytes` of it. False/0: none, cut, or its memory is gone
  // (it is then forgotten).
  bool DeliverStale(PeerId from, PeerId to);
  size_t DeliverStalePart(PeerId from, PeerId to, size_t bytes, Tear tear = Tear::kWords);

  // The process of `node` dies: its undelivered operations are dropped (with keep_wire they stay as
  // stale ones), its memory is gone, and what others send to it is lost without their knowing (see
  // Break). The fabric object lives on as a shell that refuses everything.
  void Crash(PeerId node, bool keep_wire = false);

  [[nodiscard]] const SimOptions& options() const { return options_; }

 private:
  friend class SimFabric;
  struct Memory;
  struct Operation;
  struct Stale;
  struct Channel;

  [[nodiscard]] Channel& At(PeerId from, PeerId to) const;
  static size_t Deliver(Channel& channel, Operation& operation, size_t bytes, Tear tear);
  static void Retire(Channel& channel);
  void Forget(PeerId node, bool keep_wire);

  SimOptions options_;
  uint64_t incarnations_ = 0;
  std::vector<std::unique_ptr<Channel>> channels_;
  std::array<std::shared_ptr<Memory>, kMaxMembers> memories_;
  std::array<SimFabric*, kMaxMembers> fabrics_{};
};

}  // namespace falcon
