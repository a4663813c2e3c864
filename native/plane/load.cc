#include "plane/load.h"

#include <algorithm>
#include <limits>

namespace falcon {

Load::Load(const LoadOptions& options)
    : options_(options), payload_(options.entry_bytes, std::byte{0x5A}), appended_at_(1 << 16) {
  options_.depth = std::min<size_t>(std::max<size_t>(options.depth, 1), appended_at_.size() / 2);
  latencies_.reserve(options.entries);
  result_.number = options.number;
  result_.running = true;
}

int Load::Step(DataPlane& plane) {
  if (!result_.running) return 0;
  if (!plane.leading()) {
    result_.leadership_lost = true;
    Finish();
    return 0;
  }
  if (first_op_ == 0) {
    plane.TimeCommits();
    first_op_ = plane.last_op() + 1;
    seen_commit_ = plane.last_op();
  }
  int done = 0;
  const Op commit = plane.commit_op();
  if (commit > seen_commit_) {
    const Nanoseconds now = plane.committed_at();
    for (Op op = seen_commit_ + 1; op <= commit; ++op) {
      if (op < first_op_) continue;
      ++committed_;
      if (committed_ == options_.warm_up) measured_from_ = now;
      if (committed_ <= options_.warm_up) continue;
      const Nanoseconds took = now - appended_at_[op % appended_at_.size()];
      latencies_.push_back(
          static_cast<uint32_t>(std::min<Nanoseconds>(took, std::numeric_limits<uint32_t>::max())));
    }
    seen_commit_ = commit;
    ++done;
    if (committed_ >= options_.warm_up + options_.entries) {
      result_.elapsed = now - measured_from_;
      Finish();
      return done;
    }
  }
  while (proposed_ < options_.warm_up + options_.entries &&
         proposed_ - committed_ < options_.depth && plane.CanPropose()) {
    if (measured_from_ == 0) measured_from_ = MonotonicNow();
    appended_at_[(plane.last_op() + 1) % appended_at_.size()] = MonotonicNow();
    if (!plane.Propose(EntryKind::kFrame, payload_)) break;
    ++proposed_;
    ++done;
  }
  return done;
}

void Load::Finish() {
  result_.running = false;
  result_.done = true;
  result_.entries = latencies_.size();
  if (latencies_.empty()) return;
  std::sort(latencies_.begin(), latencies_.end());
  const auto at = [this](double part) {
    const auto index = static_cast<size_t>(part * static_cast<double>(latencies_.size() - 1));
    return static_cast<Nanoseconds>(latencies_[index]);
  };
  result_.p50 = at(0.5);
  result_.p90 = at(0.9);
  result_.p99 = at(0.99);
  result_.p999 = at(0.999);
  result_.max = at(1.0);
}

}  // namespace falcon
