#include "vm/tcp_options.h"

#include <algorithm>

namespace falcon {
namespace {

constexpr uint8_t kEnd = 0, kNop = 1, kMss = 2, kScale = 3, kSackPermitted = 4, kSack = 5;
constexpr size_t kSackBlockBytes = 8;

// The length of the option at `at`, or 0 if it is broken and nothing behind it can be believed.
size_t OptionLength(std::span<const std::byte> options, size_t at) {
  const uint8_t kind = Load8(options, at);
  if (kind == kNop || kind == kEnd) return 1;
  if (options.size() - at < 2) return 0;
  const size_t length = Load8(options, at + 1);
  return length < 2 || length > options.size() - at ? 0 : length;
}

void FillNops(std::span<std::byte> bytes) { std::ranges::fill(bytes, std::byte{kNop}); }

// Moves the blocks of one SACK option; the ones that stay close up, and the room of the others
// becomes no-operations.
bool MoveOneSack(std::span<std::byte> option, Seq delta, Seq limit) {
  const size_t blocks = (option.size() - 2) / kSackBlockBytes;
  size_t kept = 0;
  for (size_t i = 0; i < blocks; ++i) {
    const size_t from = 2 + i * kSackBlockBytes;
    const Seq start = Load32(option, from) + delta;
    const Seq end = Load32(option, from + 4) + delta;
    if (SeqBefore(limit, end) || SeqBefore(end, start)) continue;
    const size_t to = 2 + kept * kSackBlockBytes;
    Store32(option, to, start);
    Store32(option, to + 4, end);
    ++kept;
  }
  const size_t used = kept == 0 ? 0 : 2 + kept * kSackBlockBytes;
  if (kept != 0) option[1] = static_cast<std::byte>(used);
  FillNops(option.subspan(used));
  return delta != 0 || kept != blocks;
}

}  // namespace

SynOptions ReadSynOptions(std::span<const std::byte> options) {
  SynOptions read;
  for (size_t at = 0; at < options.size();) {
    const uint8_t kind = Load8(options, at);
    const size_t length = OptionLength(options, at);
    if (kind == kEnd || length == 0) break;
    if (kind == kMss && length == 4) read.mss = std::max(Load16(options, at + 2), kMinMss);
    if (kind == kScale && length == 3) read.scale = std::min(Load8(options, at + 2), kMaxScale);
    at += length;
  }
  return read;
}

bool CleanSynOptions(std::span<std::byte> options) {
  bool changed = false;
  for (size_t at = 0; at < options.size();) {
    const uint8_t kind = Load8(options, at);
    if (kind == kEnd) break;
    const size_t length = OptionLength(options, at);
    const size_t span = length == 0 ? options.size() - at : length;
    const bool stays =
        length != 0 && (kind == kNop || (kind == kMss && length == 4) ||
                        (kind == kScale && length == 3) || (kind == kSackPermitted && length == 2));
    if (!stays) {
      FillNops(options.subspan(at, span));
      changed = true;
    }
    at += span;
  }
  return changed;
}

bool MoveSackBlocks(std::span<std::byte> options, Seq delta, Seq limit) {
  bool changed = false;
  for (size_t at = 0; at < options.size();) {
    const uint8_t kind = Load8(options, at);
    const size_t length = OptionLength(options, at);
    if (kind == kEnd || length == 0) break;
    if (kind == kSack && MoveOneSack(options.subspan(at, length), delta, limit)) changed = true;
    at += length;
  }
  return changed;
}

}  // namespace falcon
