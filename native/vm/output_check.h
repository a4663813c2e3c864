// The payload of an `output-check` entry, and what a replica finds when it compares. Little-endian;
// src/wire/output-check.ts has TypeScript's view of both, and a test compares the two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "vm/flow.h"
#include "vm/output_hash.h"

namespace falcon {

// payload = CheckHeader, then `count` of CheckItem
struct CheckHeader {
  uint16_t version;   // kCheckVersion
  uint16_t count;     // at most kMaxCheckItems
  uint16_t proposer;  // the member whose hashes these are
  uint16_t reserved;
};

struct CheckItem {
  uint8_t client[16];
  uint8_t vm[16];
  uint16_t client_port;
  uint16_t vm_port;
  uint32_t client_iss;  // tells connections on the same ports apart
  uint64_t position;    // bytes of payload
  uint8_t final;        // 1: the guest said no more than this
  uint8_t reserved[7];
  uint8_t hash[32];
};

inline constexpr uint16_t kCheckVersion = 1;
inline constexpr size_t kMaxCheckItems = 128;
inline constexpr size_t kTailBytes = 512;  // raw output that goes with a divergence

static_assert(sizeof(CheckHeader) == 8);
static_assert(sizeof(CheckItem) == 88);

enum class Verdict : uint8_t {
  kAgree,     // the same bytes
  kLate,      // this guest has not come so far in time; another verdict may follow
  kDiverged,  // other bytes, or more, or fewer
  kSkipped,   // cannot be told: a reset cut the output short, or it is no longer known here
};

// What is told to the deciding thread, one after the other; `tail_bytes` of raw output follow.
struct VerdictRecord {
  uint64_t op;        // of the check
  uint64_t position;  // where this guest's output stands
  uint64_t agreed;    // up to where it has been found equal before
  uint16_t index;     // in the check
  uint8_t verdict;
  uint8_t cause;  // FlowDivergence, if the flow was lost before
  uint16_t tail_bytes;
  uint16_t reserved;
  uint8_t hash[32];
};
static_assert(sizeof(VerdictRecord) == 64);

// One application's output: a port of the guest.
struct OutputApplication {
  uint16_t port = 0;
  uint64_t flows_ended = 0;  // by a FIN of the guest
  uint64_t flows_cut = 0;    // by a reset
  uint64_t bytes = 0;        // of all flows, after which they were hashed
  uint64_t datagrams = 0, datagram_bytes = 0;
  uint64_t agreed = 0, late = 0, diverged = 0, skipped = 0;
  uint64_t unchecked = 0;  // flows that were forgotten before their end could be checked
  // The sum modulo 2^256 of H(flow || length || last hash) over flows_ended. Guests close their
  // connections in an order of their own, and a sum does not depend on it; what is summed is bound
  // to its flow, so outputs exchanged between two flows show, and changes that cancel out would
  // have to be searched for among hashes of 256 bits.
  OutputHash summary{};
};

}  // namespace falcon
