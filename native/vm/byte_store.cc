#include "vm/byte_store.h"

#include <algorithm>
#include <cstring>

#include "os/check.h"

namespace falcon {

BlockPool::BlockPool(size_t bytes) {
  const size_t blocks = std::max<size_t>(1, bytes / kBlockBytes);
  FALCON_CHECK(blocks < kNone);
  // Left uninitialised on purpose: pages are touched when they are first used.
  bytes_ = std::make_unique_for_overwrite<std::byte[]>(blocks * kBlockBytes);
  next_.resize(blocks);
  for (size_t i = blocks; i-- > 0;) {
    next_[i] = first_free_;
    first_free_ = static_cast<uint32_t>(i);
  }
  free_ = blocks;
}

uint32_t BlockPool::Take() {
  FALCON_CHECK(free_ > 0);
  const uint32_t block = first_free_;
  first_free_ = next_[block];
  next_[block] = kNone;
  --free_;
  return block;
}

void BlockPool::Give(uint32_t block) {
  next_[block] = first_free_;
  first_free_ = block;
  ++free_;
}

bool ByteQueue::Extend(BlockPool& pool, size_t length) {
  if (length <= length_) return true;
  const size_t needed = (skip_ + length + BlockPool::kBlockBytes - 1) / BlockPool::kBlockBytes;
  if (needed > blocks_ && needed - blocks_ > pool.free_blocks()) return false;
  while (blocks_ < needed) {
    const uint32_t block = pool.Take();
    if (head_ == BlockPool::kNone) {
      head_ = block;
    } else {
      pool.next_[tail_] = block;
    }
    tail_ = block;
    ++blocks_;
  }
  pool.stored_ += length - length_;
  length_ = length;
  return true;
}

uint32_t ByteQueue::Find(const BlockPool& pool, size_t at) const {
  size_t hops = (skip_ + at) / BlockPool::kBlockBytes;
  FALCON_CHECK(hops < blocks_);
  if (hops == blocks_ - 1) return tail_;
  uint32_t block = head_;
  while (hops-- > 0) block = pool.next_[block];
  return block;
}

void ByteQueue::Write(BlockPool& pool, size_t at, std::span<const std::byte> bytes) {
  FALCON_CHECK(at <= length_ && bytes.size() <= length_ - at);
  if (bytes.empty()) return;
  uint32_t block = Find(pool, at);
  size_t inside = (skip_ + at) % BlockPool::kBlockBytes;
  while (!bytes.empty()) {
    const size_t count = std::min(bytes.size(), BlockPool::kBlockBytes - inside);
    std::memcpy(pool.Data(block) + inside, bytes.data(), count);
    bytes = bytes.subspan(count);
    block = pool.next_[block];
    inside = 0;
  }
}

void ByteQueue::Read(BlockPool& pool, size_t at, std::span<std::byte> into) const {
  FALCON_CHECK(at <= length_ && into.size() <= length_ - at);
  if (into.empty()) return;
  uint32_t block = Find(pool, at);
  size_t inside = (skip_ + at) % BlockPool::kBlockBytes;
  while (!into.empty()) {
    const size_t count = std::min(into.size(), BlockPool::kBlockBytes - inside);
    std::memcpy(into.data(), pool.Data(block) + inside, count);
    into = into.subspan(count);
    block = pool.next_[block];
    inside = 0;
  }
}

void ByteQueue::Drop(BlockPool& pool, size_t count) {
  if (count >= length_) return Clear(pool);
  pool.stored_ -= count;
  length_ -= count;
  size_t skip = skip_ + count;
  while (skip >= BlockPool::kBlockBytes) {
    const uint32_t block = head_;
    head_ = pool.next_[block];
    pool.Give(block);
    --blocks_;
    skip -= BlockPool::kBlockBytes;
  }
  skip_ = static_cast<uint32_t>(skip);
}

void ByteQueue::Clear(BlockPool& pool) {
  while (blocks_ > 0) {
    const uint32_t block = head_;
    head_ = pool.next_[block];
    pool.Give(block);
    --blocks_;
  }
  pool.stored_ -= length_;
  *this = ByteQueue();
}

void ByteQueue::Restore(BlockPool& pool, uint32_t skip, size_t length) {
  FALCON_CHECK(length_ == 0 && skip < BlockPool::kBlockBytes);
  if (length == 0) return;
  FALCON_CHECK(Extend(pool, skip + length));
  Drop(pool, skip);
}

}  // namespace falcon
