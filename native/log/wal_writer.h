// The writer's half of the log: turns entries into batches in segment files. One thread at a time;
// nothing here knows of queues, threads or wake-ups.
//
// What it shares with readers is the index, behind a mutex that is taken once a batch.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "log/log_index.h"
#include "log/segment.h"
#include "log/wal.h"
#include "log/wal_scan.h"
#include "os/status.h"

namespace falcon {

class WalWriter {
 public:
  // Goes on where `scanned` ends.
  WalWriter(Storage& storage, const WalOptions& options, ScannedLog&& scanned);

  // Forces what the scan found behind the last durable mark, so that all of it may be called
  // durable.
  Status ForceRecovered();

  // Copies `entry` behind the batch being gathered. False if it must begin the next batch: this one
  // is full, or the entry cuts the log; or if the place of the cut cannot be read, which WriteBatch
  // reports. An entry that fits nowhere in the log is a broken invariant.
  [[nodiscard]] bool Gather(std::span<const std::byte> entry);
  [[nodiscard]] size_t gathered() const { return entries_; }

  // Writes what was gathered as one batch and forces it. Errors: WAL_FULL, WAL_FAILED; the writer
  // must not be used again after one.
  Status WriteBatch();

  // Begins the log anew behind `base` (Wal::Rebase). Nothing may be gathered. Errors: as
  // WriteBatch.
  Status Rebase(const LogPosition& base);

  // Removes leading segments as Wal::Release describes: those that nobody needs lie below `needed`.
  // Segments of a log that was begun anew go one a call.
  Status ReleaseSegments(Op needed, Op hard_floor);

  // From any thread.
  [[nodiscard]] LogPosition base() const;

  // From any thread. See Wal::Read; `scratch` belongs to the caller.
  Status Read(Op from, Op until, size_t max_bytes, std::vector<std::byte>* scratch,
              std::vector<std::byte>* into);

  [[nodiscard]] Wal::Counters counters() const;

 private:
  Status CutTo(Op op);
  Status Remove(const std::shared_ptr<Segment>& segment);
  Status EnsureRoom(uint64_t bytes);
  Status BeginSegment();
  Status MakeSegmentFile(const SegmentHeader& header, std::shared_ptr<Segment>* segment);
  void WriteMark();
  void UpdateSegmentCounters();
  [[nodiscard]] size_t ReleasablePrefix(Op floor) const;
  Status Failed(const std::string& what, const std::string& path, int error) const;

  Storage& storage_;
  const WalOptions options_;

  LogPosition tail_;       // of the log with everything written
  LogPosition gathered_;   // of the log with everything gathered
  LogPosition base_;       // before the first entry that is kept; for others behind index_mutex_
  uint64_t last_batch_;    // of the log; 0: it begins with the next one
  uint64_t next_batch_;    // number of the next one
  uint64_t forced_batch_;  // highest one known to be forced
  const std::unique_ptr<ScannedLog> scanned_;  // until ForceRecovered

  std::shared_ptr<Segment> segment_;  // nullptr: begin one with the next batch
  uint64_t offset_ = 0;
  std::vector<std::shared_ptr<Segment>> segments_;
  std::vector<std::shared_ptr<Segment>> forsaken_;  // of a log that was begun anew, to be removed

  std::vector<std::byte> staging_;  // header and payload of the batch being gathered
  size_t payload_bytes_ = 0;
  uint32_t entries_ = 0;
  Op first_op_ = 0;
  Status cut_;

  mutable std::mutex index_mutex_;
  LogIndex index_;

  std::atomic<uint64_t> batches_{0};
  std::atomic<uint64_t> entries_written_{0};
  std::atomic<uint64_t> bytes_{0};
  std::atomic<uint64_t> forces_{0};
  std::atomic<uint64_t> segment_count_{0};
  std::atomic<uint64_t> disk_bytes_{0};
};

}  // namespace falcon
