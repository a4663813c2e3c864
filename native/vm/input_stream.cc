#include "vm/input_stream.h"

#include <algorithm>
#include <cstring>

#include "os/check.h"

namespace falcon {

void InputStream::Open(Seq first) {
  FALCON_CHECK(bytes_.length() == 0);
  *this = InputStream();
  base_ = acked_ = offered_ = next_ = edge_ = ahead_start_ = ahead_end_ = first;
}

void InputStream::Close(BlockPool& pool) {
  bytes_.Clear(pool);
  islands_ = 0;
  keeping_ = false;
}

bool InputStream::FitsIslands(Seq start, Seq end) const {
  if (islands_ < kMaxIslands || start == next_) return true;
  for (size_t i = 0; i < islands_; ++i) {
    if (!SeqBefore(end, island_[i].start) && !SeqBefore(island_[i].end, start)) return true;
  }
  return false;
}

void InputStream::RemoveIsland(size_t index) {
  std::move(island_.begin() + static_cast<ptrdiff_t>(index) + 1,
            island_.begin() + static_cast<ptrdiff_t>(islands_),
            island_.begin() + static_cast<ptrdiff_t>(index));
  --islands_;
}

// Adds [start, end), which lies behind next_, and joins it with the islands that it touches.
void InputStream::AddIsland(Seq start, Seq end) {
  Island merged{start, end, false};
  size_t at = 0;
  while (at < islands_ && SeqBefore(island_[at].end, start)) ++at;
  while (at < islands_ && !SeqBefore(merged.end, island_[at].start)) {
    // What was already there stays offered only if it is the whole of the new island.
    merged.offered = merged.offered || (!SeqBefore(start, island_[at].start) &&
                                        !SeqBefore(island_[at].end, end) && island_[at].offered);
    merged.start = SeqMin(merged.start, island_[at].start);
    merged.end = SeqMax(merged.end, island_[at].end);
    RemoveIsland(at);
  }
  FALCON_CHECK(islands_ < kMaxIslands);
  std::move_backward(island_.begin() + static_cast<ptrdiff_t>(at),
                     island_.begin() + static_cast<ptrdiff_t>(islands_),
                     island_.begin() + static_cast<ptrdiff_t>(islands_) + 1);
  island_[at] = merged;
  ++islands_;
}

void InputStream::AbsorbIslands() {
  while (islands_ > 0 && !SeqBefore(next_, island_[0].start)) {
    if (island_[0].offered) {
      ahead_start_ = SeqMax(island_[0].start, acked_);
      ahead_end_ = island_[0].end;
    }
    next_ = SeqMax(next_, island_[0].end);
    RemoveIsland(0);
  }
}

// Writes the part of [start, start + bytes) that neither next_ nor an island covers yet.
void InputStream::KeepGaps(BlockPool& pool, Seq start, std::span<const std::byte> bytes) {
  Seq at = start;
  const Seq end = start + static_cast<Seq>(bytes.size());
  for (size_t i = 0; i <= islands_ && SeqBefore(at, end); ++i) {
    const Seq gap_end = i < islands_ ? SeqMin(island_[i].start, end) : end;
    if (SeqBefore(at, gap_end)) {
      bytes_.Write(pool, Offset(at), bytes.subspan(at - start, gap_end - at));
    }
    if (i < islands_) at = SeqMax(at, island_[i].end);
  }
}

void InputStream::Keep(BlockPool& pool, Seq start, std::span<const std::byte> bytes,
                       size_t max_bytes) {
  if (!keeping_ || bytes.empty()) return;
  const size_t length = Offset(start) + bytes.size();
  if (length > max_bytes || !bytes_.Extend(pool, length)) {
    bytes_.Clear(pool);
    keeping_ = false;
    return;
  }
  KeepGaps(pool, start, bytes);
}

InputStream::Accepted InputStream::Accept(BlockPool& pool, Seq seq,
                                          std::span<const std::byte> payload, bool fin,
                                          size_t max_bytes) {
  const Seq end = seq + static_cast<Seq>(payload.size());
  const Seq end_with_fin = end + (fin ? 1 : 0);
  if (SeqDistance(next_, end_with_fin) >
      static_cast<int32_t>(std::min<size_t>(max_bytes / 2, INT32_MAX))) {
    return Accepted::kRefused;
  }
  const Seq farthest = islands_ > 0 ? island_[islands_ - 1].end : next_;
  if (fin_known_ && SeqBefore(fin_, end))
    return end_with_fin == next_ ? Accepted::kOld : Accepted::kRefused;
  if (fin && (fin_known_ ? end != fin_ : SeqBefore(end, farthest))) return Accepted::kRefused;
  const bool new_fin = fin && !fin_known_;
  const Seq start = SeqMax(seq, next_);
  bool fresh = new_fin;
  if (SeqBefore(start, end)) {
    if (!FitsIslands(start, end)) return Accepted::kRefused;
    bool covered = false;
    for (size_t i = 0; i < islands_; ++i) {
      covered = covered || (!SeqBefore(start, island_[i].start) && !SeqBefore(island_[i].end, end));
    }
    if (!covered) {
      fresh = true;
      Keep(pool, start, payload.subspan(start - seq), max_bytes);
      if (start == next_) {
        next_ = end;
      } else {
        AddIsland(start, end);
      }
    }
  }
  if (new_fin) {
    fin_known_ = true;
    fin_ = end;
  }
  AbsorbIslands();
  if (fin_known_ && next_ == fin_) next_ = fin_ + 1;
  if (!keeping_) return Accepted::kNoRoom;
  return fresh ? Accepted::kNew : Accepted::kOld;
}

bool InputStream::Overlay(BlockPool& pool, Seq seq, std::span<std::byte> payload) const {
  bool changed = false;
  if (!keeping_) return false;
  Seq at = SeqMax(seq, base_);
  const Seq end = seq + static_cast<Seq>(payload.size());
  std::array<std::byte, 512> kept;
  while (SeqBefore(at, end) && Offset(at) < bytes_.length()) {
    const size_t count =
        std::min({kept.size(), static_cast<size_t>(end - at), bytes_.length() - Offset(at)});
    const auto now = std::span(kept).first(count);
    bytes_.Read(pool, Offset(at), now);
    const auto given = payload.subspan(at - seq, count);
    if (std::memcmp(now.data(), given.data(), count) != 0) {
      std::memcpy(given.data(), now.data(), count);
      changed = true;
    }
    at += static_cast<Seq>(count);
  }
  return changed;
}

bool InputStream::GuestAcknowledged(BlockPool& pool, Seq ack, uint32_t window) {
  if (SeqBefore(next_, ack) || SeqDistance(ack, acked_) > (1 << 30)) return false;
  edge_ = SeqMax(edge_, ack + window);
  if (!SeqBefore(acked_, ack)) return false;
  if (keeping_) bytes_.Drop(pool, ack - base_);
  acked_ = base_ = ack;
  offered_ = SeqMax(offered_, ack);
  if (!keeping_ && acked_ == next_ && islands_ == 0) keeping_ = true;
  return true;
}

bool InputStream::NextPiece(Seq from, Seq limit, size_t max_payload, Piece* piece) const {
  const bool fin_in_reach = finished() && limit == next_;
  const Seq data_end = fin_in_reach ? fin_ : limit;
  const Seq window_end = SeqMin(data_end, edge_);
  if (!keeping_ || !SeqBefore(from, limit) || SeqBefore(edge_, from)) return false;
  *piece = Piece{from, 0, false};
  if (SeqBefore(from, window_end)) piece->bytes = std::min<size_t>(max_payload, window_end - from);
  const Seq end = from + static_cast<Seq>(piece->bytes);
  piece->fin = fin_in_reach && end == fin_;
  if (piece->fin) return true;
  // A window that opens by crumbs is not worth a segment as long as an acknowledgement is on its
  // way.
  const bool crumb = piece->bytes < max_payload && end != data_end;
  return piece->bytes > 0 && (!crumb || from == acked_);
}

void InputStream::Read(BlockPool& pool, const Piece& piece, std::span<std::byte> into) const {
  bytes_.Read(pool, Offset(piece.seq), into);
}

void InputStream::MarkOffered(Seq seq, Seq end) {
  if (SeqBefore(offered_, seq)) {
    for (size_t i = 0; i < islands_; ++i) {
      if (!SeqBefore(island_[i].start, seq) && !SeqBefore(end, island_[i].end))
        island_[i].offered = true;
    }
    return;
  }
  offered_ = SeqMin(SeqMax(offered_, end), next_);
  if (!SeqBefore(offered_, ahead_start_) && SeqBefore(offered_, ahead_end_))
    offered_ = SeqMin(ahead_end_, next_);
  ahead_start_ = ahead_end_ = offered_;
}

size_t InputStream::KeptBytes() const {
  if (!keeping_) return 0;
  const Seq end = islands_ > 0 ? island_[islands_ - 1].end : finished() ? fin_ : next_;
  return SeqBefore(base_, end) ? Offset(end) : 0;
}

bool InputStream::StateIsSound(size_t max_bytes) const {
  if (SeqBefore(offered_, base_) || SeqBefore(next_, offered_) || SeqBefore(next_, base_))
    return false;
  Seq behind = next_;
  for (size_t i = 0; i < islands_; ++i) {
    const Island& island = island_[i];
    if (!SeqBefore(behind, island.start) || !SeqBefore(island.start, island.end)) return false;
    if (SeqDistance(base_, island.end) <= 0) return false;  // more than half round
    behind = island.end;
  }
  if (fin_known_ &&
      (islands_ > 0 ? SeqBefore(fin_, behind) : fin_ + 1 != next_ && !SeqBefore(next_, fin_)))
    return false;
  return KeptBytes() <= max_bytes;
}

}  // namespace falcon
