// A fabric under test as the cases see it, and what all the cases use: patterns, looks at memory,
// threads kept apart.
#pragma once

#include <sched.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "check.h"
#include "fabric/fabric.h"
#include "fabric/shared_copy.h"

namespace falcon::test {

inline constexpr size_t kRegion0Bytes = 512 << 10;
inline constexpr size_t kRegion1Bytes = 64 << 10;

// False: the fabric was asked to complete what is posted.
inline bool AllCompleted(Fabric& fabric, PeerId peer) {
  if (fabric.Completed(peer) == fabric.Posted(peer)) return true;
  fabric.RequestCompletion(peer);
  return false;
}

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

  [[nodiscard]] virtual bool concurrent() const = 0;  // members may live on threads of their own
  // An emulated machine does less in the same time.
  [[nodiscard]] virtual size_t Scaled(size_t rounds) const { return rounds; }
  // Members may sleep, each on a thread of its own that polls it.
  [[nodiscard]] virtual bool sleeps() const { return concurrent(); }
  // Sleepers are rung by the writer, and not woken by their sockets.
  [[nodiscard]] virtual bool rings() const { return true; }
  [[nodiscard]] virtual size_t queue_bound() const = 0;  // of the send queue; 0: never full
  [[nodiscard]] virtual size_t Leftovers()
      const = 0;  // files and the like that exist for the members

  void StartAll(size_t members) {
    for (PeerId member = 0; member < members; ++member) Start(member);
    for (PeerId from = 0; from < members; ++from) {
      for (PeerId to = 0; to < from; ++to) CHECK(Connect(from, to).ok());
    }
    Drive();
  }
  // On both sides, as the bootstrap does: a connection is known by one number to both.
  virtual Status Connect(PeerId from, PeerId to) {
    const uint64_t connection = ++connections_;
    const Status status = at(to).Connect(from, connection, at(from).Descriptor());
    return status.ok() ? at(from).Connect(to, connection, at(to).Descriptor()) : status;
  }

  // Where memory that is lent must be a file; empty: it need not be one.
  [[nodiscard]] virtual std::string LendingDirectory() const { return {}; }

  // A fabric may answer the first sleep after a write with a wake that was not needed: brings that
  // behind us.
  virtual void Settle(PeerId /*writer*/, PeerId /*sleeper*/) {}
  // Whether Connect can tell that a descriptor is of an incarnation that has ended.
  [[nodiscard]] virtual bool knows_the_dead() const { return true; }

 protected:
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

}  // namespace conformance

}  // namespace falcon::test
