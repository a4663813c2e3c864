// Whole reads and writes out of a Storage's possibly short ones.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>

#include "log/wal.h"

namespace falcon {

// Bytes read: fewer than asked for only at the end of the file. -errno.
[[nodiscard]] inline int64_t ReadFully(Storage& storage, Storage::Handle handle,
                                       std::span<std::byte> into, uint64_t offset) {
  size_t done = 0;
  while (done < into.size()) {
    const int64_t got = storage.ReadAt(handle, into.subspan(done), offset + done);
    if (got < 0) return got;
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  return static_cast<int64_t>(done);
}

// 0 or -errno. A write that takes nothing would be repeated for ever: it counts as an I/O error.
[[nodiscard]] inline int WriteFully(Storage& storage, Storage::Handle handle,
                                    std::span<const std::byte> data, uint64_t offset) {
  size_t done = 0;
  while (done < data.size()) {
    const int64_t taken = storage.WriteAt(handle, data.subspan(done), offset + done);
    if (taken < 0) return static_cast<int>(taken);
    if (taken == 0) return -EIO;
    done += static_cast<size_t>(taken);
  }
  return 0;
}

}  // namespace falcon
