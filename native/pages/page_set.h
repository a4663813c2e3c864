// Sets of guest pages: one bit a page, in 64-bit words, the lowest page in the lowest bit. As bytes
// a set is its words in little-endian order, which is also how QEMU writes its dirty log.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "os/status.h"

namespace falcon {

inline constexpr size_t kPageBytes = 4096;
inline constexpr size_t kMaxPages = size_t{1} << 34;  // 64 TiB of guest

// Neighbouring pages; count 0: none.
struct PageRun {
  size_t first = 0;
  size_t count = 0;
};

class PageSet {
 public:
  PageSet() = default;
  // The empty set of a guest with so many pages.
  explicit PageSet(size_t pages);

  [[nodiscard]] size_t pages() const { return pages_; }  // of the guest
  [[nodiscard]] size_t Count() const;
  [[nodiscard]] bool Empty() const;
  [[nodiscard]] bool Test(size_t page) const;

  // Pages beyond the guest, and sets of guests of another size, are broken invariants.
  void Set(size_t page) { SetRun({page, 1}); }
  void Clear(size_t page);
  void SetRun(PageRun run);
  void SetAll() { SetRun({0, pages_}); }
  void Unite(const PageSet& other);
  void Subtract(const PageSet& other);
  void Intersect(const PageSet& other);

  // The first page of the set at or behind `from`; pages() if there is none.
  [[nodiscard]] size_t Next(size_t from) const;
  // The first run of members at or behind `from`, cut at `most` pages (at least 1).
  [[nodiscard]] PageRun NextRun(size_t from, size_t most) const;
  // The first `count` members, or all.
  [[nodiscard]] PageSet FirstMembers(size_t count) const;

  [[nodiscard]] std::span<const uint64_t> words() const { return words_; }
  // How many bytes a set of a guest of this size is.
  [[nodiscard]] static size_t SavedBytes(size_t pages) { return (pages + 63) / 64 * 8; }
  [[nodiscard]] size_t SavedBytes() const { return SavedBytes(pages_); }
  // `into` has exactly SavedBytes().
  void Save(std::span<std::byte> into) const;
  // Takes bytes that anybody may have made up: exactly SavedBytes(), with no page beyond the guest.
  // Errors: PAGE_SET; the set is what it was.
  Status Load(std::span<const std::byte> bytes);
  // The same from a file. Errors: PAGE_SET.
  Status LoadFile(const std::string& path);

  bool operator==(const PageSet&) const = default;

 private:
  size_t pages_ = 0;
  std::vector<uint64_t> words_;
};

}  // namespace falcon
