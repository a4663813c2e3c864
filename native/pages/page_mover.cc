#include "pages/page_mover.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "os/check.h"

namespace falcon {

PageMover::PageMover(Fabric* fabric, PeerId peer, RegionId region,
                     std::span<const std::byte> memory, PageSet pages,
                     const PageMoverOptions& options)
    : fabric_(fabric),
      peer_(peer),
      region_(region),
      memory_(memory),
      pages_(std::move(pages)),
      options_(options) {
  FALCON_CHECK(options.write_bytes >= kPageBytes && options.write_bytes % kPageBytes == 0);
  FALCON_CHECK(options.write_bytes <= Fabric::kPlainWriteBytes);
  FALCON_CHECK(options.outstanding_bytes >= options.write_bytes);
  FALCON_CHECK(options.outstanding_writes > 0 &&
               options.outstanding_writes <= PageMoverOptions::kMaxWrites);
  FALCON_CHECK(memory.size() / kPageBytes >= pages_.pages());
  next_ = pages_.Next(0);
  progress_.pages = pages_.Count();
}

void PageMover::AddParts(std::vector<PagePart> parts) {
  FALCON_CHECK(parts_.empty());
  for (const PagePart& part : parts) FALCON_CHECK(part.blocks != 0 && part.page < pages_.pages());
  parts_ = std::move(parts);
  progress_.pages += parts_.size();
}

Status PageMover::Fail(Status status) {
  failure_ = std::move(status);
  return failure_;
}

// Counts start anew with a connection: fewer than we have seen means that ours is gone.
Status PageMover::Retire() {
  if (head_ == tail_) return Ok();
  if (fabric_->Posted(peer_) < ring_[(head_ - 1) % ring_.size()].until)
    return {"FABRIC_DOWN", "the connection was replaced"};
  const uint64_t completed = fabric_->Completed(peer_);
  for (; tail_ != head_ && ring_[tail_ % ring_.size()].until <= completed; ++tail_) {
    const Posted& posted = ring_[tail_ % ring_.size()];
    progress_.completed += posted.pages;
    outstanding_bytes_ -= posted.bytes;
  }
  return Ok();
}

PageMover::Piece PageMover::NextPiece(size_t room) const {
  if (next_ < pages_.pages()) {
    const PageRun run = pages_.NextRun(next_, room / kPageBytes);
    return {run.first * kPageBytes, run.count * kPageBytes, run.count};
  }
  const PagePart& part = parts_[part_];
  const auto first = static_cast<size_t>(std::countr_zero(part.blocks));
  const auto count = static_cast<size_t>(std::countr_one(part.blocks >> first));
  const auto all = static_cast<size_t>(std::popcount(part.blocks));
  return {part.page * kPageBytes + first * kBlockBytes, count * kBlockBytes,
          count == all ? 1U : 0U};
}

void PageMover::Advance(const Piece& piece) {
  if (next_ < pages_.pages()) {
    next_ = pages_.Next((piece.at + piece.bytes) / kPageBytes);
    return;
  }
  PagePart& part = parts_[part_];
  if (piece.pages == 1) {
    ++part_;
    return;
  }
  const size_t end = (piece.at + piece.bytes) % kPageBytes / kBlockBytes;
  part.blocks &= ~BlockMask{0} << end;
}

Status PageMover::Step(size_t max_bytes, size_t* posted_bytes) {
  *posted_bytes = 0;
  if (!failure_.ok()) return failure_;
  if (Done()) return Ok();
  if (fabric_->State(peer_) != PeerState::kUp) return Fail({"FABRIC_DOWN", "not connected"});
  if (Status status = Retire(); !status.ok()) return Fail(std::move(status));
  while ((next_ < pages_.pages() || part_ < parts_.size()) &&
         head_ - tail_ < options_.outstanding_writes) {
    const size_t room = std::min({max_bytes - *posted_bytes, options_.write_bytes,
                                  options_.outstanding_bytes - outstanding_bytes_});
    if (room < kPageBytes) break;
    const Piece piece = NextPiece(room);
    const std::span<const std::byte> bytes = memory_.subspan(piece.at, piece.bytes);
    Status status = fabric_->Write(peer_, {region_, piece.at}, {&bytes, 1});
    if (std::strcmp(status.code(), "FABRIC_BUSY") == 0) break;
    if (!status.ok()) return Fail(std::move(status));
    ring_[head_++ % ring_.size()] = {fabric_->Posted(peer_), piece.bytes, piece.pages};
    outstanding_bytes_ += piece.bytes;
    *posted_bytes += piece.bytes;
    progress_.posted += piece.pages;
    progress_.bytes += piece.bytes;
    ++progress_.writes;
    Advance(piece);
  }
  // What completes as it is posted (shm) is not left for a step that may not come.
  Status status = Retire();
  const bool last = next_ >= pages_.pages() && part_ >= parts_.size();
  const bool filling = head_ - tail_ >= options_.outstanding_writes / 2 ||
                       outstanding_bytes_ >= options_.outstanding_bytes / 2;
  if (head_ != tail_ && (last || filling)) fabric_->RequestCompletion(peer_);
  return status.ok() ? status : Fail(std::move(status));
}

}  // namespace falcon
