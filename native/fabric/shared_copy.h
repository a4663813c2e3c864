// Copying into and out of memory that another process reads or writes at the same time.
//
// Such memory is only touched by atomic accesses, whole 8-byte words wherever the shared side is
// aligned, so that a word is seen old or new and never mixed. What is copied becomes visible before
// anything that is copied in by a later call; a reader still has to validate what it copied out.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace falcon {

// The thread sanitizer does not understand fences, so there every single access carries the order
// instead.
#if defined(__SANITIZE_THREAD__)
inline constexpr std::memory_order kSharedStore = std::memory_order_release;
inline constexpr std::memory_order kSharedLoad = std::memory_order_acquire;
inline void ReleaseFence() {}
inline void AcquireFence() {}
inline void FullFence() {
  static std::atomic<uint32_t> anything{0};
  anything.fetch_add(1, std::memory_order_seq_cst);
}
#else
inline constexpr std::memory_order kSharedStore = std::memory_order_relaxed;
inline constexpr std::memory_order kSharedLoad = std::memory_order_relaxed;
inline void ReleaseFence() { std::atomic_thread_fence(std::memory_order_release); }
inline void AcquireFence() { std::atomic_thread_fence(std::memory_order_acquire); }
inline void FullFence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
#endif

static_assert(std::atomic_ref<uint64_t>::is_always_lock_free);

[[nodiscard]] inline bool IsWordAligned(const std::byte* at) {
  return reinterpret_cast<uintptr_t>(at) % 8 == 0;
}

inline void StoreSharedWord(std::byte* to, uint64_t value) {
  std::atomic_ref<uint64_t>(*reinterpret_cast<uint64_t*>(to)).store(value, kSharedStore);
}

inline void StoreSharedByte(std::byte* to, std::byte value) {
  std::atomic_ref<unsigned char>(*reinterpret_cast<unsigned char*>(to))
      .store(static_cast<unsigned char>(value), kSharedStore);
}

// `from` is aligned; the memory itself may be const to the reader, never to its writer.
[[nodiscard]] inline uint64_t LoadSharedWord(const std::byte* from) {
  auto* word = reinterpret_cast<uint64_t*>(const_cast<std::byte*>(from));
  return std::atomic_ref<uint64_t>(*word).load(kSharedLoad);
}

[[nodiscard]] inline std::byte LoadSharedByte(const std::byte* from) {
  auto* byte = reinterpret_cast<unsigned char*>(const_cast<std::byte*>(from));
  return std::byte{std::atomic_ref<unsigned char>(*byte).load(kSharedLoad)};
}

// Copies the concatenation of `pieces` to `to`, in ascending order of addresses. A word whose bytes
// come from two pieces is put together first, so that it does not tear either.
inline void CopyIntoShared(std::byte* to, std::span<const std::span<const std::byte>> pieces) {
  uint64_t gathered = 0;  // the first bytes of a word that the piece before began
  size_t gathered_bytes = 0;
  const auto flush = [&to, &gathered, &gathered_bytes] {
    for (size_t i = 0; i < gathered_bytes; ++i)
      StoreSharedByte(to++, reinterpret_cast<const std::byte*>(&gathered)[i]);
    gathered_bytes = 0;
  };
  for (const std::span<const std::byte> piece : pieces) {
    const std::byte* from = piece.data();
    size_t left = piece.size();
    while (left > 0 && (gathered_bytes > 0 || !IsWordAligned(to))) {
      if (gathered_bytes == 0) {  // the head of the whole write
        StoreSharedByte(to++, *from++);
        --left;
        continue;
      }
      reinterpret_cast<std::byte*>(&gathered)[gathered_bytes++] = *from++;
      --left;
      if (gathered_bytes == 8) {
        StoreSharedWord(to, gathered);
        to += 8;
        gathered_bytes = 0;
      }
    }
    for (; left >= 8; left -= 8, from += 8, to += 8) {
      uint64_t word;
      std::memcpy(&word, from, 8);
      StoreSharedWord(to, word);
    }
    if (left > 0) {
      gathered = 0;
      std::memcpy(&gathered, from, left);
      gathered_bytes = left;
    }
  }
  flush();
  ReleaseFence();
}

// Copies `into.size()` bytes out of shared memory.
inline void CopyFromShared(std::span<std::byte> into, const std::byte* from) {
  std::byte* to = into.data();
  size_t left = into.size();
  for (; left > 0 && !IsWordAligned(from); --left) *to++ = LoadSharedByte(from++);
  for (; left >= 8; left -= 8, from += 8, to += 8) {
    const uint64_t word = LoadSharedWord(from);
    std::memcpy(to, &word, 8);
  }
  for (; left > 0; --left) *to++ = LoadSharedByte(from++);
  AcquireFence();
}

}  // namespace falcon
