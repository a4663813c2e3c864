// The verbs fabric when things go wrong: packets are lost, cables pulled, peers killed and stopped,
// queues full. Whatever happens, a connection either delivers or says that it is broken, and only
// the peer that has the trouble. The cases need the bed of cluster/softroce/run: member k sends by
// the network device h<k+1>, whose other end is p<k+1>.
#include <sched.h>
#include <signal.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "child_process.h"
#include "fabric_verbs_bed.h"

namespace {

using falcon::Fabric;
using falcon::kSecond;
using falcon::MonotonicNow;
using falcon::Nanoseconds;
using falcon::PeerId;
using falcon::PeerState;
using falcon::Status;
using falcon::test::Child;
using falcon::test::Hear;
using falcon::test::KernelObjects;
using falcon::test::OptionsFor;
using falcon::test::Tell;
using falcon::test::VerbsBed;
using falcon::test::conformance::Bytes;
using falcon::test::conformance::Holds;
using falcon::test::conformance::Is;
using falcon::test::conformance::IsZero;
using falcon::test::conformance::Pattern;
using falcon::test::conformance::Word;
using falcon::test::conformance::WordBytes;
using falcon::test::conformance::WriteOne;

bool Shell(const std::string& line) { return std::system(line.c_str()) == 0; }

// A fault of the network for as long as this lives.
class Fault {
 public:
  Fault(const std::string& begin, std::string end) : end_(std::move(end)) { CHECK(Shell(begin)); }
  ~Fault() { CHECK(Shell(end_)); }
  Fault(const Fault&) = delete;
  Fault& operator=(const Fault&) = delete;

 private:
  const std::string end_;
};

class Netem : public Fault {
 public:
  Netem(const std::string& device, const std::string& what)
      : Fault("tc qdisc add dev " + device + " root netem " + what,
              "tc qdisc del dev " + device + " root") {}
};

// ---- the network

constexpr size_t kRecord = 1536;  // two packets
constexpr size_t kRecords = 128;

// Writes `count` records, each into its place. False: the connection broke.
bool WriteRecords(VerbsBed& bed, uint64_t lap) {
  for (size_t i = 0; i < kRecords;) {
    const Status status =
        WriteOne(bed.at(0), 1, {0, i * kRecord}, Pattern(lap * kRecords + i, kRecord));
    if (status.ok()) ++i;
    if (Is(status, "FABRIC_DOWN")) return false;
    bed.PollAll();
  }
  const Nanoseconds give_up = MonotonicNow() + 30 * kSecond;
  while (bed.at(0).State(1) == PeerState::kUp && bed.at(0).Completed(1) < bed.at(0).Posted(1)) {
    if (MonotonicNow() > give_up) {
      CHECK(!"neither delivered nor broken");
      return false;
    }
    bed.PollAll();
  }
  return bed.at(0).State(1) == PeerState::kUp;
}

enum class Order { kKept, kLost };

// What is reported as done has arrived, and what has not is reported. Where packets overtake each
// other nothing more can be asked of a queue pair, which then sends everything anew; else all of it
// arrives.
void DeliversOrSaysSo(const char* what, Order order) {
  VerbsBed bed;
  bed.StartAll(3);
  bed.loses_packets = true;
  std::map<std::string, int> broken;
  const Nanoseconds start = MonotonicNow();
  const Nanoseconds time = (order == Order::kKept ? 20 : 4) * kSecond;
  uint64_t lap = 0;
  int delivered = 0;
  {
    const Netem there("h1", what);
    const Netem back("h2", what);
    while (delivered < 12 && (lap == 0 || MonotonicNow() - start < time)) {
      if (!WriteRecords(bed, ++lap)) {
        ++broken[bed.verbs(0).BrokenBecause(1).substr(0, 30)];
        REQUIRE(bed.Connect(0, 1).ok());
        continue;
      }
      ++delivered;
      for (size_t i = 0; i < kRecords; ++i)
        CHECK(Holds(bed.at(1), 0, i * kRecord, Pattern(lap * kRecords + i, kRecord)));
    }
  }
  CHECK(delivered == 12 || order == Order::kLost);
  std::printf("# %s: %.1f s, %d of %d laps delivered", what,
              static_cast<double>(MonotonicNow() - start) / 1e9, delivered, static_cast<int>(lap));
  for (const auto& [reason, times] : broken) std::printf("; %d times %s", times, reason.c_str());
  std::printf("\n");
  CHECK(bed.at(0).State(2) == PeerState::kUp && bed.at(2).State(0) == PeerState::kUp);
  REQUIRE(bed.Connect(0, 1).ok());
  const bool healed = WriteRecords(bed, 999);
  if (!healed) std::printf("# then %s\n", bed.verbs(0).BrokenBecause(1).c_str());
  CHECK(healed);
}

TEST(packets_are_lost) { DeliversOrSaysSo("loss 3%", Order::kKept); }
TEST(packets_are_lost_and_late) { DeliversOrSaysSo("loss 1% delay 2ms", Order::kKept); }
TEST(packets_come_twice) { DeliversOrSaysSo("delay 500us duplicate 5%", Order::kKept); }
TEST(packets_are_damaged) { DeliversOrSaysSo("corrupt 2%", Order::kKept); }
TEST(packets_overtake_each_other) { DeliversOrSaysSo("delay 2ms 1ms", Order::kLost); }
TEST(some_packets_overtake_others) { DeliversOrSaysSo("delay 1ms reorder 99%", Order::kLost); }

// Two processes that are up, and one of them behind a cable that is pulled.
TEST(a_cable_is_pulled) {
  VerbsBed bed;
  // Those whose cable is whole must stay, and an emulated machine can stand still for 0.3 s.
  for (falcon::VerbsOptions& options : bed.options) options.timeout = 15;
  bed.StartAll(3);
  const Bytes data = Pattern(1, 600);
  {
    const Fault pulled("ip link set p2 down", "ip link set p2 up");
    CHECK(WriteOne(bed.at(0), 1, {0, 0}, data).ok());
    CHECK(WriteOne(bed.at(0), 2, {0, 0}, data).ok());
    CHECK(bed.AwaitBroken(0, 1));
    std::printf("# %s\n", bed.verbs(0).BrokenBecause(1).c_str());
    CHECK(bed.at(0).State(2) == PeerState::kUp && bed.at(2).State(0) == PeerState::kUp);
    CHECK(IsZero(bed.at(1).region(0)));
    bed.Drive();
    CHECK(Holds(bed.at(2), 0, 0, data));
  }
  const Nanoseconds give_up = MonotonicNow() + 10 * kSecond;
  bool back = false;
  while (!back && MonotonicNow() < give_up) {
    if (!bed.Connect(0, 1).ok() || !bed.Connect(1, 2).ok()) continue;
    back = WriteOne(bed.at(0), 1, {0, 0}, data).ok();
    bed.Drive();
    back = back && bed.at(0).State(1) == PeerState::kUp;
  }
  CHECK(back && Holds(bed.at(1), 0, 0, data));
  CHECK(WriteOne(bed.at(2), 1, {1, 0}, data).ok());
  bed.Drive();
  CHECK(Holds(bed.at(1), 1, 0, data));
}

// ---- the peer

// Member 1 in a process of its own. It says "up" once connected, and answers every line with the
// first word of its region 0.
int PeerProcess(int from_parent, int to_parent) {
  std::unique_ptr<Fabric> fabric;
  if (!MakeVerbsFabric(OptionsFor(1), 1, &fabric).ok()) return 2;
  if (!fabric->AddRegion(0, falcon::test::kRegion0Bytes).ok()) return 3;
  if (!Tell(to_parent, fabric->Descriptor())) return 4;
  const std::string peer = Hear(from_parent);
  if (!fabric->Connect(0, std::strtoull(peer.c_str(), nullptr, 10), peer.substr(peer.find(' ') + 1))
           .ok())
    return 5;
  if (!Tell(to_parent, "up")) return 6;
  while (true) {
    pollfd asked{from_parent, POLLIN, 0};
    if (poll(&asked, 1, 1) == 1) {
      if (Hear(from_parent).empty()) return 0;
      if (!Tell(to_parent, std::to_string(Word(*fabric, 0, 0)))) return 7;
    }
    fabric->Poll();
  }
}

bool ConnectTo(VerbsBed& bed, const Child& child, uint64_t connection) {
  const std::string descriptor = Hear(child.from());
  return Tell(child.to(), std::to_string(connection) + " " + bed.at(0).Descriptor()) &&
         Hear(child.from()) == "up" && bed.at(0).Connect(1, connection, descriptor).ok();
}

std::string FirstWord(const Child& child) {
  return Tell(child.to(), "?") ? Hear(child.from()) : std::string();
}

// Writes the numbers from `first` on, for `time` or until the connection breaks; the last one
// written.
uint64_t Count(VerbsBed& bed, uint64_t first, Nanoseconds time) {
  const Nanoseconds until = MonotonicNow() + time;
  uint64_t next = first;
  while (MonotonicNow() < until && bed.at(0).State(1) == PeerState::kUp) {
    if (WriteOne(bed.at(0), 1, {0, 0}, WordBytes(next)).ok()) ++next;
    bed.PollAll();
  }
  return next - 1;
}

TEST(a_killed_process_breaks_one_peer_and_leaves_nothing) {
  const size_t objects = KernelObjects();
  for (uint64_t round = 1; round <= 3; ++round) {
    Child child(PeerProcess);
    VerbsBed bed;
    bed.Start(0);
    bed.Start(2);
    CHECK(bed.Connect(0, 2).ok());
    REQUIRE(ConnectTo(bed, child, 50 + round));
    const uint64_t last = Count(bed, 1, kSecond / 5);
    bed.Drive();
    CHECK(bed.at(0).State(1) == PeerState::kUp && FirstWord(child) == std::to_string(last));
    static_cast<void>(Count(bed, last + 1, kSecond / 50));
    const Nanoseconds killed = MonotonicNow();
    child.Kill();
    static_cast<void>(WriteOne(bed.at(0), 1, {0, 0}, WordBytes(last)).ok());
    CHECK(bed.AwaitBroken(0, 1));
    std::printf("# after %lld ms: %s\n",
                static_cast<long long>((MonotonicNow() - killed) / 1000000),
                bed.verbs(0).BrokenBecause(1).c_str());
    CHECK(MonotonicNow() - killed < 5 * kSecond);
    CHECK(bed.at(0).State(2) == PeerState::kUp);
    Child again(PeerProcess);
    REQUIRE(ConnectTo(bed, again, 60 + round));
    CHECK(FirstWord(again) == "0");
    const uint64_t latest = Count(bed, 1000, kSecond / 50);
    bed.Drive();
    CHECK(FirstWord(again) == std::to_string(latest));
  }
  CHECK(KernelObjects() == objects);
}

// The device of a stopped process goes on answering: writes land, and nothing of this fabric says
// that nobody reads them. That is why heartbeats and acknowledgements are written by a processor.
TEST(a_stopped_process_is_written_to) {
  Child child(PeerProcess);
  VerbsBed bed;
  bed.Start(0);
  REQUIRE(ConnectTo(bed, child, 70));
  REQUIRE(kill(child.pid(), SIGSTOP) == 0);
  const uint64_t last = Count(bed, 1, 2 * kSecond);
  bed.Drive();
  CHECK(bed.at(0).State(1) == PeerState::kUp);
  CHECK(bed.at(0).Completed(1) == bed.at(0).Posted(1));
  CHECK(last > 100);
  REQUIRE(kill(child.pid(), SIGCONT) == 0);
  CHECK(FirstWord(child) == std::to_string(last));
}

// We ourselves may be stopped: old timestamps break nothing.
TEST(a_stopped_writer_comes_back) {
  VerbsBed bed;
  bed.options[0].stall_us = 100000;
  bed.StartAll(2);
  for (int round = 0; round < 5; ++round) {
    CHECK(WriteOne(bed.at(0), 1, {0, 0}, Pattern(2, 64)).ok());
    if (round % 2 == 0) bed.at(0).Poll();
    usleep(200000);  // nobody polls
    bed.Drive();
    CHECK(bed.at(0).State(1) == PeerState::kUp);
  }
}

// ---- the queues

// Without a posted receive a wake cannot be delivered; the sender learns so in bounded time.
TEST(a_receiver_without_receives_breaks_its_own_connection) {
  VerbsBed bed;
  bed.options[1].receives = 0;
  bed.StartAll(3);
  for (int sleep = 0; sleep < 2; ++sleep) {
    bed.at(1).ArmWake();
    bed.at(2).ArmWake();
    const Nanoseconds give_up = MonotonicNow() + 10 * kSecond;
    while (bed.at(0).State(1) == PeerState::kUp && MonotonicNow() < give_up) {
      for (const PeerId peer : {PeerId{1}, PeerId{2}}) {
        static_cast<void>(WriteOne(bed.at(0), peer, {0, 0}, Pattern(3, 64)).ok());
        bed.at(0).Ring(peer);
      }
      bed.at(0).Poll();
      sched_yield();
    }
    bed.at(1).DisarmWake();
    bed.at(2).DisarmWake();
  }
  CHECK(bed.at(0).State(1) == PeerState::kBroken);
  std::printf("# %s\n", bed.verbs(0).BrokenBecause(1).c_str());
  CHECK(bed.verbs(0).BrokenBecause(1).find("RNR") != std::string::npos);
  CHECK(bed.at(0).State(2) == PeerState::kUp);
  bed.Drive();
  CHECK(Holds(bed.at(2), 0, 0, Pattern(3, 64)));
}

// Everything that can be posted is, of every kind and without a look at what completed.
TEST(queues_are_never_over_posted) {
  VerbsBed bed;
  for (falcon::VerbsOptions& each : bed.options) each.send_queue = 64;
  bed.StartAll(3);
  Bytes back(256);
  const Bytes small = Pattern(4, 32);
  const Bytes large = Pattern(5, 3000);
  size_t busy = 0;
  for (int round = 0; round < 24; ++round) {
    for (int i = 0; i < 200; ++i) {
      for (PeerId from = 0; from < 3; ++from) {
        const auto to = static_cast<PeerId>((from + 1 + i % 2) % 3);
        const Status status = i % 7 == 0
                                  ? bed.at(from).Read(to, {1, 0}, back)
                                  : WriteOne(bed.at(from), to, {0, 0}, i % 3 == 0 ? large : small);
        if (Is(status, "FABRIC_BUSY")) ++busy;
        CHECK(status.ok() || Is(status, "FABRIC_BUSY"));
        bed.at(from).Ring(to);
      }
    }
    // Sleep words and wakes have slots of their own, and those are counted, too.
    for (int i = 0; i < 40; ++i) {
      for (PeerId member = 0; member < 3; ++member) {
        bed.at(member).ArmWake();
        bed.at(member).DisarmWake();
      }
    }
    if (round % 3 == 0) bed.Drive();
    for (PeerId from = 0; from < 3; ++from) {
      for (PeerId to = 0; to < 3; ++to)
        CHECK(from == to || bed.at(from).State(to) == PeerState::kUp);
    }
  }
  bed.Drive();
  CHECK(busy > 1000);
  CHECK(bed.at(0).counters().errors == 0 && bed.at(1).counters().errors == 0);
}

}  // namespace

int main(int argc, char** argv) {
  falcon::test::SkipWithoutDevices();
  return falcon::test::Main(argc, argv);
}
