// One-sided memory between replicas.
//
// A fabric lets a replica write into memory regions of its peers without their processors taking
// part. It knows nothing of logs or views. Every implementation (shm, tcp, sim, later verbs)
// passes the same conformance suite (test/native/fabric_conformance).
//
// What a user may rely on, and nothing more:
//  - writes of one connection to one region become visible in the order they were posted;
//  - a write larger than 8 bytes may become visible piece by piece (torn), and a write may be lost
//  together
//    with everything behind it when its connection breaks: readers validate what they find;
//  - aligned 8-byte words never tear.
//
// One thread (the reactor) owns a fabric. Nothing here blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "os/status.h"

namespace falcon {

using PeerId = uint8_t;    // index of a member in the configuration
using RegionId = uint8_t;  // same meaning on every member

inline constexpr size_t kMaxMembers = 8;
inline constexpr size_t kMaxRegions = 4;

enum class PeerState : uint8_t { kDown, kUp, kBroken };

struct RemoteAddress {
  RegionId region = 0;
  uint64_t offset = 0;  // bytes from the start of the region
};

// Memory that its owner lends to one peer for a while. The span must be a shared mapping, so that a
// child process does not take its pages away from under a device.
struct ExposedMemory {
  std::span<std::byte> memory;
  // For shm, which maps it too: the file whose first memory.size() bytes `memory` maps. It lies in
  // the fabric's directory itself, belongs to this user and has mode 0600. Other fabrics ignore it.
  std::string path;
  // Of LockMemory; null: Expose does it.
  std::shared_ptr<void> locked{};
};

inline constexpr size_t kMaxGrantBytes = 512;

// Totals since the fabric was made.
struct FabricCounters {
  uint64_t writes = 0;
  uint64_t written_bytes = 0;
  uint64_t reads = 0;
  uint64_t wakes_sent = 0;  // doorbells rung for sleeping peers
  uint64_t wakes_received = 0;
  uint64_t errors = 0;  // operations refused or failed
};

class Fabric {
 public:
  virtual ~Fabric() = default;

  [[nodiscard]] virtual const char* name() const = 0;

  // Makes a region that connected peers may write and read. Regions are made before the first
  // Connect.
  virtual Status AddRegion(RegionId region, size_t bytes) = 0;
  [[nodiscard]] virtual std::span<std::byte> region(RegionId region) = 0;

  // What a peer needs to reach this replica's regions; opaque, at most 4 KiB, carried by the
  // bootstrap.
  [[nodiscard]] virtual std::string Descriptor() const = 0;

  // What of Connect(peer, ..., descriptor) may take long: with verbs the kernel finds the peer's
  // Ethernet address (a second if nobody answers), with shm the peer's memory is mapped. May be
  // called on any thread while others use the fabric, and need not be called at all. Errors:
  // FABRIC_CONNECT.
  virtual Status Prepare(PeerId /*peer*/, std::string_view /*descriptor*/) { return Ok(); }

  // Connects to a peer. `connection` identifies this incarnation on both sides. An earlier
  // connection to the same peer is dropped first. Does not wait: State() may be kDown until the
  // peer has answered, and operations posted meanwhile wait in the queue; both sides must Connect
  // with the same number. Errors: FABRIC_CONNECT.
  virtual Status Connect(PeerId peer, uint64_t connection, std::string_view descriptor) = 0;
  virtual void Disconnect(PeerId peer) = 0;  // idempotent
  // kBroken stays until Disconnect or Connect.
  [[nodiscard]] virtual PeerState State(PeerId peer) const = 0;
  // Why the peer is kBroken, in words, where the fabric knows; empty: it does not, or it is not.
  [[nodiscard]] virtual std::string BrokenBecause(PeerId /*peer*/) const { return {}; }

  // Posts one write of the concatenation of `pieces` (at most kMaxPieces). One of up to
  // kPlainWriteBytes needs nothing but room in the queues; a larger one may need memory, too. The
  // pieces must stay unchanged until Completed(peer) >= the value of Posted(peer) after this call.
  // FABRIC_BUSY: the queue is full, nothing was posted, try again after Poll. FABRIC_DOWN: not
  // connected or broken.
  virtual Status Write(PeerId peer, RemoteAddress to,
                       std::span<const std::span<const std::byte>> pieces) = 0;
  static constexpr size_t kMaxPieces = 4;
  static constexpr size_t kPlainWriteBytes = 64 << 10;

  // Posts a read of into.size() bytes; done when Completed(peer) reaches Posted(peer) after this
  // call.
  virtual Status Read(PeerId peer, RemoteAddress from, std::span<std::byte> into) = 0;

  // ---- memory open to one peer for a while: guest RAM during a state transfer

  // Lets `peer` write and read `memory` as `region`, from now until Conceal(region),
  // Disconnect(peer) or Connect(peer, ...), whichever comes first; that the connection is kBroken
  // may end it, and need not. Until then the memory must stay mapped. `region` is a number that
  // AddRegion has not used, and region(region) stays empty. `grant` (at most kMaxGrantBytes,
  // opaque) is what the peer needs for Attach; the caller brings it there. Errors: FABRIC_DOWN (the
  // peer is not connected), FABRIC_REGION (a wrong or used number, no memory, a file that may not
  // be lent, RLIMIT_MEMLOCK).
  virtual Status Expose(RegionId region, PeerId peer, const ExposedMemory& memory,
                        std::string* grant) = 0;
  // What of Expose takes as long as the memory is large: with verbs all of it is locked, and what
  // was not there is allocated. May be called on any thread while others use the fabric; so may the
  // last holder of `locked` let it go, which must be before the fabric is destroyed. Errors:
  // FABRIC_REGION.
  virtual Status LockMemory(ExposedMemory* /*memory*/) const { return Ok(); }

  // Ends it; idempotent. When this returns, no operation of that peer touches the memory any more,
  // and it may be unmapped; what was on its way and comes now is dropped, and breaks the
  // connection. Likewise when Disconnect or Connect returns. One exception: with shm a writer
  // copies by itself and looks before each Write whether the region is still open, so one that is
  // inside a Write at this moment finishes it, and one that is stopped there (SIGSTOP) finishes it
  // when it goes on, however late. Whoever gives a session up with such a peer gives up the file,
  // too. And with verbs the memory is open for as long as somebody holds what LockMemory gave, also
  // when this, Disconnect or Connect has returned.
  virtual void Conceal(RegionId region) = 0;

  // The other side: makes what `peer` has exposed to this member reachable by Write and Read, as
  // {region, offset}, until Detach or the end of the connection. Replaces an earlier attachment of
  // the region. A grant is good for the connection that it was made on. A write to a region that
  // its owner has concealed changes nothing there and makes the peer kBroken on this side, at once
  // or later. Errors: FABRIC_DOWN, FABRIC_GRANT (wrong, foreign, outdated, or the file cannot be
  // mapped).
  virtual Status Attach(PeerId peer, RegionId region, std::string_view grant) = 0;
  // Forgets it; idempotent. Later writes are FABRIC_BOUNDS; those posted before go on.
  virtual void Detach(PeerId peer, RegionId region) = 0;

  // Memory from which many writes will come, for a fabric that can then send it without a copy.
  // Nothing else depends on it. It must stay mapped until RemoveSource, and the caller sees to it
  // that by then every write posted from it is Completed or its connection has ended. Errors:
  // FABRIC_REGION.
  virtual Status AddSource(std::span<std::byte> /*memory*/) { return Ok(); }
  virtual void RemoveSource(std::span<std::byte> /*memory*/) {}

  // ---- progress

  // Operations posted and completed on the current connection; both start at 0 with it. Completed
  // says only that the source is free.
  [[nodiscard]] virtual uint64_t Posted(PeerId peer) const = 0;
  [[nodiscard]] virtual uint64_t Completed(PeerId peer) const = 0;
  // Asks that Completed(peer) soon reach what Posted(peer) is now. A fabric to which that costs
  // something may otherwise take its time, so who waits asks; asking again while it waits is cheap.
  virtual void RequestCompletion(PeerId /*peer*/) {}

  // Wakes the peer if it sleeps and this replica has written to it since the last call. Called once
  // after a batch of writes.
  virtual void Ring(PeerId peer) = 0;

  // Drives completions. A fabric without hardware changes the regions only here and in ArmWake,
  // unless it is ever IsQuiet.
  // Returns how many things happened (0: idle).
  virtual int Poll() = 0;
  // The regions change without Poll, and nobody waits for a completion: who looks at them again and
  // again need not call it each time.
  [[nodiscard]] virtual bool IsQuiet() const { return false; }

  // Sleeping: ArmWake(), look at the memory once more, then wait for wake_fd() to become readable,
  // then DisarmWake(). A write that lands after ArmWake makes wake_fd readable.
  [[nodiscard]] virtual int wake_fd() const = 0;  // -1: cannot sleep (sim)
  virtual void ArmWake() = 0;
  virtual void DisarmWake() = 0;  // also drains wake_fd

  [[nodiscard]] virtual FabricCounters counters() const = 0;
};

}  // namespace falcon
