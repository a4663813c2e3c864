#include "fabric/shm_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <new>
#include <utility>

namespace falcon {
namespace {

constexpr size_t kIncarnationDigits = 16;
constexpr size_t kMaxNameBytes = 64;
constexpr size_t kMaxDescriptorBytes = 4096;
constexpr int kLockAttempts = 64;
constexpr uint64_t kReserveStepBytes = 4 << 20;

Status Errno(const std::string& what, const std::string& path) {
  return {"SHM_OPEN", ErrnoText(what + " " + path, errno)};
}

bool IsNameCharacter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '-';
}

std::string Hex(uint64_t value) {
  char text[kIncarnationDigits + 1];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

// Reads all of `text` as a number; nothing else may stand in it.
template <typename Number>
bool ParseNumber(std::string_view text, int base, Number* number) {
  const char* end = text.data() + text.size();
  const std::from_chars_result result = std::from_chars(text.data(), end, *number, base);
  return result.ec == std::errc{} && result.ptr == end;
}

// Takes one line that begins with `key` and a space off the front of `text`.
bool TakeLine(std::string_view* text, std::string_view key, std::string_view* value) {
  const size_t end = text->find('\n');
  if (end == std::string_view::npos) return false;
  const std::string_view line = text->substr(0, end);
  if (line.size() <= key.size() || !line.starts_with(key) || line[key.size()] != ' ') return false;
  *value = line.substr(key.size() + 1);
  text->remove_prefix(end + 1);
  return true;
}

// True for `<name>.<16 hexadecimal digits>.<anything>`.
bool IsFileOf(std::string_view file, std::string_view name) {
  if (!file.starts_with(name)) return false;
  file.remove_prefix(name.size());
  if (file.size() < kIncarnationDigits + 3 || file[0] != '.' || file[kIncarnationDigits + 1] != '.')
    return false;
  uint64_t incarnation = 0;
  return ParseNumber(file.substr(1, kIncarnationDigits), 16, &incarnation);
}

// Reserves space in steps: kernels give up, and undo, an allocation during which a signal came.
// Returns an errno.
int ReserveSpace(int fd, uint64_t bytes) {
  // Whether there is room at all is known before the first page is taken.
  if (bytes > kReserveStepBytes) {
    struct statvfs volume {};
    if (fstatvfs(fd, &volume) == 0 && volume.f_blocks > 0 &&
        bytes / volume.f_frsize > volume.f_bavail)
      return ENOSPC;
  }
  for (uint64_t from = 0; from < bytes;) {
    const uint64_t step = std::min(bytes - from, kReserveStepBytes);
    const int error = posix_fallocate(fd, static_cast<off_t>(from), static_cast<off_t>(step));
    if (error == 0) from += step;
    if (error != 0 && error != EINTR) return error;
  }
  return 0;
}

// Ours, of the right type and closed to others: what any file must be before it is used.
bool IsOurs(const struct stat& file, mode_t type) {
  return (file.st_mode & S_IFMT) == type && file.st_uid == geteuid() && (file.st_mode & 077) == 0;
}

Status OpenLent(const std::string& path, uint64_t bytes, UniqueFd* fd) {
  fd->Reset(open(path.c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd->valid()) return Errno("open", path);
  struct stat file {};
  if (fstat(fd->get(), &file) != 0) return Errno("stat", path);
  if (!IsOurs(file, S_IFREG)) return {"SHM_OPEN", path + " is not a private file of this user"};
  if (static_cast<uint64_t>(file.st_size) < bytes)
    return {"SHM_OPEN", path + " is smaller than what is lent of it"};
  return Ok();
}

}  // namespace

ShmMapping::ShmMapping(ShmMapping&& other) noexcept
    : base_(other.base_), body_bytes_(other.body_bytes_) {
  other.base_ = nullptr;
  other.body_bytes_ = 0;
}

ShmMapping& ShmMapping::operator=(ShmMapping&& other) noexcept {
  if (this != &other) {
    Unmap();
    std::swap(base_, other.base_);
    std::swap(body_bytes_, other.body_bytes_);
  }
  return *this;
}

void ShmMapping::Unmap() {
  if (base_ != nullptr) munmap(base_, kShmHeaderBytes + body_bytes_);
  base_ = nullptr;
  body_bytes_ = 0;
}

Status ShmMapping::Map(int fd, const std::string& path, size_t body_bytes) {
  Unmap();
  void* at = mmap(nullptr, kShmHeaderBytes + body_bytes, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_POPULATE, fd, 0);
  if (at == MAP_FAILED) return Errno("mmap", path);
  base_ = static_cast<std::byte*>(at);
  body_bytes_ = body_bytes;
  return Ok();
}

Status ShmMapping::Create(const std::string& path, const ShmFileHeader& header,
                          ShmMapping* mapping) {
  const UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd.valid()) return Errno("open", path);
  const uint64_t bytes = kShmHeaderBytes + header.bytes;
  // Space is reserved now: a full file system is an error here and would be a SIGBUS later.
  errno = ReserveSpace(fd.get(), bytes);
  Status status = errno == 0 ? mapping->Map(fd.get(), path, header.bytes) : Errno("allocate", path);
  if (!status.ok()) {
    unlink(path.c_str());
    return status;
  }
  std::memcpy(mapping->base_, &header, sizeof header);
  new (mapping->base_ + kShmSleepingOffset) std::atomic<uint64_t>(0);
  for (RegionId region = 0; region < kMaxRegions; ++region)
    new (mapping->base_ + kShmOpenOffset + region * kShmOpenStride) std::atomic<uint64_t>(0);
  return Ok();
}

Status ShmMapping::Open(const std::string& path, const ShmFileHeader& expected,
                        ShmMapping* mapping) {
  const UniqueFd fd(open(path.c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd.valid()) return Errno("open", path);
  struct stat file {};
  if (fstat(fd.get(), &file) != 0) return Errno("stat", path);
  if (!IsOurs(file, S_IFREG)) return {"SHM_OPEN", path + " is not a private file of this user"};
  if (static_cast<uint64_t>(file.st_size) != kShmHeaderBytes + expected.bytes)
    return {"SHM_OPEN", path + " has another size than its descriptor says"};
  Status status = mapping->Map(fd.get(), path, expected.bytes);
  if (!status.ok()) return status;
  ShmFileHeader found{};
  std::memcpy(&found, mapping->base_, sizeof found);
  found.owner_pid = expected.owner_pid;
  if (std::memcmp(&found, &expected, sizeof found) != 0) {
    mapping->Unmap();
    return {"SHM_OPEN", path + " does not belong to this incarnation"};
  }
  return Ok();
}

std::atomic<uint64_t>& ShmMapping::Word(size_t offset) const {
  static_assert(std::atomic<uint64_t>::is_always_lock_free);
  return *std::launder(reinterpret_cast<std::atomic<uint64_t>*>(base_ + offset));
}

ShmLentFile::~ShmLentFile() {
  if (!bytes_.empty()) munmap(bytes_.data(), bytes_.size());
}

Status ShmLentFile::Check(const std::string& path, uint64_t bytes) {
  UniqueFd fd;
  return OpenLent(path, bytes, &fd);
}

Status ShmLentFile::Open(const std::string& path, uint64_t bytes, ShmLentFile* file) {
  UniqueFd fd;
  Status status = OpenLent(path, bytes, &fd);
  if (!status.ok()) return status;
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (at == MAP_FAILED) return Errno("mmap", path);
  ShmLentFile opened;
  opened.bytes_ = {static_cast<std::byte*>(at), bytes};
  *file = std::move(opened);
  return status;
}

std::string ShmMember::Path(std::string_view what) const {
  return directory + "/" + name + "." + Hex(incarnation) + "." + std::string(what);
}

std::string ShmMember::RegionPath(RegionId region) const {
  return Path("region" + std::to_string(region));
}

ShmFileHeader ShmMember::PageHeader() const {
  return {kShmMagic, kShmVersion, kShmMemberPage, incarnation, 0, static_cast<uint32_t>(getpid()),
          self};
}

ShmFileHeader ShmMember::RegionHeader(RegionId region) const {
  ShmFileHeader header = PageHeader();
  header.region = region;
  header.bytes = region_bytes[region];
  return header;
}

std::string ShmMember::Descriptor() const {
  std::string text = "falcon-shm " + std::to_string(kShmVersion) + "\n";
  text += "directory " + directory + "\n";
  text += "member " + name + "\n";
  text += "self " + std::to_string(self) + "\n";
  text += "incarnation " + Hex(incarnation) + "\n";
  for (const uint64_t bytes : region_bytes) text += "region " + std::to_string(bytes) + "\n";
  return text;
}

Status ShmMember::Parse(std::string_view descriptor, const std::string& directory,
                        ShmMember* member) {
  const auto refuse = [](const char* why) {
    return Status("FABRIC_CONNECT", std::string("bad shm descriptor: ") + why);
  };
  if (descriptor.size() > kMaxDescriptorBytes) return refuse("too long");
  std::string_view text = descriptor;
  std::string_view value;
  uint32_t version = 0;
  if (!TakeLine(&text, "falcon-shm", &value) || !ParseNumber(value, 10, &version))
    return refuse("not one");
  if (version != kShmVersion) return refuse("another version");
  if (!TakeLine(&text, "directory", &value) || value != directory)
    return refuse("another directory");
  member->directory = directory;
  if (!TakeLine(&text, "member", &value) || !ShmNameIsRight(value)) return refuse("member name");
  member->name = value;
  if (!TakeLine(&text, "self", &value) || !ParseNumber(value, 10, &member->self) ||
      member->self >= kMaxMembers)
    return refuse("member number");
  if (!TakeLine(&text, "incarnation", &value) || value.size() != kIncarnationDigits ||
      !ParseNumber(value, 16, &member->incarnation))
    return refuse("incarnation");
  for (uint64_t& bytes : member->region_bytes) {
    if (!TakeLine(&text, "region", &value) || !ParseNumber(value, 10, &bytes) ||
        bytes > kMaxShmRegionBytes)
      return refuse("region size");
  }
  if (!text.empty()) return refuse("trailing bytes");
  // Whatever else could be written in two ways was not written by a member.
  return member->Descriptor() == descriptor ? Ok() : refuse("not as a member writes it");
}

bool ShmNameIsRight(std::string_view name) {
  if (name.empty() || name.size() > kMaxNameBytes) return false;
  for (const char c : name) {
    if (!IsNameCharacter(c)) return false;
  }
  return true;
}

Status PrepareShmDirectory(const std::string& directory) {
  if (directory.size() < 2 || directory[0] != '/' || directory.find('\n') != std::string::npos ||
      directory.size() > kMaxDescriptorBytes / 2)
    return {"SHM_OPEN", "the directory must be an absolute path"};
  if (mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) return Errno("mkdir", directory);
  struct stat file {};
  if (lstat(directory.c_str(), &file) != 0) return Errno("stat", directory);
  if (!S_ISDIR(file.st_mode) || file.st_uid != geteuid() || (file.st_mode & 022) != 0)
    return {"SHM_OPEN", directory + " is not a directory that only this user may write"};
  return Ok();
}

std::string ShmLockPath(const std::string& directory, const std::string& name) {
  return directory + "/" + name + ".lock";
}

Status LockShmMember(const std::string& directory, const std::string& name, UniqueFd* lock) {
  const std::string path = ShmLockPath(directory, name);
  for (int attempt = 0; attempt < kLockAttempts; ++attempt) {
    UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!fd.valid()) return Errno("open", path);
    if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK) return {"SHM_BUSY", path + " is held by a live process"};
      return Errno("flock", path);
    }
    // The owner before unlinks the file while it holds it: a lock on an unlinked file excludes
    // nobody.
    struct stat held {};
    struct stat named {};
    if (fstat(fd.get(), &held) != 0) return Errno("stat", path);
    if (stat(path.c_str(), &named) != 0 || held.st_ino != named.st_ino ||
        held.st_dev != named.st_dev)
      continue;
    *lock = std::move(fd);
    return Ok();
  }
  return {"SHM_BUSY", path + " changes hands all the time"};
}

void RemoveShmLeftovers(const std::string& directory, const std::string& name) {
  DIR* listing = opendir(directory.c_str());
  if (listing == nullptr) return;
  while (const dirent* entry = readdir(listing)) {
    if (IsFileOf(entry->d_name, name)) unlinkat(dirfd(listing), entry->d_name, 0);
  }
  closedir(listing);
}

Status MakeShmBell(const std::string& path, UniqueFd* bell) {
  if (mkfifo(path.c_str(), 0600) != 0) return Errno("mkfifo", path);
  Status status = OpenShmBell(path, bell);
  if (!status.ok()) unlink(path.c_str());
  return status;
}

Status OpenShmBell(const std::string& path, UniqueFd* bell) {
  UniqueFd fd(open(path.c_str(), O_RDWR | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.valid()) return Errno("open", path);
  struct stat file {};
  if (fstat(fd.get(), &file) != 0) return Errno("stat", path);
  if (!IsOurs(file, S_IFIFO)) return {"SHM_OPEN", path + " is not a private FIFO of this user"};
  *bell = std::move(fd);
  return Ok();
}

}  // namespace falcon
