#include "log/segment.h"

#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "os/crc32c.h"

namespace falcon {
namespace {

constexpr const char* kPrefix = "wal-";
constexpr const char* kSuffix = ".seg";
constexpr const char* kUnfinishedSuffix = ".tmp";
constexpr size_t kDigits = 16;

// The checksum of a record, of everything behind its first two fields (magic and checksum).
template <typename Record>
uint32_t ChecksumOf(const Record& record, uint32_t seed = 0) {
  return Crc32c(std::as_bytes(std::span(&record, 1)).subspan(2 * sizeof(uint32_t)), seed);
}

template <typename Record>
std::optional<Record> ReadRecord(std::span<const std::byte> bytes, uint32_t magic,
                                 uint32_t seed = 0) {
  if (bytes.size() < sizeof(Record)) return std::nullopt;
  Record record{};
  std::memcpy(&record, bytes.data(), sizeof record);
  if (record.magic != magic || record.checksum != ChecksumOf(record, seed)) return std::nullopt;
  return record;
}

std::string Name(uint64_t first_batch, const char* suffix) {
  char digits[kDigits + 1];
  std::snprintf(digits, sizeof digits, "%016" PRIx64, first_batch);
  return kPrefix + std::string(digits) + suffix;
}

bool HasForm(const std::string& name, const char* suffix) {
  const size_t prefix = std::strlen(kPrefix);
  return name.size() == prefix + kDigits + std::strlen(suffix) && name.starts_with(kPrefix) &&
         name.ends_with(suffix) &&
         name.find_first_not_of("0123456789abcdef", prefix) == prefix + kDigits;
}

}  // namespace

uint64_t ClusterHash(const std::string& cluster) {
  uint64_t hash = 0xCBF29CE484222325;  // FNV-1a, 64 bits
  for (const char c : cluster) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001B3;
  return hash;
}

std::string SegmentName(uint64_t first_batch) { return Name(first_batch, kSuffix); }

std::string UnfinishedSegmentName(uint64_t first_batch) {
  return Name(first_batch, kUnfinishedSuffix);
}

bool IsUnfinishedSegmentName(const std::string& name) { return HasForm(name, kUnfinishedSuffix); }

std::optional<uint64_t> SegmentNumber(const std::string& name) {
  if (!HasForm(name, kSuffix)) return std::nullopt;
  return std::strtoull(name.c_str() + std::strlen(kPrefix), nullptr, 16);
}

void Seal(SegmentHeader* header) {
  header->magic = kSegmentMagic;
  header->checksum = ChecksumOf(*header);
}

void Seal(BatchHeader* header, uint32_t salt) {
  header->magic = kBatchMagic;
  header->checksum = ChecksumOf(*header, salt);
}

DurableMark MakeMark(uint64_t batch) {
  DurableMark mark{.magic = kMarkMagic, .checksum = 0, .batch = batch};
  mark.checksum = ChecksumOf(mark);
  return mark;
}

std::optional<SegmentHeader> ReadSegmentHeader(std::span<const std::byte> bytes) {
  return ReadRecord<SegmentHeader>(bytes, kSegmentMagic);
}

std::optional<BatchHeader> ReadBatchHeader(std::span<const std::byte> bytes, uint32_t salt) {
  return ReadRecord<BatchHeader>(bytes, kBatchMagic, salt);
}

std::optional<uint64_t> ReadMark(std::span<const std::byte> bytes) {
  const auto mark = ReadRecord<DurableMark>(bytes, kMarkMagic);
  if (!mark) return std::nullopt;
  return mark->batch;
}

}  // namespace falcon
