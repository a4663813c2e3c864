// Bytes of an application's output that legitimately differ between guests (an HTTP Date header):
// behind each occurrence of a configured text, a fixed number of bytes is hidden before hashing.
// The search runs along the stream, so an occurrence may lie across any number of segments.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace falcon {

struct OutputMask {
  uint16_t port = 0;  // of the application
  std::vector<std::byte> start;
  uint32_t bytes = 0;  // hidden behind `start`
};

class MaskSet {
 public:
  static constexpr size_t kMaxMasks = 4;  // of one application
  static constexpr size_t kMaxStartBytes = 64;
  static constexpr uint32_t kMaxBytes = 4096;
  static constexpr std::byte kHidden{'*'};

  // Where the search stands on one stream.
  struct State {
    std::array<uint8_t, kMaxMasks> matched{};  // bytes of each start that the stream ends with
    uint32_t hidden = 0;                       // bytes still to be hidden
  };

  // False: too many, or a start or length that cannot be.
  [[nodiscard]] bool Add(const OutputMask& mask);
  [[nodiscard]] bool empty() const { return count_ == 0; }
  // Hides in place what is to be hidden.
  void Apply(std::span<std::byte> bytes, State* state) const;
  [[nodiscard]] bool MayBe(const State& state) const;

 private:
  struct Pattern {
    std::array<std::byte, kMaxStartBytes> start{};
    // Knuth, Morris and Pratt: the longest proper prefix of the start that its first i + 1 bytes
    // end with.
    std::array<uint8_t, kMaxStartBytes> fall{};
    uint8_t length = 0;
    uint32_t bytes = 0;
  };
  std::array<Pattern, kMaxMasks> patterns_{};
  size_t count_ = 0;
};

}  // namespace falcon
