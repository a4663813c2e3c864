// A disk in memory that misbehaves as disks and kernels may: it forgets what was not forced (any
// subset of 512-byte sectors, any tail of directory changes), writes less than asked, fills up,
// fails, flips bits. Seeded: the same calls with the same seed give the same disk.
//
// Two kinds of end: KillProcess closes all files and keeps their contents (the page cache survives
// a dead process), LosePower keeps only what was forced and a random part of the rest. A force that
// fails leaves the pages readable and clean, as Linux does: a later force does not write them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "log/wal.h"
#include "os/random.h"

namespace falcon {

class SimStorage final : public Storage {
 public:
  static constexpr size_t kSectorBytes = 512;

  explicit SimStorage(uint64_t seed) : random_(seed) {}

  Handle Open(const std::string& path, bool create) override;
  int Close(Handle handle) override;
  int64_t Size(Handle handle) override;
  int Preallocate(Handle handle, uint64_t bytes) override;
  int64_t WriteAt(Handle handle, std::span<const std::byte> data, uint64_t offset) override;
  int64_t ReadAt(Handle handle, std::span<std::byte> into, uint64_t offset) override;
  int Force(Handle handle) override;
  int ForceDirectory(const std::string& path) override;
  int Remove(const std::string& path) override;
  int Rename(const std::string& from, const std::string& to) override;
  int MakeDirectory(const std::string& path) override;
  int List(const std::string& directory, std::vector<std::string>* names) override;

  // ---- faults, effective until changed

  void SetCapacity(uint64_t bytes) { capacity_ = bytes; }  // of all files together
  void SetShortIo(bool on) { short_io_ = on; }             // reads and writes stop anywhere
  void FailForces(int error) { force_error_ = error; }     // errno, 0: none
  void FailWrites(int error) { write_error_ = error; }     // errno, 0: none
  void WriteNothing(bool on) { write_nothing_ = on; }      // writes return 0
  void FailReads(int error) { read_error_ = error; }       // errno, 0: none
  // The machine stops in the middle of the `operations`-th changing operation from now: that one
  // happens in part or not at all, every later one fails with EIO until KillProcess or LosePower.
  void StopAfter(uint64_t operations) { stop_after_ = operations; }
  [[nodiscard]] bool stopped() const { return stopped_; }

  void KillProcess();
  void LosePower();

  // ---- looking at and changing the bytes behind the log's back

  [[nodiscard]] std::vector<std::string> Paths() const;
  [[nodiscard]] const std::vector<std::byte>& Contents(const std::string& path) const;
  void SetContents(const std::string& path, std::vector<std::byte> bytes);
  void FlipBit(const std::string& path, uint64_t bit);
  void Delete(const std::string& path);

 private:
  struct File {
    std::vector<std::byte> bytes;   // as a reader sees them
    std::vector<std::byte> forced;  // as they survive a loss of power
    std::set<uint64_t> dirty;       // sectors of `bytes` that the next force writes
    std::set<uint64_t> forgotten;   // sectors that a failed force has marked clean
  };
  struct Names {
    std::map<std::string, std::shared_ptr<File>> files;
    std::set<std::string> directories;
  };

  [[nodiscard]] File* Find(Handle handle);
  [[nodiscard]] uint64_t UsedBytes() const;
  // Counts down to the stop. True if the operation must fail; `partial` if part of it still
  // happens.
  bool Stops(bool* partial);
  void Write(File* file, std::span<const std::byte> data, uint64_t offset);
  static void CopySector(File* file, uint64_t sector);
  void RestoreAfterPowerLoss(File* file);
  void NamesChanged() { pending_.push_back(names_); }
  [[nodiscard]] bool DirectoryOfExists(const std::string& path) const;

  mutable std::mutex mutex_;  // the log's reader and writer may be two threads
  Random random_;
  Names names_;
  Names forced_names_;
  std::vector<Names> pending_;  // after each change that was not forced yet, in order
  std::map<Handle, std::shared_ptr<File>> open_;
  Handle next_handle_ = 3;

  uint64_t capacity_ = UINT64_MAX;
  bool short_io_ = false;
  bool write_nothing_ = false;
  int force_error_ = 0;
  int write_error_ = 0;
  int read_error_ = 0;
  std::optional<uint64_t> stop_after_;
  bool stopped_ = false;
};

}  // namespace falcon
