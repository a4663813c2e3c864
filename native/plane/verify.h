// Comparing two whole guests at one viewstamp: memory, devices, flows. Nothing is changed.
//
// The two sides do the same, each for itself: the pages that are not empty are digested while the
// guest runs. Behind the same vm-sync entry it stands still, what it has changed meanwhile is
// digested again, and the state of devices and flows is taken. Then it goes on. The target sends
// what it has found as one record into the source's inbox, and the source compares. That inbox is
// all that is open to anybody: no memory of a guest is.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "plane/transfer.h"
#include "vm/flow_table.h"

namespace falcon {

// What the data plane holds of a guest, as far as two replicas can be compared.
struct PlaneFacts {
  std::vector<FlowFacts> flows;  // in their order
  uint64_t frames_waiting = 0;   // in the deliver ring: the guest has not taken them
  std::vector<std::byte> builtin;
};

// What a source is told in the end, as it is in front of TransferVerified's bytes. Behind it: the
// numbers of `listed` pages (8 bytes each), the devices of the source, the devices of the target.
struct VerifyReport {
  uint64_t pages;      // not empty here, there, or on both sides
  uint64_t differing;  // of them
  uint64_t listed;     // of those: the first of them, by number
  uint64_t flows;      // connections that either side has
  uint64_t flows_differing;
  uint64_t frames_waiting[2];  // here, there
  uint64_t service;            // the built-in one: 0 there is none, 1 equal, 2 different
  uint64_t stood_ns;           // how long delivery stood at the target
  uint64_t device_bytes[2];    // here, there
};
static_assert(sizeof(VerifyReport) == 88);

inline constexpr size_t kListedPagesMax = 16;

class VerifySession : public TransferSession {
 public:
  using TransferSession::TransferSession;
  // Digests the memory of a guest that runs; what it writes from now on is told by Changed. kTaken
  // follows, or kFailed: GUEST_MEMORY.
  virtual void Look() = 0;
  virtual void Changed(const PageSet& pages) = 0;
  // The guest stands still behind `op`, and all changes have been told. Reads the state of devices
  // from `path`; kTaken follows when the memory has been digested, too. Errors: SYNC_MEMORY.
  virtual Status Take(Op op, const std::string& path, PlaneFacts facts) = 0;
  // The guest goes on; delivery stood for so long. kSent (target) or kVerified (source) follows.
  virtual void GoesOn(Nanoseconds stood) = 0;
  // Source: a VerifyReport and what is behind it, once kVerified was told.
  [[nodiscard]] virtual std::span<const std::byte> report() const = 0;
};

std::unique_ptr<VerifySession> MakeVerifySession(TransferOptions options, Fabric* fabric,
                                                 Aside* aside);

}  // namespace falcon
