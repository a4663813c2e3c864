#include "pages/page_mover.h"

#include <algorithm>
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
    const size_t pages = ring_[tail_ % ring_.size()].pages;
    progress_.completed += pages;
    outstanding_bytes_ -= pages * kPageBytes;
  }
  return Ok();
}

Status PageMover::Step(size_t max_bytes, size_t* posted_bytes) {
  *posted_bytes = 0;
  if (!failure_.ok()) return failure_;
  if (Done()) return Ok();
  if (fabric_->State(peer_) != PeerState::kUp) return Fail({"FABRIC_DOWN", "not connected"});
  if (Status status = Retire(); !status.ok()) return Fail(std::move(status));
  while (next_ < pages_.pages() && head_ - tail_ < options_.outstanding_writes) {
    const size_t room = std::min({max_bytes - *posted_bytes, options_.write_bytes,
                                  options_.outstanding_bytes - outstanding_bytes_});
    if (room < kPageBytes) break;
    const PageRun run = pages_.NextRun(next_, room / kPageBytes);
    const size_t bytes = run.count * kPageBytes;
    const std::span<const std::byte> piece = memory_.subspan(run.first * kPageBytes, bytes);
    Status status = fabric_->Write(peer_, {region_, run.first * kPageBytes}, {&piece, 1});
    if (std::strcmp(status.code(), "FABRIC_BUSY") == 0) break;
    if (!status.ok()) return Fail(std::move(status));
    ring_[head_++ % ring_.size()] = {fabric_->Posted(peer_), run.count};
    outstanding_bytes_ += bytes;
    *posted_bytes += bytes;
    progress_.posted += run.count;
    ++progress_.writes;
    next_ = pages_.Next(run.first + run.count);
  }
  // What completes as it is posted (shm) is not left for a step that may not come.
  Status status = Retire();
  return status.ok() ? status : Fail(std::move(status));
}

}  // namespace falcon
