#include "plane/transfer_parts.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "os/crc32c.h"
#include "os/unique_fd.h"
#include "plane/refinement.h"

namespace falcon {

RoundMark MakeRoundMark(uint64_t session, uint32_t round) {
  RoundMark mark{session, round, 0};
  mark.checksum = Crc32c(std::as_bytes(std::span(&mark, 1)).first(offsetof(RoundMark, checksum)));
  return mark;
}

size_t SourceInboxBytes(size_t pages) {
  return std::max(PageSet::SavedBytes(pages) + pages * sizeof(Digest),
                  PageSet::SavedBytes(pages) + std::min(pages, kRefinedMax) * sizeof(BlockDigests));
}

size_t TargetInboxBytes(size_t pages) {
  static_assert(kCopiesMax * sizeof(PageCopy) < kStateBytesMax / 2);
  return std::max(sizeof(PagesRecord) + PageSet::SavedBytes(pages), kStateBytesMax);
}

void AppendSet(std::vector<std::byte>* to, const PageSet& set) {
  const size_t at = to->size();
  to->resize(at + set.SavedBytes());
  set.Save(std::span(*to).subspan(at));
}

void TransferBases::Begin(PeerId peer, size_t pages) {
  changed_[peer] = std::make_unique<PageSet>(pages);
}

void TransferBases::Forget(PeerId peer) { changed_[peer].reset(); }

void TransferBases::ForgetAll() {
  for (auto& changed : changed_) changed.reset();
}

void TransferBases::Changed(const PageSet& pages) {
  for (auto& changed : changed_) {
    if (changed != nullptr && changed->pages() == pages.pages()) changed->Unite(pages);
  }
}

const PageSet* TransferBases::Since(PeerId peer) const { return changed_[peer].get(); }

Status ReadFile(const std::string& path, size_t most, std::vector<std::byte>* into) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return {"SYNC_MEMORY", ErrnoText("open " + path, errno)};
  struct stat status {};
  if (fstat(fd.get(), &status) != 0) return {"SYNC_MEMORY", ErrnoText("stat " + path, errno)};
  // Room for what is there, and no more: the guest stands still meanwhile.
  if (status.st_size < 0 || static_cast<uint64_t>(status.st_size) > most)
    return {"SYNC_MEMORY", path + " is too long"};
  into->resize(static_cast<size_t>(status.st_size));
  for (size_t got = 0; got < into->size();) {
    const ssize_t n = read(fd.get(), into->data() + got, into->size() - got);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return {"SYNC_MEMORY", ErrnoText("read " + path, n < 0 ? errno : EIO)};
    got += static_cast<size_t>(n);
  }
  return Ok();
}

Status WriteFile(const std::string& path, std::span<const std::byte> bytes) {
  const UniqueFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd.valid()) return {"SYNC_MEMORY", ErrnoText("open " + path, errno)};
  while (!bytes.empty()) {
    const ssize_t n = write(fd.get(), bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return {"SYNC_MEMORY", ErrnoText("write " + path, errno)};
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return Ok();
}

}  // namespace falcon
