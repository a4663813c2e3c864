// The memory of a guest: a shared file that QEMU maps as its RAM, and this process as well. Behind
// it the file has one trailer page, which QEMU does not map and the guest does not see: the place
// for what a peer writes behind the last page of a transfer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "os/status.h"
#include "os/unique_fd.h"
#include "pages/page_set.h"

namespace falcon {

[[nodiscard]] bool IsZeroPage(const std::byte* page);

class GuestMemory {
 public:
  GuestMemory() = default;
  GuestMemory(GuestMemory&& other) noexcept;
  GuestMemory& operator=(GuestMemory&& other) noexcept;
  ~GuestMemory() { Close(); }

  // Makes a file (mode 0600, which must not exist yet) for a guest of `ram_bytes`, a whole number
  // of pages, and maps it. No page of it takes room before it is touched. Errors: GUEST_MEMORY.
  static Status Create(const std::string& path, uint64_t ram_bytes, GuestMemory* memory);
  // Maps one that exists; one without a trailer page is given it. Errors: GUEST_MEMORY (also: it is
  // no private file of this user, or of another size).
  static Status Open(const std::string& path, uint64_t ram_bytes, GuestMemory* memory);

  // Idempotent. Nobody may use the memory any more: no digest runs, nothing of it is exposed, a
  // source of a fabric or on its way. The file stays.
  void Close();

  [[nodiscard]] bool ok() const { return base_ != nullptr; }
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] size_t pages() const { return ram_bytes_ / kPageBytes; }
  [[nodiscard]] std::span<std::byte> ram() const { return {base_, ram_bytes_}; }
  [[nodiscard]] std::span<std::byte> trailer() const { return {base_ + ram_bytes_, kPageBytes}; }
  [[nodiscard]] std::span<std::byte> all() const { return {base_, ram_bytes_ + kPageBytes}; }

  // The pages that are no holes of the file. The others are zero, and must not even be read: a
  // look at a hole through a mapping allocates it. Errors: GUEST_MEMORY (also: it is closed).
  Status ResidentPages(PageSet* resident) const;
  // Whether the file system has room for what the file has not taken yet: where a write finds none,
  // it ends the process that writes. Errors: GUEST_MEMORY.
  Status HasRoom() const;
  // Makes holes pages of zeros, so that whoever writes there need not: to find a page and to clear
  // it takes longer than to write it. Those that cannot be had stay holes. Rests as long as it
  // works: guests may need the processor.
  // `wanted` is asked now and then.
  void FillHoles(const PageSet& holes, const std::function<bool()>& wanted) const;
  // Takes the pages that are all zero out of a set of resident ones.
  void DropZeroPages(PageSet* resident) const;

 private:
  Status Map(UniqueFd fd, const std::string& path, uint64_t ram_bytes);

  UniqueFd fd_;
  std::string path_;
  std::byte* base_ = nullptr;
  size_t ram_bytes_ = 0;
};

}  // namespace falcon
