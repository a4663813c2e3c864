// A reactor over RDMA: whom it connects to must not keep it from its heartbeats. Runs where there
// are devices (test/softroce).
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "check.h"
#include "fabric/verbs.h"
#include "fabric/verbs_descriptor.h"
#include "os/check.h"
#include "os/clock.h"
#include "plane/reactor.h"
#include "reactor_place.h"

namespace {

using namespace falcon;
using falcon::test::Place;

ReactorOptions Over(const Place& place) {
  ReactorOptions o;
  o.plane.members = 3;
  o.plane.log_bytes = 1 << 20;
  o.plane.log_entries = 1 << 12;
  o.plane.ring_bytes = 1 << 16;
  o.wal.directory = place.root + "/wal";
  o.wal.cluster = "test";
  o.wal.segment_bytes = 4 << 20;
  o.fabric = "verbs";
  o.vm = false;
  return o;
}

// The descriptor of a member whose address nobody has.
Status Nobody(std::string* descriptor) {
  std::unique_ptr<Fabric> fabric;
  if (Status s = MakeVerbsFabric({}, 1, &fabric); !s.ok()) return s;
  if (Status s = fabric->AddRegion(0, 4096); !s.ok()) return s;
  VerbsMember member;
  if (Status s = ParseVerbsMember(fabric->Descriptor(), &member); !s.ok()) return s;
  member.gid[15] = 201;
  *descriptor = FormatVerbsMember(member);
  return Ok();
}

// How long a command waited for the reactor at worst, while `done` is false.
template <typename Done>
Nanoseconds LongestWait(Reactor& reactor, Nanoseconds limit, Done done) {
  std::atomic<Nanoseconds> longest{0};
  const Nanoseconds end = MonotonicNow() + limit;
  while (!done() && MonotonicNow() < end) {
    std::atomic<bool> ran{false};
    const Nanoseconds from = MonotonicNow();
    reactor.Post([&](DataPlane&) { ran = true; });
    while (!ran) usleep(200);
    longest = std::max<Nanoseconds>(longest, MonotonicNow() - from);
    usleep(2000);
  }
  return longest;
}

std::string TextOf(const PlaneEvent& event) {
  const auto* begin = reinterpret_cast<const char*>(event.bytes.data());
  return {begin, begin + event.bytes.size()};
}

TEST(a_peer_that_nobody_finds_does_not_hold_the_reactor) {
  const Place place;
  std::string descriptor;
  REQUIRE(Nobody(&descriptor).ok());
  Reactor reactor;
  REQUIRE(reactor.Open(Over(place)).ok());
  REQUIRE(reactor.link().has_value());
  REQUIRE(reactor.Start([] {}).ok());
  std::vector<PlaneEvent> events;
  const auto told = [&] {
    std::vector<PlaneEvent> taken;
    std::vector<VmHappened> vm;
    reactor.TakeEvents(&taken, &vm);
    for (PlaneEvent& event : taken) events.push_back(std::move(event));
    return !events.empty();
  };
  const Nanoseconds from = MonotonicNow();
  reactor.Connect(1, 77, descriptor);
  const Nanoseconds waited = LongestWait(reactor, 10 * kSecond, told);
  const Nanoseconds took = MonotonicNow() - from;
  REQUIRE(!events.empty());
  CHECK(events[0].kind == PlaneEvent::Kind::kStreamBroken && events[0].op == 1);
  CHECK(TextOf(events[0]).starts_with("FABRIC_CONNECT "));
  // The same on the reactor's thread, to know what is avoided.
  std::atomic<bool> ran{false};
  const Nanoseconds direct_from = MonotonicNow();
  reactor.Post([&](DataPlane& plane) {
    CHECK(!plane.Connect(1, 78, descriptor).ok());
    ran = true;
  });
  while (!ran) usleep(200);
  const Nanoseconds direct = MonotonicNow() - direct_from;
  std::printf(
      "# looked for %lld ms, a command waited %lld ms at worst; on the reactor: %lld ms (%s)\n",
      static_cast<long long>(took / kMillisecond), static_cast<long long>(waited / kMillisecond),
      static_cast<long long>(direct / kMillisecond), TextOf(events[0]).c_str());
  CHECK(took > 500 * kMillisecond);
  CHECK(waited < took / 3);
  reactor.Stop();
}

}  // namespace

int main(int argc, char** argv) {
  if (!falcon::VerbsMissing().empty()) {
    for (falcon::test::Case& each : falcon::test::Cases())
      each.run = [] { falcon::test::SkipReason() = falcon::VerbsMissing(); };
  }
  return falcon::test::Main(argc, argv);
}
