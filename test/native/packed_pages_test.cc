// Pages that are packed and unpacked are what they were, and nothing else is written.
#include "pages/packed_pages.h"

#include <cstring>
#include <vector>

#include "check.h"
#include "os/random.h"

namespace {

using falcon::kPageBytes;
using falcon::PagePacker;
using falcon::PageSet;
using falcon::PageUnpacker;
using falcon::Random;
using Bytes = std::vector<std::byte>;

constexpr size_t kPages = 200;

// Of pages that pack well, pages that do not, and empty ones.
Bytes Memory(Random* random) {
  Bytes memory(kPages * kPageBytes);
  for (size_t page = 0; page < kPages; ++page) {
    const uint64_t kinds = random->Below(3);
    for (size_t i = 0; i < kPageBytes && kinds > 0; ++i)
      memory[page * kPageBytes + i] =
          static_cast<std::byte>(kinds == 1 ? random->Below(256) : i / 100 + page);
  }
  return memory;
}

PageSet Draw(Random* random) {
  PageSet pages(kPages);
  for (size_t i = random->Below(kPages); i > 0; --i) pages.Set(random->Below(kPages));
  return pages;
}

Bytes Pack(const Bytes& memory, const PageSet& pages, size_t slice) {
  PagePacker packer(pages);
  while (!packer.Step(memory, slice)) {
  }
  return packer.packed();
}

// False: refused.
bool Unpack(const Bytes& packed, const PageSet& expected, Bytes* into, size_t slice) {
  PageUnpacker unpacker;
  if (!unpacker.Take(packed, expected).ok()) return false;
  for (bool done = false; !done;) {
    if (!unpacker.Step(*into, slice, &done).ok()) return false;
  }
  return true;
}

TEST(pages_are_what_they_were) {
  Random random(1);
  for (int round = 0; round < 200; ++round) {
    const Bytes memory = Memory(&random);
    const PageSet pages = Draw(&random);
    const Bytes packed = Pack(memory, pages, 1 + random.Below(64));
    CHECK(packed.size() <= pages.SavedBytes() + pages.Count() * (kPageBytes + 4));
    Bytes expected = Memory(&random);
    Bytes into = expected;
    for (size_t page = 0; page < kPages; ++page) {
      if (pages.Test(page))
        std::memcpy(&expected[page * kPageBytes], &memory[page * kPageBytes], kPageBytes);
    }
    CHECK(Unpack(packed, pages, &into, 1 + random.Below(64)));
    CHECK(into == expected);
  }
}

TEST(text_becomes_short) {
  Bytes memory(kPages * kPageBytes);
  for (size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<std::byte>(i / 256);
  PageSet pages(kPages);
  pages.SetAll();
  CHECK(Pack(memory, pages, kPages).size() < memory.size() / 20);
}

// Cut anywhere, changed anywhere, or of other pages than are expected: refused, or the pages that
// are expected hold something; the others never change.
TEST(what_is_broken_writes_nowhere_else) {
  Random random(2);
  const Bytes memory = Memory(&random);
  const PageSet pages = Draw(&random);
  const Bytes packed = Pack(memory, pages, 16);
  REQUIRE(!pages.Empty());
  Bytes into(kPages * kPageBytes);
  CHECK(!Unpack(packed, PageSet(kPages), &into, 16));
  for (size_t size = 0; size < packed.size(); size += 1 + random.Below(97)) {
    const Bytes cut(packed.begin(), packed.begin() + static_cast<ptrdiff_t>(size));
    CHECK(!Unpack(cut, pages, &into, 16));
  }
  Bytes longer = packed;
  longer.push_back(std::byte{0});
  CHECK(!Unpack(longer, pages, &into, 16));
  for (int round = 0; round < 2000; ++round) {
    Bytes broken = packed;
    for (size_t i = 1 + random.Below(4); i > 0; --i)
      broken[random.Below(broken.size())] = static_cast<std::byte>(random.Below(256));
    (void)Unpack(broken, pages, &into, 16);
  }
  for (size_t page = 0; page < kPages; ++page) {
    if (pages.Test(page)) continue;
    const Bytes zero(kPageBytes);
    CHECK(std::memcmp(&into[page * kPageBytes], zero.data(), kPageBytes) == 0);
  }
}

}  // namespace

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
