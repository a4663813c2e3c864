#include "pages/guest_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "os/check.h"
#include "os/threads.h"

namespace falcon {
namespace {

Status Failed(const std::string& what, const std::string& path, int error) {
  return {"GUEST_MEMORY", ErrnoText(what + " " + path, error)};
}

bool IsRightSize(uint64_t ram_bytes) {
  return ram_bytes > 0 && ram_bytes % kPageBytes == 0 && ram_bytes / kPageBytes <= kMaxPages;
}

Status WrongSize(uint64_t ram_bytes) {
  return {"GUEST_MEMORY", std::to_string(ram_bytes) + " bytes are no memory of a guest"};
}

}  // namespace

bool IsZeroPage(const std::byte* page) {
  // Most pages that are not zero say so early; the rest is compared with itself, one word on.
  uint64_t first = 0;
  std::memcpy(&first, page, sizeof first);
  return first == 0 && std::memcmp(page, page + sizeof first, kPageBytes - sizeof first) == 0;
}

GuestMemory::GuestMemory(GuestMemory&& other) noexcept { *this = std::move(other); }

GuestMemory& GuestMemory::operator=(GuestMemory&& other) noexcept {
  if (this == &other) return *this;
  Close();
  fd_ = std::move(other.fd_);
  path_ = std::exchange(other.path_, {});
  base_ = std::exchange(other.base_, nullptr);
  ram_bytes_ = std::exchange(other.ram_bytes_, 0);
  return *this;
}

void GuestMemory::Close() {
  if (base_ != nullptr) munmap(base_, ram_bytes_ + kPageBytes);
  base_ = nullptr;
  ram_bytes_ = 0;
  path_.clear();
  fd_.Reset();
}

Status GuestMemory::Create(const std::string& path, uint64_t ram_bytes, GuestMemory* memory) {
  if (!IsRightSize(ram_bytes)) return WrongSize(ram_bytes);
  UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd.valid()) return Failed("create", path, errno);
  Status status = Ok();
  if (ftruncate(fd.get(), static_cast<off_t>(ram_bytes + kPageBytes)) != 0)
    status = Failed("resize", path, errno);
  GuestMemory made;
  if (status.ok()) status = made.Map(std::move(fd), path, ram_bytes);
  if (!status.ok()) {
    unlink(path.c_str());
    return status;
  }
  *memory = std::move(made);
  return status;
}

Status GuestMemory::Open(const std::string& path, uint64_t ram_bytes, GuestMemory* memory) {
  if (!IsRightSize(ram_bytes)) return WrongSize(ram_bytes);
  UniqueFd fd(open(path.c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd.valid()) return Failed("open", path, errno);
  struct stat file {};
  if (fstat(fd.get(), &file) != 0) return Failed("stat", path, errno);
  if (!S_ISREG(file.st_mode) || file.st_uid != geteuid() || (file.st_mode & 077) != 0)
    return {"GUEST_MEMORY", path + " is not a private file of this user"};
  const auto size = static_cast<uint64_t>(file.st_size);
  if (size != ram_bytes && size != ram_bytes + kPageBytes) {
    return {"GUEST_MEMORY", path + " has " + std::to_string(size) +
                                " bytes, not those of a guest of " + std::to_string(ram_bytes)};
  }
  if (ftruncate(fd.get(), static_cast<off_t>(ram_bytes + kPageBytes)) != 0)
    return Failed("resize", path, errno);
  GuestMemory opened;
  Status status = opened.Map(std::move(fd), path, ram_bytes);
  if (status.ok()) *memory = std::move(opened);
  return status;
}

// Never with MAP_POPULATE, and no child shares it: falcond starts QEMU, which has a mapping of its
// own.
Status GuestMemory::Map(UniqueFd fd, const std::string& path, uint64_t ram_bytes) {
  const size_t bytes = ram_bytes + kPageBytes;
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (at == MAP_FAILED) return Failed("map", path, errno);
  fd_ = std::move(fd);
  path_ = path;
  base_ = static_cast<std::byte*>(at);
  ram_bytes_ = ram_bytes;
  if (madvise(at, bytes, MADV_DONTFORK) != 0) return Failed("keep from children", path, errno);
  return Ok();
}

Status GuestMemory::ResidentPages(PageSet* resident) const {
  if (!ok()) return {"GUEST_MEMORY", "the memory is closed"};
  PageSet found(pages());
  const auto end = static_cast<off_t>(ram_bytes_);
  for (off_t at = 0; at < end;) {
    const off_t data = lseek(fd_.get(), at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;  // holes to the end
    if (data < 0) return Failed("look for data in", path_, errno);
    if (data >= end) break;
    off_t hole = lseek(fd_.get(), data, SEEK_HOLE);
    if (hole < 0) return Failed("look for holes in", path_, errno);
    // A page that was given back between the two looks is still reported.
    hole = std::clamp(hole, data + 1, end);
    const size_t first = static_cast<size_t>(data) / kPageBytes;
    const size_t last = (static_cast<size_t>(hole) - 1) / kPageBytes;
    found.SetRun({first, last - first + 1});
    at = hole;
  }
  *resident = std::move(found);
  return Ok();
}

Status GuestMemory::HasRoom() const {
  FALCON_CHECK(ok());
  struct statvfs system {};
  struct stat file {};
  if (fstatvfs(fd_.get(), &system) != 0 || fstat(fd_.get(), &file) != 0)
    return Failed("look for room for", path_, errno);
  const uint64_t taken = static_cast<uint64_t>(file.st_blocks) * 512;
  const uint64_t needed = ram_bytes_ - std::min<uint64_t>(taken, ram_bytes_);
  const uint64_t free = uint64_t{system.f_bavail} * system.f_frsize;
  if (free >= needed) return Ok();
  return {"GUEST_MEMORY", path_ + " may need " + std::to_string(needed) + " bytes more, " +
                              std::to_string(free) + " are free"};
}

void GuestMemory::FillHoles(const PageSet& holes, const std::function<bool()>& wanted) const {
  FALCON_CHECK(ok() && holes.pages() == pages());
  constexpr size_t kPagesAtOnce = 256;
  Rests rests(kPagesAtOnce);
  for (PageRun run = holes.NextRun(0, kPagesAtOnce); run.count > 0;
       run = holes.NextRun(run.first + run.count, kPagesAtOnce)) {
    // Before Linux 5.14 there is no such advice.
    if (madvise(base_ + run.first * kPageBytes, run.count * kPageBytes, MADV_POPULATE_WRITE) != 0)
      return;
    if (rests.Did(run.count) && !wanted()) return;
  }
}

void GuestMemory::DropZeroPages(PageSet* resident) const {
  FALCON_CHECK(ok() && resident->pages() == pages());
  for (size_t page = resident->Next(0); page < pages(); page = resident->Next(page + 1)) {
    if (IsZeroPage(base_ + page * kPageBytes)) resident->Clear(page);
  }
}

}  // namespace falcon
