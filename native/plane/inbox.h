// Records between the two sides of a state transfer that are too large for mail: page sets,
// digests, the state of devices and flows. Each side opens an inbox to the other for the length of
// the session, and the two take turns, so one record at a time is enough.
//
// The header is written last, and writes of one connection to one region become visible in order:
// whoever sees a whole header may read what stands behind it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "fabric/fabric.h"
#include "os/status.h"

namespace falcon {

enum class InboxKind : uint32_t {
  kPages = 1,     // source: look at these pages (a PageSet)
  kDigests = 2,   // target: the pages looked at (a PageSet), and their digests
  kState = 3,     // source: everything that is not pages
  kRefine = 4,    // source: copies to make, and pages whose blocks to digest (refinement.h)
  kBlocks = 5,    // target: they are made; digests of the blocks
  kPacked = 6,    // source: pages, compressed (packed_pages.h)
  kUnpacked = 7,  // target: they are in their places
  kFindings = 8,  // target of a verification: its guest, as digests and states
};

struct InboxHeader {
  uint64_t magic;
  uint64_t session;
  uint32_t kind;
  uint32_t round;
  uint64_t bytes;            // of the payload
  uint32_t checksum;         // CRC32C of the payload
  uint32_t header_checksum;  // of all before
};
static_assert(sizeof(InboxHeader) == 40);

inline constexpr size_t kInboxPayloadAt = 4096;

class Inbox {
 public:
  Inbox() = default;
  Inbox(const Inbox&) = delete;
  Inbox& operator=(const Inbox&) = delete;
  ~Inbox();  // conceal it first

  // Makes the file `path` anew; it goes with the inbox. Errors: SYNC_MEMORY.
  Status Make(const std::string& path, size_t payload_bytes);
  // What of it takes long at the fabric. Errors: those of LockMemory.
  Status Lock(const Fabric& fabric);
  [[nodiscard]] const ExposedMemory& exposed() const { return exposed_; }
  // How long a record of this kind and round is that is here; Take says whether it is whole.
  [[nodiscard]] std::optional<uint64_t> Has(uint64_t session, InboxKind kind, uint32_t round) const;

  // The payload of this record, if it is here. Errors: SYNC_PEER (a whole header over a broken
  // payload).
  Status Take(uint64_t session, InboxKind kind, uint32_t round,
              std::optional<std::span<const std::byte>>* payload) const;

 private:
  bool Find(uint64_t session, InboxKind kind, uint32_t round, InboxHeader* header) const;

  ExposedMemory exposed_;
};

// Sends one record after the other into a peer's inbox, as the fabric takes it.
class InboxWriter {
 public:
  InboxWriter(Fabric* fabric, PeerId peer, RegionId region)
      : fabric_(fabric), peer_(peer), region_(region) {}

  // Only when idle().
  void Start(uint64_t session, InboxKind kind, uint32_t round, std::vector<std::byte> payload);
  // Only when idle(): the buffer of the record before, for the next one.
  [[nodiscard]] std::vector<std::byte> TakeBuffer() { return std::move(payload_); }
  // Posts at most about `max_bytes`; adds what it did to *done. Errors: what Write says.
  Status Step(size_t max_bytes, int* done);
  // Everything is posted: what is posted behind it becomes visible behind it.
  [[nodiscard]] bool posted() const { return header_posted_; }
  // The buffers are free.
  [[nodiscard]] bool idle() const { return header_posted_ && fabric_->Completed(peer_) >= ticket_; }

 private:
  Fabric* fabric_;
  PeerId peer_;
  RegionId region_;
  std::vector<std::byte> payload_;
  InboxHeader header_{};
  size_t at_ = 0;  // posted, and in the checksum
  bool header_posted_ = true;
  uint64_t ticket_ = 0;
};

}  // namespace falcon
