// What a guest has said on one flow, as a chain of hashes over positions.
//
// The payload in sequence order, retransmissions left out, fills a queue of fixed size; each time
// it is full, h_i = H(h_{i-1} || H(queue)). The chain runs over positions, not over packets, so
// segmentation and timing do not matter, and a byte that differs makes all later hashes differ.
// A position inside a queue has a hash too, made of the queue's beginning. The last bytes are kept
// as they are (after masking), so that a replica can answer for positions that it has passed, and
// show what it said.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>

#include "vm/output_hash.h"
#include "vm/output_mask.h"
#include "vm/packet.h"

namespace falcon {

class OutputChain {
 public:
  static constexpr size_t kRecent = 4;       // newest hashes that are kept
  static constexpr size_t kMilestones = 32;  // and newest of those that are compared

  struct Shape {
    size_t queue_bytes = 0;
    uint32_t compare_every = 0;  // a hash with an index that this divides is a milestone
    // Bytes kept of each flow: the queue that fills, and one more.
    [[nodiscard]] size_t RingBytes() const { return 2 * queue_bytes; }
  };

  // Begins a stream whose first byte has this number.
  void Open(Seq first) {
    *this = OutputChain();
    open_ = true;
    next_ = first;
  }
  void Close() { open_ = false; }

  // Takes a segment. Returns false if it leaves a gap: bytes behind one count when the guest has
  // sent again what is missing.
  bool Emit(const Shape& shape, const MaskSet* masks, std::span<std::byte> ring, Seq seq,
            std::span<const std::byte> payload, bool fin);

  // The hash at a position, if this stream has come there and still knows it.
  [[nodiscard]] std::optional<OutputHash> HashAt(const Shape& shape,
                                                 std::span<const std::byte> ring,
                                                 uint64_t position) const;
  // Copies the bytes that end at `position`, as many as are known and fit. Returns how many.
  size_t CopyTail(std::span<const std::byte> ring, uint64_t position,
                  std::span<std::byte> into) const;

  [[nodiscard]] bool open() const { return open_; }
  [[nodiscard]] uint64_t position() const { return position_; }
  // The guest has said all: its FIN stands behind the last byte.
  [[nodiscard]] bool ended() const { return fin_known_ && fin_ == position_; }

  // ---- saving and loading
  template <typename Archive>
  void VisitState(Archive& archive) {
    archive.Number(open_);
    if (!open_) return;
    archive.Number(next_);
    archive.Number(position_);
    archive.Number(fin_known_);
    archive.Number(fin_);
    archive.Bytes(std::as_writable_bytes(std::span(recent_)));
    archive.Bytes(std::as_writable_bytes(std::span(milestones_)));
    archive.Bytes(std::as_writable_bytes(std::span(mask_.matched)));
    archive.Number(mask_.hidden);
  }
  [[nodiscard]] const MaskSet::State& mask() const { return mask_; }

 private:
  void Append(const Shape& shape, const MaskSet* masks, std::span<std::byte> ring,
              std::span<const std::byte> bytes);
  // The bytes [from, to) of the ring, in two pieces at most.
  [[nodiscard]] static std::array<std::span<const std::byte>, 2> Pieces(
      std::span<const std::byte> ring, uint64_t from, uint64_t to);

  bool open_ = false;
  bool fin_known_ = false;
  Seq next_ = 0;
  uint64_t position_ = 0;  // bytes said so far
  uint64_t fin_ = 0;
  MaskSet::State mask_;
  std::array<OutputHash, kRecent> recent_{};          // h_i at i % kRecent; h_0 is zero
  std::array<OutputHash, kMilestones> milestones_{};  // h_i at (i / compare_every) % kMilestones
};

}  // namespace falcon
