// Where each entry of the log lies: a short list of runs, each a stretch of neighbouring batches in
// one segment that holds dense ops. About one run for every kRunBytes of log, so that a gigabyte of
// log costs well under a megabyte of index; a reader walks from the start of a run to the entry
// that it wants.
//
// Cutting the log drops or shortens runs. What was cut stays in the files and is never reached
// again.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <string>

#include "log/segment.h"
#include "log/wal.h"

namespace falcon {

// An open segment file. Shared by the index and by readers, so that a file stays open while it is
// read.
struct Segment {
  Segment(Storage& owner, Storage::Handle open_handle, std::string file_path)
      : storage(owner), handle(open_handle), path(std::move(file_path)) {}
  ~Segment() { storage.Close(handle); }
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  Storage& storage;
  const Storage::Handle handle;
  const std::string path;
  uint64_t number = 0;    // from the file's name; the header's first_batch if that is readable
  uint64_t bytes = 0;     // of the file
  bool readable = false;  // the header is valid, and `header` is it
  bool in_log = false;    // the scan went through it: it was not passed by
  SegmentHeader header{};
  size_t newest_mark_slot = 0;
  Op lowest_op = std::numeric_limits<Op>::max();  // of all batches that were ever part of the log

  [[nodiscard]] LogPosition base() const {
    return {.op = header.base_op, .view = header.base_view, .checksum = header.base_checksum};
  }
};

struct Run {
  std::shared_ptr<const Segment> segment;
  uint64_t offset = 0;  // of the first batch
  uint64_t bytes = 0;   // up to the end of the last batch
  Op first_op = 0;
  Op last_op = 0;  // entries behind it in these bytes have been cut
  bool cut = false;
};

class LogIndex {
 public:
  static constexpr uint64_t kRunBytes = 64 * 1024;

  // Empties the index; the next op is `base_op` + 1.
  void Reset(Op base_op);

  // A batch that holds first_op..last_op. first_op is at most last_op() + 1; a lower one cuts the
  // log first.
  void Add(const std::shared_ptr<const Segment>& segment, uint64_t offset, uint64_t bytes,
           Op first_op, Op last_op);

  // The run that holds `op`, which is in base_op() + 1..last_op().
  [[nodiscard]] const Run& Find(Op op) const;

  // Forgets everything up to `base_op`; runs that reach beyond it must not start before.
  void Release(Op base_op);

  [[nodiscard]] Op base_op() const { return base_op_; }  // the op before the first one that is kept
  [[nodiscard]] Op last_op() const { return runs_.empty() ? base_op_ : runs_.back().last_op; }
  [[nodiscard]] uint64_t cuts() const { return cuts_; }
  [[nodiscard]] size_t runs() const { return runs_.size(); }

 private:
  void Cut(Op last_op);

  std::deque<Run> runs_;  // ascending and dense in ops
  Op base_op_ = 0;
  uint64_t cuts_ = 0;
};

}  // namespace falcon
