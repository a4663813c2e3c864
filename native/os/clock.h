// Time. Every duration in the data plane is measured on CLOCK_MONOTONIC, in nanoseconds; wall
// clocks decide nothing.
#pragma once

#include <cstdint>
#include <ctime>

namespace falcon {

using Nanoseconds = int64_t;

inline constexpr Nanoseconds kMicrosecond = 1000;
inline constexpr Nanoseconds kMillisecond = 1000 * kMicrosecond;
inline constexpr Nanoseconds kSecond = 1000 * kMillisecond;

[[nodiscard]] inline Nanoseconds MonotonicNow() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<Nanoseconds>(t.tv_sec) * kSecond + t.tv_nsec;
}

}  // namespace falcon
