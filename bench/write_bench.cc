// One-sided writes over RDMA between two devices of this machine. Prints one JSON object.
//
// Both ends in one thread, one write after the other: post, and look until the last word has come.
// Nothing waits for a scheduler, so on a machine whose clock counts instructions
// (cluster/softroce/run --count-instructions) the time is the work: of a write and, where the
// kernel drives the device, of its acknowledgement.
//
//   bare    plain libibverbs, with nothing around it: the floor
//   verbs   the fabric
//
// Each end in a thread of its own:
//
//   turns   a bare write there and back (its half is printed) and a commit of a log in memory, two
//           of its three members up, by turns, each on devices that have been left alone for 0.1
//           ms. Emulated processors are quick or slow for seconds at a time; so both are seen at
//           the same speed, and the ratio of each commit to the write beside it counts.
//
// Usage: write_bench bare|verbs|turns BYTES COUNT DEVICE,DEVICE [FOLDER]
// FOLDER: for the log files.
#include <sched.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fabric/shared_copy.h"
#include "members.h"
#include "os/clock.h"
#include "program.h"
#include "verbs_ends.h"

namespace {

using namespace falcon;
using bench::Cluster;
using bench::Fail;
using bench::kMembers;
using bench::Median;
using bench::Member;
using bench::Must;
using bench::PrintTimes;
using bench::VerbsEnds;

constexpr uint64_t kWarmUp = 100;

struct Task {
  std::string kind;
  size_t bytes = 0;
  uint64_t count = 0;
  std::array<std::string, kMembers> devices;
  std::string folder;
};

class Writer {
 public:
  virtual ~Writer() = default;
  // Writes `number` as the last word of the peer's memory, and returns when it is there.
  virtual void Write(uint64_t number) = 0;
};

class Bare final : public Writer {
 public:
  explicit Bare(const Task& task) : ends_(task.devices[0], task.devices[1], task.bytes) {}

  void Write(uint64_t number) override {
    ends_.Post(0, number);
    while (!ends_.Has(1, number)) continue;
    ends_.Reap(0, number);
  }

 private:
  VerbsEnds ends_;
};

class OverFabric final : public Writer {
 public:
  explicit OverFabric(const Task& task)
      : bytes_(task.bytes), sources_(2 * VerbsEnds::kDepth * task.bytes) {
    for (PeerId i = 0; i < 2; ++i) {
      VerbsOptions options;
      options.device = task.devices[i];
      Must(MakeVerbsFabric(options, i, &fabrics_[i]));
      Must(fabrics_[i]->AddRegion(0, bytes_));
    }
    Must(fabrics_[0]->AddSource(sources_));
    for (PeerId i = 0; i < 2; ++i) {
      const PeerId other = i == 0 ? 1 : 0;
      Must(fabrics_[i]->Connect(other, 1, fabrics_[other]->Descriptor()));
    }
  }

  void Write(uint64_t number) override {
    const std::span<std::byte> source =
        std::span(sources_).subspan(number % (2 * VerbsEnds::kDepth) * bytes_, bytes_);
    std::memcpy(source.data() + bytes_ - 8, &number, 8);
    const std::span<const std::byte> pieces[] = {source};
    Must(fabrics_[0]->Write(1, {0, 0}, pieces));
    fabrics_[0]->Ring(1);
    fabrics_[0]->Poll();
    const std::byte* word = fabrics_[1]->region(0).data() + bytes_ - 8;
    while (LoadSharedWord(word) != number) {
      fabrics_[0]->Poll();
      if (fabrics_[0]->State(1) == PeerState::kBroken) Fail("the connection broke");
    }
  }

 private:
  const size_t bytes_;
  std::vector<std::byte> sources_;  // more places than a send queue holds
  std::array<std::unique_ptr<Fabric>, 2> fabrics_;
};

void RunWrites(const Task& task) {
  std::unique_ptr<Writer> writer;
  if (task.kind == "bare")
    writer = std::make_unique<Bare>(task);
  else
    writer = std::make_unique<OverFabric>(task);
  std::vector<Nanoseconds> times;
  times.reserve(task.count);
  for (uint64_t i = 1; i <= kWarmUp + task.count; ++i) {
    const Nanoseconds from = MonotonicNow();
    writer->Write(i);
    if (i > kWarmUp) times.push_back(MonotonicNow() - from);
  }
  PrintTimes(std::move(times));
  std::printf("}\n");
}

// ---- turns

constexpr Nanoseconds kRest = 100 * kMicrosecond;

void PinTo(int processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(processor, &set);
  if (sched_setaffinity(0, sizeof set, &set) != 0) Fail("two processors are needed");
}

class Turns {
 public:
  explicit Turns(const Task& task)
      : ends_(task.devices[0], task.devices[1], task.bytes),
        cluster_({"verbs", 2, task.folder, task.devices}),
        payload_(task.bytes, std::byte{0x5A}) {
    PinTo(0);
    other_ = std::thread([this] {
      PinTo(1);
      BeTheOther();
    });
  }
  ~Turns() {
    over_ = true;
    other_.join();
  }
  Turns(const Turns&) = delete;
  Turns& operator=(const Turns&) = delete;

  Nanoseconds Write() {
    writes_.store(true);
    Rest();
    const Nanoseconds from = MonotonicNow();
    ends_.Post(0, ++written_);
    while (!ends_.Has(0, written_)) {
      if (MonotonicNow() - from > bench::kPatience) Fail("a write is not answered");
    }
    const Nanoseconds took = MonotonicNow() - from;
    ends_.Reap(0, written_);
    writes_.store(false);
    return took / 2;
  }

  Nanoseconds Commit() {
    Rest();
    Member& own = cluster_.member(bench::kPrimary);
    own.Between();
    const Nanoseconds from = MonotonicNow();
    if (!own.plane().Propose(EntryKind::kFrame, payload_)) Fail("the log takes nothing");
    const Op op = own.plane().last_op();
    while (own.plane().commit_op() < op) {
      own.Poll();
      if (MonotonicNow() - from > bench::kPatience) Fail("an entry is not committed");
    }
    return own.plane().committed_at() - from;
  }

 private:
  // The devices are left alone, and this thread does the same before a write as before a commit.
  void Rest() {
    Member& own = cluster_.member(bench::kPrimary);
    for (const Nanoseconds until = MonotonicNow() + kRest; MonotonicNow() < until;) own.Poll();
  }

  void BeTheOther() {
    Member& backup = cluster_.member(1);
    uint64_t answered = 0;
    for (uint64_t polls = 0; !over_.load(std::memory_order_relaxed);) {
      if (!writes_.load(std::memory_order_relaxed)) {
        backup.Poll();
        if (++polls % 1024 == 0) backup.Between();
      } else if (ends_.Has(1, answered + 1)) {
        ends_.Post(1, ++answered);
        ends_.Reap(1, answered);
      }
    }
  }

  VerbsEnds ends_;
  Cluster cluster_;
  const std::vector<std::byte> payload_;
  uint64_t written_ = 0;
  std::atomic<bool> writes_{false};
  std::atomic<bool> over_{false};
  std::thread other_;
};

void RunTurns(const Task& task) {
  std::vector<Nanoseconds> writes, commits;
  std::vector<double> ratios;  // of each commit to the write just before or behind it
  {
    Turns turns(task);
    for (uint64_t i = 0; i < kWarmUp + task.count; ++i) {
      // Which comes first changes, too.
      const Nanoseconds before = i % 2 == 0 ? turns.Write() : 0;
      const Nanoseconds commit = turns.Commit();
      const Nanoseconds write = i % 2 == 0 ? before : turns.Write();
      if (i < kWarmUp) continue;
      writes.push_back(write);
      commits.push_back(commit);
      ratios.push_back(static_cast<double>(commit) / static_cast<double>(write));
    }
  }
  PrintTimes(std::move(writes));
  std::printf(",\"commitP50Ns\":%ld,\"commitInWrites\":%.3f}\n", Median(std::move(commits)),
              Median(std::move(ratios)));
}

}  // namespace

int main(int argc, char** argv) {
  Task task;
  if (argc >= 5) {
    task.kind = argv[1];
    task.bytes = std::strtoull(argv[2], nullptr, 10);
    task.count = std::strtoull(argv[3], nullptr, 10);
    task.devices = bench::SplitDevices(argv[4]);
    if (argc > 5) task.folder = argv[5];
  }
  const bool turns = task.kind == "turns" && !task.folder.empty();
  if ((task.kind != "bare" && task.kind != "verbs" && !turns) || task.bytes < 8 ||
      task.bytes % 8 != 0 || task.count == 0) {
    std::fprintf(stderr,
                 "usage: write_bench bare|verbs|turns BYTES COUNT DEVICE,DEVICE [FOLDER]\n");
    return 2;
  }
  alarm(300);
  if (turns)
    RunTurns(task);
  else
    RunWrites(task);
  return 0;
}
