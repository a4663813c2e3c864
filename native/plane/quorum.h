// Quorum arithmetic over one number per member.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "fabric/fabric.h"

namespace falcon {

// The value that at least `rank` of the first `members` values reach (rank 1: the largest). For a
// handful of members counting beats sorting.
[[nodiscard]] inline uint64_t ReachedBy(const std::array<uint64_t, kMaxMembers>& values,
                                        size_t members, size_t rank) {
  uint64_t best = 0;
  for (size_t i = 0; i < members; ++i) {
    size_t reached = 0;
    for (size_t j = 0; j < members; ++j) reached += values[j] >= values[i] ? 1 : 0;
    if (reached >= rank && values[i] > best) best = values[i];
  }
  return best;
}

}  // namespace falcon
