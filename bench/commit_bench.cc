// Append to commit of a log in memory, all of its members polled in turn by one thread; prints one
// JSON object. No thread waits for another and no processor is shared, so what is measured is what
// the members and the fabric do for a commit, whatever the scheduler is like and however few
// processors there are. The log writers do their work between the commits, since no commit of a log
// in memory waits for them.
//
// Usage: commit_bench shm|tcp|verbs MEMBERS-UP BYTES COUNT FOLDER [DEVICE,DEVICE,DEVICE]
// FOLDER: for the log files, and the regions of shm.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fabric/shm.h"
#include "fabric/tcp.h"
#include "fabric/verbs.h"
#include "log/wal.h"
#include "os/clock.h"
#include "program.h"
#include "plane/data_plane.h"

namespace {

using namespace falcon;
using bench::Fail;
using bench::Must;
using bench::PrintTimes;

constexpr size_t kMembers = 3;
constexpr PeerId kPrimary = 0;
constexpr View kView = 1;
constexpr uint64_t kWarmUp = 100;
constexpr Nanoseconds kPatience = 10 * kSecond;

struct Task {
  std::string fabric;
  size_t up = 0;
  size_t bytes = 0;
  uint64_t count = 0;
  std::string folder;
  std::array<std::string, kMembers> devices;
};

struct RealClock final : Clock {
  Nanoseconds Now() override { return MonotonicNow(); }
};

struct Nowhere final : WireSink {
  bool Write(Frame) override { return true; }
};

class Member {
 public:
  Member(const Task& task, PeerId self) : storage_(MakePosixStorage()) {
    PlaneOptions options;
    options.self = self;
    options.members = kMembers;
    options.force = false;
    options.heartbeat_interval = 20 * kMillisecond;
    options.lease = 400 * kMillisecond;
    options.digest_threads = 0;
    WalOptions wal;
    wal.directory = task.folder + "/wal-" + std::to_string(self);
    wal.force = false;
    wal.segment_bytes = 4 << 20;
    wal.retain_bytes = 16 << 20;
    wal.cluster = "bench";
    wal.node = self;
    std::filesystem::create_directories(wal.directory);
    Must(OpenWal(*storage_, wal, &recovered_, &wal_));
    VerbsFabric* verbs = MakeFabric(task, self);
    Must(fabric_->AddRegion(0, DataPlane::RegionBytes(options)));
    plane_ = std::make_unique<DataPlane>(options, &clock_, fabric_.get(), wal_.get(), recovered_,
                                         nullptr, &wire_);
    if (verbs != nullptr) Must(verbs->AddSource(plane_->log_memory()));
  }
  // A fabric may send from the log's memory, so it goes first; the plane does not miss it.
  ~Member() { fabric_.reset(); }
  Member(const Member&) = delete;
  Member& operator=(const Member&) = delete;

  [[nodiscard]] DataPlane& plane() { return *plane_; }
  [[nodiscard]] Fabric& fabric() { return *fabric_; }

  int Poll() { return plane_->PollOnce(MonotonicNow()); }
  // What need not be done within a commit.
  void Between() {
    plane_->Tick(MonotonicNow());
    wal_->Step();
    for (const PlaneEvent& event : plane_->events()) {
      happened_[static_cast<size_t>(event.kind)] = true;
      const bool bad =
          event.kind == PlaneEvent::Kind::kStreamBroken || event.kind == PlaneEvent::Kind::kFailed;
      if (bad) Fail({reinterpret_cast<const char*>(event.bytes.data()), event.bytes.size()});
    }
    plane_->events().clear();
  }
  [[nodiscard]] bool Has(PlaneEvent::Kind kind) const {
    return happened_[static_cast<size_t>(kind)];
  }

 private:
  VerbsFabric* MakeFabric(const Task& task, PeerId self) {
    if (task.fabric == "shm") {
      Must(MakeShmFabric({task.folder, "m" + std::to_string(self), self}, &fabric_));
      return nullptr;
    }
    if (task.fabric == "tcp") {
      TcpFabricOptions options;
      options.address = "127.0.0.1";
      Must(MakeTcpFabric(options, self, &fabric_));
      return nullptr;
    }
    VerbsOptions options;
    options.device = task.devices[self];
    Must(MakeVerbsFabric(options, self, &fabric_));
    return static_cast<VerbsFabric*>(fabric_.get());
  }

  RealClock clock_;
  Nowhere wire_;
  const std::unique_ptr<Storage> storage_;
  RecoveredLog recovered_;
  std::unique_ptr<Fabric> fabric_;
  std::unique_ptr<Wal> wal_;
  std::unique_ptr<DataPlane> plane_;
  std::array<bool, 64> happened_{};
};

class Cluster {
 public:
  explicit Cluster(const Task& task) {
    for (PeerId i = 0; i < task.up; ++i) members_.push_back(std::make_unique<Member>(task, i));
    for (PeerId a = 0; a < task.up; ++a) {
      for (PeerId b = 0; b < task.up; ++b) {
        const uint64_t connection = 1 + std::min(a, b) * kMembers + std::max(a, b);
        if (a != b)
          Must(members_[a]->plane().Connect(b, connection, members_[b]->fabric().Descriptor()));
      }
    }
    for (auto& member : members_) member->plane().Promise(kView);
    Until(PlaneEvent::Kind::kPromised, 0, task.up);
    primary().Lead(kView);
    Until(PlaneEvent::Kind::kLeading, 0, 1);
    for (PeerId i = 1; i < task.up; ++i) {
      primary().Feed(i, kView, 0);
      members_[i]->plane().Follow(kView, kPrimary, 0);
    }
    Until(PlaneEvent::Kind::kFollowing, 1, task.up);
    primary().TimeCommits();
    Settle();
  }

  [[nodiscard]] DataPlane& primary() { return members_[kPrimary]->plane(); }

  Nanoseconds Commit(std::span<const std::byte> payload) {
    const Nanoseconds from = MonotonicNow();
    if (!primary().Propose(EntryKind::kFrame, payload)) Fail("the log takes nothing");
    const Op op = primary().last_op();
    // The primary looks again behind each of the others, as one that spins beside them does.
    for (size_t turn = 0; primary().commit_op() < op; ++turn) {
      const size_t other = 1 + turn / 2 % (members_.size() - 1);
      members_[turn % 2 == 0 ? kPrimary : other]->Poll();
      if (MonotonicNow() - from > kPatience) Fail("an entry is not committed");
    }
    return primary().committed_at() - from;
  }

  // Until nothing is on its way: every member knows every commit, and every post has completed.
  void Settle() {
    for (int idle = 0; idle < 3;) {
      int done = 0;
      for (auto& member : members_) {
        done += member->Poll();
        member->Between();
      }
      idle = done == 0 && Agreed() ? idle + 1 : 0;
    }
  }

 private:
  bool Agreed() {
    for (auto& member : members_) {
      if (member->plane().commit_op() != primary().last_op()) return false;
      for (PeerId peer = 0; peer < members_.size(); ++peer) {
        Fabric& fabric = member->fabric();
        if (fabric.Posted(peer) == fabric.Completed(peer)) continue;
        fabric.RequestCompletion(peer);
        return false;
      }
    }
    return true;
  }

  void Until(PlaneEvent::Kind kind, size_t from, size_t until) {
    const Nanoseconds start = MonotonicNow();
    const auto has = [&] {
      return std::all_of(members_.begin() + static_cast<ptrdiff_t>(from),
                         members_.begin() + static_cast<ptrdiff_t>(until),
                         [&](const auto& member) { return member->Has(kind); });
    };
    while (!has()) {
      for (auto& member : members_) {
        member->Poll();
        member->Between();
      }
      if (MonotonicNow() - start > kPatience) Fail("the members do not come together");
    }
  }

  std::vector<std::unique_ptr<Member>> members_;
};

void Run(const Task& task) {
  Cluster cluster(task);
  const std::vector<std::byte> payload(task.bytes, std::byte{0x5A});
  std::vector<Nanoseconds> times;
  times.reserve(task.count);
  for (uint64_t i = 0; i < kWarmUp + task.count; ++i) {
    const Nanoseconds took = cluster.Commit(payload);
    if (i >= kWarmUp) times.push_back(took);
    cluster.Settle();
  }
  PrintTimes(std::move(times));
  std::printf("}\n");
}

}  // namespace

int main(int argc, char** argv) {
  Task task;
  if (argc >= 6) {
    task.fabric = argv[1];
    task.up = std::strtoull(argv[2], nullptr, 10);
    task.bytes = std::strtoull(argv[3], nullptr, 10);
    task.count = std::strtoull(argv[4], nullptr, 10);
    task.folder = argv[5];
    std::string devices = argc > 6 ? argv[6] : "";
    for (std::string& device : task.devices) {
      device = devices.substr(0, devices.find(','));
      devices.erase(0, device.size() + 1);
    }
  }
  if (task.up < 2 || task.up > kMembers || task.bytes == 0 || task.count == 0) {
    std::fprintf(stderr,
                 "usage: commit_bench shm|tcp|verbs MEMBERS-UP BYTES COUNT FOLDER "
                 "[DEVICE,DEVICE,DEVICE]\n");
    return 2;
  }
  Run(task);
  return 0;
}
