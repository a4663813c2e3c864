#include "vm/output_chain.h"

#include <algorithm>
#include <cstring>

namespace falcon {

bool OutputChain::Emit(const Shape& shape, const MaskSet* masks, std::span<std::byte> ring, Seq seq,
                       std::span<const std::byte> payload, bool fin) {
  if (SeqBefore(next_, seq)) return false;
  const Seq end = seq + static_cast<Seq>(payload.size());
  if (fin && !fin_known_ && !SeqBefore(end, next_)) {
    fin_known_ = true;
    fin_ = position_ + (end - next_);
  }
  if (!SeqBefore(next_, end)) return true;
  auto fresh = payload.subspan(next_ - seq);
  if (fin_known_ && fresh.size() > fin_ - position_)
    fresh = fresh.first(static_cast<size_t>(fin_ - position_));
  next_ = end;
  Append(shape, masks, ring, fresh);
  return true;
}

void OutputChain::Append(const Shape& shape, const MaskSet* masks, std::span<std::byte> ring,
                         std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const size_t in_queue = static_cast<size_t>(position_ % shape.queue_bytes);
    const size_t at = static_cast<size_t>(position_ % ring.size());
    const size_t count = std::min(bytes.size(), shape.queue_bytes - in_queue);
    // The ring is two queues long, so what fills one queue lies in one piece.
    const auto place = ring.subspan(at, count);
    std::memcpy(place.data(), bytes.data(), count);
    if (masks != nullptr) masks->Apply(place, &mask_);
    position_ += count;
    bytes = bytes.subspan(count);
    if (position_ % shape.queue_bytes != 0) continue;
    const uint64_t index = position_ / shape.queue_bytes;
    const auto queue = ring.subspan(at - in_queue, shape.queue_bytes);
    OutputHash& link = recent_[index % kRecent];
    link = NextLink(recent_[(index - 1) % kRecent], queue, {});
    if (index % shape.compare_every == 0)
      milestones_[index / shape.compare_every % kMilestones] = link;
  }
}

std::array<std::span<const std::byte>, 2> OutputChain::Pieces(std::span<const std::byte> ring,
                                                              uint64_t from, uint64_t to) {
  const size_t at = static_cast<size_t>(from % ring.size());
  const size_t count = static_cast<size_t>(to - from);
  const size_t first = std::min(count, ring.size() - at);
  return {ring.subspan(at, first), ring.first(count - first)};
}

std::optional<OutputHash> OutputChain::HashAt(const Shape& shape, std::span<const std::byte> ring,
                                              uint64_t position) const {
  if (!open_ || position > position_) return std::nullopt;
  const uint64_t index = position / shape.queue_bytes;
  const uint64_t newest = position_ / shape.queue_bytes;
  const bool recent = newest - index < kRecent;
  if (position % shape.queue_bytes == 0) {
    if (index == 0) return OutputHash{};
    if (recent) return recent_[index % kRecent];
    const uint64_t every = shape.compare_every;
    if (index % every == 0 && newest / every - index / every < kMilestones)
      return milestones_[index / every % kMilestones];
    return std::nullopt;
  }
  const uint64_t start = index * shape.queue_bytes;
  if (!recent || position_ - start > ring.size()) return std::nullopt;
  const auto pieces = Pieces(ring, start, position);
  const OutputHash& last = recent_[index % kRecent];
  return NextLink(index == 0 ? OutputHash{} : last, pieces[0], pieces[1]);
}

size_t OutputChain::CopyTail(std::span<const std::byte> ring, uint64_t position,
                             std::span<std::byte> into) const {
  if (position > position_ || position_ - position >= ring.size()) return 0;
  const uint64_t oldest = position_ > ring.size() ? position_ - ring.size() : 0;
  const uint64_t from =
      std::max(oldest, position > into.size() ? position - into.size() : uint64_t{0});
  std::byte* to = into.data();
  for (const auto piece : Pieces(ring, from, position)) {
    if (!piece.empty()) std::memcpy(to, piece.data(), piece.size());
    to += piece.size();
  }
  return static_cast<size_t>(position - from);
}

}  // namespace falcon
