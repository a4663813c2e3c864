// Members of one log in memory, in this process, polled by whoever measures. No reactor and no log
// writer has a thread of its own: a log writer does its work between the commits, since no commit
// of a log in memory waits for it.
#pragma once

#include <algorithm>
#include <array>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fabric/shm.h"
#include "fabric/tcp.h"
#include "fabric/verbs.h"
#include "log/wal.h"
#include "os/clock.h"
#include "plane/data_plane.h"
#include "program.h"

namespace falcon::bench {

inline constexpr size_t kMembers = 3;
inline constexpr PeerId kPrimary = 0;
inline constexpr View kView = 1;
inline constexpr Nanoseconds kPatience = 10 * kSecond;

struct Membership {
  std::string fabric;
  size_t up = 0;
  std::string folder;  // for the log files, and the regions of shm
  std::array<std::string, kMembers> devices;
};

// "a,b,c", or fewer.
inline std::array<std::string, kMembers> SplitDevices(std::string list) {
  std::array<std::string, kMembers> devices;
  for (std::string& device : devices) {
    device = list.substr(0, list.find(','));
    list.erase(0, device.size() + 1);
  }
  return devices;
}

struct RealClock final : Clock {
  Nanoseconds Now() override { return MonotonicNow(); }
};

struct Nowhere final : WireSink {
  bool Write(Frame) override { return true; }
};

class Member {
 public:
  Member(const Membership& of, PeerId self) : storage_(MakePosixStorage()) {
    PlaneOptions options;
    options.self = self;
    options.members = kMembers;
    options.force = false;
    options.heartbeat_interval = 20 * kMillisecond;
    options.lease = 400 * kMillisecond;
    options.digest_threads = 0;
    WalOptions wal;
    wal.directory = of.folder + "/wal-" + std::to_string(self);
    wal.force = false;
    wal.segment_bytes = 4 << 20;
    wal.retain_bytes = 16 << 20;
    wal.cluster = "bench";
    wal.node = self;
    std::filesystem::create_directories(wal.directory);
    Must(OpenWal(*storage_, wal, &recovered_, &wal_));
    VerbsFabric* verbs = MakeFabric(of, self);
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

  // As a reactor that spins.
  int Poll() {
    const Nanoseconds now = MonotonicNow();
    return plane_->Due() ? plane_->PollOnce(now) : 0;
  }
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
  VerbsFabric* MakeFabric(const Membership& of, PeerId self) {
    if (of.fabric == "shm") {
      Must(MakeShmFabric({of.folder, "m" + std::to_string(self), self}, &fabric_));
      return nullptr;
    }
    if (of.fabric == "tcp") {
      TcpFabricOptions options;
      options.address = "127.0.0.1";
      Must(MakeTcpFabric(options, self, &fabric_));
      return nullptr;
    }
    VerbsOptions options;
    options.device = of.devices[self];
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
  explicit Cluster(const Membership& of) {
    for (PeerId i = 0; i < of.up; ++i) members_.push_back(std::make_unique<Member>(of, i));
    for (PeerId a = 0; a < of.up; ++a) {
      for (PeerId b = 0; b < of.up; ++b) {
        const uint64_t connection = 1 + std::min(a, b) * kMembers + std::max(a, b);
        if (a != b)
          Must(members_[a]->plane().Connect(b, connection, members_[b]->fabric().Descriptor()));
      }
    }
    for (auto& member : members_) member->plane().Promise(kView);
    Until(PlaneEvent::Kind::kPromised, 0, of.up);
    primary().Lead(kView);
    Until(PlaneEvent::Kind::kLeading, 0, 1);
    for (PeerId i = 1; i < of.up; ++i) {
      primary().Feed(i, kView, 0);
      members_[i]->plane().Follow(kView, kPrimary, 0);
    }
    Until(PlaneEvent::Kind::kFollowing, 1, of.up);
    primary().TimeCommits();
    Settle();
  }

  [[nodiscard]] Member& member(PeerId id) { return *members_[id]; }
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

}  // namespace falcon::bench
