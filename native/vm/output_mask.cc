#include "vm/output_mask.h"

#include <algorithm>

namespace falcon {

bool MaskSet::Add(const OutputMask& mask) {
  const size_t length = mask.start.size();
  if (count_ == kMaxMasks || length == 0 || length > kMaxStartBytes) return false;
  if (mask.bytes == 0 || mask.bytes > kMaxBytes) return false;
  Pattern& pattern = patterns_[count_++];
  std::ranges::copy(mask.start, pattern.start.begin());
  pattern.length = static_cast<uint8_t>(length);
  pattern.bytes = mask.bytes;
  for (size_t i = 1, prefix = 0; i < length; ++i) {
    while (prefix > 0 && pattern.start[i] != pattern.start[prefix])
      prefix = pattern.fall[prefix - 1];
    if (pattern.start[i] == pattern.start[prefix]) ++prefix;
    pattern.fall[i] = static_cast<uint8_t>(prefix);
  }
  return true;
}

void MaskSet::Apply(std::span<std::byte> bytes, State* state) const {
  for (std::byte& byte : bytes) {
    if (state->hidden > 0) {
      --state->hidden;
      byte = kHidden;
      continue;
    }
    for (size_t i = 0; i < count_; ++i) {
      const Pattern& pattern = patterns_[i];
      uint8_t& matched = state->matched[i];
      while (matched > 0 && byte != pattern.start[matched]) matched = pattern.fall[matched - 1];
      if (byte == pattern.start[matched]) ++matched;
      if (matched < pattern.length) continue;
      state->hidden = std::max(state->hidden, pattern.bytes);
      matched = 0;
    }
    if (state->hidden > 0) state->matched.fill(0);
  }
}

bool MaskSet::MayBe(const State& state) const {
  for (size_t i = 0; i < kMaxMasks; ++i) {
    const bool known = i < count_ && state.matched[i] < patterns_[i].length;
    if (!known && state.matched[i] != 0) return false;
  }
  return state.hidden <= kMaxBytes;
}

}  // namespace falcon
