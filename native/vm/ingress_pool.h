// Frames that a backup's tap has shown and the log has not (DESIGN section 7, "input that the dead
// primary had not proposed"). Bounded in number, bytes and age. Each frame of the log strikes out
// one equal frame of the pool; a frame of the log that this tap has not shown yet is remembered
// (bounded, by hash) and strikes out its twin on arrival.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "os/clock.h"
#include "vm/flow_table.h"

namespace falcon {

struct IngressPoolOptions {
  size_t max_frames = 512;
  size_t max_bytes = 1 << 20;
  Nanoseconds max_age = 2 * kSecond;
  uint64_t hash_seed = 0;  // random per process, so that nobody can make two frames look equal
};

class IngressPool {
 public:
  virtual ~IngressPool() = default;
  virtual void Saw(Frame normalised, Nanoseconds now) = 0;  // on the tap of this backup
  virtual void Logged(Frame frame, Nanoseconds now) = 0;    // appended to this replica's log
  // Take-over: hands out the frames that are left, oldest first, and empties the pool. `take`
  // returns false to stop (those left stay).
  using Take = bool (*)(void* context, Frame frame);
  virtual size_t Drain(Nanoseconds now, Take take, void* context) = 0;
  virtual void Clear() = 0;
  [[nodiscard]] virtual size_t frames() const = 0;
  [[nodiscard]] virtual size_t bytes() const = 0;
};

std::unique_ptr<IngressPool> MakeIngressPool(const IngressPoolOptions& options);

}  // namespace falcon
