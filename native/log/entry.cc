#include "log/entry.h"

#include "os/check.h"
#include "os/crc32c.h"

namespace falcon {
namespace {

constexpr size_t kChecksummedFrom = offsetof(EntryHeader, previous);

}  // namespace

uint32_t EntryChecksum(std::span<const std::byte> entry, uint32_t payload_length) {
  FALCON_CHECK(entry.size() >= kEntryHeaderBytes + payload_length);
  return Crc32c(
      entry.subspan(kChecksummedFrom, kEntryHeaderBytes - kChecksummedFrom + payload_length));
}

EntryHeader ReadEntryHeader(std::span<const std::byte> bytes) {
  FALCON_CHECK(bytes.size() >= kEntryHeaderBytes);
  EntryHeader header{};
  std::memcpy(&header, bytes.data(), sizeof header);
  return header;
}

bool EntryIsWhole(std::span<const std::byte> bytes) {
  if (bytes.size() < kEntryHeaderBytes) return false;
  const EntryHeader header = ReadEntryHeader(bytes);
  if (header.magic != kEntryMagic || header.payload_length > kMaxPayloadBytes) return false;
  const auto kind = static_cast<uint8_t>(header.kind);
  if (kind < static_cast<uint8_t>(EntryKind::kFrame) ||
      kind > static_cast<uint8_t>(EntryKind::kNoop)) {
    return false;
  }
  if (header.op == 0 || header.view == 0) return false;
  if (EntryBytes(header.payload_length) > bytes.size()) return false;
  return EntryChecksum(bytes, header.payload_length) == header.checksum;
}

bool EntriesAreWhole(std::span<const std::byte> bytes, uint32_t last) {
  if (bytes.empty()) return false;
  uint32_t before = 0;
  for (size_t at = 0; at < bytes.size();) {
    const auto rest = bytes.subspan(at);
    if (!EntryIsWhole(rest)) return false;
    const EntryHeader header = ReadEntryHeader(rest);
    if (at > 0 && header.previous != before) return false;
    const size_t size = EntryBytes(header.payload_length);
    const auto padding = rest.first(size).subspan(kEntryHeaderBytes + header.payload_length);
    for (const std::byte b : padding) {
      if (b != std::byte{0}) return false;
    }
    before = header.checksum;
    at += size;
  }
  return before == last;
}

uint32_t WriteEntry(std::span<std::byte> into, View view, Op op, Op commit_op, EntryKind kind,
                    uint32_t previous, std::span<const std::byte> payload) {
  FALCON_CHECK(payload.size() <= kMaxPayloadBytes);
  const size_t bytes = EntryBytes(payload.size());
  FALCON_CHECK(into.size() >= bytes);
  EntryHeader header{};
  header.magic = kEntryMagic;
  header.previous = previous;
  header.payload_length = static_cast<uint32_t>(payload.size());
  header.view = view;
  header.op = op;
  header.commit_op = commit_op;
  header.kind = kind;
  std::memcpy(into.data(), &header, sizeof header);
  if (!payload.empty()) {
    std::memcpy(into.data() + kEntryHeaderBytes, payload.data(), payload.size());
  }
  const size_t used = kEntryHeaderBytes + payload.size();
  if (used < bytes) std::memset(into.data() + used, 0, bytes - used);
  header.checksum = EntryChecksum(into, header.payload_length);
  std::memcpy(into.data(), &header, sizeof header);
  return header.checksum;
}

}  // namespace falcon
