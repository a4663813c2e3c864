// The verbs fabric: the conformance suite with all members in this process, each on its own RDMA
// device where there are several; then what only real queue pairs show. Where there is no RDMA
// device every case is skipped: cluster/softroce/run makes some.
#include <dirent.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "check.h"
#include "fabric/verbs.h"
#include "fabric_conformance.h"
#include "os/clock.h"

namespace {

using falcon::Fabric;
using falcon::PeerId;
using falcon::PeerState;
using falcon::Status;
using falcon::VerbsFabric;
using falcon::VerbsOptions;
using falcon::VerbsPsn;
using falcon::test::conformance::Bytes;
using falcon::test::conformance::Holds;
using falcon::test::conformance::Is;
using falcon::test::conformance::IsZero;
using falcon::test::conformance::OpenDescriptors;
using falcon::test::conformance::Pattern;
using falcon::test::conformance::Span;
using falcon::test::conformance::WriteOne;

constexpr falcon::Nanoseconds kPatience = 20 * falcon::kSecond;

std::vector<std::string> Devices() {
  std::vector<std::string> names;
  DIR* listing = opendir("/sys/class/infiniband");
  if (listing == nullptr) return names;
  while (const dirent* entry = readdir(listing)) {
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  }
  closedir(listing);
  std::sort(names.begin(), names.end());
  return names;
}

// Objects that the kernel knows of, over all devices: completion queues, queue pairs, memory
// regions.
size_t KernelObjects() {
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

VerbsOptions OptionsFor(PeerId member) {
  static const std::vector<std::string> devices = Devices();
  VerbsOptions options;
  if (!devices.empty()) options.device = devices[member % devices.size()];
  options.timeout = 13;
  options.retry = 4;  // the dead are noticed after 170 ms
  options.quiet_us = 0;
  return options;
}

class VerbsBed final : public falcon::test::FabricBed {
 public:
  [[nodiscard]] const char* name() const override { return "verbs"; }
  void Start(PeerId member) override {
    fabrics_[member].reset();
    const Status status = MakeVerbsFabric(options[member], member, &fabrics_[member]);
    if (!status.ok()) std::printf("# %s: %s\n", status.code(), status.detail().c_str());
    if (!status.ok()) std::abort();  // the cases would follow a null pointer
    CHECK(fabrics_[member]->AddRegion(0, falcon::test::kRegion0Bytes).ok());
    CHECK(fabrics_[member]->AddRegion(1, falcon::test::kRegion1Bytes).ok());
  }
  [[nodiscard]] Fabric& at(PeerId member) override { return *fabrics_[member]; }
  [[nodiscard]] VerbsFabric& verbs(PeerId member) {
    return static_cast<VerbsFabric&>(*fabrics_[member]);
  }
  void Close(PeerId member) override { fabrics_[member].reset(); }
  void Kill(PeerId member) override { Close(member); }
  Status Connect(PeerId from, PeerId to) override { return Connect(from, to, ++connections_); }
  Status Connect(PeerId from, PeerId to, uint64_t connection) {
    Status status = at(to).Connect(from, connection, at(from).Descriptor());
    return status.ok() ? at(from).Connect(to, connection, at(to).Descriptor()) : status;
  }
  void Drive() override {
    const falcon::Nanoseconds give_up = falcon::MonotonicNow() + kPatience;
    while (!PollAll()) {
      if (falcon::MonotonicNow() > give_up) {
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
  [[nodiscard]] size_t Scaled(size_t rounds) const override { return rounds / 10; }
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
      for (PeerId peer = 0; peer < falcon::kMaxMembers; ++peer)
        done = done && (fabric->State(peer) != PeerState::kUp ||
                        fabric->Completed(peer) == fabric->Posted(peer));
    }
    if (!done) sched_yield();
    return done;
  }
  bool AwaitBroken(PeerId member, PeerId peer) {
    const falcon::Nanoseconds give_up = falcon::MonotonicNow() + kPatience;
    while (at(member).State(peer) != PeerState::kBroken && falcon::MonotonicNow() < give_up)
      PollAll();
    return at(member).State(peer) == PeerState::kBroken;
  }

  std::array<VerbsOptions, falcon::kMaxMembers> options = [] {
    std::array<VerbsOptions, falcon::kMaxMembers> each;
    for (PeerId member = 0; member < each.size(); ++member) each[member] = OptionsFor(member);
    return each;
  }();

 private:
  const size_t before_ = KernelObjects();
  std::array<std::unique_ptr<Fabric>, falcon::kMaxMembers> fabrics_;
};

TEST(sequence_numbers_belong_to_an_incarnation_and_a_direction) {
  std::set<uint32_t> seen;
  for (uint64_t connection = 0; connection < 1000; ++connection) {
    for (const auto& [from, to] : {std::pair<PeerId, PeerId>{0, 1}, {1, 0}, {0, 2}, {7, 0}}) {
      CHECK(VerbsPsn(connection, from, to) == VerbsPsn(connection, from, to));
      CHECK(VerbsPsn(connection, from, to) >> 24 == 0);
      seen.insert(VerbsPsn(connection, from, to));
    }
  }
  CHECK(seen.size() > 3990);  // of 4000; a birthday or two is to be expected
}

// Both sides up, but of different incarnations: nothing gets through, and the writer learns of it.
// The packets of one are early or late to the other, and what a late one is answered must not pass
// for the acknowledgement of anything (rxe of Linux 6.1 takes it for that: see
// verbs_completions.cc).
TEST(ends_of_different_connections_do_not_talk) {
  VerbsBed bed;
  for (VerbsOptions& each : bed.options) each.timeout = 11;
  bed.Start(0);
  bed.Start(1);
  const Bytes data = Pattern(1, 64);
  int late = 0;
  for (uint64_t round = 0; round < 24; ++round) {
    const uint64_t ours = 100 + 2 * round;
    CHECK(bed.at(1).Connect(0, ours + 1, bed.at(0).Descriptor()).ok());
    CHECK(bed.at(0).Connect(1, ours, bed.at(1).Descriptor()).ok());
    CHECK(WriteOne(bed.at(0), 1, {0, 0}, data).ok());
    CHECK(bed.AwaitBroken(0, 1));
    CHECK(IsZero(bed.at(1).region(0)));
    CHECK(Is(WriteOne(bed.at(0), 1, {0, 0}, data), "FABRIC_DOWN"));
    late += ((VerbsPsn(ours, 0, 1) - VerbsPsn(ours + 1, 0, 1)) & 0x800000) != 0 ? 1 : 0;
  }
  CHECK(late > 4 && late < 20);
  std::printf("# %d of 24 late; %s\n", late, bed.verbs(0).BrokenBecause(1).c_str());
  CHECK(bed.Connect(0, 1, 7).ok());
  CHECK(WriteOne(bed.at(0), 1, {0, 0}, data).ok());
  bed.Drive();
  CHECK(Holds(bed.at(1), 0, 0, data));
}

// A device may take its time, or forget: the fabric has a bound of its own.
TEST(a_queue_that_stands_still_breaks) {
  VerbsBed bed;
  bed.options[0].timeout = 20;
  bed.options[0].stall_us = 50000;
  bed.StartAll(3);
  bed.at(1).Disconnect(0);
  const Bytes data = Pattern(9, 64);
  const falcon::Nanoseconds start = falcon::MonotonicNow();
  CHECK(WriteOne(bed.at(0), 1, {0, 0}, data).ok());
  CHECK(WriteOne(bed.at(0), 2, {0, 0}, data).ok());
  CHECK(bed.AwaitBroken(0, 1));
  CHECK(falcon::MonotonicNow() - start >= 50 * falcon::kSecond / 1000);
  CHECK(falcon::MonotonicNow() - start < 5 * falcon::kSecond);
  CHECK(bed.verbs(0).BrokenBecause(1).starts_with("stalled: "));
  std::printf("# %s\n", bed.verbs(0).BrokenBecause(1).c_str());
  CHECK(bed.at(0).State(2) == PeerState::kUp);
  CHECK(bed.Connect(0, 1).ok());
  CHECK(WriteOne(bed.at(0), 1, {0, 0}, data).ok());
  bed.Drive();
  CHECK(Holds(bed.at(1), 0, 0, data) && Holds(bed.at(2), 0, 0, data));
  const VerbsOptions usual;
  std::printf("# by default after %lld ms\n",
              static_cast<long long>(VerbsStallBound(usual) / 1'000'000));
  CHECK(VerbsStallBound(usual) > falcon::kSecond && VerbsStallBound(usual) < 2 * falcon::kSecond);
}

// The old connection's packets are still being sent again when the other side is up anew, with the
// same queue pair numbers.
TEST(a_stale_write_does_not_land_after_reconnection) {
  VerbsBed bed;
  bed.StartAll(2);
  const uint32_t pair = bed.verbs(1).QueuePair(0);
  const Bytes stale = Pattern(2, 4096);
  const Bytes fresh = Pattern(3, 64);
  for (uint64_t round = 1; round <= 10; ++round) {
    bed.at(1).Disconnect(0);
    CHECK(WriteOne(bed.at(0), 1, {0, 0}, stale).ok());
    usleep(5000);
    CHECK(bed.at(1).Connect(0, 1000 + round, bed.at(0).Descriptor()).ok());
    CHECK(bed.AwaitBroken(0, 1));
    CHECK(IsZero(bed.at(1).region(0)));
    CHECK(bed.at(0).Connect(1, 1000 + round, bed.at(1).Descriptor()).ok());
    CHECK(WriteOne(bed.at(0), 1, {1, 0}, fresh).ok());
    bed.Drive();
    CHECK(Holds(bed.at(1), 1, 0, fresh) && IsZero(bed.at(1).region(0)));
    std::fill(bed.at(1).region(1).begin(), bed.at(1).region(1).end(), std::byte{0});
  }
  CHECK(bed.verbs(1).QueuePair(0) == pair);
}

TEST(a_queue_pair_killed_under_load_breaks_one_peer_and_comes_back) {
  VerbsBed bed;
  bed.StartAll(3);
  const Bytes data = Pattern(4, 600);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < 100 + 7 * round; ++i) {
      const Status status = WriteOne(bed.at(0), 1, {0, 0}, data);
      CHECK(status.ok() || Is(status, "FABRIC_BUSY"));
      if (i % 3 == 0) bed.at(0).Poll();
    }
    const PeerId victim = round % 2 == 0 ? 0 : 1;
    CHECK(bed.verbs(victim).KillQueuePair(victim == 0 ? 1 : 0).ok());
    static_cast<void>(WriteOne(bed.at(0), 1, {0, 0}, data).ok());
    CHECK(bed.AwaitBroken(0, 1));
    CHECK(bed.at(0).Completed(1) <= bed.at(0).Posted(1));
    CHECK(bed.at(0).State(2) == PeerState::kUp && bed.at(2).State(0) == PeerState::kUp);
    CHECK(WriteOne(bed.at(0), 2, {0, 0}, data).ok());
    CHECK(bed.Connect(0, 1).ok());
    CHECK(bed.at(0).State(1) == PeerState::kUp && bed.at(0).Posted(1) == 0);
    CHECK(WriteOne(bed.at(0), 1, {1, 0}, data).ok());
    CHECK(WriteOne(bed.at(1), 0, {1, 0}, data).ok());
    bed.Drive();
    CHECK(bed.at(0).State(1) == PeerState::kUp && bed.at(1).State(0) == PeerState::kUp);
    CHECK(Holds(bed.at(1), 1, 0, data) && Holds(bed.at(2), 0, 0, data));
    std::fill(bed.at(1).region(1).begin(), bed.at(1).region(1).end(), std::byte{0});
  }
}

TEST(two_hundred_connections_leak_nothing) {
  const size_t objects = KernelObjects();
  const size_t descriptors = OpenDescriptors();
  {
    VerbsBed bed;
    bed.StartAll(2);
    const size_t connected = KernelObjects();
    const Bytes data = Pattern(5, 2000);
    for (int cycle = 0; cycle < 200; ++cycle) {
      bed.at(cycle % 2 == 0 ? 0 : 1).Disconnect(cycle % 2 == 0 ? 1 : 0);
      CHECK(bed.Connect(0, 1).ok());
      CHECK(WriteOne(bed.at(0), 1, {0, 0}, data).ok());
      if (cycle % 3 == 0) bed.Drive();
    }
    CHECK(KernelObjects() == connected);
    CHECK(connected > objects);
  }
  CHECK(KernelObjects() == objects);
  CHECK(OpenDescriptors() == descriptors);
}

// Polled now and then, as a busy replica does: one write in 128 asks for a completion.
TEST(few_writes_ask_for_a_completion) {
  VerbsBed bed;
  bed.options[0].quiet_us = 1000000;
  bed.StartAll(2);
  const Bytes data = Pattern(6, 128);
  const falcon::VerbsCounters before = bed.verbs(0).verbs_counters();
  int posted = 0;
  while (posted < 20000) {
    const Status status =
        WriteOne(bed.at(0), 1, {0, static_cast<size_t>(posted) % 512 * 128}, data);
    if (status.ok()) ++posted;
    if (!status.ok()) CHECK(Is(status, "FABRIC_BUSY"));
    if (!status.ok()) bed.at(0).Poll();
  }
  const falcon::VerbsCounters after = bed.verbs(0).verbs_counters();
  const uint64_t requests = after.posted - before.posted;
  std::printf("# %llu requests, %llu signaled, %llu inline, %llu probes\n",
              static_cast<unsigned long long>(requests),
              static_cast<unsigned long long>(after.signaled - before.signaled),
              static_cast<unsigned long long>(after.inlined - before.inlined),
              static_cast<unsigned long long>(after.probes - before.probes));
  CHECK(after.inlined - before.inlined == 20000);
  CHECK(requests == 20000 + (after.probes - before.probes));
  CHECK((after.signaled - before.signaled) * 50 <= requests);
  CHECK(after.probes - before.probes > 0);
  CHECK(after.signaled - before.signaled >= requests / 128);
}

TEST(registered_memory_is_sent_from_where_it_is) {
  static std::array<std::byte, 16384> memory;
  const Bytes pattern = Pattern(7, memory.size());
  VerbsBed bed;
  bed.StartAll(2);
  CHECK(bed.at(0).AddSource(memory).ok());
  std::copy(pattern.begin(), pattern.end(), memory.begin());
  const Span whole(memory);
  const Span wrapped[] = {whole.subspan(12000, 4384), whole.first(5000)};
  CHECK(bed.at(0).Write(1, {0, 8}, wrapped).ok());
  CHECK(bed.verbs(0).verbs_counters().staged == 0);
  const Bytes other = Pattern(8, 1000);
  const Span mixed[] = {other, whole.first(3000), Span(other).first(7), Span(other).first(9)};
  CHECK(bed.at(0).Write(1, {0, 20000}, mixed).ok());
  CHECK(bed.verbs(0).verbs_counters().staged == 1);
  bed.Drive();
  CHECK(Holds(bed.at(1), 0, 8, Span(pattern).subspan(12000, 4384)));
  CHECK(Holds(bed.at(1), 0, 8 + 4384, Span(pattern).first(5000)));
  CHECK(Holds(bed.at(1), 0, 20000, other) && Holds(bed.at(1), 0, 21000, Span(pattern).first(3000)));
  CHECK(Holds(bed.at(1), 0, 24000, Span(other).first(7)));
  CHECK(Holds(bed.at(1), 0, 24007, Span(other).first(9)));
}

// Many writes through the staging ring, which is a lot smaller than they are together.
TEST(the_staging_ring_wraps_and_fills) {
  VerbsBed bed;
  for (VerbsOptions& each : bed.options) each.staging_bytes = 16384;
  bed.StartAll(2);
  size_t busy = 0;
  for (uint64_t i = 0; i < 2000; ++i) {
    Bytes data = Pattern(i, 300 + i * 37 % 7000);
    Status status = WriteOne(bed.at(0), 1, {0, i % 32 * 8192}, data);
    for (; Is(status, "FABRIC_BUSY"); ++busy) {
      bed.at(0).Poll();
      status = WriteOne(bed.at(0), 1, {0, i % 32 * 8192}, data);
    }
    CHECK(status.ok());
    std::fill(data.begin(), data.end(), std::byte{0xEE});  // it was copied
  }
  bed.Drive();
  for (uint64_t i = 2000 - 32; i < 2000; ++i)
    CHECK(Holds(bed.at(1), 0, i % 32 * 8192, Pattern(i, 300 + i * 37 % 7000)));
  CHECK(busy > 0);
}

TEST(too_little_lockable_memory_is_explained) {
  int up[2];
  REQUIRE(pipe(up) == 0);
  const pid_t child = fork();
  if (child == 0) {
    std::unique_ptr<Fabric> fabric;
    Status status = MakeVerbsFabric(OptionsFor(0), 0, &fabric);
    const rlimit little{64 << 10, 64 << 10};
    if (status.ok() && setrlimit(RLIMIT_MEMLOCK, &little) == 0 &&
        setresuid(65534, 65534, 65534) == 0)
      status = fabric->AddRegion(0, 64 << 20);
    const std::string text = std::string(status.code()) + " " + status.detail();
    _exit(write(up[1], text.data(), text.size()) > 0 ? 0 : 1);
  }
  char text[1024] = {};
  int ended = 0;
  CHECK(waitpid(child, &ended, 0) == child && ended == 0);
  CHECK(read(up[0], text, sizeof text - 1) > 0);
  close(up[0]);
  close(up[1]);
  std::printf("# %s\n", text);
  CHECK(std::string(text).starts_with("FABRIC_REGION"));
  CHECK(std::string(text).find("RLIMIT_MEMLOCK is 65536 bytes") != std::string::npos);
}

TEST(devices_and_options_are_checked) {
  std::unique_ptr<Fabric> fabric;
  VerbsOptions options = OptionsFor(0);
  options.device = "no_such_device";
  CHECK(Is(MakeVerbsFabric(options, 0, &fabric), "VERBS_OPEN"));
  options = OptionsFor(0);
  options.port = 7;
  CHECK(Is(MakeVerbsFabric(options, 0, &fabric), "VERBS_OPEN"));
  options = OptionsFor(0);
  options.rnr_retry = 7;  // for ever
  CHECK(Is(MakeVerbsFabric(options, 0, &fabric), "VERBS_OPEN"));
  CHECK(fabric == nullptr);
  CHECK(MakeVerbsFabric(OptionsFor(0), 0, &fabric).ok());
  const falcon::VerbsLink link = static_cast<VerbsFabric&>(*fabric).link();
  std::printf("# %s port %u, %s, GID %d %s, MTU %u, inline %u\n", link.device.c_str(), link.port,
              link.link_layer.c_str(), link.gid_index, link.gid.c_str(), link.mtu_bytes,
              link.inline_bytes);
  CHECK(link.link_layer != "ethernet" || link.gid.find('.') != std::string::npos);
}

}  // namespace

int main(int argc, char** argv) {
  falcon::test::AddConformanceCases<VerbsBed>();
  if (!falcon::VerbsMissing().empty()) {
    for (falcon::test::Case& each : falcon::test::Cases())
      each.run = [] { falcon::test::SkipReason() = falcon::VerbsMissing(); };
  }
  return falcon::test::Main(argc, argv);
}
