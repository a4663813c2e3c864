// Members on real queue pairs, member 0 on an RDMA device of its own where there are several.
#pragma once

#include <dirent.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "fabric/verbs.h"
#include "fabric_bed.h"
#include "os/clock.h"

namespace falcon::test {

inline constexpr Nanoseconds kPatience = 20 * kSecond;

// All there are, or as many as FALCON_RDMA_DEVICES says.
inline std::vector<std::string> Devices() {
  std::vector<std::string> names;
  DIR* listing = opendir("/sys/class/infiniband");
  if (listing == nullptr) return names;
  while (const dirent* entry = readdir(listing)) {
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  }
  closedir(listing);
  std::sort(names.begin(), names.end());
  if (const char* wanted = std::getenv("FALCON_RDMA_DEVICES"); wanted != nullptr)
    names.resize(std::min<size_t>(names.size(), std::strtoull(wanted, nullptr, 10)));
  return names;
}

// Objects that the kernel knows of, over all devices: completion queues, queue pairs, memory
// regions.
inline size_t KernelObjects() {
  FILE* report = popen("rdma resource show 2>/dev/null", "r");
  if (report == nullptr) return 0;
  size_t total = 0;
  char word[64];
  unsigned long count = 0;
  while (fscanf(report, "%63s", word) == 1) {
    const std::string kind(word);
    if ((kind == "cq" || kind == "qp" || kind == "mr" || kind == "pd" || kind == "ctx") &&
        fscanf(report, "%lu", &count) == 1)
      total += count;
  }
  pclose(report);
  return total;
}

inline VerbsOptions OptionsFor(PeerId member) {
  static const std::vector<std::string> devices = Devices();
  VerbsOptions options;
  if (!devices.empty()) {
    // Nobody shares the first one: between members on one device a packet passes no network.
    const size_t others = devices.size() - 1;
    options.device = devices[member == 0 || others == 0 ? 0 : 1 + (member - 1) % others];
  }
  options.timeout = 13;
  options.retry = 4;  // the dead are noticed after 170 ms
  options.quiet_us = 0;
  return options;
}

class VerbsBed final : public FabricBed {
 public:
  [[nodiscard]] const char* name() const override { return "verbs"; }
  void Start(PeerId member) override {
    fabrics_[member].reset();
    const Status status = MakeVerbsFabric(options[member], member, &fabrics_[member]);
    if (!status.ok()) std::printf("# %s: %s\n", status.code(), status.detail().c_str());
    if (!status.ok()) std::abort();  // the cases would follow a null pointer
    CHECK(fabrics_[member]->AddRegion(0, kRegion0Bytes).ok());
    CHECK(fabrics_[member]->AddRegion(1, kRegion1Bytes).ok());
  }
  [[nodiscard]] Fabric& at(PeerId member) override { return *fabrics_[member]; }
  [[nodiscard]] VerbsFabric& verbs(PeerId member) {
    return static_cast<VerbsFabric&>(*fabrics_[member]);
  }
  void Close(PeerId member) override { fabrics_[member].reset(); }
  void Kill(PeerId member) override { Close(member); }
  Status Connect(PeerId from, PeerId to) override {
    Status status;
    for (int attempt = 0; attempt < (loses_packets ? 3 : 1); ++attempt) {
      status = Connect(from, to, ++connections_);
      if (status.ok()) break;
      std::printf("# %s: %s\n", status.code(), status.detail().c_str());
    }
    return status;
  }
  Status Connect(PeerId from, PeerId to, uint64_t connection) {
    Status status = at(to).Connect(from, connection, at(from).Descriptor());
    return status.ok() ? at(from).Connect(to, connection, at(to).Descriptor()) : status;
  }
  void Drive() override {
    const Nanoseconds give_up = MonotonicNow() + kPatience;
    while (!PollAll()) {
      if (MonotonicNow() > give_up) {
        CHECK(!"something posted never completed");
        return;
      }
    }
    // Sleep words and wakes, too.
    for (int i = 0; i < 4; ++i) {
      usleep(500);
      PollAll();
    }
  }
  bool Step() override {
    PollAll();
    return false;
  }
  void Settle(PeerId writer, PeerId sleeper) override {
    at(sleeper).ArmWake();
    Drive();
    at(writer).Ring(sleeper);
    Drive();
    at(sleeper).DisarmWake();
    Drive();
  }
  [[nodiscard]] bool knows_the_dead() const override { return false; }
  void KeepLate(PeerId /*from*/, PeerId /*to*/) override {}
  void DeliverLate(PeerId /*from*/, PeerId /*to*/) override {}
  [[nodiscard]] bool concurrent() const override { return true; }
  [[nodiscard]] size_t Scaled(size_t rounds) const override { return rounds / 20; }
  [[nodiscard]] size_t queue_bound() const override { return options[0].send_queue; }
  [[nodiscard]] size_t Leftovers() const override {
    const size_t now = KernelObjects();
    return now > before_ ? now - before_ : 0;
  }

  // True once nothing is on its way.
  bool PollAll() {
    bool done = true;
    for (const auto& fabric : fabrics_) {
      if (fabric == nullptr) continue;
      fabric->Poll();
      for (PeerId peer = 0; peer < kMaxMembers; ++peer) {
        if (fabric->State(peer) != PeerState::kUp) continue;
        done = AllCompleted(*fabric, peer) && done;
      }
    }
    if (!done) sched_yield();
    return done;
  }
  bool AwaitBroken(PeerId member, PeerId peer) {
    const Nanoseconds give_up = MonotonicNow() + kPatience;
    while (at(member).State(peer) != PeerState::kBroken && MonotonicNow() < give_up) PollAll();
    return at(member).State(peer) == PeerState::kBroken;
  }

  // Then a connection is made as replicas make it, once more if it fails: the look-up of an address
  // may be lost, and a device may lose a queue pair, which is replaced.
  bool loses_packets = std::getenv("FALCON_LOSES_PACKETS") != nullptr;

  std::array<VerbsOptions, kMaxMembers> options = [] {
    std::array<VerbsOptions, kMaxMembers> each;
    for (PeerId member = 0; member < each.size(); ++member) each[member] = OptionsFor(member);
    return each;
  }();

 private:
  const size_t before_ = KernelObjects();
  std::array<std::unique_ptr<Fabric>, kMaxMembers> fabrics_;
};

// Where there is no device every case is skipped and says why: cluster/softroce/run makes some.
inline void SkipWithoutDevices() {
  if (VerbsMissing().empty()) return;
  for (Case& each : Cases()) each.run = [] { SkipReason() = VerbsMissing(); };
}

}  // namespace falcon::test
