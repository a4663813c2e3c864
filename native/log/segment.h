// The layout of a log segment on disk (all fields little-endian).
//
//   0      SegmentHeader, zeros up to 512
//   512    DurableMark slot 0, zeros up to 1024
//   1024   DurableMark slot 1, zeros up to 4096
//   4096   batches, each starting at a multiple of kWalAlignment: BatchHeader, the entries as they
//   are,
//          zeros up to the next multiple
//   ...    zeros up to segment_bytes
//
// Batches are numbered; numbers only grow, over the whole life of a log. A segment is made under a
// temporary name, filled with its header, forced, and only then renamed to wal-<first batch>.seg.
// So a segment whose header is not readable, or that is shorter than its header says, was damaged
// later: no crash leaves one.
//
// `after_batch` is what makes the log free of overwriting even after damage: it names the batch
// that the first batch of this segment follows. Batches of earlier segments with a higher number do
// not belong to the log: they were torn or damaged when this segment was begun, and every later
// scan passes them by. A segment that follows batch 0 begins the log, at op 1 or anew behind its
// base (Wal::Rebase).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "log/entry.h"

namespace falcon {

inline constexpr size_t kWalAlignment = 512;
inline constexpr size_t kSegmentHeaderBytes = 4096;
inline constexpr size_t kMarkSlots = 2;
inline constexpr uint32_t kSegmentMagic = 0x53434C46;  // "FLCS"
inline constexpr uint32_t kBatchMagic = 0x42434C46;    // "FLCB"
inline constexpr uint32_t kMarkMagic = 0x4D434C46;     // "FLCM"
inline constexpr uint32_t kSegmentVersion = 1;
inline constexpr size_t kClusterTextBytes = 64;

struct SegmentHeader {
  uint32_t magic;
  uint32_t checksum;  // CRC32C of everything behind this field
  uint32_t version;
  uint32_t salt;  // seed of the batch headers' checksums
  uint64_t segment_bytes;
  uint64_t first_batch;
  uint64_t after_batch;
  Op base_op;  // the log's last entry when the segment was begun
  View base_view;
  uint32_t base_checksum;
  uint32_t node;
  uint64_t cluster_hash;            // of the whole name
  char cluster[kClusterTextBytes];  // its first bytes, for a human reader
};

static_assert(sizeof(SegmentHeader) == 136);
static_assert(offsetof(SegmentHeader, checksum) == 4);
static_assert(offsetof(SegmentHeader, segment_bytes) == 16);
static_assert(offsetof(SegmentHeader, base_op) == 40);
static_assert(offsetof(SegmentHeader, base_checksum) == 56);
static_assert(offsetof(SegmentHeader, cluster) == 72);
static_assert(sizeof(SegmentHeader) <= kWalAlignment, "one sector, so that it is never torn");

struct BatchHeader {
  uint32_t magic;
  uint32_t checksum;  // CRC32C of everything behind this field in the header, seeded with the salt
  uint32_t payload_bytes;  // of the entries, without padding behind them
  uint32_t payload_checksum;
  uint32_t entries;  // at least 1; their ops are dense from first_op
  uint32_t reserved;
  uint64_t number;
  Op first_op;
  uint64_t durable_batch;  // highest batch known to be forced when this one was written
};

static_assert(sizeof(BatchHeader) == 48);
static_assert(offsetof(BatchHeader, payload_bytes) == 8);
static_assert(offsetof(BatchHeader, number) == 24);
static_assert(offsetof(BatchHeader, durable_batch) == 40);
static_assert(sizeof(BatchHeader) % 8 == 0, "entries are 8-byte aligned");

struct DurableMark {
  uint32_t magic;
  uint32_t checksum;  // CRC32C of `batch`
  uint64_t batch;     // all batches up to this one have been forced
};

static_assert(sizeof(DurableMark) == 16);
static_assert((1 + kMarkSlots) * kWalAlignment <= kSegmentHeaderBytes);

[[nodiscard]] constexpr uint64_t MarkOffset(size_t slot) { return (1 + slot) * kWalAlignment; }

// Bytes of a batch on disk, header and padding included.
[[nodiscard]] constexpr uint64_t BatchBytes(uint64_t payload_bytes) {
  return (sizeof(BatchHeader) + payload_bytes + kWalAlignment - 1) & ~uint64_t{kWalAlignment - 1};
}

[[nodiscard]] uint64_t ClusterHash(const std::string& cluster);

// "wal-00000000000000ff.seg" and back; nullopt if `name` is not a segment's.
[[nodiscard]] std::string SegmentName(uint64_t first_batch);
[[nodiscard]] std::optional<uint64_t> SegmentNumber(const std::string& name);
// The name of a segment while it is being made.
[[nodiscard]] std::string UnfinishedSegmentName(uint64_t first_batch);
[[nodiscard]] bool IsUnfinishedSegmentName(const std::string& name);

// Each takes the fields as filled in and sets magic and checksum.
void Seal(SegmentHeader* header);
void Seal(BatchHeader* header, uint32_t salt);
[[nodiscard]] DurableMark MakeMark(uint64_t batch);

// Each looks at the start of `bytes`; nullopt if magic or checksum are wrong or bytes are missing.
[[nodiscard]] std::optional<SegmentHeader> ReadSegmentHeader(std::span<const std::byte> bytes);
[[nodiscard]] std::optional<BatchHeader> ReadBatchHeader(std::span<const std::byte> bytes,
                                                         uint32_t salt);
[[nodiscard]] std::optional<uint64_t> ReadMark(std::span<const std::byte> bytes);

}  // namespace falcon
