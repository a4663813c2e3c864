#include "log/wal_writer.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "log/log_reader.h"
#include "log/storage_io.h"
#include "os/check.h"
#include "os/crc32c.h"

namespace falcon {
namespace {

// Where the log was begun anew, the segments before that place are of the log that it was. They may
// still be there if the process died soon after.
size_t ForsakenPrefix(const std::vector<std::shared_ptr<Segment>>& segments) {
  for (size_t i = 0; i < segments.size(); ++i) {
    const Segment& segment = *segments[i];
    if (segment.in_log)
      return segment.header.after_batch == 0 && segment.header.base_op > 0 ? i : 0;
  }
  return 0;
}

}  // namespace

WalWriter::WalWriter(Storage& storage, const WalOptions& options, ScannedLog&& scanned)
    : storage_(storage),
      options_(options),
      tail_(scanned.tail),
      gathered_(scanned.tail),
      base_(scanned.recovered.base),
      last_batch_(scanned.last_batch),
      next_batch_(scanned.next_batch),
      forced_batch_(scanned.forced_batch),
      scanned_(std::make_unique<ScannedLog>(std::move(scanned))),
      segment_(scanned_->append_segment),
      offset_(scanned_->append_offset),
      segments_(scanned_->segments),
      staging_(static_cast<size_t>(BatchBytes(options.batch_bytes))),
      index_(std::move(scanned_->index)) {
  const auto kept = segments_.begin() + static_cast<ptrdiff_t>(ForsakenPrefix(segments_));
  forsaken_.assign(segments_.begin(), kept);
  segments_.erase(segments_.begin(), kept);
  UpdateSegmentCounters();
}

Status WalWriter::Failed(const std::string& what, const std::string& path, int error) const {
  const bool full = error == ENOSPC || error == EDQUOT;
  return {full ? "WAL_FULL" : "WAL_FAILED", ErrnoText(what + " " + path, error)};
}

// A process that died between write and force leaves a batch that is readable and not forced; one
// that died after a force that failed leaves one that only looks forced, because the kernel has
// marked its pages clean. Writing the same bytes again makes the pages dirty, so that this force
// tells the truth.
Status WalWriter::ForceRecovered() {
  const std::shared_ptr<Segment> last = scanned_->last_segment;
  if (!options_.force || last == nullptr || last_batch_ <= forced_batch_) return Ok();
  std::vector<std::byte> batch(static_cast<size_t>(scanned_->last_bytes));
  const int64_t got = ReadFully(storage_, last->handle, batch, scanned_->last_offset);
  if (got < 0) return {"WAL_READ", ErrnoText("read " + last->path, static_cast<int>(-got))};
  batch.resize(static_cast<size_t>(got));
  const int written = WriteFully(storage_, last->handle, batch, scanned_->last_offset);
  if (written < 0) return Failed("write", last->path, -written);
  for (const auto& segment : segments_) {
    if (!segment->in_log) continue;
    const int forced = storage_.Force(segment->handle);
    if (forced < 0) return Failed("force", segment->path, -forced);
    forces_.fetch_add(1, std::memory_order_relaxed);
  }
  forced_batch_ = last_batch_;
  if (segment_ != nullptr) WriteMark();
  return Ok();
}

bool WalWriter::Gather(std::span<const std::byte> entry) {
  const EntryHeader header = ReadEntryHeader(entry);
  FALCON_CHECK(header.magic == kEntryMagic && entry.size() == EntryBytes(header.payload_length));
  if (payload_bytes_ + entry.size() > options_.batch_bytes) {
    FALCON_CHECK(entries_ > 0);
    return false;
  }
  if (header.op != gathered_.op + 1) {
    FALCON_CHECK(header.op > base_.op && header.op <= gathered_.op);
    if (entries_ > 0) return false;
    cut_ = CutTo(header.op - 1);
    if (!cut_.ok()) return false;
  }
  FALCON_CHECK(header.previous == gathered_.checksum && header.view >= gathered_.view);
  std::memcpy(staging_.data() + sizeof(BatchHeader) + payload_bytes_, entry.data(), entry.size());
  if (entries_ == 0) first_op_ = header.op;
  payload_bytes_ += entry.size();
  ++entries_;
  gathered_ = {.op = header.op, .view = header.view, .checksum = header.checksum};
  return true;
}

// Nothing is written: the next batch begins with op + 1, and that is the cut.
Status WalWriter::CutTo(Op op) {
  if (op == base_.op) {
    gathered_ = base_;
    return Ok();
  }
  Run run;
  {
    const std::lock_guard lock(index_mutex_);
    run = index_.Find(op);
  }
  return ReadPosition(run, op, &gathered_);
}

// One rename makes the new log the log: a scan passes by all segments in front of one that follows
// batch 0. What they hold goes when it is in nobody's way. A segment that nothing was written into
// has the number of the next batch: the new one takes another, or it would take its place under the
// name that is removed then.
Status WalWriter::Rebase(const LogPosition& base) {
  FALCON_CHECK(entries_ == 0 && base.op > 0 && base.view > 0);
  tail_ = gathered_ = base;
  last_batch_ = 0;
  if (segment_ != nullptr && segment_->number == next_batch_) ++next_batch_;
  std::vector<std::shared_ptr<Segment>> before;
  before.swap(segments_);
  if (Status status = BeginSegment(); !status.ok()) return status;
  forsaken_.insert(forsaken_.end(), before.begin(), before.end());
  UpdateSegmentCounters();
  const std::lock_guard lock(index_mutex_);
  base_ = base;
  index_.Reset(base.op);
  return Ok();
}

Status WalWriter::WriteBatch() {
  if (!cut_.ok()) return {"WAL_FAILED", "cut: " + cut_.detail()};
  FALCON_CHECK(entries_ > 0);
  const uint64_t bytes = BatchBytes(payload_bytes_);
  const Status room = EnsureRoom(bytes);
  if (!room.ok()) return room;

  BatchHeader header{};
  const size_t used = sizeof header + payload_bytes_;
  header.payload_bytes = static_cast<uint32_t>(payload_bytes_);
  header.payload_checksum = Crc32c(std::span(staging_).subspan(sizeof header, payload_bytes_));
  header.entries = entries_;
  header.number = next_batch_;
  header.first_op = first_op_;
  header.durable_batch = forced_batch_;
  Seal(&header, segment_->header.salt);
  std::memcpy(staging_.data(), &header, sizeof header);
  std::memset(staging_.data() + used, 0, static_cast<size_t>(bytes) - used);

  const auto batch = std::span<const std::byte>(staging_).first(static_cast<size_t>(bytes));
  const int written = WriteFully(storage_, segment_->handle, batch, offset_);
  if (written < 0) return Failed("write", segment_->path, -written);
  if (options_.force) {
    const int forced = storage_.Force(segment_->handle);
    if (forced < 0) return Failed("force", segment_->path, -forced);
    forced_batch_ = next_batch_;
    WriteMark();
    forces_.fetch_add(1, std::memory_order_relaxed);
  }
  {
    const std::lock_guard lock(index_mutex_);
    index_.Add(segment_, offset_, bytes, first_op_, gathered_.op);
  }
  segment_->lowest_op = std::min(segment_->lowest_op, first_op_);
  tail_ = gathered_;
  last_batch_ = next_batch_++;
  offset_ += bytes;
  batches_.fetch_add(1, std::memory_order_relaxed);
  entries_written_.fetch_add(entries_, std::memory_order_relaxed);
  bytes_.fetch_add(bytes, std::memory_order_relaxed);
  payload_bytes_ = 0;
  entries_ = 0;
  return Ok();
}

// The mark is a hint that later scans use to tell damage from a torn tail. It reaches the disk with
// the next force, and the next batch carries it too; so a failure to write it loses nothing and
// decides nothing.
void WalWriter::WriteMark() {
  std::array<std::byte, kWalAlignment> sector{};
  const DurableMark mark = MakeMark(forced_batch_);
  std::memcpy(sector.data(), &mark, sizeof mark);
  const size_t slot = (segment_->newest_mark_slot + 1) % kMarkSlots;
  segment_->newest_mark_slot = slot;
  (void)WriteFully(storage_, segment_->handle, sector, MarkOffset(slot));
}

Status WalWriter::EnsureRoom(uint64_t bytes) {
  if (segment_ != nullptr && offset_ + bytes <= segment_->header.segment_bytes) return Ok();
  return BeginSegment();
}

Status WalWriter::BeginSegment() {
  SegmentHeader header{};
  header.version = kSegmentVersion;
  header.salt = options_.salt;
  header.segment_bytes = options_.segment_bytes;
  header.first_batch = next_batch_;
  header.after_batch = last_batch_;
  header.base_op = tail_.op;
  header.base_view = tail_.view;
  header.base_checksum = tail_.checksum;
  header.node = options_.node;
  header.cluster_hash = ClusterHash(options_.cluster);
  const size_t text = std::min(options_.cluster.size(), kClusterTextBytes);
  std::memcpy(header.cluster, options_.cluster.data(), text);
  Seal(&header);
  std::shared_ptr<Segment> segment;
  Status status = MakeSegmentFile(header, &segment);
  if (!status.ok()) return status;
  segment_ = std::move(segment);
  offset_ = kSegmentHeaderBytes;
  segments_.push_back(segment_);
  UpdateSegmentCounters();
  return Ok();
}

Status WalWriter::MakeSegmentFile(const SegmentHeader& header, std::shared_ptr<Segment>* segment) {
  const std::string unfinished =
      options_.directory + "/" + UnfinishedSegmentName(header.first_batch);
  const std::string path = options_.directory + "/" + SegmentName(header.first_batch);
  const Storage::Handle handle = storage_.Open(unfinished, true);
  if (handle < 0) return Failed("make", unfinished, -handle);
  auto made = std::make_shared<Segment>(storage_, handle, path);
  int result = storage_.Preallocate(handle, header.segment_bytes);
  if (result < 0) return Failed("preallocate", unfinished, -result);
  std::vector<std::byte> block(kSegmentHeaderBytes);
  std::memcpy(block.data(), &header, sizeof header);
  result = WriteFully(storage_, handle, block, 0);
  if (result < 0) return Failed("write", unfinished, -result);
  if (options_.force) {
    result = storage_.Force(handle);
    if (result < 0) return Failed("force", unfinished, -result);
  }
  result = storage_.Rename(unfinished, path);
  if (result < 0) return Failed("rename", unfinished, -result);
  if (options_.force) {
    result = storage_.ForceDirectory(options_.directory);
    if (result < 0) return Failed("force", options_.directory, -result);
  }
  made->number = header.first_batch;
  made->bytes = header.segment_bytes;
  made->readable = true;
  made->in_log = true;
  made->header = header;
  *segment = std::move(made);
  return Ok();
}

// How many leading segments can go at once, at least; 0: none. What is left must start at an entry
// below which the log was never cut afterwards, so that a scan finds the log's start in one
// segment's header.
size_t WalWriter::ReleasablePrefix(Op floor) const {
  for (size_t count = 1; count < segments_.size(); ++count) {
    const Segment& first = *segments_[count];
    if (!first.in_log) continue;
    if (first.header.base_op >= floor) return 0;
    const bool cut_below = std::any_of(
        segments_.begin() + static_cast<ptrdiff_t>(count), segments_.end(),
        [&](const auto& segment) { return segment->lowest_op <= first.header.base_op; });
    if (!cut_below) return count;
  }
  return 0;
}

Status WalWriter::ReleaseSegments(Op needed, Op hard_floor) {
  if (!forsaken_.empty()) {
    // All of them are gone before the segment that tells a scan to pass them by may go.
    if (Status status = Remove(forsaken_.back()); !status.ok()) return status;
    forsaken_.pop_back();
    UpdateSegmentCounters();
    return Ok();
  }
  const uint64_t patience = options_.retain_bytes / 4 + 2 * options_.segment_bytes;
  while (disk_bytes_.load(std::memory_order_relaxed) > options_.retain_bytes) {
    const bool patient =
        disk_bytes_.load(std::memory_order_relaxed) <= options_.retain_bytes + patience;
    const size_t count = ReleasablePrefix(patient ? std::min(needed, hard_floor) : hard_floor);
    if (count == 0) return Ok();
    {
      const std::lock_guard lock(index_mutex_);
      base_ = segments_[count]->base();
      index_.Release(base_.op);
    }
    // Oldest first, each made sure before the next, so that a crash never leaves a hole.
    for (size_t removed = 0; removed < count; ++removed) {
      if (Status status = Remove(segments_.front()); !status.ok()) return status;
      segments_.erase(segments_.begin());
    }
    UpdateSegmentCounters();
  }
  return Ok();
}

Status WalWriter::Remove(const std::shared_ptr<Segment>& segment) {
  int result = storage_.Remove(segment->path);
  if (result < 0) return Failed("remove", segment->path, -result);
  if (!options_.force) return Ok();
  result = storage_.ForceDirectory(options_.directory);
  if (result < 0) return Failed("force", options_.directory, -result);
  return Ok();
}

LogPosition WalWriter::base() const {
  const std::lock_guard lock(index_mutex_);
  return base_;
}

Status WalWriter::Read(Op from, Op until, size_t max_bytes, std::vector<std::byte>* scratch,
                       std::vector<std::byte>* into) {
  into->clear();
  Op next = from;
  uint64_t cuts = 0;
  while (true) {
    Run run;
    {
      const std::lock_guard lock(index_mutex_);
      if (next <= index_.base_op()) {
        if (next != from) return Ok();  // released while it was read
        return {"WAL_RELEASED", "op " + std::to_string(from) + " is older than op " +
                                    std::to_string(index_.base_op() + 1)};
      }
      if (next != from && index_.cuts() != cuts) {
        // What was copied may have been cut meanwhile: begin again with the log as it is now.
        into->clear();
        next = from;
      }
      cuts = index_.cuts();
      if (next >= until || next > index_.last_op()) return Ok();
      run = index_.Find(next);
    }
    const Op wanted = next;
    const Status status = ReadRun(run, wanted, until, max_bytes, scratch, into, &next);
    if (!status.ok()) return status;
    const bool full = next <= run.last_op && next < until;
    if (full) return Ok();
  }
}

void WalWriter::UpdateSegmentCounters() {
  uint64_t bytes = 0;
  for (const auto& segment : segments_) bytes += segment->bytes;
  for (const auto& segment : forsaken_) bytes += segment->bytes;
  segment_count_.store(segments_.size() + forsaken_.size(), std::memory_order_relaxed);
  disk_bytes_.store(bytes, std::memory_order_relaxed);
}

Wal::Counters WalWriter::counters() const {
  return {.batches = batches_.load(std::memory_order_relaxed),
          .entries = entries_written_.load(std::memory_order_relaxed),
          .bytes = bytes_.load(std::memory_order_relaxed),
          .forces = forces_.load(std::memory_order_relaxed),
          .segments = segment_count_.load(std::memory_order_relaxed),
          .disk_bytes = disk_bytes_.load(std::memory_order_relaxed)};
}

}  // namespace falcon
