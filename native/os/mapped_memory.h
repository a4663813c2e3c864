// Zeroed memory of whole pages that children do not inherit: a page that a child shares would be
// copied away from under a device that reads it. Also cheap until it is touched.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <span>

#include "os/check.h"

namespace falcon {

class MappedMemory {
 public:
  explicit MappedMemory(size_t bytes)
      : base_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)),
        bytes_(bytes) {
    FALCON_CHECK(base_ != MAP_FAILED && madvise(base_, bytes_, MADV_DONTFORK) == 0);
  }
  ~MappedMemory() { munmap(base_, bytes_); }
  MappedMemory(const MappedMemory&) = delete;
  MappedMemory& operator=(const MappedMemory&) = delete;

  [[nodiscard]] std::byte* data() const { return static_cast<std::byte*>(base_); }
  [[nodiscard]] std::span<std::byte> bytes() const { return {data(), bytes_}; }

 private:
  void* base_;
  size_t bytes_;
};

}  // namespace falcon
