// A load for measuring the log: the primary proposes entries of a fixed size and times each from
// append to commit. Runs inside the reactor, between rounds, so that what is measured is the log
// and not the caller.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "os/clock.h"
#include "plane/data_plane.h"

namespace falcon {

struct LoadOptions {
  uint64_t number = 0;      // of this load, so that its result is told from an earlier one's
  size_t entry_bytes = 64;  // payload
  size_t depth = 1;         // entries in flight
  uint64_t entries = 0;     // to measure
  uint64_t warm_up = 0;     // before that
};

struct LoadResult {
  uint64_t number = 0;
  bool running = false;
  bool done = false;
  bool leadership_lost = false;
  uint64_t entries = 0;
  Nanoseconds elapsed = 0;  // of the measured part
  Nanoseconds p50 = 0, p90 = 0, p99 = 0, p999 = 0, max = 0;
};

class Load {
 public:
  explicit Load(const LoadOptions& options);
  // Returns entries proposed or found committed.
  int Step(DataPlane& plane);
  [[nodiscard]] const LoadResult& result() const { return result_; }

 private:
  void Finish();

  LoadOptions options_;
  LoadResult result_;
  std::vector<std::byte> payload_;
  std::vector<Nanoseconds> appended_at_;  // by op modulo its size
  std::vector<uint32_t> latencies_;       // ns, saturating
  Op first_op_ = 0;
  Op seen_commit_ = 0;
  uint64_t proposed_ = 0;
  uint64_t committed_ = 0;
  Nanoseconds measured_from_ = 0;
};

}  // namespace falcon
