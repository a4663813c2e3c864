// State transfer, as the data plane sees it: one session at a time in which a source brings a
// target to a full copy of its guest (DESIGN section 9).
//
// The source says which pages to look at, the target digests them and says which others it has
// changed itself, the source compares and writes the pages that differ straight into the target's
// memory. Rounds repeat while the source's guest runs; the last one is made with both guests
// standing still behind the vm-sync entry of the session, and the state of devices, flows and rings
// follows it.
//
// What is decided (when to begin, to stop, to give up) is decided elsewhere; here is what has to be
// quick. Everything runs on the thread that polls, and never waits; what takes as long as memory is
// large (mapping and locking it, looking for its holes, comparing all digests) is done aside, and
// so is the end of a session.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "fabric/fabric.h"
#include "log/entry.h"
#include "os/aside.h"
#include "os/clock.h"
#include "os/status.h"
#include "pages/digest.h"
#include "pages/digester.h"
#include "pages/page_set.h"

namespace falcon {

using SessionId = uint64_t;

// What a vm-sync entry carries.
struct VmSyncPayload {
  SessionId session;
  uint8_t source;
  uint8_t target;
  uint8_t reserved[6];
};
static_assert(sizeof(VmSyncPayload) == 16);

struct TransferOptions {
  SessionId session = 0;
  PeerId peer = 0;
  bool source = false;
  bool based = false;   // target: of the common point, not of everything
  bool verify = false;  // the guests are compared (verify.h)
  size_t ram_bytes = 0;
  DigestKey key{};
  int digest_threads = DigesterOptions::kAuto;
  std::string ram_path, inbox_path, state_path;
  std::string grant;  // target: of the source's inbox
};

enum class RoundPages : uint8_t { kResident = 0, kSinceBase = 1, kPending = 2 };

struct RoundFigures {
  // Looked at = equal + sent + found. `found` differed, and the target had them at other places;
  // `partial` of `sent` went in parts.
  uint64_t pages = 0, equal = 0, sent = 0, found = 0, partial = 0;
  uint64_t bytes = 0;     // of contents
  uint64_t overhead = 0;  // of page sets and digests, both ways
  Nanoseconds digest = 0, wait = 0, refine = 0, move = 0;
};
inline constexpr size_t kTransferNumbers = 11;

// Pages that this guest has changed since it and a peer's were equal.
class TransferBases {
 public:
  // The common point with `peer` is now.
  void Begin(PeerId peer, size_t pages);
  void Forget(PeerId peer);
  void ForgetAll();
  void Changed(const PageSet& pages);
  // Null: no common point is known.
  [[nodiscard]] const PageSet* Since(PeerId peer) const;

 private:
  std::array<std::unique_ptr<PageSet>, kMaxMembers> changed_;
};

struct TransferNews {
  enum class Kind : uint8_t { kRound, kSent, kProgress, kArrived, kFailed, kTaken, kVerified };
  Kind kind;
  std::array<uint64_t, kTransferNumbers>
      numbers{};    // kRound: figures; kSent: bytes; kArrived: op, boot op
  std::string why;  // kFailed: "CODE detail"
};

// Both sides of a session.
class TransferSession {
 public:
  virtual ~TransferSession() = default;
  TransferSession(const TransferSession&) = delete;
  TransferSession& operator=(const TransferSession&) = delete;

  [[nodiscard]] const TransferOptions& options() const { return options_; }
  // Maps the memory, and makes an inbox. Once, aside: of the fabric it uses LockMemory only.
  // Errors: SYNC_MEMORY, GUEST_MEMORY, those of LockMemory.
  Status Prepare() {
    if (Status s = StillWanted(); !s.ok()) return s;
    return MakeReady();
  }
  // Then: opens the memory (target) and an inbox to the peer. What the peer is to be given goes
  // into *inbox and *ram. Errors: those of Expose and Attach.
  virtual Status Open(std::string* inbox, std::string* ram) = 0;
  // Does some work. Returns how much was done.
  virtual int Poll(Nanoseconds now, std::vector<TransferNews>* news) = 0;
  // The peer reaches nothing here (with verbs: from when the session is destroyed), and is sent
  // nothing new. What was posted may still leave: the session is destroyed, aside, when all of it
  // is Completed, or the connection has ended. May come before Prepare is done, which then fails.
  void End() {
    over_.store(true, std::memory_order_relaxed);
    Leave();
  }
  // Something is expected that rings no doorbell.
  [[nodiscard]] virtual bool busy() const = 0;
  // A guest that runs here is slowed down by this session's work, and none waits for the end of it:
  // the work may take its time.
  [[nodiscard]] virtual bool patient() const { return false; }

 protected:
  explicit TransferSession(TransferOptions options) : options_(std::move(options)) {}
  // What is prepared for nobody any more is not locked.
  [[nodiscard]] Status StillWanted() const {
    if (!over_.load(std::memory_order_relaxed)) return Ok();
    return {"SYNC_MEMORY", "the session is over"};
  }
  TransferOptions options_;

 private:
  virtual Status MakeReady() = 0;
  virtual void Leave() = 0;

  std::atomic<bool> over_{false};
};

class TransferSource : public TransferSession {
 public:
  using TransferSession::TransferSession;
  virtual Status Attach(std::string_view inbox, std::string_view ram) = 0;
  // Changed since the last collection: pending for the next round.
  virtual void Changed(const PageSet& pages) = 0;
  // `bases` gives the pages since the common point, and with `final` begins a new one.
  virtual void Round(uint32_t round, RoundPages pages, bool final, TransferBases* bases) = 0;
  // `plane`: of DataPlane::Capture. Reads the state of devices from `path`.
  virtual Status Send(Op op, Op boot_op, const std::string& path,
                      std::span<const std::byte> plane) = 0;
};

class TransferTarget : public TransferSession {
 public:
  using TransferSession::TransferSession;
  // What Send was given; valid while the session is open, once kArrived was told.
  [[nodiscard]] virtual std::span<const std::byte> plane_state() const = 0;
  [[nodiscard]] virtual Op op() const = 0;
  [[nodiscard]] virtual Op boot_op() const = 0;
};

std::unique_ptr<TransferSource> MakeTransferSource(TransferOptions options, Fabric* fabric,
                                                   Aside* aside);
// `changed`: of this guest since the common point; null: look at everything.
std::unique_ptr<TransferTarget> MakeTransferTarget(TransferOptions options, Fabric* fabric,
                                                   Aside* aside, const PageSet* changed);

}  // namespace falcon
