#include "pages/page_set.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "os/check.h"
#include "os/unique_fd.h"

namespace falcon {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr size_t kWordBits = 64;

// Bits [from, to) of a word; from < to <= 64.
uint64_t Bits(size_t from, size_t to) { return ~uint64_t{0} >> (kWordBits - (to - from)) << from; }

}  // namespace

PageSet::PageSet(size_t pages) : pages_(pages), words_((pages + kWordBits - 1) / kWordBits) {
  FALCON_CHECK(pages <= kMaxPages);
}

size_t PageSet::Count() const {
  size_t count = 0;
  for (const uint64_t word : words_) count += static_cast<size_t>(std::popcount(word));
  return count;
}

bool PageSet::Empty() const {
  return std::all_of(words_.begin(), words_.end(), [](uint64_t word) { return word == 0; });
}

bool PageSet::Test(size_t page) const {
  FALCON_CHECK(page < pages_);
  return (words_[page / kWordBits] >> page % kWordBits & 1) != 0;
}

void PageSet::Clear(size_t page) {
  FALCON_CHECK(page < pages_);
  words_[page / kWordBits] &= ~(uint64_t{1} << page % kWordBits);
}

void PageSet::SetRun(PageRun run) {
  FALCON_CHECK(run.first <= pages_ && run.count <= pages_ - run.first);
  const size_t end = run.first + run.count;
  for (size_t page = run.first; page < end;) {
    const size_t from = page % kWordBits;
    const size_t to = std::min(kWordBits, from + (end - page));
    words_[page / kWordBits] |= Bits(from, to);
    page += to - from;
  }
}

void PageSet::Unite(const PageSet& other) {
  FALCON_CHECK(other.pages_ == pages_);
  for (size_t i = 0; i < words_.size(); ++i) words_[i] |= other.words_[i];
}

void PageSet::Subtract(const PageSet& other) {
  FALCON_CHECK(other.pages_ == pages_);
  for (size_t i = 0; i < words_.size(); ++i) words_[i] &= ~other.words_[i];
}

void PageSet::Intersect(const PageSet& other) {
  FALCON_CHECK(other.pages_ == pages_);
  for (size_t i = 0; i < words_.size(); ++i) words_[i] &= other.words_[i];
}

size_t PageSet::Next(size_t from) const {
  if (from >= pages_) return pages_;
  size_t index = from / kWordBits;
  uint64_t word = words_[index] & Bits(from % kWordBits, kWordBits);
  while (word == 0) {
    if (++index == words_.size()) return pages_;
    word = words_[index];
  }
  return index * kWordBits + static_cast<size_t>(std::countr_zero(word));
}

PageRun PageSet::NextRun(size_t from, size_t most) const {
  FALCON_CHECK(most > 0);
  const size_t first = Next(from);
  if (first == pages_) return {pages_, 0};
  const size_t limit = std::min(pages_ - first, most);
  size_t count = 0;
  while (count < limit) {
    const size_t page = first + count;
    const size_t at = page % kWordBits;
    // What is shifted in at the top is no page of this word.
    const auto ones = static_cast<size_t>(std::countr_one(words_[page / kWordBits] >> at));
    count += ones;
    if (at + ones < kWordBits) break;
  }
  return {first, std::min(count, limit)};
}

PageSet PageSet::FirstMembers(size_t count) const {
  PageSet first(pages_);
  for (size_t i = 0; i < words_.size() && count > 0; ++i) {
    uint64_t word = words_[i];
    const auto members = static_cast<size_t>(std::popcount(word));
    for (size_t surplus = members > count ? members - count : 0; surplus > 0; --surplus)
      word &= ~(uint64_t{1} << (kWordBits - 1 - static_cast<size_t>(std::countl_zero(word))));
    first.words_[i] = word;
    count -= std::min(count, members);
  }
  return first;
}

void PageSet::Save(std::span<std::byte> into) const {
  FALCON_CHECK(into.size() == SavedBytes());
  if (!into.empty()) std::memcpy(into.data(), words_.data(), into.size());
}

Status PageSet::Load(std::span<const std::byte> bytes) {
  if (bytes.size() != SavedBytes()) {
    return {"PAGE_SET", std::to_string(bytes.size()) + " bytes instead of " +
                            std::to_string(SavedBytes()) + " for " + std::to_string(pages_) +
                            " pages"};
  }
  if (bytes.empty()) return Ok();
  uint64_t last = 0;
  std::memcpy(&last, bytes.last(8).data(), 8);
  const size_t used = pages_ % kWordBits;
  if (used != 0 && last >> used != 0) return {"PAGE_SET", "a page beyond the end of the guest"};
  std::memcpy(words_.data(), bytes.data(), bytes.size());
  return Ok();
}

Status PageSet::LoadFile(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd.valid()) return {"PAGE_SET", ErrnoText("open " + path, errno)};
  struct stat file {};
  if (fstat(fd.get(), &file) != 0) return {"PAGE_SET", ErrnoText("stat " + path, errno)};
  if (!S_ISREG(file.st_mode) || static_cast<uint64_t>(file.st_size) != SavedBytes()) {
    return {"PAGE_SET", path + " is not a file of " + std::to_string(SavedBytes()) + " bytes"};
  }
  std::vector<std::byte> bytes(SavedBytes());
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t got = read(fd.get(), bytes.data() + at, bytes.size() - at);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return {"PAGE_SET", ErrnoText("read " + path, got < 0 ? errno : EIO)};
    at += static_cast<size_t>(got);
  }
  return Load(bytes);
}

}  // namespace falcon
