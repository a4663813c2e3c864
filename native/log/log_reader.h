// Reading batches and runs back from segment files, trusting no byte of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "log/log_index.h"
#include "log/segment.h"
#include "os/status.h"

namespace falcon {

// What is wrong with the bytes where a batch should be; nullptr if nothing is. On success `header`
// is filled. `bytes` starts at the batch and ends at the end of what there is.
[[nodiscard]] const char* CheckBatch(std::span<const std::byte> bytes, uint32_t salt,
                                     BatchHeader* header);

// The entries of a checked batch, one call of `visit(header, bytes)` each until it returns false.
// Returns what is wrong: an entry that is not whole, ops that are not dense, bytes left over.
template <typename Visit>
[[nodiscard]] const char* VisitEntries(std::span<const std::byte> batch, const BatchHeader& header,
                                       Visit visit) {
  std::span<const std::byte> rest = batch.subspan(sizeof(BatchHeader), header.payload_bytes);
  for (uint32_t i = 0; i < header.entries; ++i) {
    if (!EntryIsWhole(rest)) return "an entry is not whole";
    const EntryHeader entry = ReadEntryHeader(rest);
    if (entry.op != header.first_op + i) return "ops in a batch are not dense";
    const size_t bytes = EntryBytes(entry.payload_length);
    if (!visit(entry, rest.first(bytes))) return nullptr;
    rest = rest.subspan(bytes);
  }
  return rest.empty() ? nullptr : "bytes behind the last entry of a batch";
}

// A window over a file for sequential reading in large pieces. The span stays valid until the next
// call.
class FileWindow {
 public:
  FileWindow(Storage& storage, Storage::Handle handle) : storage_(storage), handle_(handle) {}

  // `length` bytes from `offset` on, fewer at the end of the file. On a read error `error()` is not
  // 0.
  [[nodiscard]] std::span<const std::byte> Get(uint64_t offset, size_t length);
  [[nodiscard]] int error() const { return error_; }

 private:
  static constexpr size_t kWindowBytes = 64 * 1024;
  Storage& storage_;
  const Storage::Handle handle_;
  std::vector<std::byte> bytes_;
  uint64_t start_ = 0;
  int error_ = 0;
};

// Appends the entries of `run` with from <= op < until to `into`, as long as `into` stays within
// `max_bytes` (its first entry may be larger), and moves `next` behind the last one appended.
// `scratch` keeps its capacity between calls. Error: WAL_READ.
Status ReadRun(const Run& run, Op from, Op until, size_t max_bytes, std::vector<std::byte>* scratch,
               std::vector<std::byte>* into, Op* next);

// The position at `op`, which `run` holds. Error: WAL_READ.
Status ReadPosition(const Run& run, Op op, LogPosition* position);

}  // namespace falcon
