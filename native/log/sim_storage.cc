#include "log/sim_storage.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "os/check.h"

namespace falcon {
namespace {

std::string DirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

}  // namespace

SimStorage::File* SimStorage::Find(Handle handle) {
  const auto found = open_.find(handle);
  return found == open_.end() ? nullptr : found->second.get();
}

bool SimStorage::Stops(bool* partial) {
  *partial = false;
  if (stopped_) return true;
  if (!stop_after_) return false;
  if (*stop_after_ > 1) {
    --*stop_after_;
    return false;
  }
  stop_after_.reset();
  stopped_ = true;
  *partial = true;
  return true;
}

bool SimStorage::DirectoryOfExists(const std::string& path) const {
  const std::string directory = DirectoryOf(path);
  return directory.empty() || names_.directories.contains(directory);
}

SimStorage::Handle SimStorage::Open(const std::string& path, bool create) {
  const std::lock_guard lock(mutex_);
  const auto found = names_.files.find(path);
  std::shared_ptr<File> file;
  if (create) {
    bool partial = false;
    if (Stops(&partial)) return -EIO;
    if (found != names_.files.end()) return -EEXIST;
    if (!DirectoryOfExists(path)) return -ENOENT;
    file = std::make_shared<File>();
    names_.files[path] = file;
    NamesChanged();
  } else {
    if (found == names_.files.end()) return -ENOENT;
    file = found->second;
  }
  open_[next_handle_] = file;
  return next_handle_++;
}

int SimStorage::Close(Handle handle) {
  const std::lock_guard lock(mutex_);
  return open_.erase(handle) == 1 ? 0 : -EBADF;
}

int64_t SimStorage::Size(Handle handle) {
  const std::lock_guard lock(mutex_);
  const File* file = Find(handle);
  return file == nullptr ? -EBADF : static_cast<int64_t>(file->bytes.size());
}

uint64_t SimStorage::UsedBytes() const {
  uint64_t used = 0;
  for (const auto& [path, file] : names_.files) used += file->bytes.size();
  return used;
}

int SimStorage::Preallocate(Handle handle, uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  File* file = Find(handle);
  if (file == nullptr) return -EBADF;
  bool partial = false;
  if (Stops(&partial)) return -EIO;
  if (bytes <= file->bytes.size()) return 0;
  if (UsedBytes() + bytes - file->bytes.size() > capacity_) return -ENOSPC;
  file->bytes.resize(bytes);
  return 0;
}

void SimStorage::Write(File* file, std::span<const std::byte> data, uint64_t offset) {
  if (data.empty()) return;
  if (offset + data.size() > file->bytes.size()) file->bytes.resize(offset + data.size());
  std::copy(data.begin(), data.end(), file->bytes.begin() + static_cast<ptrdiff_t>(offset));
  const uint64_t last = (offset + data.size() - 1) / kSectorBytes;
  for (uint64_t sector = offset / kSectorBytes; sector <= last; ++sector) {
    file->dirty.insert(sector);
    file->forgotten.erase(sector);
  }
}

int64_t SimStorage::WriteAt(Handle handle, std::span<const std::byte> data, uint64_t offset) {
  const std::lock_guard lock(mutex_);
  File* file = Find(handle);
  if (file == nullptr) return -EBADF;
  bool partial = false;
  if (Stops(&partial)) {
    if (partial) Write(file, data.first(random_.Below(data.size() + 1)), offset);
    return -EIO;
  }
  if (write_error_ != 0) return -write_error_;
  if (write_nothing_) return 0;
  const uint64_t end = offset + data.size();
  if (end > file->bytes.size() && UsedBytes() + end - file->bytes.size() > capacity_)
    return -ENOSPC;
  if (short_io_) data = data.first(1 + random_.Below(data.size()));
  Write(file, data, offset);
  return static_cast<int64_t>(data.size());
}

int64_t SimStorage::ReadAt(Handle handle, std::span<std::byte> into, uint64_t offset) {
  const std::lock_guard lock(mutex_);
  const File* file = Find(handle);
  if (file == nullptr) return -EBADF;
  if (read_error_ != 0) return -read_error_;
  if (offset >= file->bytes.size() || into.empty()) return 0;
  size_t length = std::min<size_t>(into.size(), file->bytes.size() - offset);
  if (short_io_) length = 1 + random_.Below(length);
  std::memcpy(into.data(), file->bytes.data() + offset, length);
  return static_cast<int64_t>(length);
}

void SimStorage::CopySector(File* file, uint64_t sector) {
  const uint64_t from = sector * kSectorBytes;
  const uint64_t end =
      std::min<uint64_t>(from + kSectorBytes, std::min(file->bytes.size(), file->forced.size()));
  for (uint64_t at = from; at < end; ++at) file->forced[at] = file->bytes[at];
}

int SimStorage::Force(Handle handle) {
  const std::lock_guard lock(mutex_);
  File* file = Find(handle);
  if (file == nullptr) return -EBADF;
  bool partial = false;
  const bool stops = Stops(&partial);
  if (stops) return -EIO;  // what is kept of the dirty sectors is decided when power is lost
  if (force_error_ != 0) {
    file->forgotten.merge(file->dirty);
    file->dirty.clear();
    return -force_error_;
  }
  file->forced.resize(file->bytes.size());
  for (const uint64_t sector : file->dirty) CopySector(file, sector);
  file->dirty.clear();
  return 0;
}

int SimStorage::ForceDirectory(const std::string& path) {
  const std::lock_guard lock(mutex_);
  (void)path;  // one journal for all directories
  bool partial = false;
  if (Stops(&partial)) return -EIO;
  if (force_error_ != 0) return -force_error_;
  forced_names_ = names_;
  pending_.clear();
  return 0;
}

int SimStorage::Remove(const std::string& path) {
  const std::lock_guard lock(mutex_);
  bool partial = false;
  if (Stops(&partial)) return -EIO;
  if (names_.files.erase(path) == 0) return -ENOENT;
  NamesChanged();
  return 0;
}

int SimStorage::Rename(const std::string& from, const std::string& to) {
  const std::lock_guard lock(mutex_);
  bool partial = false;
  if (Stops(&partial)) return -EIO;
  const auto found = names_.files.find(from);
  if (found == names_.files.end()) return -ENOENT;
  names_.files[to] = found->second;
  names_.files.erase(from);
  NamesChanged();
  return 0;
}

int SimStorage::MakeDirectory(const std::string& path) {
  const std::lock_guard lock(mutex_);
  bool partial = false;
  if (Stops(&partial)) return -EIO;
  if (!DirectoryOfExists(path)) return -ENOENT;
  if (!names_.directories.insert(path).second) return -EEXIST;
  NamesChanged();
  return 0;
}

int SimStorage::List(const std::string& directory, std::vector<std::string>* names) {
  const std::lock_guard lock(mutex_);
  if (!names_.directories.contains(directory)) return -ENOENT;
  names->clear();
  for (const auto& [path, file] : names_.files) {
    if (DirectoryOf(path) == directory) names->push_back(path.substr(directory.size() + 1));
  }
  return 0;
}

void SimStorage::KillProcess() {
  const std::lock_guard lock(mutex_);
  open_.clear();
  stop_after_.reset();
  stopped_ = false;
}

// Each unforced sector survives or not by itself; the new size too, and a sector beyond the old
// size only together with it.
void SimStorage::RestoreAfterPowerLoss(File* file) {
  if (file->bytes.size() > file->forced.size() && random_.Chance(1, 2)) {
    file->forced.resize(file->bytes.size());
  }
  // Sometimes nothing or everything: runs of luck that independent draws would hardly ever give.
  const uint64_t keep = random_.Below(5);
  for (const uint64_t sector : file->dirty) {
    if (random_.Chance(keep, 4)) CopySector(file, sector);
  }
  file->dirty.clear();
  file->forgotten.clear();
  file->bytes = file->forced;
}

void SimStorage::LosePower() {
  const std::lock_guard lock(mutex_);
  open_.clear();
  stop_after_.reset();
  stopped_ = false;
  const uint64_t survived = random_.Below(pending_.size() + 1);
  if (survived > 0) forced_names_ = pending_[survived - 1];
  pending_.clear();
  names_ = forced_names_;
  for (const auto& [path, file] : names_.files) RestoreAfterPowerLoss(file.get());
}

std::vector<std::string> SimStorage::Paths() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> paths;
  for (const auto& [path, file] : names_.files) paths.push_back(path);
  return paths;
}

const std::vector<std::byte>& SimStorage::Contents(const std::string& path) const {
  const std::lock_guard lock(mutex_);
  return names_.files.at(path)->bytes;
}

void SimStorage::SetContents(const std::string& path, std::vector<std::byte> bytes) {
  const std::lock_guard lock(mutex_);
  File& file = *names_.files.at(path);
  file.bytes = std::move(bytes);
  file.forced = file.bytes;
  file.dirty.clear();
  file.forgotten.clear();
}

void SimStorage::FlipBit(const std::string& path, uint64_t bit) {
  const std::lock_guard lock(mutex_);
  File& file = *names_.files.at(path);
  const auto flip = static_cast<std::byte>(1u << (bit % 8));
  FALCON_CHECK(bit / 8 < file.bytes.size());
  file.bytes[bit / 8] ^= flip;
  if (bit / 8 < file.forced.size()) file.forced[bit / 8] ^= flip;
}

void SimStorage::Delete(const std::string& path) {
  const std::lock_guard lock(mutex_);
  FALCON_CHECK(names_.files.erase(path) == 1);
  forced_names_.files.erase(path);
}

}  // namespace falcon
