// What the simulated network is made of: the memory of a node, operations on their way, and the
// channels that carry them. For sim.cc.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "fabric/sim.h"

namespace falcon {

// The memory of one incarnation of a node. Channels hold on to it after its end, so that late
// packets find that it is gone instead of memory that belongs to somebody else.
struct SimNetwork::Memory {
  PeerId node = 0;
  uint64_t incarnation = 0;
  bool alive = true;
  std::array<std::vector<std::byte>, kMaxRegions> regions;
  struct Exposure {
    uint64_t number = 0;  // 0: nothing is exposed
    PeerId writer = 0;
    std::span<std::byte> memory;
  };
  std::array<Exposure, kMaxRegions> exposed;
  uint64_t exposures = 0;

  void ConcealFrom(PeerId writer) {
    for (Exposure& each : exposed) {
      if (each.writer == writer) each = {};
    }
  }
  // Where an access of `exposure` (0: a region of the node's own) begins; null: it is concealed.
  [[nodiscard]] std::byte* Base(RegionId region, uint64_t exposure) {
    if (exposure == 0) return regions[region].data();
    return exposed[region].number == exposure ? exposed[region].memory.data() : nullptr;
  }

  [[nodiscard]] std::string Descriptor() const {
    return "falcon-sim " + std::to_string(node) + " " + std::to_string(incarnation);
  }
};

struct SimNetwork::Operation {
  RemoteAddress address;
  uint64_t exposure = 0;  // that the address is in; 0: a region of the target's own
  size_t bytes = 0;
  size_t delivered = 0;
  bool done = false;
  bool captured = false;
  std::vector<std::byte> capture;  // the bytes of a captured write
  std::array<std::span<const std::byte>, Fabric::kMaxPieces> pieces;
  std::span<std::byte> into;  // not empty: this is a read
  bool is_read = false;

  // Copies bytes [delivered, delivered + count) of the write to `to`.
  void CopyOut(std::byte* to, size_t count) const {
    if (captured) {
      std::copy_n(capture.begin() + static_cast<ptrdiff_t>(delivered), count, to);
      return;
    }
    size_t skip = delivered;
    for (const std::span<const std::byte> piece : pieces) {
      const size_t skipped = std::min(skip, piece.size());
      const size_t taken = std::min(count, piece.size() - skipped);
      to = std::copy_n(piece.begin() + static_cast<ptrdiff_t>(skipped), taken, to);
      skip -= skipped;
      count -= taken;
    }
  }
};

// A write that left an earlier connection and is still on its way.
struct SimNetwork::Stale {
  Operation operation;
  std::shared_ptr<Memory> target;
};

struct SimNetwork::Channel {
  std::deque<Operation> operations;  // posted and not completed, oldest first
  std::shared_ptr<Memory> target;
  PeerState state = PeerState::kDown;
  uint64_t connection = 0;
  struct Attachment {
    uint64_t exposure = 0;  // 0: nothing is attached
    size_t bytes = 0;
  };
  std::array<Attachment, kMaxRegions> attached;
  bool cut = false;
  bool lost = false;  // nothing of this connection arrives any more
  uint64_t posted = 0;
  uint64_t completed = 0;
  uint64_t wanted = 0, told = 0;  // with lazy completions: asked for, and told
  uint64_t unpolled = 0;          // completions that Poll has not told yet
  std::deque<Stale> stale;

  // The oldest operation that can still be delivered (on `region`, if it is not negative).
  [[nodiscard]] Operation* Oldest(int region = -1) {
    if (lost) return nullptr;
    for (Operation& operation : operations) {
      if (!operation.done && (region < 0 || operation.address.region == region)) return &operation;
    }
    return nullptr;
  }

  // As a probe does: nothing before all of what was asked for.
  void Tell() {
    if (completed >= wanted) told = std::max(told, wanted);
  }
  void Drop() {
    operations.clear();
    lost = true;
  }
};

}  // namespace falcon
