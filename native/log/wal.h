// The write-ahead log on disk.
//
// Segmented append-only files of whole batches. A batch is a header and the entries that arrived
// while the last force ran (group commit), padded to kWalAlignment so that a torn write never
// touches a batch that was forced before it. Nothing is ever overwritten: a log that is cut after
// op k simply goes on with another entry k + 1 behind the old one, and the scan lets the later one
// win. The chain of checksums says where it stands; its view may be lower than that of the entry it
// replaces (entries keep the view they were made in).
//
// Two threads meet here. The owner (the reactor) calls everything except Step and Run; one writer
// thread runs Run (or the simulator calls Step). They meet in one bounded single-producer
// single-consumer queue and in atomics.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "log/entry.h"
#include "os/clock.h"
#include "os/status.h"

namespace falcon {

// The few file operations a log needs: the real ones (PosixStorage) or a simulated disk that tears,
// fails, fills up and forgets what was not forced. Results are >= 0 or -errno, as the system calls
// have them.
class Storage {
 public:
  virtual ~Storage() = default;
  using Handle = int;
  virtual Handle Open(const std::string& path, bool create) = 0;  // create: it must not exist yet
  virtual int Close(Handle handle) = 0;
  virtual int64_t Size(Handle handle) = 0;
  virtual int Preallocate(Handle handle, uint64_t bytes) = 0;
  virtual int64_t WriteAt(Handle handle, std::span<const std::byte> data,
                          uint64_t offset) = 0;  // may be short
  virtual int64_t ReadAt(Handle handle, std::span<std::byte> into,
                         uint64_t offset) = 0;              // may be short
  virtual int Force(Handle handle) = 0;                     // fdatasync
  virtual int ForceDirectory(const std::string& path) = 0;  // fsync of the directory
  virtual int Remove(const std::string& path) = 0;
  virtual int Rename(const std::string& from, const std::string& to) = 0;  // atomic
  virtual int MakeDirectory(const std::string& path) = 0;                  // -EEXIST if it is there
  virtual int List(const std::string& directory, std::vector<std::string>* names) = 0;
};

std::unique_ptr<Storage> MakePosixStorage();

struct WalOptions {
  std::string directory;
  bool force = true;  // false: durability "memory", writes are not forced and not waited for
  uint64_t segment_bytes = 64ull << 20;
  uint64_t retain_bytes = 1ull << 30;
  size_t batch_bytes = 1 << 20;  // most that one batch holds
  size_t queue_entries = 16384;  // bound of the queue to the writer; a power of two
  std::string cluster;           // stamped into segments; a log of another cluster is refused
  uint8_t node = 0;
  // Mixed into the checksums of batch headers, so that nobody can plant one inside a frame. Any
  // number that guests and clients cannot guess; a log may be reopened with another one.
  uint32_t salt = 0;
  bool realtime = false;        // the writer thread
  Nanoseconds writer_spin = 0;  // how long the writer thread looks for work before it sleeps
};

struct ViewTableRow {
  View view;
  Op first_op;
};

// What a scan of the log found.
struct RecoveredLog {
  Op first_op = 1;   // first op that is still on disk (1 if nothing was released yet)
  LogPosition base;  // the entry before it, which is not; view 0: not known
  Op last_op = 0;    // 0: empty
  View last_view = 0;
  uint32_t last_checksum = 0;
  std::vector<ViewTableRow> view_table;  // ascending; covers base.op..last_op
  uint64_t torn_bytes = 0;               // bytes of torn tail that were ignored
  bool damaged = false;       // an entry below the durable mark is not readable (LOG_DAMAGED):
  Op damaged_after_op = 0;    //   the good prefix ends here, and last_op is cut to it
  std::string damage_detail;  // file, offset, what is wrong
};

class Wal {
 public:
  virtual ~Wal() = default;

  // Appends a whole entry. Its bytes must stay unchanged until durable() covers it. Returns its
  // sequence number (dense from 1 since Open), or 0 if the queue is full or the log has failed.
  // Entries come in log order; after a cut the caller goes on with a lower op, chained to the entry
  // that is left. Cutting below the first op that is kept is a broken invariant.
  virtual uint64_t Append(std::span<const std::byte> entry) = 0;

  // Forgets the log and begins it anew behind `base`, an entry that is not in it; the next append
  // is of op base.op + 1. Asked for when everything appended is durable. Returns a sequence number
  // as Append does: until durable() covers it the disk may hold the old log, never a part of it. 0:
  // as for Append.
  virtual uint64_t Rebase(const LogPosition& base) = 0;

  // The entry before the first one that is kept.
  [[nodiscard]] virtual LogPosition base() const = 0;

  // Makes what was appended visible to the writer and wakes it. Called once after a batch of
  // appends.
  virtual void Flush() = 0;

  // All entries with sequence <= durable() are on disk (written, if force is off).
  [[nodiscard]] virtual uint64_t durable() const = 0;

  // A descriptor that becomes readable when durable() moves after ArmWake(); -1 without a thread.
  [[nodiscard]] virtual int wake_fd() const = 0;
  virtual void ArmWake() = 0;
  virtual void DisarmWake() = 0;

  // A failed write or force: the log takes nothing more and durable() stands still for ever. The
  // replica must stop (WAL_FAILED); a force is never retried.
  [[nodiscard]] virtual bool failed() const = 0;
  [[nodiscard]] virtual Status failure() const = 0;

  // Copies whole entries from op `from` on (of the log as it is now: cut entries are skipped) to
  // the end of `into`, at most `max_bytes` unless the first entry alone is larger. Only ops that
  // are durable are returned; stops before `until` (exclusive). Errors: WAL_RELEASED (older than
  // what is kept), WAL_READ.
  virtual Status Read(Op from, Op until, size_t max_bytes, std::vector<std::byte>* into) = 0;

  // Tells that nobody needs ops below `op` any more (0: everybody is needed). Whole segments below
  // it are removed once the log exceeds retain_bytes, and those that somebody needs once it exceeds
  // that by a quarter and two segments; segments at or above `hard_floor` are never removed. The
  // writer does it in its next Step.
  virtual void Release(Op op, Op hard_floor) = 0;

  struct Counters {
    uint64_t batches = 0;
    uint64_t entries = 0;
    uint64_t bytes = 0;  // written, padding included
    uint64_t forces = 0;
    uint64_t segments = 0;  // present now
    uint64_t disk_bytes = 0;
  };
  [[nodiscard]] virtual Counters counters() const = 0;

  // One round of the writer: takes what is queued, writes, forces, publishes. Returns entries
  // written.
  virtual size_t Step() = 0;

  // Starts/stops the writer thread that runs Step and sleeps in between. Stop drains the queue
  // first.
  virtual Status StartThread() = 0;
  virtual void StopThread() = 0;
};

// Opens (or makes) the log in options.directory and scans it. Errors: WAL_OPEN, WAL_FOREIGN
// (another cluster's or node's log), WAL_READ, WAL_FAILED (what was found could not be forced).
// Damage is not an error here: it is in `recovered`, and every Open reports it again until
// something is appended behind the good prefix; so the caller records it in the hard state before
// its first Append. The damaged bytes stay where they are until the segment that holds them is
// released.
Status OpenWal(Storage& storage, const WalOptions& options, RecoveredLog* recovered,
               std::unique_ptr<Wal>* wal);

}  // namespace falcon
