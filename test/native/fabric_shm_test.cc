// The shm fabric: the conformance suite with all members in this process, then what only several
// processes can show: a writer killed in the middle, files left behind, one owner per member.
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "child_process.h"
#include "fabric/grant.h"
#include "fabric/shm.h"
#include "fabric_conformance.h"
#include "os/clock.h"

namespace {

using falcon::Fabric;
using falcon::MakeShmFabric;
using falcon::PeerId;
using falcon::PeerState;
using falcon::Status;
using falcon::test::Child;
using falcon::test::Hear;
using falcon::test::Tell;
using falcon::test::conformance::Bytes;
using falcon::test::conformance::Holds;
using falcon::test::conformance::Is;
using falcon::test::conformance::IsZero;
using falcon::test::conformance::kLent;
using falcon::test::conformance::LentMemory;
using falcon::test::conformance::Pattern;
using falcon::test::conformance::SharedMappings;
using falcon::test::conformance::SoonIs;
using falcon::test::conformance::Span;
using falcon::test::conformance::Word;
using falcon::test::conformance::WordBytes;
using falcon::test::conformance::WriteOne;

constexpr falcon::Nanoseconds kPatience = 20 * falcon::kSecond;

// A directory of this test's own, removed with all that is in it.
class TestDirectory {
 public:
  TestDirectory() {
    static int number = 0;
    path_ = (access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    path_ += "/falcon-shm-test-" + std::to_string(getpid()) + "-" + std::to_string(++number);
    CHECK(mkdir(path_.c_str(), 0700) == 0);
  }
  ~TestDirectory() {
    for (const std::string& file : Files()) unlink((path_ + "/" + file).c_str());
    rmdir(path_.c_str());
  }
  TestDirectory(const TestDirectory&) = delete;
  TestDirectory& operator=(const TestDirectory&) = delete;

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::vector<std::string> Files() const {
    std::vector<std::string> files;
    DIR* listing = opendir(path_.c_str());
    if (listing == nullptr) return files;
    while (const dirent* entry = readdir(listing)) {
      if (entry->d_name[0] != '.') files.emplace_back(entry->d_name);
    }
    closedir(listing);
    return files;
  }

 private:
  std::string path_;
};

class ShmBed final : public falcon::test::FabricBed {
 public:
  [[nodiscard]] const char* name() const override { return "shm"; }
  void Start(PeerId member) override {
    fabrics_[member].reset();
    const falcon::ShmOptions options = {directory_.path(), "member" + std::to_string(member),
                                        member};
    CHECK(MakeShmFabric(options, &fabrics_[member]).ok());
    CHECK(fabrics_[member]->AddRegion(0, falcon::test::kRegion0Bytes).ok());
    CHECK(fabrics_[member]->AddRegion(1, falcon::test::kRegion1Bytes).ok());
  }
  [[nodiscard]] Fabric& at(PeerId member) override { return *fabrics_[member]; }
  void Close(PeerId member) override { fabrics_[member].reset(); }
  // A thread cannot die as a process does; the cases with child processes below do that.
  void Kill(PeerId member) override { Close(member); }
  void Drive() override {}
  bool Step() override { return false; }
  void KeepLate(PeerId /*from*/, PeerId /*to*/) override {}
  void DeliverLate(PeerId /*from*/, PeerId /*to*/) override {}
  [[nodiscard]] bool concurrent() const override { return true; }
  [[nodiscard]] size_t queue_bound() const override { return 0; }
  [[nodiscard]] size_t Leftovers() const override { return directory_.Files().size(); }
  [[nodiscard]] std::string LendingDirectory() const override { return directory_.path(); }

 private:
  TestDirectory directory_;
  std::array<std::unique_ptr<Fabric>, falcon::kMaxMembers> fabrics_;
};

std::unique_ptr<Fabric> MakeMember(const std::string& directory, PeerId self) {
  std::unique_ptr<Fabric> fabric;
  const Status status = MakeShmFabric({directory, "member" + std::to_string(self), self}, &fabric);
  if (status.ok() && fabric->AddRegion(0, 64 << 10).ok()) return fabric;
  std::printf("# %s %s\n", status.code(), status.detail().c_str());
  return nullptr;
}

constexpr size_t kBlockAt = 4096;
constexpr size_t kBlockBytes = 4096;
constexpr size_t kBeforeAt = 0;
constexpr size_t kAfterAt = 64;

// Writes i before, a block of words all i, and i after, for i = 1, 2, ... for ever.
int WriteBlocksForEver(const std::string& directory, PeerId self, int from_parent, int to_parent) {
  const std::unique_ptr<Fabric> fabric = MakeMember(directory, self);
  if (fabric == nullptr || !Tell(to_parent, fabric->Descriptor())) return 1;
  if (!fabric->Connect(0, 1, Hear(from_parent)).ok()) return 2;
  std::vector<uint64_t> block(kBlockBytes / 8);
  const uint64_t area = self * 16384u;
  for (uint64_t i = 1;; ++i) {
    std::fill(block.begin(), block.end(), i);
    const Span pieces[] = {std::as_bytes(std::span(block))};
    if (!WriteOne(*fabric, 0, {0, area + kBeforeAt}, WordBytes(i)).ok()) return 3;
    if (!fabric->Write(0, {0, area + kBlockAt}, pieces).ok()) return 3;
    if (!WriteOne(*fabric, 0, {0, area + kAfterAt}, WordBytes(i)).ok()) return 3;
    fabric->Ring(0);
  }
}

// Everything that a look at a writer's area must show at any moment.
bool BlockIsInOrder(Fabric& reader, PeerId writer) {
  const size_t area = writer * size_t{16384};
  const uint64_t after = Word(reader, 0, area + kAfterAt);
  falcon::AcquireFence();
  const uint64_t last = Word(reader, 0, area + kBlockAt + kBlockBytes - 8);
  falcon::AcquireFence();
  const uint64_t first = Word(reader, 0, area + kBlockAt);
  falcon::AcquireFence();
  const uint64_t before = Word(reader, 0, area + kBeforeAt);
  return after <= last && after <= first && last <= before && first <= before;
}

TEST(writers_in_other_processes_are_killed_in_the_middle) {
  const TestDirectory directory;
  const std::unique_ptr<Fabric> fabric = MakeMember(directory.path(), 0);
  REQUIRE(fabric != nullptr);
  for (int round = 0; round < 12; ++round) {
    std::vector<std::unique_ptr<Child>> children;
    for (const int self : {1, 2}) {
      const auto id = static_cast<PeerId>(self);
      std::fill_n(fabric->region(0).begin() + id * 16384, 16384, std::byte{0});
      children.push_back(std::make_unique<Child>(
          [&](int from, int to) { return WriteBlocksForEver(directory.path(), id, from, to); }));
      const std::string descriptor = Hear(children.back()->from());
      REQUIRE(fabric->Connect(id, static_cast<uint64_t>(round), descriptor).ok());
      REQUIRE(Tell(children.back()->to(), fabric->Descriptor()));
    }
    const falcon::Nanoseconds give_up = falcon::MonotonicNow() + kPatience;
    const uint64_t enough = 1000 + 37 * static_cast<uint64_t>(round);
    while (Word(*fabric, 0, 16384 + kAfterAt) < enough ||
           Word(*fabric, 0, 32768 + kAfterAt) < enough) {
      CHECK(BlockIsInOrder(*fabric, 1) && BlockIsInOrder(*fabric, 2));
      REQUIRE(falcon::MonotonicNow() < give_up);
    }
    for (auto& child : children) child->Kill();
    // What stands is a front of new words and a rest of words exactly one older.
    for (const size_t area : {16384u, 32768u}) {
      const uint64_t first = Word(*fabric, 0, area + kBlockAt);
      bool old = false;
      for (size_t at = 0; at < kBlockBytes; at += 8) {
        const uint64_t word = Word(*fabric, 0, area + kBlockAt + at);
        old = old || word == first - 1;
        CHECK(word == (old ? first - 1 : first));
      }
    }
    // The dead are still mapped: writing to them is harmless.
    const uint64_t word = 5;
    CHECK(WriteOne(*fabric, 1, {0, 0}, WordBytes(word)).ok());
    fabric->Ring(1);
    CHECK(fabric->State(1) == PeerState::kUp);
  }
  CHECK(directory.Files().size() == 4 + 2 * 4);  // the dead left theirs, of the last round only
  CHECK(MakeMember(directory.path(), 1) != nullptr);
  CHECK(MakeMember(directory.path(), 2) != nullptr);
  CHECK(directory.Files().size() == 4);
}

// Writes blocks of words all i, for i = 1, 2, ..., into lent memory until it is concealed.
int WriteLentBlocks(const std::string& directory, int from_parent, int to_parent) {
  const std::unique_ptr<Fabric> fabric = MakeMember(directory, 1);
  if (fabric == nullptr || !Tell(to_parent, fabric->Descriptor())) return 1;
  if (!fabric->Connect(0, 1, Hear(from_parent)).ok() || !Tell(to_parent, "connected")) return 2;
  if (!fabric->Attach(0, kLent, Hear(from_parent)).ok()) return 3;
  std::vector<uint64_t> block(kBlockBytes / 8);
  for (uint64_t i = 1;; ++i) {
    std::fill(block.begin(), block.end(), i);
    const Status status = WriteOne(*fabric, 0, {kLent, 0}, std::as_bytes(std::span(block)));
    if (!status.ok()) return Is(status, "FABRIC_DOWN") ? 0 : 4;
  }
}

TEST(a_writer_in_another_process_finishes_one_write_at_most) {
  for (int round = 0; round < 20; ++round) {
    ShmBed bed;
    bed.Start(0);
    const LentMemory memory(bed);
    Child child(
        [&](int from, int to) { return WriteLentBlocks(bed.LendingDirectory(), from, to); });
    REQUIRE(bed.at(0).Connect(1, 1, Hear(child.from())).ok());
    REQUIRE(Tell(child.to(), bed.at(0).Descriptor()) && Hear(child.from()) == "connected");
    std::string grant;
    REQUIRE(bed.at(0).Expose(kLent, 1, memory.exposed(), &grant).ok() && Tell(child.to(), grant));
    const falcon::Nanoseconds give_up = falcon::MonotonicNow() + kPatience;
    const auto word = [&memory](size_t at) {
      return falcon::LoadSharedWord(memory.bytes().data() + at);
    };
    const uint64_t enough = 100 + 31 * static_cast<uint64_t>(round);
    while (word(0) < enough) REQUIRE(falcon::MonotonicNow() < give_up);
    const bool stopped = round % 2 == 0;
    if (stopped) kill(child.pid(), SIGSTOP);
    usleep(stopped ? 2000 : 0);
    bed.at(0).Conceal(kLent);
    const uint64_t seen = word(0);
    if (stopped) {
      const Bytes still = memory.Copy();
      usleep(2000);
      CHECK(memory.Copy() == still);
      kill(child.pid(), SIGCONT);
    }
    CHECK(child.Wait() == 0);
    CHECK(word(kBlockBytes - 8) <= seen + 1 && word(0) == word(kBlockBytes - 8));
    CHECK(IsZero(memory.bytes().subspan(kBlockBytes)));
  }
}

TEST(only_private_files_of_the_directory_are_lent) {
  ShmBed bed;
  bed.StartAll(2);
  const TestDirectory elsewhere;
  const LentMemory memory(bed);
  const std::string path = memory.exposed().path;
  const std::string inside = bed.LendingDirectory() + "/";
  const std::string outside = elsewhere.path() + "/ram";
  std::string grant;
  const auto refused = [&](const std::string& name) {
    return Is(bed.at(1).Expose(kLent, 0, {memory.bytes(), name}, &grant), "FABRIC_REGION");
  };
  CHECK(close(open(outside.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)) == 0);
  CHECK(truncate(outside.c_str(), falcon::test::conformance::kLentBytes) == 0);
  CHECK(symlink(outside.c_str(), (inside + "link").c_str()) == 0);
  CHECK(mkfifo((inside + "fifo").c_str(), 0600) == 0);
  CHECK(refused("") && refused(outside) && refused(inside) && refused(inside + "missing"));
  CHECK(refused(inside + "../" + outside.substr(outside.rfind('/', outside.size() - 5) + 1)));
  CHECK(refused(inside + "link") && refused(inside + "fifo") && refused(inside + "."));
  CHECK(chmod(path.c_str(), 0644) == 0 && refused(path));
  CHECK(chmod(path.c_str(), 0600) == 0 && truncate(path.c_str(), 4096) == 0 && refused(path));
  CHECK(truncate(path.c_str(), falcon::test::conformance::kLentBytes) == 0);
  // The writer looks for itself.
  REQUIRE(bed.at(1).Expose(kLent, 0, memory.exposed(), &grant).ok());
  const auto no_way_in = [&] { return Is(bed.at(0).Attach(1, kLent, grant), "FABRIC_GRANT"); };
  CHECK(truncate(path.c_str(), 4096) == 0 && no_way_in());
  CHECK(chmod(path.c_str(), 0666) == 0 && no_way_in());
  CHECK(unlink(path.c_str()) == 0 && no_way_in());
  CHECK(symlink(outside.c_str(), path.c_str()) == 0 && no_way_in());
  falcon::Grant made;
  REQUIRE(falcon::ParseGrant(grant, {"shm", 1, 0, kLent, 1}, &made).ok());
  for (const char* name : {"..", ".", "a/b", "/etc/passwd", "-", "", "a\nb"}) {
    made.file = name;
    CHECK(Is(bed.at(0).Attach(1, kLent, falcon::FormatGrant(made)), "FABRIC_GRANT"));
  }
}

TEST(a_sleeper_is_woken_from_another_process) {
  const TestDirectory directory;
  const std::unique_ptr<Fabric> fabric = MakeMember(directory.path(), 0);
  REQUIRE(fabric != nullptr);
  constexpr uint64_t kRounds = 1000;
  Child child([&](int from, int to) {
    const std::unique_ptr<Fabric> own = MakeMember(directory.path(), 1);
    if (own == nullptr || !Tell(to, own->Descriptor())) return 1;
    if (!own->Connect(0, 1, Hear(from)).ok()) return 2;
    for (uint64_t i = 1; i <= kRounds; ++i) {
      if (!falcon::test::conformance::AwaitWord(*own, 64, i, i % 32)) return 3;
      if (!WriteOne(*own, 0, {0, 64}, WordBytes(i)).ok()) return 4;
      own->Ring(0);
    }
    return 0;
  });
  REQUIRE(fabric->Connect(1, 1, Hear(child.from())).ok());
  REQUIRE(Tell(child.to(), fabric->Descriptor()));
  for (uint64_t i = 1; i <= kRounds; ++i) {
    CHECK(WriteOne(*fabric, 1, {0, 64}, WordBytes(i)).ok());
    fabric->Ring(1);
    REQUIRE(falcon::test::conformance::AwaitWord(*fabric, 64, i, i % 16));
  }
  CHECK(child.Wait() == 0);
  CHECK(fabric->counters().wakes_sent > 0);
  CHECK(directory.Files().size() == 4);  // the child closed in order
}

bool WakeReadable(const Fabric& fabric) {
  pollfd wait{fabric.wake_fd(), POLLIN, 0};
  return poll(&wait, 1, 0) == 1;
}

// Of this process's descriptors, those that are the bell in `directory`, which is `member`'s.
std::vector<int> BellDescriptors(const TestDirectory& directory, const std::string& member) {
  std::vector<int> found;
  for (int fd = 3; fd < 256; ++fd) {
    char target[4096];
    const ssize_t length =
        readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), target, sizeof target);
    if (length <= 0) continue;
    const std::string path(target, static_cast<size_t>(length));
    if (path.starts_with(directory.path() + "/" + member + ".") && path.ends_with(".bell"))
      found.push_back(fd);
  }
  return found;
}

// The child dies of the very system call with which it wants to ring.
int DieWhileRinging(const TestDirectory& directory, int from_parent, int to_parent) {
  const std::unique_ptr<Fabric> own = MakeMember(directory.path(), 1);
  if (own == nullptr || !Tell(to_parent, own->Descriptor())) return 1;
  if (!own->Connect(0, 1, Hear(from_parent)).ok()) return 2;
  int dead_end[2];
  if (pipe(dead_end) != 0) return 3;
  close(dead_end[0]);
  for (const int fd : BellDescriptors(directory, "member0")) dup2(dead_end[1], fd);
  const uint64_t word = 1;
  if (!WriteOne(*own, 0, {0, 0}, WordBytes(word)).ok()) return 4;
  own->Ring(0);
  return 5;
}

TEST(a_peer_that_dies_while_it_rings_silences_nobody_else) {
  const TestDirectory directory;
  const std::unique_ptr<Fabric> sleeper = MakeMember(directory.path(), 0);
  const std::unique_ptr<Fabric> other = MakeMember(directory.path(), 2);
  REQUIRE(sleeper != nullptr && other != nullptr);
  REQUIRE(other->Connect(0, 1, sleeper->Descriptor()).ok());
  sleeper->ArmWake();
  Child child([&](int from, int to) { return DieWhileRinging(directory, from, to); });
  REQUIRE(!Hear(child.from()).empty());
  REQUIRE(Tell(child.to(), sleeper->Descriptor()));
  CHECK(child.Wait() == -1);
  CHECK(Word(*sleeper, 0, 0) == 1 && !WakeReadable(*sleeper));
  const uint64_t word = 2;
  CHECK(WriteOne(*other, 0, {0, 8}, WordBytes(word)).ok());
  other->Ring(0);
  CHECK(WakeReadable(*sleeper));
  sleeper->DisarmWake();
  CHECK(!WakeReadable(*sleeper));
}

TEST(a_prepared_connection_maps_nothing_more) {
  ShmBed bed;
  bed.Start(0);
  bed.Start(1);
  const size_t before = SharedMappings();
  std::thread([&] { CHECK(bed.at(0).Prepare(1, bed.at(1).Descriptor()).ok()); }).join();
  const size_t prepared = SharedMappings();
  CHECK(prepared > before);
  CHECK(bed.at(0).Connect(1, 1, bed.at(1).Descriptor()).ok());
  CHECK(SharedMappings() == prepared);
  bed.at(0).Disconnect(1);
  CHECK(SoonIs(SharedMappings, before));
}

TEST(a_region_is_made_while_signals_come) {
  const TestDirectory directory;
  std::unique_ptr<Fabric> fabric;
  REQUIRE(MakeShmFabric({directory.path(), "a", 0}, &fabric).ok());
  struct sigaction ignore_but_interrupt {};
  struct sigaction before {};
  ignore_but_interrupt.sa_handler = [](int) {};
  ignore_but_interrupt.sa_flags = SA_RESTART;
  CHECK(sigaction(SIGALRM, &ignore_but_interrupt, &before) == 0);
  const itimerval often = {{0, 1000}, {0, 1000}};
  const itimerval never = {};
  CHECK(setitimer(ITIMER_REAL, &often, nullptr) == 0);
  const Status status = fabric->AddRegion(0, 128 << 20);
  CHECK(setitimer(ITIMER_REAL, &never, nullptr) == 0);
  CHECK(sigaction(SIGALRM, &before, nullptr) == 0);
  if (!status.ok()) std::printf("# %s\n", status.detail().c_str());
  CHECK(status.ok());
}

TEST(a_member_has_one_owner) {
  const TestDirectory directory;
  Child child([&](int from, int to) {
    const std::unique_ptr<Fabric> own = MakeMember(directory.path(), 3);
    if (own == nullptr || !Tell(to, own->Descriptor())) return 1;
    return Hear(from).empty() ? 0 : 2;
  });
  const std::string descriptor = Hear(child.from());
  REQUIRE(!descriptor.empty());
  std::unique_ptr<Fabric> fabric;
  CHECK(Is(MakeShmFabric({directory.path(), "member3", 3}, &fabric), "SHM_BUSY"));
  CHECK(fabric == nullptr && directory.Files().size() == 4);
  const std::unique_ptr<Fabric> reader = MakeMember(directory.path(), 0);
  REQUIRE(reader != nullptr);
  CHECK(reader->Connect(3, 1, descriptor).ok());
  child.Kill();
  CHECK(MakeShmFabric({directory.path(), "member3", 3}, &fabric).ok());
  CHECK(directory.Files().size() == 4 + 3);
  CHECK(Is(MakeShmFabric({directory.path(), "member3", 3}, &fabric),
           "SHM_BUSY"));  // in one process, too
  CHECK(Is(reader->Connect(3, 2, descriptor), "FABRIC_CONNECT"));
  fabric.reset();
  CHECK(directory.Files().size() == 4);
}

TEST(only_files_of_the_same_member_are_removed) {
  const TestDirectory directory;
  const std::vector<std::string> keep = {"a.page",
                                         "a.0123456789abcdef",
                                         "ab.0123456789abcdef.page",
                                         "a.0123456789abcde.page",
                                         "a.0123456789abcdeg.page",
                                         "b.lock"};
  const std::vector<std::string> gone = {"a.0123456789abcdef.page", "a.0123456789abcdef.region0",
                                         "a.ffffffffffffffff.bell"};
  for (const auto* names : {&keep, &gone}) {
    for (const std::string& file : *names)
      close(open((directory.path() + "/" + file).c_str(), O_CREAT | O_WRONLY, 0600));
  }
  std::unique_ptr<Fabric> fabric;
  CHECK(MakeShmFabric({directory.path(), "a", 0}, &fabric).ok());
  fabric.reset();
  std::vector<std::string> left = directory.Files();
  std::sort(left.begin(), left.end());
  std::vector<std::string> expected = keep;
  std::sort(expected.begin(), expected.end());
  CHECK(left == expected);
}

TEST(names_and_directories_are_checked) {
  const TestDirectory directory;
  std::unique_ptr<Fabric> fabric;
  for (const char* name : {"", "../a", "a/b", "a.b", "a b", "a\n", "\xc3\xa4"})
    CHECK(Is(MakeShmFabric({directory.path(), name, 0}, &fabric), "SHM_OPEN"));
  CHECK(Is(MakeShmFabric({directory.path(), std::string(65, 'a'), 0}, &fabric), "SHM_OPEN"));
  CHECK(Is(MakeShmFabric({"relative", "a", 0}, &fabric), "SHM_OPEN"));
  CHECK(Is(MakeShmFabric({"/no/such/parent", "a", 0}, &fabric), "SHM_OPEN"));
  CHECK(chmod(directory.path().c_str(), 0777) == 0);
  CHECK(Is(MakeShmFabric({directory.path(), "a", 0}, &fabric), "SHM_OPEN"));
  CHECK(chmod(directory.path().c_str(), 0700) == 0);
  CHECK(symlink(directory.path().c_str(), (directory.path() + "/link").c_str()) == 0);
  CHECK(Is(MakeShmFabric({directory.path() + "/link", "a", 0}, &fabric), "SHM_OPEN"));
}

std::string Replaced(std::string text, const std::string& what, const std::string& with) {
  const size_t at = text.find(what);
  CHECK(at != std::string::npos);
  return at == std::string::npos ? text : text.replace(at, what.size(), with);
}

TEST(descriptors_lead_nowhere_else) {
  const TestDirectory directory;
  const TestDirectory outside;
  const std::unique_ptr<Fabric> fabric = MakeMember(directory.path(), 0);
  const std::unique_ptr<Fabric> peer = MakeMember(directory.path(), 1);
  const std::unique_ptr<Fabric> stranger = MakeMember(outside.path(), 1);
  REQUIRE(fabric != nullptr && peer != nullptr && stranger != nullptr);
  const std::string good = peer->Descriptor();
  const auto refused = [&](const std::string& text) {
    return Is(fabric->Connect(1, 1, text), "FABRIC_CONNECT") &&
           fabric->State(1) == PeerState::kDown;
  };
  CHECK(refused(stranger->Descriptor()));
  CHECK(refused(Replaced(stranger->Descriptor(), outside.path(), directory.path())));
  CHECK(refused(Replaced(good, "member member1", "member ../x/member1")));
  CHECK(refused(Replaced(good, "region 65536", "region 65537")));
  CHECK(refused(Replaced(good, "region 65536", "region 18446744073709551615")));
  CHECK(refused(Replaced(good, "region 65536", "region 065536")));
  CHECK(refused(Replaced(good, "region 65536", "region -1")));
  CHECK(refused(Replaced(good, "self 1", "self 9")));
  CHECK(refused(Replaced(good, "self 1", "self 2")));
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    std::string flipped = good;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    CHECK(refused(flipped));
  }
  CHECK(fabric->Connect(1, 1, good).ok());
}

// Puts something else where a member's file was, and sees that nobody maps it.
TEST(files_are_checked_before_they_are_used) {
  const TestDirectory directory;
  const std::unique_ptr<Fabric> fabric = MakeMember(directory.path(), 0);
  REQUIRE(fabric != nullptr);
  for (const std::string ending : {"page", "region0", "bell"}) {
    for (int trick = 0; trick < 5; ++trick) {
      const std::unique_ptr<Fabric> peer = MakeMember(directory.path(), 1);
      REQUIRE(peer != nullptr);
      std::string path;
      for (const std::string& file : directory.Files()) {
        if (file.starts_with("member1.") && file.ends_with(ending))
          path = directory.path() + "/" + file;
      }
      REQUIRE(!path.empty());
      if (trick == 0) CHECK(unlink(path.c_str()) == 0);
      if (trick == 1) CHECK(chmod(path.c_str(), 0644) == 0);
      if (trick == 2 && ending != "bell") CHECK(truncate(path.c_str(), 8192 + 1) == 0);
      if (trick == 3 && ending != "bell") {  // the right size, but the header of nobody
        const int fd = open(path.c_str(), O_WRONLY);
        CHECK(pwrite(fd, "FLONSHM2", 8, 0) == 8);
        close(fd);
      }
      if (trick == 4) {
        CHECK(rename(path.c_str(), (path + "x").c_str()) == 0);
        CHECK(symlink((path + "x").c_str(), path.c_str()) == 0);
      }
      const bool untouched = ending == "bell" && (trick == 2 || trick == 3);
      CHECK(fabric->Connect(1, 1, peer->Descriptor()).ok() == untouched);
      unlink((path + "x").c_str());
    }
  }
}

TEST(no_space_is_an_error_not_a_signal) {
  const TestDirectory directory;
  std::unique_ptr<Fabric> fabric;
  REQUIRE(MakeShmFabric({directory.path(), "a", 0}, &fabric).ok());
  CHECK(Is(fabric->AddRegion(0, size_t{1} << 40), "FABRIC_REGION"));
  CHECK(directory.Files().size() == 3);
  CHECK(fabric->AddRegion(0, 4096).ok());
}

// Not a limit, a number to look at: the microsecond path begins here.
TEST(cost_of_a_small_write) {
  const TestDirectory directory;
  const std::unique_ptr<Fabric> a = MakeMember(directory.path(), 0);
  const std::unique_ptr<Fabric> b = MakeMember(directory.path(), 1);
  REQUIRE(a != nullptr && b != nullptr);
  REQUIRE(a->Connect(1, 1, b->Descriptor()).ok());
  const Bytes data = Pattern(1, 128);
  for (const size_t bytes : {8u, 64u, 128u}) {
    constexpr int kWrites = 200000;
    const Span pieces[] = {Span(data).first(bytes / 2), Span(data).subspan(bytes / 2, bytes / 2)};
    const falcon::Nanoseconds start = falcon::MonotonicNow();
    for (int i = 0; i < kWrites; ++i)
      CHECK(a->Write(1, {0, static_cast<uint64_t>(i % 128) * 128}, pieces).ok());
    const falcon::Nanoseconds spent = falcon::MonotonicNow() - start;
    std::printf("# %zu bytes in two pieces: %.1f ns a write\n", bytes,
                static_cast<double>(spent) / kWrites);
  }
}

}  // namespace

int main(int argc, char** argv) {
  falcon::test::AddConformanceCases<ShmBed>();
  return falcon::test::Main(argc, argv);
}
