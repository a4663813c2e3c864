// Guest memory: a sparse file that stays sparse, its trailer page, and who may be opened.
#include "pages/guest_memory.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "os/random.h"
#include "pages/digester.h"

namespace {

using falcon::Digest;
using falcon::GuestMemory;
using falcon::kPageBytes;
using falcon::PageSet;
using falcon::Status;

// A file name of this test's own, gone afterwards.
class TestFile {
 public:
  TestFile() {
    char name[] = "/dev/shm/falcon-ram-XXXXXX";
    CHECK(mkdtemp(name) != nullptr);
    directory_ = name;
    path_ = directory_ + "/ram";
  }
  ~TestFile() {
    unlink(path_.c_str());
    rmdir(directory_.c_str());
  }
  TestFile(const TestFile&) = delete;
  TestFile& operator=(const TestFile&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] uint64_t AllocatedBytes() const {
    struct stat file {};
    CHECK(stat(path_.c_str(), &file) == 0);
    return static_cast<uint64_t>(file.st_blocks) * 512;
  }
  [[nodiscard]] uint64_t Size() const {
    struct stat file {};
    CHECK(stat(path_.c_str(), &file) == 0);
    return static_cast<uint64_t>(file.st_size);
  }

 private:
  std::string directory_;
  std::string path_;
};

bool Is(const Status& status, const char* code) { return std::string(status.code()) == code; }

TEST(a_guest_that_used_little_takes_little) {
  const TestFile file;
  constexpr uint64_t kRam = 2ull << 30;
  GuestMemory memory;
  REQUIRE(GuestMemory::Create(file.path(), kRam, &memory).ok());
  CHECK(memory.pages() == kRam / kPageBytes && file.Size() == kRam + kPageBytes);
  CHECK(file.AllocatedBytes() == 0);
  PageSet resident;
  CHECK(memory.ResidentPages(&resident).ok() && resident.Empty());
  CHECK(resident.pages() == memory.pages());
  // The first and the last page, neighbours, one that stays zero; and the trailer.
  PageSet touched(memory.pages());
  for (const size_t page :
       {size_t{0}, size_t{777}, size_t{778}, size_t{300000}, memory.pages() - 1}) {
    touched.Set(page);
    memory.ram()[page * kPageBytes + 99] = std::byte{1};
  }
  memory.ram()[300000 * kPageBytes + 99] = std::byte{0};
  memory.trailer()[0] = std::byte{9};
  CHECK(file.AllocatedBytes() == 6 * kPageBytes);
  CHECK(memory.ResidentPages(&resident).ok() && resident == touched);
  memory.DropZeroPages(&resident);
  touched.Clear(300000);
  CHECK(resident == touched);
  // Digesting all of it does not look at a hole.
  std::unique_ptr<falcon::Digester> digester;
  REQUIRE(falcon::Digester::Make({}, &digester).ok());
  std::vector<Digest> digests(memory.pages());
  falcon::DigestJob job;
  job.memory = memory.ram();
  job.pages = PageSet(memory.pages());
  job.pages.SetAll();
  job.resident = &resident;
  job.key = falcon::MakeDigestKey();
  job.digests = digests;
  digester->Start(std::move(job));
  while (!digester->Finished()) usleep(100);
  for (size_t page = 0; page < digests.size(); ++page)
    CHECK((digests[page] == Digest{}) == !resident.Test(page));
  CHECK(file.AllocatedBytes() == 6 * kPageBytes);
}

TEST(what_was_written_is_found_again) {
  const TestFile file;
  falcon::Random random(5);
  GuestMemory memory;
  REQUIRE(GuestMemory::Create(file.path(), 64 << 20, &memory).ok());
  PageSet written(memory.pages());
  for (int i = 0; i < 3000; ++i) {
    const size_t page = random.Below(memory.pages());
    written.Set(page);
    memory.ram()[page * kPageBytes + random.Below(kPageBytes)] = std::byte{1};
  }
  PageSet resident;
  CHECK(memory.ResidentPages(&resident).ok() && resident == written);
  memory.DropZeroPages(&resident);
  CHECK(resident == written);
  GuestMemory again;
  REQUIRE(GuestMemory::Open(file.path(), 64 << 20, &again).ok());
  CHECK(std::memcmp(again.all().data(), memory.all().data(), memory.all().size()) == 0);
  again.trailer()[5] = std::byte{7};
  CHECK(memory.trailer()[5] == std::byte{7});
}

TEST(a_closed_memory_answers) {
  const TestFile file;
  GuestMemory memory;
  PageSet resident;
  CHECK(!memory.ok() && Is(memory.ResidentPages(&resident), "GUEST_MEMORY"));
  REQUIRE(GuestMemory::Create(file.path(), 1 << 20, &memory).ok());
  GuestMemory moved = std::move(memory);
  CHECK(moved.ok() && !memory.ok());
  CHECK(Is(memory.ResidentPages(&resident), "GUEST_MEMORY"));
  CHECK(moved.ResidentPages(&resident).ok());
  moved.Close();
  moved.Close();
  CHECK(!moved.ok() && Is(moved.ResidentPages(&resident), "GUEST_MEMORY"));
  CHECK(GuestMemory::Open(file.path(), 1 << 20, &moved).ok() && moved.ok());
}

TEST(a_file_of_another_makes_room_for_the_trailer) {
  const TestFile file;
  CHECK(close(open(file.path().c_str(), O_RDWR | O_CREAT | O_EXCL, 0600)) == 0);
  CHECK(truncate(file.path().c_str(), 1 << 20) == 0);
  GuestMemory memory;
  CHECK(GuestMemory::Open(file.path(), 1 << 20, &memory).ok());
  CHECK(file.Size() == (1 << 20) + kPageBytes);
  memory.trailer()[kPageBytes - 1] = std::byte{1};
  PageSet resident;
  CHECK(memory.ResidentPages(&resident).ok() && resident.Empty());
}

TEST(wrong_files_are_refused_and_left) {
  const TestFile file;
  GuestMemory memory;
  const auto opens = [&](uint64_t bytes) {
    const Status status = GuestMemory::Open(file.path(), bytes, &memory);
    CHECK(status.ok() || Is(status, "GUEST_MEMORY"));
    return status.ok();
  };
  CHECK(!opens(1 << 20));  // there is none
  for (const uint64_t bytes : {uint64_t{0}, uint64_t{4097}, ~uint64_t{0}, uint64_t{1} << 63}) {
    CHECK(Is(GuestMemory::Create(file.path(), bytes, &memory), "GUEST_MEMORY"));
    CHECK(access(file.path().c_str(), F_OK) != 0);
  }
  CHECK(GuestMemory::Create(file.path(), 1 << 20, &memory).ok());
  CHECK(Is(GuestMemory::Create(file.path(), 1 << 20, &memory), "GUEST_MEMORY"));
  CHECK(memory.ok());  // what was there is what it was
  CHECK(!opens(1 << 21) && !opens((1 << 20) - 4096) && !opens(0));
  CHECK(chmod(file.path().c_str(), 0644) == 0 && !opens(1 << 20));
  CHECK(chmod(file.path().c_str(), 0600) == 0 && opens(1 << 20));
  CHECK(unlink(file.path().c_str()) == 0 && symlink("/dev/zero", file.path().c_str()) == 0);
  CHECK(!opens(1 << 20));
  CHECK(unlink(file.path().c_str()) == 0 && mkfifo(file.path().c_str(), 0600) == 0);
  CHECK(!opens(1 << 20));
}

// A terabyte of holes fits into a file, not into the memory of a machine that runs tests.
TEST(room_for_the_holes_is_looked_for) {
  const TestFile small_file, large_file;
  GuestMemory small, large;
  REQUIRE(GuestMemory::Create(small_file.path(), 64 * kPageBytes, &small).ok());
  CHECK(small.HasRoom().ok());
  REQUIRE(GuestMemory::Create(large_file.path(), uint64_t{1} << 40, &large).ok());
  CHECK(Is(large.HasRoom(), "GUEST_MEMORY"));
}

// A guest's file has all of its room from the start, and nobody takes that for pages.
TEST(reserved_room_is_no_data) {
  const TestFile test_file;
  GuestMemory memory;
  REQUIRE(GuestMemory::Create(test_file.path(), 512 * kPageBytes, &memory).ok());
  const int fd = open(test_file.path().c_str(), O_RDWR | O_CLOEXEC);
  const auto blocks = [&] {
    struct stat file {};
    return fstat(fd, &file) == 0 ? file.st_blocks : -1;
  };
  CHECK(posix_fallocate(fd, 0, static_cast<off_t>(memory.all().size())) == 0);
  const auto reserved = blocks();
  CHECK(reserved * 512 >= static_cast<off_t>(memory.all().size()));
  PageSet resident;
  CHECK(memory.ResidentPages(&resident).ok() && resident.Empty());
  memory.ram()[77 * kPageBytes] = std::byte{1};
  CHECK(memory.ResidentPages(&resident).ok() && resident.Count() == 1 && resident.Test(77));
  CHECK(blocks() == reserved);  // it was there already
  close(fd);
}

TEST(holes_are_filled_where_it_was_asked) {
  const TestFile file;
  GuestMemory memory;
  REQUIRE(GuestMemory::Create(file.path(), 1024 * kPageBytes, &memory).ok());
  memory.ram()[78 * kPageBytes] = std::byte{1};
  PageSet wanted(1024);
  for (const falcon::PageRun run : {falcon::PageRun{0, 3}, {77, 2}, {300, 100}, {511, 1}})
    wanted.SetRun(run);
  memory.FillHoles(wanted, [] { return true; });
  PageSet resident;
  CHECK(memory.ResidentPages(&resident).ok() && resident == wanted);
  memory.DropZeroPages(&resident);
  CHECK(resident.Count() == 1 && memory.ram()[78 * kPageBytes] == std::byte{1});
  // Nobody waits for the end of what is not wanted any more.
  PageSet many(1024);
  many.SetRun({600, 300});
  memory.FillHoles(many, [] { return false; });
  CHECK(memory.ResidentPages(&resident).ok() && resident.Test(600) && !resident.Test(899));
}

TEST(a_zero_page_is_told_from_any_other) {
  std::vector<std::byte> page(kPageBytes);
  CHECK(falcon::IsZeroPage(page.data()));
  for (size_t bit = 0; bit < kPageBytes * 8; ++bit) {
    page[bit / 8] = static_cast<std::byte>(1 << bit % 8);
    CHECK(!falcon::IsZeroPage(page.data()));
    page[bit / 8] = std::byte{0};
  }
}

}  // namespace

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
