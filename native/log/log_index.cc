#include "log/log_index.h"

#include <algorithm>

#include "os/check.h"

namespace falcon {

void LogIndex::Reset(Op base_op) {
  runs_.clear();
  base_op_ = base_op;
  ++cuts_;
}

void LogIndex::Add(const std::shared_ptr<const Segment>& segment, uint64_t offset, uint64_t bytes,
                   Op first_op, Op last_op) {
  FALCON_CHECK(first_op > base_op_ && first_op <= this->last_op() + 1 && last_op >= first_op);
  if (first_op <= this->last_op()) Cut(first_op - 1);
  if (!runs_.empty()) {
    Run& back = runs_.back();
    const bool neighbour = back.segment == segment && back.offset + back.bytes == offset;
    if (neighbour && !back.cut && back.bytes < kRunBytes) {
      back.bytes += bytes;
      back.last_op = last_op;
      return;
    }
  }
  runs_.push_back({.segment = segment,
                   .offset = offset,
                   .bytes = bytes,
                   .first_op = first_op,
                   .last_op = last_op,
                   .cut = false});
}

void LogIndex::Cut(Op last_op) {
  while (!runs_.empty() && runs_.back().first_op > last_op) runs_.pop_back();
  if (!runs_.empty() && runs_.back().last_op > last_op) {
    runs_.back().last_op = last_op;
    runs_.back().cut = true;
  }
  ++cuts_;
}

const Run& LogIndex::Find(Op op) const {
  FALCON_CHECK(op > base_op_ && op <= last_op());
  const auto after =
      std::upper_bound(runs_.begin(), runs_.end(), op,
                       [](Op wanted, const Run& run) { return wanted < run.first_op; });
  FALCON_CHECK(after != runs_.begin());
  const Run& run = *std::prev(after);
  FALCON_CHECK(op <= run.last_op);
  return run;
}

void LogIndex::Release(Op base_op) {
  FALCON_CHECK(base_op >= base_op_);
  while (!runs_.empty() && runs_.front().last_op <= base_op) runs_.pop_front();
  FALCON_CHECK(runs_.empty() || runs_.front().first_op == base_op + 1);
  base_op_ = base_op;
}

}  // namespace falcon
