// What the measuring programs share: how they end, and how they say what they measured.
#pragma once

#include <errno.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "os/clock.h"
#include "os/status.h"

namespace falcon::bench {

[[noreturn]] inline void Fail(const std::string& why) {
  std::fprintf(stderr, "%s: %s\n", program_invocation_short_name, why.c_str());
  std::exit(1);
}

inline void Must(const Status& status) {
  if (!status.ok()) Fail(std::string(status.code()) + ": " + status.detail());
}

// `numbers` are at least one.
template <typename Number>
Number Median(std::vector<Number> numbers) {
  std::sort(numbers.begin(), numbers.end());
  return numbers[numbers.size() / 2];
}

// The beginning of a JSON object, without its end. `times` are at least one.
inline void PrintTimes(std::vector<Nanoseconds> times) {
  std::sort(times.begin(), times.end());
  std::printf("{\"p50Ns\":%ld,\"p99Ns\":%ld", times[times.size() / 2],
              times[times.size() * 99 / 100]);
}

}  // namespace falcon::bench
