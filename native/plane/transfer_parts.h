// What both sides of a state transfer are made of.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fabric/fabric.h"
#include "pages/digester.h"
#include "pages/guest_memory.h"
#include "pages/page_set.h"
#include "plane/inbox.h"
#include "plane/transfer.h"

namespace falcon {

inline constexpr RegionId kInboxRegion = 1;
inline constexpr RegionId kRamRegion = 2;

// The largest state of flows, rings and devices.
inline constexpr size_t kStateBytesMax = 72 << 20;

// What is done with the digests of so few pages is done there and then: a guest may be standing
// still. With more it is done aside.
inline constexpr size_t kPagesHere = 1024;

// Behind the last page of a round, in the trailer page of the target's memory: whoever sees it sees
// the pages.
struct RoundMark {
  uint64_t session;
  uint32_t round;
  uint32_t checksum;  // CRC32C of all before
};
static_assert(sizeof(RoundMark) == 16);

[[nodiscard]] RoundMark MakeRoundMark(uint64_t session, uint32_t round);

// The state comes once, whatever the number of rounds.
inline constexpr uint32_t kStateRound = 0;

// At the start of a kState record; devices and the data plane's part follow.
struct StateRecord {
  uint64_t op;
  uint64_t boot_op;
  uint64_t rounds;  // answered before it; 0 without memory
  uint64_t device_bytes;
  uint64_t plane_bytes;
};

// At the start of a kPages record; the set follows.
struct PagesRecord {
  uint64_t first;     // 1: the target adds what it has changed itself
  uint64_t resident;  // 1: and that is all its pages that are not empty
  uint64_t still;     // 1: the source's guest stands still until this round is over
};

// Of how many pages one poll works out digests of blocks, or packs and unpacks them: while the
// guests run, about a quarter of a millisecond, since whoever polls may be a realtime thread.
inline constexpr size_t kRunningPages = 32;
inline constexpr size_t kStillPages = 128;

// What an inbox must hold: a source is sent page sets with their digests, a target page sets and
// the state. Over verbs all of it is locked: no more than that.
[[nodiscard]] size_t SourceInboxBytes(size_t pages);
[[nodiscard]] size_t TargetInboxBytes(size_t pages);

// Errors: SYNC_MEMORY (also: longer than `most` bytes).
Status ReadFile(const std::string& path, size_t most, std::vector<std::byte>* into);
Status WriteFile(const std::string& path, std::span<const std::byte> bytes);

// As PageSet::Save has it.
void AppendSet(std::vector<std::byte>* to, const PageSet& set);

}  // namespace falcon
