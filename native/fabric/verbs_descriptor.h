// What a peer has to know to reach a verbs fabric, as text: "verbs 2 " and a checksummed record in
// hexadecimal digits.
#pragma once

#include <infiniband/verbs.h>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "fabric/fabric.h"

namespace falcon {

struct VerbsMemory {
  uint64_t address;
  uint64_t bytes;  // 0: there is no such region
  uint32_t rkey;
  uint32_t reserved;
};

// Little-endian, as x86-64 and arm64 have it.
struct VerbsMember {
  uint64_t incarnation;  // of the owner's start, at random
  uint8_t self;
  uint8_t ethernet;   // 1: RoCE, 0: InfiniBand
  uint8_t mtu;        // an ibv_mtu
  uint8_t max_reads;  // outstanding reads that it answers
  uint16_t lid;
  uint16_t reserved;
  std::array<uint8_t, 16> gid;
  std::array<uint32_t, kMaxMembers> queue_pairs;  // by the member that is to use it
  std::array<VerbsMemory, kMaxRegions> regions;
  VerbsMemory control;  // kMaxMembers lines, see verbs.cc
  uint32_t reserved2;
  uint32_t checksum;  // CRC32C of everything before
};
static_assert(sizeof(VerbsMember) == 8 + 8 + 16 + 32 + 24 * 5 + 8);

[[nodiscard]] std::string FormatVerbsMember(VerbsMember member);

// Errors: FABRIC_CONNECT.
Status ParseVerbsMember(std::string_view text, VerbsMember* member);

}  // namespace falcon
