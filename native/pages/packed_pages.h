// Pages of a set, compressed: what differs as a whole is mostly heap and tables of a kernel, a
// fifth of its size when packed (LZ4, in chunks of some pages).
//
// What is packed is copied first: the guest may write to it meanwhile, and then the page is dirty
// again. What is unpacked may be anything: nothing outside of the pages that are expected is
// written.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "os/status.h"
#include "pages/page_set.h"

namespace falcon {

class PagePacker {
 public:
  PagePacker() = default;
  explicit PagePacker(PageSet pages);
  // Works through up to about `most` pages. True when all are packed.
  bool Step(std::span<const std::byte> ram, size_t most);
  [[nodiscard]] std::vector<std::byte>& packed() { return packed_; }

 private:
  PageSet pages_;
  size_t next_ = 0;
  std::vector<std::byte> chunk_;
  std::vector<std::byte> packed_;
};

class PageUnpacker {
 public:
  // Takes what a packer made; copied. `expected`: only such pages may come. Errors: PAGE_SET.
  Status Take(std::span<const std::byte> packed, const PageSet& expected);
  // Writes up to about `most` pages; *done: all are there. Errors: PAGE_SET (and some pages may
  // have been written).
  Status Step(std::span<std::byte> ram, size_t most, bool* done);

 private:
  PageSet pages_;
  size_t next_ = 0;
  std::vector<std::byte> chunk_;
  std::vector<std::byte> packed_;
  size_t at_ = 0;
};

}  // namespace falcon
