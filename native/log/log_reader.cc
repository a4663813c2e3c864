#include "log/log_reader.h"

#include <algorithm>

#include "log/storage_io.h"
#include "os/check.h"
#include "os/crc32c.h"

namespace falcon {
namespace {

Status Unreadable(const Segment& segment, uint64_t offset, const std::string& what) {
  return {"WAL_READ", segment.path + " at " + std::to_string(offset) + ": " + what};
}

}  // namespace

const char* CheckBatch(std::span<const std::byte> bytes, uint32_t salt, BatchHeader* header) {
  const auto read = ReadBatchHeader(bytes, salt);
  if (!read) return "no valid batch header";
  if (read->entries == 0 || read->payload_bytes > bytes.size() - sizeof(BatchHeader)) {
    return "the batch is longer than its file";
  }
  const auto payload = bytes.subspan(sizeof(BatchHeader), read->payload_bytes);
  if (Crc32c(payload) != read->payload_checksum) return "the batch's checksum is wrong";
  *header = *read;
  return nullptr;
}

std::span<const std::byte> FileWindow::Get(uint64_t offset, size_t length) {
  const bool inside = offset >= start_ && offset - start_ <= bytes_.size() &&
                      bytes_.size() - (offset - start_) >= length;
  if (!inside) {
    bytes_.resize(std::max(length, kWindowBytes));
    start_ = offset;
    const int64_t got = ReadFully(storage_, handle_, bytes_, offset);
    if (got < 0) error_ = static_cast<int>(-got);
    bytes_.resize(got < 0 ? 0 : static_cast<size_t>(got));
  }
  const auto rest =
      std::span<const std::byte>(bytes_).subspan(static_cast<size_t>(offset - start_));
  return rest.first(std::min(length, rest.size()));
}

Status ReadRun(const Run& run, Op from, Op until, size_t max_bytes, std::vector<std::byte>* scratch,
               std::vector<std::byte>* into, Op* next) {
  const Segment& segment = *run.segment;
  scratch->resize(static_cast<size_t>(run.bytes));
  const int64_t got = ReadFully(segment.storage, segment.handle, *scratch, run.offset);
  if (got < 0) return Unreadable(segment, run.offset, ErrnoText("read", static_cast<int>(-got)));
  const Op end = std::min(until, run.last_op + 1);
  std::span<const std::byte> rest = std::span(*scratch).first(static_cast<size_t>(got));
  uint64_t offset = run.offset;
  bool full = false;
  *next = from;
  while (*next < end && !full) {
    BatchHeader batch{};
    const char* wrong = CheckBatch(rest, segment.header.salt, &batch);
    if (wrong == nullptr) {
      wrong = VisitEntries(
          rest, batch, [&](const EntryHeader& entry, std::span<const std::byte> bytes) {
            if (entry.op < from) return true;
            full = entry.op >= end || (!into->empty() && into->size() + bytes.size() > max_bytes);
            if (full) return false;
            into->insert(into->end(), bytes.begin(), bytes.end());
            *next = entry.op + 1;
            return true;
          });
    }
    if (wrong != nullptr) return Unreadable(segment, offset, wrong);
    const uint64_t bytes = std::min<uint64_t>(BatchBytes(batch.payload_bytes), rest.size());
    rest = rest.subspan(static_cast<size_t>(bytes));
    offset += bytes;
  }
  return Ok();
}

Status ReadPosition(const Run& run, Op op, LogPosition* position) {
  std::vector<std::byte> scratch;
  std::vector<std::byte> entry;
  Op next = 0;
  const Status status = ReadRun(run, op, op + 1, 0, &scratch, &entry, &next);
  if (!status.ok()) return status;
  FALCON_CHECK(next == op + 1);
  const EntryHeader header = ReadEntryHeader(entry);
  *position = {.op = header.op, .view = header.view, .checksum = header.checksum};
  return Ok();
}

}  // namespace falcon
