// A bounded queue between exactly one producer thread and exactly one consumer thread, without
// locks.
//
// What is pushed becomes visible in batches: Push only fills a slot, Publish shows all filled slots
// to the consumer with one release store. The producer looks at the consumer's position only when
// its last view of it says "full", so in the steady state neither side touches the other's cache
// line per element.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

#include "os/check.h"

namespace falcon {

inline constexpr size_t kCacheLineBytes = 64;

template <typename T>
class SpscQueue {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  // `capacity`: elements, a power of two.
  explicit SpscQueue(size_t capacity)
      : mask_(capacity - 1), slots_(std::make_unique<T[]>(capacity)) {
    FALCON_CHECK(capacity > 0 && (capacity & (capacity - 1)) == 0);
  }
  SpscQueue(const SpscQueue&) = delete;
  SpscQueue& operator=(const SpscQueue&) = delete;

  [[nodiscard]] size_t capacity() const { return mask_ + 1; }

  // Producer. False if the queue is full.
  [[nodiscard]] bool Push(const T& value) {
    if (filled_ - head_seen_ > mask_) {
      head_seen_ = head_.load(std::memory_order_acquire);
      if (filled_ - head_seen_ > mask_) return false;
    }
    slots_[filled_ & mask_] = value;
    ++filled_;
    return true;
  }

  // Producer. Shows the consumer everything pushed so far.
  void Publish() { tail_.store(filled_, std::memory_order_release); }

  // Consumer. Elements that can be looked at now.
  [[nodiscard]] size_t Readable() const {
    return static_cast<size_t>(tail_.load(std::memory_order_acquire) -
                               head_.load(std::memory_order_relaxed));
  }

  // Consumer. The element `index` places behind the head; index < Readable().
  [[nodiscard]] const T& Peek(size_t index) const {
    return slots_[(head_.load(std::memory_order_relaxed) + index) & mask_];
  }

  // Consumer. Gives `count` slots back to the producer.
  void Pop(size_t count) {
    FALCON_CHECK(count <= Readable());
    head_.store(head_.load(std::memory_order_relaxed) + count, std::memory_order_release);
  }

 private:
  const uint64_t mask_;
  const std::unique_ptr<T[]> slots_;
  // Positions grow for ever; 64 bits do not wrap.
  alignas(kCacheLineBytes) uint64_t filled_ = 0;  // the producer's own
  uint64_t head_seen_ = 0;
  alignas(kCacheLineBytes) std::atomic<uint64_t> tail_{0};
  alignas(kCacheLineBytes) std::atomic<uint64_t> head_{0};
};

}  // namespace falcon
