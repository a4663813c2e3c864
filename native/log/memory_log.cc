#include "log/memory_log.h"

#include <algorithm>
#include <bit>

#include "os/check.h"

namespace falcon {

MemoryLog::MemoryLog(size_t bytes, size_t max_entries)
    : bytes_(bytes), capacity_(bytes), index_(max_entries), index_mask_(max_entries - 1) {
  FALCON_CHECK(std::has_single_bit(bytes) && std::has_single_bit(max_entries));
  FALCON_CHECK(bytes >= 2 * EntryBytes(kMaxPayloadBytes));
}

void MemoryLog::Restore(const RecoveredLog& recovered) {
  FALCON_CHECK(last_op_ == 0);
  last_op_ = recovered.last_op;
  first_op_ = last_op_ + 1;
  floor_ = last_op_;
  last_checksum_ = recovered.last_checksum;
  table_ = recovered.view_table;
}

void MemoryLog::EvictOldest() {
  FALCON_CHECK(first_op_ <= last_op_);
  const Place& place = PlaceOf(first_op_);
  ++first_op_;
  head_ = first_op_ <= last_op_ ? PlaceOf(first_op_).position : place.position + place.bytes;
}

std::span<std::byte> MemoryLog::Reserve(size_t bytes) {
  FALCON_CHECK(bytes % 8 == 0 && bytes <= capacity_ / 2);
  const uint64_t to_end = capacity_ - tail_ % capacity_;
  const uint64_t skip = to_end < bytes ? to_end : 0;
  while (tail_ + skip + bytes - head_ > capacity_ || last_op_ + 1 - first_op_ >= index_.size()) {
    if (first_op_ > last_op_) {
      head_ = tail_;
      continue;
    }
    if (first_op_ > floor_) return {};
    EvictOldest();
  }
  reserved_at_ = tail_ + skip;
  return {bytes_.data() + reserved_at_ % capacity_, bytes};
}

void MemoryLog::BeginView(View view, Op first_op) { table_.push_back({view, first_op}); }

void MemoryLog::Commit(const EntryHeader& header) {
  FALCON_CHECK(header.op == last_op_ + 1);
  FALCON_CHECK(header.previous == last_checksum_);
  FALCON_CHECK(header.view >= last_view());
  if (header.view > last_view()) BeginView(header.view, header.op);
  const uint64_t bytes = EntryBytes(header.payload_length);
  if (first_op_ > last_op_) {
    first_op_ = header.op;
    head_ = reserved_at_;
  }
  last_op_ = header.op;
  last_checksum_ = header.checksum;
  index_[header.op & index_mask_] = {reserved_at_, bytes};
  tail_ = reserved_at_ + bytes;
}

std::span<const std::byte> MemoryLog::Entry(Op op) const {
  FALCON_CHECK(Holds(op));
  const Place& place = PlaceOf(op);
  return {bytes_.data() + place.position % capacity_, static_cast<size_t>(place.bytes)};
}

std::span<const std::byte> MemoryLog::Run(Op op, size_t max_bytes, size_t* count) const {
  FALCON_CHECK(Holds(op));
  const Place& first = PlaceOf(op);
  uint64_t bytes = first.bytes;
  size_t entries = 1;
  for (Op next = op + 1; next <= last_op_; ++next, ++entries) {
    const Place& place = PlaceOf(next);
    // A gap is where an entry did not fit before the end of the buffer.
    if (place.position != first.position + bytes || bytes + place.bytes > max_bytes ||
        place.position % capacity_ == 0) {
      break;
    }
    bytes += place.bytes;
  }
  *count = entries;
  return {bytes_.data() + first.position % capacity_, static_cast<size_t>(bytes)};
}

void MemoryLog::SetFloor(Op op) {
  if (op > floor_) floor_ = std::min(op, last_op_);
}

void MemoryLog::CutAfter(Op op, uint32_t checksum) {
  FALCON_CHECK(op <= last_op_);
  if (op == last_op_) return;
  if (Holds(op)) {
    const Place& place = PlaceOf(op);
    tail_ = place.position + place.bytes;
    last_checksum_ = ReadEntryHeader(Entry(op)).checksum;
  } else {
    FALCON_CHECK(op + 1 >= first_op_ || op == 0 || checksum != 0);
    first_op_ = op + 1;
    head_ = tail_;
    last_checksum_ = op == 0 ? 0 : checksum;
  }
  last_op_ = op;
  floor_ = std::min(floor_, op);
  while (!table_.empty() && table_.back().first_op > op) table_.pop_back();
}

void MemoryLog::Rebase(const LogPosition& base) {
  head_ = tail_;
  last_op_ = floor_ = base.op;
  first_op_ = last_op_ + 1;
  last_checksum_ = base.checksum;
  table_ = {{base.view, base.op}};
}

void MemoryLog::PruneTable(Op op) {
  while (table_.size() > 1 && table_[1].first_op <= op) table_.erase(table_.begin());
}

View MemoryLog::ViewOf(Op op) const {
  for (size_t i = table_.size(); i > 0; --i) {
    if (table_[i - 1].first_op <= op) return table_[i - 1].view;
  }
  return 0;
}

}  // namespace falcon
