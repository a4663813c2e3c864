// A small seeded generator (SplitMix64, after Steele, Lea and Flood, "Fast splittable pseudorandom
// number generators", 2014) for simulation and tests: the same seed gives the same numbers
// everywhere.
#pragma once

#include <cstdint>

namespace falcon {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  [[nodiscard]] uint64_t Next() {
    state_ += 0x9E3779B97F4A7C15;
    uint64_t mixed = state_;
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9;
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB;
    return mixed ^ (mixed >> 31);
  }

  // Uniform in [0, bound); bound > 0.
  [[nodiscard]] uint64_t Below(uint64_t bound) { return Next() % bound; }

  // True `numerator` times out of `denominator`.
  [[nodiscard]] bool Chance(uint64_t numerator, uint64_t denominator) {
    return Below(denominator) < numerator;
  }

 private:
  uint64_t state_;
};

}  // namespace falcon
