// What the owner of exposed memory tells the one peer that may reach it: a line of text with a
// checksum, the same for all fabrics, which use the fields that they need.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "fabric/fabric.h"
#include "os/status.h"

namespace falcon {

struct Grant {
  std::string fabric;  // name() of the owner's
  PeerId owner = 0;
  PeerId writer = 0;  // who may use it
  RegionId region = 0;
  uint64_t connection = 0;  // between the two
  uint64_t exposure = 0;    // numbers what the owner's incarnation has exposed, from 1
  uint64_t bytes = 0;
  uint64_t address = 0;  // of verbs, as the key
  uint32_t key = 0;
  std::string file{};  // of shm: a name in the fabric's directory; empty: none
};

inline constexpr uint64_t kMaxExposedBytes = 1ull << 46;
inline constexpr size_t kMaxGrantFileBytes = 128;

// A name that stays in its directory: A-Z a-z 0-9 _ - and dots inside.
[[nodiscard]] bool IsGrantFile(std::string_view name);

[[nodiscard]] std::string FormatGrant(const Grant& grant);

// Takes a text that anybody may have made up; it must be for what `expected` says in fabric, owner,
// writer, region and connection. Errors: FABRIC_GRANT.
Status ParseGrant(std::string_view text, const Grant& expected, Grant* grant);

// What every fabric asks of Expose's arguments. Errors: FABRIC_REGION.
Status CheckExposable(RegionId region, const ExposedMemory& memory, bool in_use);

}  // namespace falcon
