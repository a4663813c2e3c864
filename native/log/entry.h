// The layout of a log entry: what one replica writes to another, and what goes to disk.
//
// An entry is a fixed little-endian header and a payload, padded with zeros to 8 bytes. `previous`
// is the checksum of the entry with op - 1, so that the log is a chain: an entry that fits behind
// another one was made to stand there. src/wire/entry.ts has TypeScript's view of this layout; a
// test compares the two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace falcon {

using View = uint64_t;
using Op = uint64_t;

// An entry's place in the log. {0, 0, 0} before the first.
struct LogPosition {
  Op op = 0;
  View view = 0;
  uint32_t checksum = 0;

  bool operator==(const LogPosition&) const = default;
};

enum class EntryKind : uint8_t {
  kFrame = 1,
  kViewStart = 2,
  kVmBoot = 3,
  kOutputCheck = 4,
  kVmSync = 5,
  kMembership = 6,
  kNoop = 7,
};

struct EntryHeader {
  uint32_t magic;           // kEntryMagic
  uint32_t checksum;        // CRC32C of everything behind this field, payload included, padding not
  uint32_t previous;        // checksum of the entry before; 0 for op 1
  uint32_t payload_length;  // bytes, at most kMaxPayloadBytes
  View view;
  Op op;
  Op commit_op;  // the primary's commit op when it made the entry
  EntryKind kind;
  uint8_t reserved[7];  // zero
};

inline constexpr uint32_t kEntryMagic = 0x45434C46;  // "FLCE"
inline constexpr size_t kEntryHeaderBytes = 48;
inline constexpr uint32_t kMaxPayloadBytes = 128 * 1024;

static_assert(sizeof(EntryHeader) == kEntryHeaderBytes);
static_assert(offsetof(EntryHeader, magic) == 0);
static_assert(offsetof(EntryHeader, checksum) == 4);
static_assert(offsetof(EntryHeader, previous) == 8);
static_assert(offsetof(EntryHeader, payload_length) == 12);
static_assert(offsetof(EntryHeader, view) == 16);
static_assert(offsetof(EntryHeader, op) == 24);
static_assert(offsetof(EntryHeader, commit_op) == 32);
static_assert(offsetof(EntryHeader, kind) == 40);

// Bytes that an entry with this payload takes, padding included.
[[nodiscard]] constexpr size_t EntryBytes(size_t payload_length) {
  return (kEntryHeaderBytes + payload_length + 7) & ~size_t{7};
}

[[nodiscard]] uint32_t EntryChecksum(std::span<const std::byte> entry, uint32_t payload_length);

// True if `bytes` starts with a whole entry whose magic, length, kind and checksum are right. Looks
// at nothing beyond `bytes`.
[[nodiscard]] bool EntryIsWhole(std::span<const std::byte> bytes);

// True if `bytes` are whole entries back to back, at least one, each of which continues the one
// before it, and the last of which has the checksum `last`: since each names its predecessor, no
// other entries can stand there.
[[nodiscard]] bool EntriesAreWhole(std::span<const std::byte> bytes, uint32_t last);

// The header at the start of `bytes`, which must hold one.
[[nodiscard]] EntryHeader ReadEntryHeader(std::span<const std::byte> bytes);

// Writes a whole entry into `into` (EntryBytes(payload.size()) bytes) and returns its checksum.
uint32_t WriteEntry(std::span<std::byte> into, View view, Op op, Op commit_op, EntryKind kind,
                    uint32_t previous, std::span<const std::byte> payload);

}  // namespace falcon
