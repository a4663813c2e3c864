// Sets of pages, against std::set and by their edges.
#include "pages/page_set.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "check.h"
#include "os/random.h"

namespace {

using falcon::PageRun;
using falcon::PageSet;
using falcon::Random;
using Model = std::set<size_t>;

PageSet FromModel(size_t pages, const Model& model) {
  PageSet set(pages);
  for (const size_t page : model) set.Set(page);
  return set;
}

Model ToModel(const PageSet& set) {
  Model model;
  for (size_t page = set.Next(0); page < set.pages(); page = set.Next(page + 1)) model.insert(page);
  return model;
}

// Runs and single pages, so that there are full words, empty words and ragged ones.
Model Draw(Random* random, size_t pages) {
  Model model;
  const size_t strokes = random->Below(12);
  for (size_t i = 0; i < strokes; ++i) {
    const size_t first = random->Below(pages);
    const size_t length = random->Chance(1, 2) ? 1 : random->Below(200);
    for (size_t page = first; page < std::min(pages, first + length); ++page) model.insert(page);
  }
  return model;
}

bool SameRuns(const PageSet& set, const Model& model, size_t most) {
  auto expected = model.begin();
  for (PageRun run = set.NextRun(0, most); run.count > 0;
       run = set.NextRun(run.first + run.count, most)) {
    if (run.count > most) return false;
    for (size_t page = run.first; page < run.first + run.count; ++page, ++expected) {
      if (expected == model.end() || *expected != page) return false;
    }
    // It was cut by the bound, by the end, or by a page that is no member.
    const size_t after = run.first + run.count;
    if (run.count < most && after < set.pages() && set.Test(after)) return false;
  }
  return expected == model.end();
}

TEST(a_set_is_a_set) {
  Random random(7);
  for (int round = 0; round < 1500; ++round) {
    const size_t pages = 1 + random.Below(round % 3 == 0 ? 1000 : 200);
    Model a = Draw(&random, pages);
    const Model b = Draw(&random, pages);
    PageSet set = FromModel(pages, a);
    const PageSet other = FromModel(pages, b);
    Model expected;
    switch (round % 5) {
      case 0:
        set.Unite(other);
        std::set_union(a.begin(), a.end(), b.begin(), b.end(),
                       std::inserter(expected, expected.end()));
        break;
      case 1:
        set.Subtract(other);
        std::set_difference(a.begin(), a.end(), b.begin(), b.end(),
                            std::inserter(expected, expected.end()));
        break;
      case 2:
        set.Intersect(other);
        std::set_intersection(a.begin(), a.end(), b.begin(), b.end(),
                              std::inserter(expected, expected.end()));
        break;
      case 3: {
        const PageRun run = {random.Below(pages), 0};
        const size_t count = random.Below(pages - run.first + 1);
        set.SetRun({run.first, count});
        expected = a;
        for (size_t page = run.first; page < run.first + count; ++page) expected.insert(page);
        break;
      }
      default:
        expected = a;
        for (const size_t page : b) {
          set.Clear(page);
          expected.erase(page);
        }
    }
    CHECK(ToModel(set) == expected);
    CHECK(set.Count() == expected.size() && set.Empty() == expected.empty());
    for (size_t page = 0; page < pages; ++page)
      CHECK(set.Test(page) == (expected.count(page) == 1));
    const size_t from = random.Below(pages + 2);
    const auto next = expected.lower_bound(from);
    CHECK(set.Next(from) == (next == expected.end() ? pages : *next));
    CHECK(SameRuns(set, expected, 1 + random.Below(100)));
    CHECK(SameRuns(set, expected, pages));
    const size_t count = random.Below(expected.size() + 3);
    Model first;
    for (auto at = expected.begin(); at != expected.end() && first.size() < count; ++at)
      first.insert(*at);
    CHECK(ToModel(set.FirstMembers(count)) == first);
    std::vector<std::byte> bytes(set.SavedBytes());
    set.Save(bytes);
    PageSet loaded(pages);
    loaded.SetAll();
    CHECK(loaded.Load(bytes).ok() && loaded == set);
    if (falcon::test::Failures() > 0) {
      std::printf("# round %d\n", round);
      return;
    }
  }
}

TEST(all_of_a_guest) {
  for (const size_t pages : {1u, 63u, 64u, 65u, 127u, 128u, 1000u}) {
    PageSet set(pages);
    CHECK(set.Empty() && set.Next(0) == pages && set.NextRun(0, 5).count == 0);
    set.SetAll();
    CHECK(set.Count() == pages);
    CHECK(set.NextRun(0, pages + 1).count == pages);
    CHECK(set.NextRun(pages - 1, 9).count == 1 && set.NextRun(pages, 9).count == 0);
  }
  PageSet none(0);
  CHECK(none.Empty() && none.Count() == 0 && none.Next(0) == 0 && none.SavedBytes() == 0);
  CHECK(none.Load({}).ok());
}

TEST(the_bytes_are_those_of_a_bitmap) {
  PageSet set(130);
  for (const size_t page : {0u, 9u, 63u, 64u, 129u}) set.Set(page);
  std::vector<std::byte> bytes(24);
  set.Save(bytes);
  for (size_t page = 0; page < 192; ++page) {
    const bool is = (std::to_integer<unsigned>(bytes[page / 8]) >> page % 8 & 1) != 0;
    CHECK(is == (page < 130 && set.Test(page)));
  }
}

TEST(bytes_that_do_not_fit_are_refused) {
  PageSet set(130);
  set.Set(77);
  const PageSet before = set;
  std::vector<std::byte> bytes(24);
  const auto refused = [&](std::span<const std::byte> what) {
    return std::string(set.Load(what).code()) == "PAGE_SET" && set == before;
  };
  for (size_t length = 0; length < 24; ++length) CHECK(refused(std::span(bytes).first(length)));
  CHECK(refused(std::vector<std::byte>(25)) && refused(std::vector<std::byte>(32)));
  for (size_t bit = 130; bit < 192; ++bit) {
    std::vector<std::byte> beyond(24);
    beyond[bit / 8] = static_cast<std::byte>(1 << bit % 8);
    CHECK(refused(beyond));
  }
}

TEST(a_file_is_loaded_whole_or_not_at_all) {
  char directory[] = "/tmp/falcon-pages-XXXXXX";
  REQUIRE(mkdtemp(directory) != nullptr);
  const std::string path = std::string(directory) + "/dirty";
  PageSet set(100000);
  Random random(3);
  for (int i = 0; i < 5000; ++i) set.Set(random.Below(set.pages()));
  std::vector<std::byte> bytes(set.SavedBytes());
  set.Save(bytes);
  const auto write_file = [&](size_t length) {
    const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    CHECK(write(fd, bytes.data(), length) == static_cast<ssize_t>(length));
    close(fd);
  };
  const auto refused = [](const std::string& name) {
    PageSet loaded(100000);
    return std::string(loaded.LoadFile(name).code()) == "PAGE_SET" && loaded.Empty();
  };
  CHECK(refused(path));
  write_file(bytes.size());
  PageSet loaded(set.pages());
  CHECK(loaded.LoadFile(path).ok() && loaded == set);
  write_file(bytes.size() - 8);
  CHECK(refused(path));
  bytes.resize(bytes.size() + 1);
  write_file(bytes.size());
  CHECK(refused(path) && refused(directory));
  CHECK(unlink(path.c_str()) == 0 && symlink("/dev/zero", path.c_str()) == 0);
  CHECK(refused(path));
  unlink(path.c_str());
  rmdir(directory);
}

}  // namespace

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
