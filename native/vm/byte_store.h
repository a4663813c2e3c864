// Bounded storage for the bytes of many streams: blocks of one pool, allocated when the pool is
// made, chained into one queue per stream. A queue may have holes; who uses it knows where they
// are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace falcon {

class BlockPool {
 public:
  static constexpr size_t kBlockBytes = 2048;
  static constexpr uint32_t kNone = UINT32_MAX;

  explicit BlockPool(size_t bytes);

  [[nodiscard]] size_t blocks() const { return next_.size(); }
  [[nodiscard]] size_t free_blocks() const { return free_; }
  [[nodiscard]] size_t stored_bytes() const { return stored_; }

 private:
  friend class ByteQueue;
  uint32_t Take();  // one must be free
  void Give(uint32_t block);
  [[nodiscard]] std::byte* Data(uint32_t block) { return bytes_.get() + block * kBlockBytes; }

  std::unique_ptr<std::byte[]> bytes_;
  std::vector<uint32_t> next_;
  uint32_t first_free_ = kNone;
  size_t free_ = 0;
  size_t stored_ = 0;  // sum of the lengths of all queues
};

// Bytes 0 ... length() of a stream, counted from its first byte still kept. Owns its blocks: Clear
// before the end.
class ByteQueue {
 public:
  [[nodiscard]] size_t length() const { return length_; }
  // Makes the queue at least `length` long; new bytes are undefined until written. False, and
  // nothing changed, if the pool has too few blocks.
  [[nodiscard]] bool Extend(BlockPool& pool, size_t length);
  void Write(BlockPool& pool, size_t at, std::span<const std::byte> bytes);
  void Read(BlockPool& pool, size_t at, std::span<std::byte> into) const;
  // Forgets the first `count` bytes (all, if there are fewer).
  void Drop(BlockPool& pool, size_t count);
  void Clear(BlockPool& pool);
  // Makes an empty queue `length` long, its first byte `skip` bytes into a block: as many blocks as
  // the queue had that is copied. The pool must have BlocksFor(skip, length).
  void Restore(BlockPool& pool, uint32_t skip, size_t length);
  [[nodiscard]] uint32_t skip() const { return skip_; }
  [[nodiscard]] static size_t BlocksFor(uint32_t skip, size_t length) {
    return length == 0 ? 0 : (skip + length + BlockPool::kBlockBytes - 1) / BlockPool::kBlockBytes;
  }

 private:
  // The block that holds byte `at`, which must be inside.
  [[nodiscard]] uint32_t Find(const BlockPool& pool, size_t at) const;

  uint32_t head_ = BlockPool::kNone, tail_ = BlockPool::kNone;
  uint32_t blocks_ = 0;
  uint32_t skip_ = 0;  // bytes of the head block that are already dropped
  size_t length_ = 0;
};

}  // namespace falcon
