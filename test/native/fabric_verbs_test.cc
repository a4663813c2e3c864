// The verbs fabric: the conformance suite with all members in this process, each on its own RDMA
// device where there are several; then what only real queue pairs show. Where there is no RDMA
// device every case is skipped: cluster/softroce/run makes some.
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
#include "fabric_verbs_bed.h"
#include "os/clock.h"

namespace {

using falcon::Fabric;
using falcon::PeerId;
using falcon::PeerState;
using falcon::Status;
using falcon::VerbsFabric;
using falcon::VerbsOptions;
using falcon::VerbsPsn;
using falcon::test::AllCompleted;
using falcon::test::KernelObjects;
using falcon::test::OptionsFor;
using falcon::test::VerbsBed;
using falcon::test::conformance::Bytes;
using falcon::test::conformance::Holds;
using falcon::test::conformance::Is;
using falcon::test::conformance::IsZero;
using falcon::test::conformance::OpenDescriptors;
using falcon::test::conformance::Pattern;
using falcon::test::conformance::Span;
using falcon::test::conformance::WriteOne;

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

// Seen with rxe where packets overtake each other: a queue pair that no reset brings back.
TEST(a_queue_pair_that_cannot_be_reset_is_replaced) {
  VerbsBed bed;
  bed.StartAll(3);
  const Bytes data = Pattern(8, 3000);
  const size_t objects = KernelObjects();
  const uint32_t before = bed.verbs(1).QueuePair(0);
  bed.verbs(1).SpoilQueuePair(0);
  const Status status = bed.Connect(0, 1, 7);
  CHECK(Is(status, "FABRIC_CONNECT"));
  CHECK(status.detail().find(std::to_string(before)) != std::string::npos);
  CHECK(bed.at(1).State(0) == PeerState::kDown && bed.verbs(1).QueuePair(0) != before);
  CHECK(bed.Connect(0, 1).ok());
  bed.Settle(0, 1);
  CHECK(WriteOne(bed.at(0), 1, {0, 64}, data).ok() && WriteOne(bed.at(1), 0, {0, 64}, data).ok());
  CHECK(WriteOne(bed.at(2), 1, {1, 64}, data).ok());
  bed.Drive();
  CHECK(Holds(bed.at(1), 0, 64, data) && Holds(bed.at(0), 0, 64, data));
  CHECK(Holds(bed.at(1), 1, 64, data));
  CHECK(KernelObjects() == objects);
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

// One at a time, as a guest with little to do makes them: what completes, and when, interests
// nobody.
TEST(rare_writes_ask_for_few_completions) {
  VerbsBed bed;
  bed.StartAll(2);
  const Bytes data = Pattern(6, 128);
  for (int posted = 0; posted < 1500; ++posted) {
    CHECK(WriteOne(bed.at(0), 1, {0, 0}, data).ok());
    const falcon::Nanoseconds next = falcon::MonotonicNow() + falcon::kMillisecond;
    while (falcon::MonotonicNow() < next) bed.at(0).Poll();
  }
  const falcon::VerbsCounters counters = bed.verbs(0).verbs_counters();
  CHECK(counters.signaled * 50 <= counters.posted);
  // Who asks is told.
  const falcon::Nanoseconds asked = falcon::MonotonicNow();
  while (!AllCompleted(bed.at(0), 1)) bed.at(0).Poll();
  CHECK(falcon::MonotonicNow() - asked <
        falcon::Nanoseconds{bed.options[0].probe_late_us} * 1000 / 2);
}

// Who spins on the regions polls when somebody waits for a completion, and rarely otherwise.
TEST(it_is_quiet_until_somebody_waits) {
  VerbsBed bed;
  bed.options[0].quiet_us = 10'000'000;
  bed.StartAll(2);
  REQUIRE(WriteOne(bed.at(0), 1, {0, 0}, Pattern(6, 128)).ok());
  CHECK(bed.at(0).IsQuiet());
  bed.at(0).RequestCompletion(1);
  CHECK(!bed.at(0).IsQuiet());
  while (!AllCompleted(bed.at(0), 1)) bed.at(0).Poll();
  CHECK(bed.at(0).IsQuiet());
}

// Time alone asks for nothing: as if a probe were due all the time.
TEST(slow_writes_ask_for_few_completions_too) {
  VerbsBed bed;
  bed.options[0].quiet_us = 10'000'000;
  bed.options[0].probe_us = 1;
  bed.options[0].probe_late_us = 10'000'000;
  bed.StartAll(2);
  const Bytes data = Pattern(6, 128);
  for (int posted = 0; posted < 2000;) {
    const Status status = WriteOne(bed.at(0), 1, {0, 0}, data);
    if (status.ok()) ++posted;
    bed.at(0).Poll();
  }
  const falcon::VerbsCounters counters = bed.verbs(0).verbs_counters();
  CHECK(counters.probes > 0);
  CHECK(counters.signaled * 50 <= counters.posted);
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
  falcon::test::SkipWithoutDevices();
  return falcon::test::Main(argc, argv);
}
