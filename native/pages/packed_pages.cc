#include "pages/packed_pages.h"

#include <lz4.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "os/check.h"

namespace falcon {
namespace {

// Pages that are compressed together. Each chunk has its length before it; one that did not become
// shorter is there as it is.
constexpr size_t kChunkPages = 16;
constexpr size_t kChunkBytes = kChunkPages * kPageBytes;
using ChunkLength = uint32_t;

}  // namespace

PagePacker::PagePacker(PageSet pages) : pages_(std::move(pages)), packed_(pages_.SavedBytes()) {
  pages_.Save(packed_);
  chunk_.reserve(kChunkBytes);
}

bool PagePacker::Step(std::span<const std::byte> ram, size_t most) {
  FALCON_CHECK(ram.size() / kPageBytes >= pages_.pages());
  for (next_ = pages_.Next(next_); next_ < pages_.pages() && most > 0;) {
    chunk_.clear();
    for (; next_ < pages_.pages() && chunk_.size() < kChunkBytes; next_ = pages_.Next(next_ + 1)) {
      const auto page = ram.subspan(next_ * kPageBytes, kPageBytes);
      chunk_.insert(chunk_.end(), page.begin(), page.end());
    }
    most -= std::min(most, chunk_.size() / kPageBytes);
    const size_t at = packed_.size() + sizeof(ChunkLength);
    const int bound = LZ4_compressBound(static_cast<int>(chunk_.size()));
    packed_.resize(at + static_cast<size_t>(bound));
    const int made = LZ4_compress_default(reinterpret_cast<const char*>(chunk_.data()),
                                          reinterpret_cast<char*>(&packed_[at]),
                                          static_cast<int>(chunk_.size()), bound);
    auto length = static_cast<ChunkLength>(std::max(made, 0));
    if (length == 0 || length >= chunk_.size()) {
      length = static_cast<ChunkLength>(chunk_.size());
      std::memcpy(&packed_[at], chunk_.data(), chunk_.size());
    }
    packed_.resize(at + length);
    std::memcpy(&packed_[at - sizeof length], &length, sizeof length);
  }
  return next_ >= pages_.pages();
}

Status PageUnpacker::Take(std::span<const std::byte> packed, const PageSet& expected) {
  pages_ = PageSet(expected.pages());
  at_ = pages_.SavedBytes();
  next_ = 0;
  if (packed.size() < at_) return {"PAGE_SET", "packed pages are cut"};
  if (Status s = pages_.Load(packed.first(at_)); !s.ok()) return s;
  PageSet unexpected = pages_;
  unexpected.Subtract(expected);
  if (!unexpected.Empty()) return {"PAGE_SET", "packed pages are not those that were expected"};
  packed_.assign(packed.begin(), packed.end());
  return Ok();
}

Status PageUnpacker::Step(std::span<std::byte> ram, size_t most, bool* done) {
  FALCON_CHECK(ram.size() / kPageBytes >= pages_.pages());
  const Status broken{"PAGE_SET", "a chunk of packed pages is broken"};
  *done = false;
  for (next_ = pages_.Next(next_); next_ < pages_.pages() && most > 0;) {
    size_t count = 0;
    for (size_t page = next_; page < pages_.pages() && count < kChunkPages;
         page = pages_.Next(page + 1))
      ++count;
    const size_t bytes = count * kPageBytes;
    ChunkLength length = 0;
    if (packed_.size() - at_ < sizeof length) return broken;
    std::memcpy(&length, &packed_[at_], sizeof length);
    at_ += sizeof length;
    if (length > packed_.size() - at_ || length > bytes) return broken;
    const std::byte* from = packed_.data() + at_;
    at_ += length;
    if (length < bytes) {
      chunk_.resize(kChunkBytes);
      const int made = LZ4_decompress_safe(reinterpret_cast<const char*>(from),
                                           reinterpret_cast<char*>(chunk_.data()),
                                           static_cast<int>(length), static_cast<int>(bytes));
      if (made < 0 || static_cast<size_t>(made) != bytes) return broken;
      from = chunk_.data();
    }
    most -= std::min(most, bytes / kPageBytes);
    for (; count > 0; --count, from += kPageBytes) {
      std::memcpy(ram.data() + next_ * kPageBytes, from, kPageBytes);
      next_ = pages_.Next(next_ + 1);
    }
  }
  if (next_ < pages_.pages()) return Ok();
  if (at_ != packed_.size()) return broken;
  *done = true;
  packed_.clear();
  return Ok();
}

}  // namespace falcon
