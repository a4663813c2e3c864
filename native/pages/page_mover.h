// Sends pages, and blocks of pages, into a peer's memory, a piece at a time between other work.
//
// Neighbouring pages go together, as one write; so do neighbouring blocks of a page. The guest may
// change a page while it is sent: what arrives then is a mixture, and the page is dirty again, so
// that a later round sends it once more. For the reactor thread; what was posted is not rung for.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "fabric/fabric.h"
#include "os/status.h"
#include "pages/digest.h"
#include "pages/page_set.h"

namespace falcon {

struct PageMoverOptions {
  // Posted and not completed: what other writes of the connection may have to wait behind, and how
  // much of its queue they find taken.
  size_t outstanding_bytes = 1 << 20;
  size_t outstanding_writes = 32;                 // at most kMaxWrites
  size_t write_bytes = Fabric::kPlainWriteBytes;  // whole pages
  static constexpr size_t kMaxWrites = 64;
};

// Of one page only these blocks.
struct PagePart {
  size_t page = 0;
  BlockMask blocks = 0;
};

struct PageProgress {
  size_t pages = 0;  // in all; one that goes in parts counts when its last part does
  size_t posted = 0;
  size_t completed = 0;  // their source is free; that they are there, the peer has to say
  uint64_t writes = 0;
  uint64_t bytes = 0;  // posted
};

class PageMover {
 public:
  // `memory` holds page i of the set at i * kPageBytes, and so does `region` of the peer, which is
  // attached. Both stay as they are until Done, or the connection has ended. A mover belongs to one
  // connection: its owner drops it when that ends.
  PageMover(Fabric* fabric, PeerId peer, RegionId region, std::span<const std::byte> memory,
            PageSet pages, const PageMoverOptions& options = {});
  // The same for the parts of some pages, behind the whole ones. No part is empty.
  void AddParts(std::vector<PagePart> parts);

  // Takes note of completions and posts up to `max_bytes` more; *posted_bytes of them were. A full
  // queue is no error. Errors, which stay: FABRIC_DOWN, FABRIC_BOUNDS (not attached, or too small).
  Status Step(size_t max_bytes, size_t* posted_bytes);

  // Everything is posted and completed, as of the last Step.
  [[nodiscard]] bool Done() const {
    return failure_.ok() && next_ == pages_.pages() && part_ == parts_.size() && head_ == tail_;
  }
  [[nodiscard]] const PageProgress& progress() const { return progress_; }
  [[nodiscard]] const Status& failure() const { return failure_; }

 private:
  struct Piece {
    size_t at;
    size_t bytes;
    size_t pages;  // that end with it
  };
  struct Posted {
    uint64_t until;  // of Fabric::Posted
    size_t bytes;
    size_t pages;
  };
  [[nodiscard]] Piece NextPiece(size_t room) const;
  void Advance(const Piece& piece);
  Status Fail(Status status);
  Status Retire();

  Fabric* fabric_;
  PeerId peer_;
  RegionId region_;
  std::span<const std::byte> memory_;
  PageSet pages_;
  PageMoverOptions options_;
  size_t next_ = 0;  // page that comes next; pages(): none is left
  std::vector<PagePart> parts_;
  size_t part_ = 0;  // that comes next; its blocks are those that are left of it
  Status failure_;
  PageProgress progress_;
  size_t outstanding_bytes_ = 0;
  // Writes on their way: [tail_, head_), in a ring.
  std::array<Posted, PageMoverOptions::kMaxWrites> ring_{};
  uint64_t head_ = 0;
  uint64_t tail_ = 0;
};

}  // namespace falcon
