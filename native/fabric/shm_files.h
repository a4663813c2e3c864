// The files behind the shm fabric: the lock that makes a member unique, mapped files with a header
// page, the descriptor that tells peers of them, and the removal of what a dead process left
// behind.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "fabric/fabric.h"
#include "os/status.h"
#include "os/unique_fd.h"

namespace falcon {

inline constexpr size_t kShmHeaderBytes =
    4096;  // in front of each file's body, which is page-aligned then
inline constexpr uint64_t kMaxShmRegionBytes = 1ull << 40;
inline constexpr uint32_t kShmVersion = 3;

// What stands at the start of every file of a member.
struct ShmFileHeader {
  uint64_t magic;        // kShmMagic
  uint32_t version;      // kShmVersion
  uint32_t region;       // region id; kShmMemberPage in the member's own page
  uint64_t incarnation;  // of the owner's start
  uint64_t bytes;        // of the body
  uint32_t owner_pid;    // for people; not relied upon
  uint32_t self;         // the owner's PeerId
};

inline constexpr uint64_t kShmMagic = 0x314D48534E4F4C46;  // "FLONSHM1"
inline constexpr uint32_t kShmMemberPage = 0xFFFFFFFF;
// Of the sleeping word, on a cache line of its own: 0 while the owner is awake, otherwise a number
// that it has not used for an earlier sleep.
inline constexpr size_t kShmSleepingOffset = 128;
// Of a word for each region, on a cache line of its own: the number of the exposure that its owner
// has open, or 0.
inline constexpr size_t kShmOpenOffset = 256;
inline constexpr size_t kShmOpenStride = 64;
static_assert(sizeof(ShmFileHeader) == 40 && sizeof(ShmFileHeader) <= kShmSleepingOffset);
static_assert(kShmOpenOffset + kMaxRegions * kShmOpenStride <= kShmHeaderBytes);

// A shared mapping of one such file.
class ShmMapping {
 public:
  ShmMapping() = default;
  ShmMapping(ShmMapping&& other) noexcept;
  ShmMapping& operator=(ShmMapping&& other) noexcept;
  ~ShmMapping() { Unmap(); }

  // Makes the file anew (mode 0600) and maps it with all its pages present. Errors: errno in words.
  static Status Create(const std::string& path, const ShmFileHeader& header, ShmMapping* mapping);
  // Maps a file of this user that must exist and carry `expected` (its owner_pid is not compared).
  static Status Open(const std::string& path, const ShmFileHeader& expected, ShmMapping* mapping);

  [[nodiscard]] bool ok() const { return base_ != nullptr; }
  [[nodiscard]] std::span<std::byte> body() const { return {base_ + kShmHeaderBytes, body_bytes_}; }
  [[nodiscard]] std::atomic<uint64_t>& sleeping() const { return Word(kShmSleepingOffset); }
  [[nodiscard]] std::atomic<uint64_t>& opened(RegionId region) const {
    return Word(kShmOpenOffset + region * kShmOpenStride);
  }
  void Unmap();

 private:
  [[nodiscard]] std::atomic<uint64_t>& Word(size_t offset) const;
  Status Map(int fd, const std::string& path, size_t body_bytes);
  std::byte* base_ = nullptr;
  size_t body_bytes_ = 0;
};

// The mapping of a file that a peer lends for a while. Its pages come as they are touched: most of
// a guest's memory may never have been used.
class ShmLentFile {
 public:
  ShmLentFile() = default;
  ShmLentFile(ShmLentFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  ShmLentFile& operator=(ShmLentFile&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~ShmLentFile();

  // Whether `path` can be lent: a private file of this user with at least so many bytes. Errors:
  // errno or the reason in words.
  static Status Check(const std::string& path, uint64_t bytes);
  // Maps the first `bytes` of it.
  static Status Open(const std::string& path, uint64_t bytes, ShmLentFile* file);

  [[nodiscard]] std::span<std::byte> bytes() const { return bytes_; }

 private:
  std::span<std::byte> bytes_;
};

// Everything a peer must know of a member.
struct ShmMember {
  std::string directory;
  std::string name;
  PeerId self = 0;
  uint64_t incarnation = 0;
  std::array<uint64_t, kMaxRegions> region_bytes{};  // 0: no such region

  [[nodiscard]] std::string PagePath() const { return Path("page"); }
  [[nodiscard]] std::string BellPath() const { return Path("bell"); }
  [[nodiscard]] std::string RegionPath(RegionId region) const;
  [[nodiscard]] ShmFileHeader PageHeader() const;
  [[nodiscard]] ShmFileHeader RegionHeader(RegionId region) const;

  [[nodiscard]] std::string Descriptor() const;
  // Takes a descriptor that anybody may have made up: the name cannot lead out of the directory,
  // and the directory must be `directory`. Errors: FABRIC_CONNECT.
  static Status Parse(std::string_view descriptor, const std::string& directory, ShmMember* member);

 private:
  [[nodiscard]] std::string Path(std::string_view what) const;
};

[[nodiscard]] bool ShmNameIsRight(std::string_view name);

// Makes `directory` if it is missing; it must be a directory that only this user may write. Errors:
// SHM_OPEN.
Status PrepareShmDirectory(const std::string& directory);

// Takes `<directory>/<name>.lock`. Errors: SHM_BUSY, SHM_OPEN.
Status LockShmMember(const std::string& directory, const std::string& name, UniqueFd* lock);
[[nodiscard]] std::string ShmLockPath(const std::string& directory, const std::string& name);

// Removes the files of earlier incarnations of a member whose lock the caller holds.
void RemoveShmLeftovers(const std::string& directory, const std::string& name);

// The doorbell: a FIFO opened for reading and writing, so that neither end ever sees it closed.
Status MakeShmBell(const std::string& path, UniqueFd* bell);  // errors: errno in words
Status OpenShmBell(const std::string& path, UniqueFd* bell);

}  // namespace falcon
