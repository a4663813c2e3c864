// TCP options (RFC 9293, 7323, 2018): what a SYN may carry into the log, what it said, and SACK
// blocks moved from wire space into a guest's space.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "vm/packet.h"

namespace falcon {

inline constexpr uint8_t kNoScale = 0xFF;
inline constexpr uint8_t kMaxScale = 14;
inline constexpr uint16_t kMinMss = 64;  // less is taken for this much

struct SynOptions {
  uint16_t mss = 536;        // what a peer that says nothing can take (RFC 9293)
  uint8_t scale = kNoScale;  // window scale, at most kMaxScale
};

[[nodiscard]] SynOptions ReadSynOptions(std::span<const std::byte> options);

// Overwrites with no-operations every option of a SYN that carries state of one stack or that this
// project does not know to be safe: only MSS, window scale and SACK-permitted stay. Returns true if
// anything changed.
bool CleanSynOptions(std::span<std::byte> options);

// Adds `delta` to every SACK block and takes out the blocks that reach beyond `limit` (guest
// space): a guest has no use for news of bytes that it has not sent. Returns true if anything
// changed.
bool MoveSackBlocks(std::span<std::byte> options, Seq delta, Seq limit);

}  // namespace falcon
