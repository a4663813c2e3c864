// The scan walks the segments in order of their numbers and the batches in order of theirs. It
// stops at the first batch that is not whole or does not continue the log, and then decides what
// that is: a torn tail if nothing says that this batch was ever forced, damage if anything does (a
// mark, a later batch, a later segment, a file shorter than it was made). Only one batch is in
// flight at a time, so a batch with a higher number proves that this one was forced.
#include "log/wal_scan.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <optional>

#include "log/log_reader.h"
#include "log/storage_io.h"
#include "os/check.h"

namespace falcon {
namespace {

constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();
constexpr std::array<std::byte, kWalAlignment> kZeros{};

class Scanner {
 public:
  Scanner(Storage& storage, const WalOptions& options, ScannedLog* log)
      : storage_(storage), options_(options), log_(*log) {}

  Status Run();

 private:
  Status ListSegments(std::vector<uint64_t>* numbers);
  int MakeDirectory();
  Status OpenSegment(uint64_t number);
  Status ReadMarks(Segment* segment);

  Status ScanSegment(size_t place);
  Status ScanBatches(size_t place, uint64_t limit);
  Status EndOfBatches(size_t place, uint64_t limit, uint64_t offset, const char* wrong);
  Status FindLaterTraces(const Segment& segment, uint64_t offset, uint64_t* later, uint64_t* torn);

  Status AcceptBatch(const std::shared_ptr<Segment>& segment, uint64_t offset,
                     std::span<const std::byte> bytes, const BatchHeader& batch,
                     const char** wrong);
  Status PositionBefore(Op op, const EntryHeader& first, LogPosition* position);
  void CutTable(Op last_op);
  void FinishRelease();
  void Finish();

  void Damage(const Segment& segment, uint64_t offset, const std::string& what);
  Status ReadError(const Segment& segment, int error) const {
    return {"WAL_READ", ErrnoText("read " + segment.path, error)};
  }
  // Batches of the segment at `place` with a higher number were given up by a later segment.
  [[nodiscard]] uint64_t LimitOf(size_t place) const;

  Storage& storage_;
  const WalOptions& options_;
  ScannedLog& log_;
  LogPosition base_;                 // before the first entry that is kept
  bool started_ = false;             // base_ is known
  bool finished_ = false;            // torn or damaged: what is behind is not part of the log
  uint64_t highest_seen_ = 0;        // of all batch numbers, of the log or not
  std::vector<ViewTableRow> table_;  // from the base on
};

Status Scanner::Run() {
  std::vector<uint64_t> numbers;
  Status status = ListSegments(&numbers);
  if (!status.ok()) return status;
  for (const uint64_t number : numbers) {
    status = OpenSegment(number);
    if (!status.ok()) return status;
  }
  for (size_t place = 0; place < log_.segments.size() && !finished_; ++place) {
    status = ScanSegment(place);
    if (!status.ok()) return status;
  }
  Finish();
  return Ok();
}

Status Scanner::ListSegments(std::vector<uint64_t>* numbers) {
  std::vector<std::string> names;
  int result = storage_.List(options_.directory, &names);
  if (result == -ENOENT) result = MakeDirectory();
  if (result < 0) return {"WAL_OPEN", ErrnoText("list " + options_.directory, -result)};
  for (const std::string& name : names) {
    if (const auto number = SegmentNumber(name)) numbers->push_back(*number);
  }
  std::sort(numbers->begin(), numbers->end());
  return Ok();
}

int Scanner::MakeDirectory() {
  const int result = storage_.MakeDirectory(options_.directory);
  if (result < 0) return result;
  const size_t slash = options_.directory.rfind('/');
  if (slash == std::string::npos) return storage_.ForceDirectory(".");
  return storage_.ForceDirectory(slash == 0 ? "/" : options_.directory.substr(0, slash));
}

Status Scanner::OpenSegment(uint64_t number) {
  const std::string path = options_.directory + "/" + SegmentName(number);
  const Storage::Handle handle = storage_.Open(path, false);
  if (handle < 0) return {"WAL_OPEN", ErrnoText("open " + path, -handle)};
  auto segment = std::make_shared<Segment>(storage_, handle, path);
  segment->number = number;
  const int64_t size = storage_.Size(handle);
  if (size < 0) return ReadError(*segment, static_cast<int>(-size));
  segment->bytes = static_cast<uint64_t>(size);

  std::array<std::byte, kWalAlignment> sector{};
  const int64_t got = ReadFully(storage_, handle, sector, 0);
  if (got < 0) return ReadError(*segment, static_cast<int>(-got));
  const auto header = ReadSegmentHeader(std::span(sector).first(static_cast<size_t>(got)));
  if (header && header->version != kSegmentVersion) {
    return {"WAL_OPEN", path + ": layout version " + std::to_string(header->version)};
  }
  if (header &&
      (header->cluster_hash != ClusterHash(options_.cluster) || header->node != options_.node)) {
    return {"WAL_FOREIGN", path};
  }
  segment->readable = header && header->first_batch == number && header->after_batch < number;
  if (segment->readable) segment->header = *header;
  highest_seen_ = std::max(highest_seen_, number);
  const Status status = ReadMarks(segment.get());
  log_.segments.push_back(std::move(segment));
  return status;
}

Status Scanner::ReadMarks(Segment* segment) {
  uint64_t newest = 0;
  for (size_t slot = 0; slot < kMarkSlots; ++slot) {
    std::array<std::byte, sizeof(DurableMark)> bytes{};
    const int64_t got = ReadFully(storage_, segment->handle, bytes, MarkOffset(slot));
    if (got < 0) return ReadError(*segment, static_cast<int>(-got));
    const auto mark = ReadMark(std::span(bytes).first(static_cast<size_t>(got)));
    if (!mark || *mark < newest) continue;
    newest = *mark;
    segment->newest_mark_slot = slot;
  }
  log_.forced_batch = std::max(log_.forced_batch, newest);
  highest_seen_ = std::max(highest_seen_, newest);
  return Ok();
}

uint64_t Scanner::LimitOf(size_t place) const {
  uint64_t limit = kNoLimit;
  for (size_t later = place + 1; later < log_.segments.size(); ++later) {
    const Segment& segment = *log_.segments[later];
    if (segment.readable) limit = std::min(limit, segment.header.after_batch);
  }
  return limit;
}

Status Scanner::ScanSegment(size_t place) {
  Segment& segment = *log_.segments[place];
  const uint64_t limit = LimitOf(place);
  if (segment.number > limit) {
    // Given up as a whole. If the log starts here, it starts with a later segment's base.
    return Ok();
  }
  if (!segment.readable) {
    Damage(segment, 0, "the segment's header is not readable");
    return Ok();
  }
  if (!started_) {
    base_ = segment.base();
    log_.tail = base_;
    log_.index.Reset(base_.op);
    if (base_.op > 0) table_ = {{base_.view, base_.op}};
    log_.last_batch = segment.header.after_batch;
    started_ = true;
  }
  if (segment.header.after_batch != log_.last_batch || segment.base() != log_.tail) {
    Damage(segment, 0, "the segment does not continue the log: one is missing before it");
    return Ok();
  }
  segment.in_log = true;
  return ScanBatches(place, limit);
}

Status Scanner::ScanBatches(size_t place, uint64_t limit) {
  const std::shared_ptr<Segment> segment = log_.segments[place];
  FileWindow window(storage_, segment->handle);
  uint64_t offset = kSegmentHeaderBytes;
  uint64_t expected = segment->number;
  while (expected <= limit && offset + kWalAlignment <= segment->header.segment_bytes) {
    const char* wrong = nullptr;
    BatchHeader batch{};
    std::span<const std::byte> bytes = window.Get(offset, kWalAlignment);
    if (const auto header = ReadBatchHeader(bytes, segment->header.salt)) {
      const uint64_t left = segment->header.segment_bytes - offset;
      bytes = window.Get(offset,
                         static_cast<size_t>(std::min(BatchBytes(header->payload_bytes), left)));
    }
    if (window.error() != 0) return ReadError(*segment, window.error());
    wrong = CheckBatch(bytes, segment->header.salt, &batch);
    if (wrong == nullptr && batch.number != expected) wrong = "not the batch that should be here";
    if (wrong != nullptr) return EndOfBatches(place, limit, offset, wrong);

    const Status status = AcceptBatch(segment, offset, bytes, batch, &wrong);
    if (!status.ok()) return status;
    if (wrong != nullptr) {
      // Its checksums are right, so no torn write made it.
      Damage(*segment, offset, wrong);
      return Ok();
    }
    offset += BatchBytes(batch.payload_bytes);
    ++expected;
  }
  if (limit == kNoLimit || expected <= limit) return EndOfBatches(place, limit, offset, nullptr);
  return Ok();
}

// The batches of a segment end at `offset`, because the segment is full (`wrong` is nullptr) or
// because what is there is no batch.
Status Scanner::EndOfBatches(size_t place, uint64_t limit, uint64_t offset, const char* wrong) {
  const Segment& segment = *log_.segments[place];
  const uint64_t expected = log_.last_batch + 1;
  const uint64_t number = std::max(expected, segment.number);
  const std::string what =
      "batch " + std::to_string(number) + ": " + (wrong == nullptr ? "it is missing" : wrong);
  uint64_t later = 0;
  uint64_t torn = 0;
  const Status status = FindLaterTraces(segment, offset, &later, &torn);
  if (!status.ok()) return status;
  highest_seen_ = std::max({highest_seen_, later, torn > 0 ? number : 0});
  if (limit != kNoLimit) {
    Damage(segment, offset, what + "; a later segment follows batch " + std::to_string(limit));
  } else if (log_.forced_batch >= number) {
    Damage(segment, offset, what + "; batch " + std::to_string(log_.forced_batch) + " was forced");
  } else if (later > number) {
    Damage(segment, offset, what + "; batch " + std::to_string(later) + " is behind it");
  } else if (place + 1 < log_.segments.size()) {
    Damage(segment, offset, what + "; there are later segments");
  } else if (segment.bytes < segment.header.segment_bytes) {
    Damage(segment, offset, what + "; the file is shorter than it was made");
  } else {
    finished_ = true;
    log_.recovered.torn_bytes = torn;
    if (torn == 0) {
      log_.append_segment = log_.segments[place];
      log_.append_offset = offset;
      log_.next_batch = number;
    }
  }
  return Ok();
}

// `later`: the highest batch number of a valid header at or behind `offset`. `torn`: bytes up to
// the last one that is not zero.
Status Scanner::FindLaterTraces(const Segment& segment, uint64_t offset, uint64_t* later,
                                uint64_t* torn) {
  FileWindow window(storage_, segment.handle);
  for (uint64_t at = offset; at < segment.bytes; at += kWalAlignment) {
    const auto sector = window.Get(at, kWalAlignment);
    if (window.error() != 0) return ReadError(segment, window.error());
    if (std::memcmp(sector.data(), kZeros.data(), sector.size()) == 0) continue;
    size_t used = sector.size();
    while (used > 0 && sector[used - 1] == std::byte{0}) --used;
    *torn = at + used - offset;
    const auto header = ReadBatchHeader(sector, segment.header.salt);
    if (header) *later = std::max(*later, header->number);
  }
  return Ok();
}

// Sets `wrong` if the batch does not continue the log. Error: WAL_READ.
Status Scanner::AcceptBatch(const std::shared_ptr<Segment>& segment, uint64_t offset,
                            std::span<const std::byte> bytes, const BatchHeader& batch,
                            const char** wrong) {
  LogPosition position{}, before{};
  Status status;
  std::vector<ViewTableRow> rows;
  *wrong = VisitEntries(bytes, batch, [&](const EntryHeader& entry, std::span<const std::byte>) {
    if (entry.op == batch.first_op) {
      if (entry.op > log_.tail.op + 1) return false;
      status = PositionBefore(entry.op, entry, &position);
      if (!status.ok()) return false;
      before = position;
    }
    if (entry.previous != position.checksum || entry.view < position.view) return false;
    if (entry.view > position.view || rows.empty()) rows.push_back({entry.view, entry.op});
    position = {.op = entry.op, .view = entry.view, .checksum = entry.checksum};
    return true;
  });
  if (!status.ok() || *wrong != nullptr) return status;
  const Op last_op = batch.first_op + batch.entries - 1;
  if (position.op != last_op) {
    *wrong = "the batch does not continue the log";
    return Ok();
  }
  if (batch.first_op <= base_.op) {
    base_ = before;
    table_.clear();
    log_.index.Reset(base_.op);
  }
  CutTable(batch.first_op - 1);
  for (const ViewTableRow& row : rows) {
    if (table_.empty() || row.view > table_.back().view) table_.push_back(row);
  }
  log_.index.Add(segment, offset, BatchBytes(batch.payload_bytes), batch.first_op, last_op);
  log_.tail = position;
  log_.last_batch = batch.number;
  log_.last_segment = segment;
  log_.last_offset = offset;
  log_.last_bytes = BatchBytes(batch.payload_bytes);
  segment->lowest_op = std::min(segment->lowest_op, batch.first_op);
  log_.forced_batch = std::max(log_.forced_batch, batch.durable_batch);
  highest_seen_ = std::max(highest_seen_, batch.number);
  return Ok();
}

// The position that an entry with `op` follows: the tail, or after a cut an older one.
Status Scanner::PositionBefore(Op op, const EntryHeader& first, LogPosition* position) {
  if (op == log_.tail.op + 1) {
    *position = log_.tail;
  } else if (op == base_.op + 1) {
    *position = base_;
  } else if (op <= base_.op) {
    // A cut below what is kept: the release of older segments was interrupted half way, and
    // everything that could be checked against is gone.
    *position = {.op = op - 1, .view = 0, .checksum = first.previous};
  } else {
    return ReadPosition(log_.index.Find(op - 1), op - 1, position);
  }
  return Ok();
}

void Scanner::CutTable(Op last_op) {
  while (!table_.empty() && table_.back().first_op > last_op) table_.pop_back();
}

void Scanner::Damage(const Segment& segment, uint64_t offset, const std::string& what) {
  finished_ = true;
  log_.recovered.damaged = true;
  log_.recovered.damaged_after_op = log_.tail.op;
  log_.recovered.damage_detail = segment.path + " at " + std::to_string(offset) + ": " + what;
}

// A release that was interrupted left segments whose entries have been cut since, and a log whose
// base is in none of the headers. What was to be kept begins with the first segment below which
// nothing was cut afterwards (WalWriter::ReleasablePrefix).
void Scanner::FinishRelease() {
  Op lowest = std::numeric_limits<Op>::max();
  const Segment* first = nullptr;
  for (auto it = log_.segments.rbegin(); it != log_.segments.rend(); ++it) {
    const Segment& segment = **it;
    lowest = std::min(lowest, segment.lowest_op);
    if (segment.in_log && lowest > segment.header.base_op) first = &segment;
  }
  if (first == nullptr || first->header.base_op < base_.op) return;
  base_ = first->base();
  log_.index.Release(base_.op);
  std::erase_if(table_, [this](const ViewTableRow& row) { return row.first_op <= base_.op; });
  table_.insert(table_.begin(), {base_.view, base_.op});
}

void Scanner::Finish() {
  if (base_.op > 0 && base_.view == 0) FinishRelease();
  RecoveredLog& recovered = log_.recovered;
  recovered.base = base_;
  recovered.first_op = log_.index.base_op() + 1;
  recovered.last_op = log_.tail.op;
  recovered.last_view = log_.tail.view;
  recovered.last_checksum = log_.tail.checksum;
  recovered.view_table = table_;
  if (log_.append_segment != nullptr) return;
  // Numbers that cannot be read any more must not be used again: no segment holds more batches than
  // this.
  uint64_t unread = 0;
  if (recovered.damaged) {
    for (const auto& segment : log_.segments)
      unread = std::max(unread, segment->bytes / kWalAlignment);
    unread = std::max(unread, options_.segment_bytes / kWalAlignment);
  }
  log_.next_batch = std::max(highest_seen_, log_.last_batch) + unread + 1;
}

}  // namespace

Status ScanLog(Storage& storage, const WalOptions& options, ScannedLog* log) {
  return Scanner(storage, options, log).Run();
}

}  // namespace falcon
