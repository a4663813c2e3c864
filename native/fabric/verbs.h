// The fabric over RDMA: libibverbs reliable-connected queue pairs on InfiniBand, RoCE or soft-RoCE.
//
// Every possible peer has its queue pair from the start, so that the descriptor does not change
// (but when a device loses one: Connect then says so, and both sides connect once more); a
// connection resets it and brings it up with packet sequence numbers drawn from `connection`, which
// therefore must be the same number on both sides. Both sides connect; what is written before the
// peer has done so waits for it, for as long as timeout and retry allow.
//
// What is special here:
//  - Small writes are copied into the send queue. Of larger ones, pieces that lie in this fabric's
//  own regions or in memory given to AddSource are sent from where they are; all others are
//  copied into a registered ring first (as reads are copied out of it).
//  - Exposed memory is registered for as long as it is open. Its key is told to one peer, but any
//  connected one that knew it could use it.
//  - Only one write in a quarter of the send queue (or in 1 MiB) asks for a completion, so
//  Completed() moves in steps. When somebody waits (RequestCompletion) Poll probes: it reads the
//  number of the connection from the peer's memory, which stands behind everything before it. It
//  does so in any case now and then, because an acknowledgement alone proves little (see
//  verbs_completions.cc): on a new connection when nothing was posted for `quiet_us`, later after
//  `probe_us` if a quarter of the send queue was written meanwhile, else after `probe_late_us`.
//  - Connect asks the kernel for the peer's Ethernet address (RoCE), which takes as long as the
//  kernel's neighbour discovery: microseconds, or seconds if that finds nobody.
//  - A failed or flushed completion makes its peer kBroken, and nobody else; so does a queue in
//  which nothing completes for VerbsStallBound. Nothing hangs: what is lost ends in kBroken.
//  - Whoever sleeps says so in a word in each peer's memory, and both sides may speak at once. So a
//  writer that sees a new sleep rings if it has written anything since it last rang, and rings
//  before it goes to sleep itself. The price is one needless wake after a burst of writes; the
//  condition is that the owner goes on polling or sleeps by ArmWake.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "fabric/fabric.h"
#include "os/clock.h"

namespace falcon {

struct VerbsOptions {
  std::string device;  // as ibv_devices lists it; empty: the first with an active port
  uint8_t port = 1;
  int gid_index = -1;  // -1: on Ethernet the first RoCE v2 GID with an IPv4 address, else any RoCE
                       // v2; on InfiniBand none, the LID is enough
  // A lost peer is noticed after about 4.096 µs * 2^timeout * (retry + 1): here 270 ms, between a
  // scheduling hiccup and an election. Nothing but speed depends on it.
  uint8_t timeout = 14;  // 1..31; 0 would be for ever
  uint8_t retry = 3;     // 0..7
  // Receives are posted ahead and never more wakes sent than they cover, so this is for a stopped
  // process only. 7 would be for ever.
  uint8_t rnr_retry = 6;
  uint8_t min_rnr_timer = 12;         // 0.64 ms
  uint32_t send_queue = 512;          // operations posted and not completed, per peer
  uint32_t inline_bytes = 256;        // asked of the device, which may grant less
  uint32_t staging_bytes = 1u << 20;  // per connected peer
  uint32_t receives = 64;             // posted ahead; fewer only in tests
  uint32_t quiet_us = 200;
  uint32_t probe_us = 20000;
  uint32_t probe_late_us = 1000000;
  uint32_t stall_us = 0;  // 0: see VerbsStallBound
};

struct VerbsCounters {
  uint64_t posted = 0;    // work requests, the fabric's own included
  uint64_t signaled = 0;  // of these
  uint64_t inlined = 0;
  uint64_t staged = 0;  // writes and reads that went through the ring or a buffer of their own
  uint64_t probes = 0;  // reads sent only to learn of others
  uint64_t sleeps_told = 0;
};

// What a person wants to know of the link.
struct VerbsLink {
  std::string device;
  std::string gid;         // empty: none is used
  std::string link_layer;  // "ethernet" or "infiniband"
  uint8_t port = 0;
  int gid_index = -1;
  uint32_t mtu_bytes = 0;
  uint32_t inline_bytes = 0;  // what the device granted
};

class VerbsFabric : public Fabric {
 public:
  [[nodiscard]] virtual VerbsCounters verbs_counters() const = 0;
  [[nodiscard]] virtual VerbsLink link() const = 0;
  // For tests: the queue pair's number and both packet sequence numbers, and a way to kill it.
  [[nodiscard]] virtual uint32_t QueuePair(PeerId peer) const = 0;
  virtual Status KillQueuePair(PeerId peer) = 0;
  virtual void SpoilQueuePair(PeerId peer) = 0;
};

// The 24-bit packet sequence number that the direction from -> to of a connection starts at. Late
// packets of another incarnation do not fit: one in 16 million would have the one number expected.
[[nodiscard]] uint32_t VerbsPsn(uint64_t connection, PeerId from, PeerId to);

// How long a due completion may be missing before the peer counts as broken: longer than any device
// may take by timeout, retry and rnr_retry to say so itself. 1.2 s with the defaults.
[[nodiscard]] Nanoseconds VerbsStallBound(const VerbsOptions& options);

// Empty if a device can be opened; otherwise why not, for a test that has to be skipped.
[[nodiscard]] std::string VerbsMissing();

// Errors: VERBS_OPEN (no such device, port down, no GID, libibverbs refuses). AddRegion's errors:
// FABRIC_REGION (also: RLIMIT_MEMLOCK is too small). The object made is a VerbsFabric.
Status MakeVerbsFabric(const VerbsOptions& options, PeerId self, std::unique_ptr<Fabric>* fabric);

}  // namespace falcon
