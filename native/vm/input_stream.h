// What a client sends on one flow, as the log has it, and how far this replica's guest is with it.
//
// The client sends by the window and the acknowledgements of the primary's guest, so it will not
// repeat a byte that a slower backup's guest had no window for or dropped. The stream keeps what
// its own guest has not acknowledged:
//
//     acked <= offered <= next          islands behind next (segments that came before their
//     predecessors) |  given, not   |  held back  |   edge: the end of the window that this guest
//     advertises |  acknowledged |             |
//
// `next` and the islands follow from the log alone, so they are the same on every replica; `acked`,
// `offered` and `edge` are this guest's. Each position of the stream has one value, that of its
// first appearance in the log: whatever a client that sends overlapping segments with different
// bytes makes of it, all guests read the same.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "vm/byte_store.h"
#include "vm/packet.h"

namespace falcon {

class InputStream {
 public:
  enum class Accepted : uint8_t {
    kNew,      // at least one position is new (the FIN counts as one)
    kOld,      // nothing in it is new
    kRefused,  // too far ahead, or too many holes: no replica takes it, and the client will repeat
               // it
    kNoRoom,   // taken, but its bytes could not be kept; the stream keeps nothing until the guest
               // has caught up
  };

  void Open(Seq first);
  void Close(BlockPool& pool);

  // Takes a segment of the log. `max_bytes` bounds what is kept, and half of it how far ahead a
  // segment may be.
  Accepted Accept(BlockPool& pool, Seq seq, std::span<const std::byte> payload, bool fin,
                  size_t max_bytes);
  // Puts the kept bytes over those of a repeated payload; returns true if any of them differed.
  bool Overlay(BlockPool& pool, Seq seq, std::span<std::byte> payload) const;
  // This guest has acknowledged everything below `ack` and takes `window` bytes more. Returns true
  // if that is progress.
  bool GuestAcknowledged(BlockPool& pool, Seq ack, uint32_t window);

  // The next piece to offer from `from` on, of at most `max_payload` bytes, inside the window and
  // below `limit`.
  struct Piece {
    Seq seq = 0;
    size_t bytes = 0;
    bool fin = false;
  };
  [[nodiscard]] bool NextPiece(Seq from, Seq limit, size_t max_payload, Piece* piece) const;
  void Read(BlockPool& pool, const Piece& piece, std::span<std::byte> into) const;
  // The guest has been given [seq, end), a FIN counted.
  void MarkOffered(Seq seq, Seq end);

  [[nodiscard]] Seq acked() const { return acked_; }
  [[nodiscard]] Seq offered() const { return offered_; }
  [[nodiscard]] Seq next() const { return next_; }
  [[nodiscard]] Seq edge() const { return edge_; }
  [[nodiscard]] bool has_islands() const { return islands_ > 0; }
  // True: the bytes between acked and next are kept, so that they can be offered again.
  [[nodiscard]] bool keeping() const { return keeping_; }
  // The client's FIN and all before it are in the log.
  [[nodiscard]] bool finished() const { return fin_known_ && next_ == fin_ + 1; }

  // ---- saving and loading (flow_state.cc)
  // Everything but the kept bytes.
  template <typename Archive>
  void VisitState(Archive& archive) {
    archive.Number(base_);
    archive.Number(offered_);
    archive.Number(next_);
    archive.Number(edge_);
    archive.Number(ahead_start_);
    archive.Number(ahead_end_);
    archive.Number(fin_);
    archive.Number(fin_known_);
    archive.Number(keeping_);
    archive.Limited(islands_, kMaxIslands);
    for (size_t i = 0; i < islands_; ++i) {
      archive.Number(island_[i].start);
      archive.Number(island_[i].end);
      archive.Number(island_[i].offered);
    }
    acked_ = base_;
  }
  // Whether what was read can be, with `max_bytes` kept at most.
  [[nodiscard]] bool StateIsSound(size_t max_bytes) const;
  // Length of the queue of kept bytes, holes included: it follows from the rest.
  [[nodiscard]] size_t KeptBytes() const;
  // Calls take(offset in the queue, count) for each run of bytes that means something.
  template <typename Take>
  void ForEachRun(Take take) const {
    if (!keeping_) return;
    const Seq end = finished() ? fin_ : next_;
    if (SeqBefore(base_, end)) take(size_t{0}, Offset(end));
    for (size_t i = 0; i < islands_; ++i)
      take(Offset(island_[i].start), static_cast<size_t>(island_[i].end - island_[i].start));
  }
  [[nodiscard]] ByteQueue& kept() { return bytes_; }

 private:
  struct Island {
    Seq start = 0, end = 0;
    bool offered = false;
  };
  static constexpr size_t kMaxIslands = 16;

  [[nodiscard]] bool FitsIslands(Seq start, Seq end) const;
  void AddIsland(Seq start, Seq end);
  void RemoveIsland(size_t index);
  void AbsorbIslands();
  void Keep(BlockPool& pool, Seq start, std::span<const std::byte> bytes, size_t max_bytes);
  void KeepGaps(BlockPool& pool, Seq start, std::span<const std::byte> bytes);
  [[nodiscard]] size_t Offset(Seq seq) const { return static_cast<size_t>(seq - base_); }

  ByteQueue bytes_;
  Seq base_ = 0;  // position of bytes_[0]
  Seq acked_ = 0, offered_ = 0, next_ = 0, edge_ = 0;
  Seq ahead_start_ = 0, ahead_end_ = 0;  // given as an island that next_ has reached since
  Seq fin_ = 0;
  bool fin_known_ = false;
  bool keeping_ = true;
  size_t islands_ = 0;
  std::array<Island, kMaxIslands> island_{};  // in order, apart from each other and from next_
};

}  // namespace falcon
