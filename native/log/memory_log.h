// The newest part of the log in memory: where entries are made, sent from and delivered from.
//
// One circular buffer of bytes in which every entry is contiguous, an index from op to place, and
// the log's view table. Old entries are evicted only up to a floor that the owner sets (durable,
// delivered and sent); when an entry does not fit above the floor, the answer is "no space", which
// is back-pressure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "log/entry.h"
#include "log/wal.h"
#include "os/mapped_memory.h"

namespace falcon {

class MemoryLog {
 public:
  // `bytes` and `max_entries` are powers of two.
  MemoryLog(size_t bytes, size_t max_entries);

  // Starts behind what is on disk: nothing in memory, the next op is last_op + 1.
  void Restore(const RecoveredLog& recovered);

  // Room for the next entry, contiguous; empty if there is none above the floor. What is not
  // followed by Commit is given up by the next Reserve.
  [[nodiscard]] std::span<std::byte> Reserve(size_t bytes);
  // Takes the whole, checked entry at the start of the room that Reserve gave; it must be the next
  // of the chain.
  void Commit(const EntryHeader& header);

  [[nodiscard]] Op first_op() const {
    return first_op_;
  }  // oldest in memory; last_op() + 1 if none
  [[nodiscard]] Op last_op() const { return last_op_; }
  [[nodiscard]] View last_view() const { return table_.empty() ? 0 : table_.back().view; }
  [[nodiscard]] uint32_t last_checksum() const { return last_checksum_; }
  [[nodiscard]] bool Holds(Op op) const { return op >= first_op_ && op <= last_op_; }
  [[nodiscard]] std::span<const std::byte> Entry(Op op) const;
  // Entries from `op` on that stand contiguous in memory, at most `max_bytes` (one at least) and
  // not beyond last_op(); *count says how many.
  [[nodiscard]] std::span<const std::byte> Run(Op op, size_t max_bytes, size_t* count) const;

  // Entries up to `op` may be evicted.
  void SetFloor(Op op);
  // Forgets all entries after `op`. `checksum`: of entry `op` when it is not in memory any more.
  void CutAfter(Op op, uint32_t checksum);
  // Forgets all entries; the next one is behind `base`.
  void Rebase(const LogPosition& base);
  // Drops rows of the view table that end below `op`.
  void PruneTable(Op op);
  [[nodiscard]] const std::vector<ViewTableRow>& table() const { return table_; }
  [[nodiscard]] View ViewOf(Op op) const;
  [[nodiscard]] size_t used_bytes() const { return static_cast<size_t>(tail_ - head_); }
  [[nodiscard]] size_t capacity_bytes() const { return capacity_; }
  // All of it, for a device that sends from where entries lie.
  [[nodiscard]] std::span<std::byte> memory() { return bytes_.bytes(); }

 private:
  struct Place {
    uint64_t position;  // absolute; its place in the buffer is position % capacity
    uint64_t bytes;
  };
  [[nodiscard]] const Place& PlaceOf(Op op) const { return index_[op & index_mask_]; }
  void EvictOldest();
  [[gnu::cold, gnu::noinline]] void BeginView(View view, Op first_op);

  MappedMemory bytes_;
  size_t capacity_;
  std::vector<Place> index_;
  uint64_t index_mask_;
  uint64_t head_ = 0;  // absolute position of the oldest entry
  uint64_t tail_ = 0;  // behind the newest
  uint64_t reserved_at_ = 0;
  Op first_op_ = 1;
  Op last_op_ = 0;
  Op floor_ = 0;
  uint32_t last_checksum_ = 0;
  std::vector<ViewTableRow> table_;
};

}  // namespace falcon
