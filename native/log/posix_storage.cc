// Storage by system calls. Stateless, so any thread may use it.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "log/wal.h"
#include "os/unique_fd.h"

namespace falcon {
namespace {

int Result(int returned) { return returned < 0 ? -errno : returned; }

class PosixStorage final : public Storage {
 public:
  Handle Open(const std::string& path, bool create) override {
    const int flags = O_RDWR | O_CLOEXEC | (create ? O_CREAT | O_EXCL : 0);
    return Result(::open(path.c_str(), flags, 0600));
  }

  int Close(Handle handle) override { return Result(::close(handle)); }

  int64_t Size(Handle handle) override {
    struct stat status {};
    if (::fstat(handle, &status) < 0) return -errno;
    return status.st_size;
  }

  // posix_fallocate writes zeros itself on a file system that cannot preallocate.
  int Preallocate(Handle handle, uint64_t bytes) override {
    return -::posix_fallocate(handle, 0, static_cast<off_t>(bytes));
  }

  int64_t WriteAt(Handle handle, std::span<const std::byte> data, uint64_t offset) override {
    const ssize_t written = RetryInterrupted(
        [&] { return ::pwrite(handle, data.data(), data.size(), static_cast<off_t>(offset)); });
    return written < 0 ? -errno : written;
  }

  int64_t ReadAt(Handle handle, std::span<std::byte> into, uint64_t offset) override {
    const ssize_t got = RetryInterrupted(
        [&] { return ::pread(handle, into.data(), into.size(), static_cast<off_t>(offset)); });
    return got < 0 ? -errno : got;
  }

  int Force(Handle handle) override { return Result(::fdatasync(handle)); }

  int ForceDirectory(const std::string& path) override {
    const UniqueFd directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!directory.valid()) return -errno;
    return Result(::fsync(directory.get()));
  }

  int Remove(const std::string& path) override { return Result(::unlink(path.c_str())); }

  int Rename(const std::string& from, const std::string& to) override {
    return Result(::rename(from.c_str(), to.c_str()));
  }

  int MakeDirectory(const std::string& path) override {
    return Result(::mkdir(path.c_str(), 0700));
  }

  int List(const std::string& directory, std::vector<std::string>* names) override {
    DIR* const stream = ::opendir(directory.c_str());
    if (stream == nullptr) return -errno;
    names->clear();
    errno = 0;
    while (const dirent* entry = ::readdir(stream)) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") names->push_back(name);
      errno = 0;
    }
    const int error = errno;
    ::closedir(stream);
    return -error;
  }

 private:
  template <typename Call>
  static ssize_t RetryInterrupted(Call call) {
    ssize_t returned = 0;
    do {
      returned = call();
    } while (returned < 0 && errno == EINTR);
    return returned;
  }
};

}  // namespace

std::unique_ptr<Storage> MakePosixStorage() { return std::make_unique<PosixStorage>(); }

}  // namespace falcon
