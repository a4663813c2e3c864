// The tcp fabric: the conformance suite with all members in this process, then what only streams
// can do: strangers, wrong numbers, words cut in the middle, a peer killed or asleep.
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "fabric/tcp.h"
#include "fabric/tcp_socket.h"
#include "fabric/tcp_wire.h"
#include "fabric_conformance.h"
#include "fabric_tcp_bed.h"
#include "os/clock.h"

namespace {

using falcon::Fabric;
using falcon::kMillisecond;
using falcon::kSecond;
using falcon::MonotonicNow;
using falcon::Nanoseconds;
using falcon::PeerId;
using falcon::PeerState;
using falcon::RemoteAddress;
using falcon::Status;
using falcon::TcpFrame;
using falcon::TcpHello;
using falcon::TcpKind;
using falcon::TcpMember;
using falcon::UniqueFd;
using falcon::test::Child;
using falcon::test::Hear;
using falcon::test::Tell;
using falcon::test::conformance::Bytes;
using falcon::test::conformance::Holds;
using falcon::test::conformance::Is;
using falcon::test::conformance::IsZero;
using falcon::test::conformance::OpenDescriptors;
using falcon::test::conformance::Pattern;
using falcon::test::conformance::Span;
using falcon::test::conformance::Word;
using falcon::test::conformance::WordBytes;
using falcon::test::conformance::WriteOne;
using falcon::test::tcp::ConnectBoth;
using falcon::test::tcp::DialByHand;
using falcon::test::tcp::HelloTo;
using falcon::test::tcp::kPatience;
using falcon::test::tcp::kQueue;
using falcon::test::tcp::Local;
using falcon::test::tcp::MakeMember;
using falcon::test::tcp::PollUntil;
using falcon::test::tcp::Say;
using falcon::test::tcp::TcpBed;
using falcon::test::tcp::WasClosed;

// ---- beginnings

TEST(a_connection_is_up_when_both_sides_know_its_number) {
  const auto a = MakeMember(0);
  const auto b = MakeMember(1);
  REQUIRE(a != nullptr && b != nullptr);
  CHECK(a->Connect(1, 5, b->Descriptor()).ok());
  CHECK(a->State(1) == PeerState::kDown);
  const uint64_t word = 77;
  CHECK(WriteOne(*a, 1, {0, 8}, WordBytes(word)).ok());  // waits for the peer to know
  CHECK(!PollUntil(
      {a.get(), b.get()}, [&] { return a->State(1) != PeerState::kDown; }, 100 * kMillisecond));
  CHECK(a->Completed(1) == 0 && Word(*b, 0, 8) == 0);
  CHECK(b->Connect(0, 5, a->Descriptor()).ok());
  CHECK(PollUntil({a.get(), b.get()}, [&] { return Word(*b, 0, 8) == 77; }));
  CHECK(PollUntil({a.get(), b.get()}, [&] { return b->State(0) == PeerState::kUp; }));
  CHECK(a->State(1) == PeerState::kUp && a->Completed(1) == 1);
}

TEST(a_wrong_connection_number_is_refused) {
  falcon::TcpFabricOptions options = Local();
  options.greet_within = 200 * kMillisecond;
  const auto a = MakeMember(0, options);
  const auto b = MakeMember(1, options);
  REQUIRE(a != nullptr && b != nullptr);
  const uint64_t word = 77;
  CHECK(a->Connect(1, 5, b->Descriptor()).ok() && b->Connect(0, 6, a->Descriptor()).ok());
  CHECK(WriteOne(*a, 1, {0, 0}, WordBytes(word)).ok());
  CHECK(PollUntil({a.get(), b.get()}, [&] {
    return a->State(1) == PeerState::kBroken && b->State(0) == PeerState::kBroken;
  }));
  CHECK(Is(WriteOne(*a, 1, {0, 0}, WordBytes(word)), "FABRIC_DOWN"));
  CHECK(IsZero(b->region(0)) && a->counters().errors > 0);
  // One that was dropped is refused at once.
  REQUIRE(ConnectBoth(*a, 0, *b, 1, 7) && ConnectBoth(*a, 0, *b, 1, 8));
  UniqueFd late = DialByHand(*b);
  Say(late.get(), HelloTo(*b, 0, 7));
  CHECK(PollUntil(
      {a.get(), b.get()}, [&] { return WasClosed(late.get()); }, 150 * kMillisecond));
  CHECK(a->State(1) == PeerState::kUp && b->State(0) == PeerState::kUp);
  CHECK(IsZero(b->region(0)));
}

TEST(a_peer_that_never_answers_is_broken_in_time) {
  falcon::TcpFabricOptions options = Local();
  options.greet_within = 200 * kMillisecond;
  const auto a = MakeMember(0, options);
  const auto b = MakeMember(1, options);  // which nobody polls
  REQUIRE(a != nullptr && b != nullptr);
  const Nanoseconds start = MonotonicNow();
  CHECK(a->Connect(1, 1, b->Descriptor()).ok());
  CHECK(PollUntil({a.get()}, [&] { return a->State(1) == PeerState::kBroken; }));
  CHECK(MonotonicNow() - start < 2 * kSecond);
}

TEST(addresses_are_checked) {
  std::unique_ptr<Fabric> fabric;
  for (const char* address : {"", "localhost", "0.0.0.0", "::", "127.0.0.1:80", "192.0.2.1"}) {
    falcon::TcpFabricOptions options = Local();
    options.address = address;
    CHECK(Is(MakeTcpFabric(options, 0, &fabric), "FABRIC_CONNECT"));
  }
  falcon::TcpFabricOptions options = Local();
  options.address = "0.0.0.0";
  options.advertise = "127.0.0.1";
  const auto a = MakeMember(0, options);
  const auto b = MakeMember(1);
  REQUIRE(a != nullptr && b != nullptr);
  CHECK(ConnectBoth(*a, 0, *b, 1, 1));
  TcpMember member;
  CHECK(TcpMember::Parse(b->Descriptor(), &member).ok());
  options.port = member.port;
  CHECK(Is(MakeTcpFabric(options, 2, &fabric), "FABRIC_CONNECT"));  // taken
}

// ---- strangers

TEST(strangers_are_refused_and_bounded) {
  falcon::TcpFabricOptions options = Local();
  options.greet_within = 300 * kMillisecond;
  const auto a = MakeMember(0, options);
  const auto b = MakeMember(1, options);
  REQUIRE(a != nullptr && b != nullptr && ConnectBoth(*a, 0, *b, 1, 3));
  const size_t descriptors = OpenDescriptors();
  uint64_t word = 0;
  const auto still_works = [&] {
    ++word;
    return WriteOne(*a, 1, {0, 0}, WordBytes(word)).ok() &&
           PollUntil({a.get(), b.get()}, [&] { return Word(*b, 0, 0) == word; });
  };
  for (uint64_t seed = 0; seed < 60; ++seed) {  // garbage
    const UniqueFd stranger = DialByHand(*b);
    const Bytes noise = Pattern(seed, 48 + seed * 37);
    static_cast<void>(send(stranger.get(), noise.data(), noise.size(), MSG_NOSIGNAL));
    CHECK(PollUntil(
        {a.get(), b.get()}, [&] { return WasClosed(stranger.get()); }, 200 * kMillisecond));
  }
  const TcpHello good = HelloTo(*b, 0, 3);
  for (size_t bit = 0; bit < sizeof good * 8; ++bit) {  // one wrong bit
    TcpHello bad = good;
    reinterpret_cast<uint8_t*>(&bad)[bit / 8] ^= static_cast<uint8_t>(1 << (bit % 8));
    const size_t checksum = offsetof(TcpHello, checksum) * 8;
    if (bit % 2 == 0 && bit < checksum) bad.checksum = falcon::TcpChecksum(bad);
    const size_t number = offsetof(TcpHello, connection) * 8;
    const size_t from = offsetof(TcpHello, from) * 8;
    // Another sender, or another number, may be right soon: they wait, and never say a thing.
    if (bit % 2 == 0 && ((bit >= number && bit < number + 64) || (bit >= from && bit < from + 3)))
      continue;
    const UniqueFd stranger = DialByHand(*b);
    Say(stranger.get(), bad);
    CHECK(PollUntil(
        {b.get()}, [&] { return WasClosed(stranger.get()); }, 200 * kMillisecond));
  }
  CHECK(still_works());
  std::vector<UniqueFd> silent;  // more than there is room for
  for (int i = 0; i < 100; ++i) {
    silent.push_back(DialByHand(*b));
    b->Poll();
    CHECK(OpenDescriptors() <= descriptors + silent.size() + 32);
  }
  CHECK(still_works());
  const auto c = MakeMember(2, options);
  CHECK(c != nullptr && ConnectBoth(*c, 2, *b, 1, 9));  // a peer still finds room
  CHECK(PollUntil(
      {b.get()},
      [&] {
        return std::all_of(silent.begin(), silent.end(),
                           [](const UniqueFd& fd) { return WasClosed(fd.get()); });
      },
      2 * kSecond));
  CHECK(still_works());
  CHECK(a->State(1) == PeerState::kUp && b->State(0) == PeerState::kUp);
  CHECK(b->counters().errors >= 160);
}

// ---- streams by hand

// A member with a peer 0 that is a stream by hand, and a listener that keeps quiet.
struct ByHand {
  std::unique_ptr<Fabric> silent = MakeMember(0);
  std::unique_ptr<Fabric> fabric = MakeMember(1);
  UniqueFd stream;
  uint64_t frames = 0;
  ByHand() {
    CHECK(fabric->Connect(0, 4, silent->Descriptor()).ok());
    stream = DialByHand(*fabric);
    Say(stream.get(), HelloTo(*fabric, 0, 4));
    falcon::TcpWelcome welcome{};
    CHECK(PollUntil({fabric.get()}, [&] {
      return recv(stream.get(), &welcome, sizeof welcome, MSG_DONTWAIT) == sizeof welcome;
    }));
    CHECK(falcon::IsSound(welcome, 4));
  }
  TcpFrame Frame(TcpKind kind, RemoteAddress to, size_t bytes) {
    return falcon::MakeTcpFrame(kind, to, bytes, ++frames);
  }
};

TEST(words_cut_by_the_stream_arrive_whole) {
  ByHand peer;
  for (const size_t start : {1024u, 1027u}) {
    for (uint8_t value = 1; value < 4; ++value) {
      const Bytes data(40, std::byte{value});
      const TcpFrame frame = peer.Frame(TcpKind::kWrite, {0, start}, data.size());
      Bytes stream(sizeof frame + data.size());
      std::memcpy(stream.data(), &frame, sizeof frame);
      std::copy(data.begin(), data.end(), stream.begin() + sizeof frame);
      for (size_t at = 0; at < stream.size(); ++at) {
        Say(peer.stream.get(), stream[at]);
        const auto came = [&] { return peer.fabric->Poll() > 0; };
        CHECK(PollUntil({}, came));
        for (size_t offset = 1032; offset < 1064; offset += 8) {
          const uint64_t word = Word(*peer.fabric, 0, offset);
          CHECK(word == (word & 0xFF) * 0x0101010101010101ull);
        }
      }
      CHECK(Holds(*peer.fabric, 0, start, data));
    }
  }
}

TEST(wrong_frames_break_the_connection_and_touch_nothing) {
  for (int trick = 0; trick < 12; ++trick) {
    ByHand peer;
    TcpFrame frame = peer.Frame(TcpKind::kWrite, {1, 0}, 8);
    if (trick == 0) frame.checksum ^= 1;
    if (trick == 1) frame.offset = falcon::test::kRegion1Bytes - 7;
    if (trick == 2) frame.offset = ~uint64_t{0} - 3;
    if (trick == 3) frame.region = 2;
    if (trick == 4) frame.region = 200;
    if (trick == 5) frame.kind = TcpKind::kAnswer;
    if (trick == 6) frame.kind = static_cast<TcpKind>(9);
    if (trick == 7) frame.sequence = 2;
    if (trick == 8) frame.exposure = 1;
    if (trick == 9) frame.length = 0xFFFFFFFF;
    if (trick == 10) frame.length = falcon::test::kRegion1Bytes + 1;
    if (trick == 11) {
      frame.kind = TcpKind::kRead;
      frame.offset = falcon::test::kRegion1Bytes - 7;
    }
    if (trick > 0) frame.checksum = falcon::TcpChecksum(frame);
    Say(peer.stream.get(), frame);
    Say(peer.stream.get(), ~uint64_t{0});
    CHECK(PollUntil(
        {peer.fabric.get()}, [&] { return peer.fabric->State(0) == PeerState::kBroken; },
        2 * kSecond));
    CHECK(IsZero(peer.fabric->region(0)) && IsZero(peer.fabric->region(1)));
    CHECK(WasClosed(peer.stream.get()));
  }
}

// ---- a connection under way

TEST(many_reads_and_writes_at_once) {
  const auto a = MakeMember(0);
  const auto b = MakeMember(1);
  REQUIRE(a != nullptr && b != nullptr && ConnectBoth(*a, 0, *b, 1, 1));
  std::vector<uint64_t> written(kQueue / 2);
  std::vector<uint64_t> read(kQueue / 2);
  for (size_t i = 0; i < written.size(); ++i) {
    written[i] = i + 1;
    CHECK(WriteOne(*a, 1, {0, 0}, WordBytes(written[i])).ok());
    CHECK(a->Read(1, {0, 0}, std::as_writable_bytes(std::span(&read[i], 1))).ok());
  }
  CHECK(PollUntil({a.get(), b.get()}, [&] { return a->Completed(1) == a->Posted(1); }));
  for (size_t i = 0; i < read.size(); ++i) {
    CHECK(read[i] >= written[i] && (i == 0 || read[i] >= read[i - 1]));
  }
  const Bytes whole = Pattern(9, falcon::test::kRegion0Bytes);
  std::copy(whole.begin(), whole.end(), b->region(0).begin());
  std::vector<Bytes> back(kQueue, Bytes(falcon::test::kRegion0Bytes / 4 - 3));
  for (size_t i = 0; i < back.size(); ++i) CHECK(a->Read(1, {0, i % 7}, back[i]).ok());
  CHECK(PollUntil({a.get(), b.get()}, [&] { return a->Completed(1) == a->Posted(1); }));
  for (size_t i = 0; i < back.size(); ++i)
    CHECK(std::equal(back[i].begin(), back[i].end(), whole.begin() + static_cast<long>(i % 7)));
}

TEST(a_slow_peer_makes_the_queue_full_and_loses_nothing) {
  falcon::TcpFabricOptions options = Local();
  options.socket_buffer_bytes = 64 << 10;
  const auto a = MakeMember(0, options);
  const auto b = MakeMember(1, options);
  REQUIRE(a != nullptr && b != nullptr && ConnectBoth(*a, 0, *b, 1, 1));
  constexpr size_t kSlots = 64;
  constexpr size_t kSlotBytes = 4096;
  constexpr uint64_t kWrites = 3000;
  std::vector<Bytes> sources(kQueue + 1, Bytes(kSlotBytes));
  uint64_t next = 0;
  size_t refused = 0;
  for (const Nanoseconds give_up = MonotonicNow() + kPatience; next < kWrites;) {
    REQUIRE(MonotonicNow() < give_up);
    Bytes& source = sources[next % sources.size()];
    std::fill(source.begin(), source.end(), static_cast<std::byte>(next));
    std::memcpy(source.data(), &next, 8);
    const Status status = WriteOne(*a, 1, {0, next % kSlots * kSlotBytes}, source);
    CHECK(status.ok() || Is(status, "FABRIC_BUSY"));
    if (status.ok()) {
      ++next;
      a->Ring(1);
      continue;
    }
    ++refused;
    CHECK(a->Posted(1) == next && next - a->Completed(1) == kQueue);
    for (int i = 0; i < 200; ++i) a->Poll();  // to no avail, if the peer does not
    if (a->Completed(1) + kQueue == next) b->Poll();
  }
  CHECK(refused > 0);
  CHECK(PollUntil({a.get(), b.get()}, [&] {
    return a->Completed(1) == kWrites &&
           Word(*b, 0, (kWrites - 1) % kSlots * kSlotBytes) == kWrites - 1;
  }));
  for (uint64_t i = kWrites - kSlots; i < kWrites; ++i) {
    CHECK(Word(*b, 0, i % kSlots * kSlotBytes) == i);
    const Bytes rest(kSlotBytes - 8, static_cast<std::byte>(i));
    CHECK(Holds(*b, 0, i % kSlots * kSlotBytes + 8, rest));
  }
  CHECK(a->State(1) == PeerState::kUp && b->State(0) == PeerState::kUp);
  std::printf("# refused %zu times\n", refused);
}

TEST(a_sleeper_still_sends_what_it_posted) {
  const auto a = MakeMember(0);
  const auto b = MakeMember(1);
  REQUIRE(a != nullptr && b != nullptr && ConnectBoth(*a, 0, *b, 1, 1));
  const Bytes data = Pattern(3, 64);
  const Span pieces[] = {Span(data).first(8), Span(data).subspan(8, 8), Span(data).subspan(16, 8),
                         Span(data).subspan(24)};
  for (size_t i = 0; i < kQueue; ++i) CHECK(a->Write(1, {0, i * 64}, pieces).ok());
  for (int sleeps = 0; a->Completed(1) < kQueue; ++sleeps) {
    REQUIRE(sleeps < 100);
    a->ArmWake();
    pollfd wait{a->wake_fd(), POLLIN, 0};
    if (a->Completed(1) < kQueue) CHECK(poll(&wait, 1, 2000) == 1);
    a->DisarmWake();
  }
  CHECK(PollUntil({b.get()}, [&] { return Holds(*b, 0, (kQueue - 1) * 64, data); }));
}

// ---- processes

constexpr size_t kBlockBytes = 96 << 10;

// Writes i before, a block of words all i, and i after, for i = 1, 2, ... for ever.
int WriteBlocksForEver(PeerId self, uint64_t connection, int from_parent, int to_parent) {
  const auto fabric = MakeMember(self);
  if (fabric == nullptr || !Tell(to_parent, fabric->Descriptor())) return 1;
  if (!fabric->Connect(0, connection, Hear(from_parent)).ok()) return 2;
  std::vector<uint64_t> block(kBlockBytes / 8);
  for (uint64_t i = 1;; ++i) {
    std::fill(block.begin(), block.end(), i);
    const Span pieces[] = {std::as_bytes(std::span(block))};
    if (!WriteOne(*fabric, 0, {0, 0}, WordBytes(i)).ok()) return 3;
    if (!fabric->Write(0, {0, 4096}, pieces).ok()) return 3;
    if (!WriteOne(*fabric, 0, {0, 64}, WordBytes(i)).ok()) return 3;
    while (fabric->Completed(0) < fabric->Posted(0)) {
      fabric->Poll();
      if (fabric->State(0) == PeerState::kBroken) return 4;
    }
  }
}

TEST(a_peer_is_killed_in_the_middle_of_a_write) {
  for (uint64_t round = 1; round <= 8; ++round) {
    Child child([&](int from, int to) { return WriteBlocksForEver(1, round, from, to); });
    const auto fabric = MakeMember(0);
    REQUIRE(fabric != nullptr);
    REQUIRE(fabric->Connect(1, round, Hear(child.from())).ok());
    REQUIRE(Tell(child.to(), fabric->Descriptor()));
    const auto in_order = [&] {
      const uint64_t before = Word(*fabric, 0, 0);
      const uint64_t first = Word(*fabric, 0, 4096);
      const uint64_t last = Word(*fabric, 0, 4096 + kBlockBytes - 8);
      const uint64_t after = Word(*fabric, 0, 64);
      return after <= last && last <= first && first <= before && before <= after + 1;
    };
    const Nanoseconds give_up = MonotonicNow() + kPatience;
    while (Word(*fabric, 0, 64) < 100 + 37 * round) {
      fabric->Poll();
      CHECK(in_order());
      REQUIRE(MonotonicNow() < give_up);
    }
    child.Kill();
    const Nanoseconds killed = MonotonicNow();
    CHECK(PollUntil({fabric.get()}, [&] {
      CHECK(in_order());
      return fabric->State(1) == PeerState::kBroken;
    }));
    CHECK(MonotonicNow() - killed < kSecond);
    const uint64_t word = 1;
    CHECK(Is(WriteOne(*fabric, 1, {0, 0}, WordBytes(word)), "FABRIC_DOWN"));
    // Every word of the block is of one of the last two writes, the newer ones in front.
    const uint64_t newest = Word(*fabric, 0, 4096);
    size_t front = 0;
    while (front < kBlockBytes && Word(*fabric, 0, 4096 + front) == newest) front += 8;
    for (size_t at = front; at < kBlockBytes; at += 8)
      CHECK(Word(*fabric, 0, 4096 + at) == newest - 1);
  }
}

TEST(the_death_of_an_idle_peer_wakes_a_sleeper) {
  Child child([&](int from, int to) {
    const auto fabric = MakeMember(1);
    if (fabric == nullptr || !Tell(to, fabric->Descriptor())) return 1;
    if (!fabric->Connect(0, 1, Hear(from)).ok()) return 2;
    while (true) fabric->Poll();
  });
  const auto fabric = MakeMember(0);
  REQUIRE(fabric != nullptr && fabric->Connect(1, 1, Hear(child.from())).ok());
  REQUIRE(Tell(child.to(), fabric->Descriptor()));
  REQUIRE(PollUntil({fabric.get()}, [&] { return fabric->State(1) == PeerState::kUp; }));
  for (Nanoseconds until = MonotonicNow() + 50 * kMillisecond; MonotonicNow() < until;)
    fabric->Poll();
  fabric->ArmWake();
  pollfd wait{fabric->wake_fd(), POLLIN, 0};
  CHECK(poll(&wait, 1, 0) == 0);
  child.Kill();
  CHECK(poll(&wait, 1, 5000) == 1);
  fabric->DisarmWake();
  CHECK(PollUntil(
      {fabric.get()}, [&] { return fabric->State(1) == PeerState::kBroken; }, kSecond));
}

TEST(a_peer_that_stops_is_broken_in_time) {
  Child child([&](int from, int to) {
    const auto fabric = MakeMember(1);
    if (fabric == nullptr || !Tell(to, fabric->Descriptor())) return 1;
    if (!fabric->Connect(0, 1, Hear(from)).ok()) return 2;
    while (true) fabric->Poll();
  });
  falcon::TcpFabricOptions options = Local();
  options.socket_buffer_bytes = 64 << 10;
  options.dead_after = 2 * kSecond;
  const auto fabric = MakeMember(0, options);
  REQUIRE(fabric != nullptr && fabric->Connect(1, 1, Hear(child.from())).ok());
  REQUIRE(Tell(child.to(), fabric->Descriptor()));
  REQUIRE(PollUntil({fabric.get()}, [&] { return fabric->State(1) == PeerState::kUp; }));
  kill(child.pid(), SIGSTOP);
  const Nanoseconds stopped = MonotonicNow();
  const Bytes data = Pattern(5, 256 << 10);
  CHECK(PollUntil({fabric.get()}, [&] {
    static_cast<void>(WriteOne(*fabric, 1, {0, 0}, data).ok());
    return fabric->State(1) == PeerState::kBroken;
  }));
  std::printf("# broken after %.1f s\n",
              static_cast<double>(MonotonicNow() - stopped) / static_cast<double>(kSecond));
  CHECK(MonotonicNow() - stopped < 10 * kSecond);
}

// ---- not limits, numbers to look at

// Of ping-pongs, as half of a round trip.
void Report(const char* what, std::vector<Nanoseconds>& times) {
  std::sort(times.begin(), times.end());
  std::printf("# 64 B one way, %s: p50 %.2f us, p99 %.2f us\n", what,
              static_cast<double>(times[times.size() / 2]) / 2000,
              static_cast<double>(times[times.size() * 99 / 100]) / 2000);
}

TEST(latency_beside_a_plain_stream) {
  constexpr uint64_t kRounds = 20000;
  std::vector<Nanoseconds> times;
  {
    const auto a = MakeMember(0);
    const auto b = MakeMember(1);
    REQUIRE(a != nullptr && b != nullptr && ConnectBoth(*a, 0, *b, 1, 1));
    const auto play = [&](Fabric& own, PeerId peer, bool first) {
      std::array<uint64_t, 8> line{};
      for (uint64_t i = 1; i <= kRounds; ++i) {
        const Nanoseconds start = MonotonicNow();
        for (int turn = 0; turn < 2; ++turn) {
          if ((turn == 0) == first) {
            line[7] = i;
            const Span pieces[] = {std::as_bytes(std::span(line))};
            if (!own.Write(peer, {0, 0}, pieces).ok()) return;
            own.Ring(peer);
          } else {
            while (Word(own, 0, 56) != i) own.Poll();
          }
        }
        if (first) times.push_back(MonotonicNow() - start);
      }
    };
    std::thread other([&] {
      const falcon::test::conformance::Pinned pinned(1);
      play(*b, 0, false);
    });
    const falcon::test::conformance::Pinned pinned(0);
    play(*a, 1, true);
    other.join();
  }
  CHECK(times.size() == kRounds);
  Report("tcp fabric", times);
  times.clear();
  const UniqueFd server(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  REQUIRE(bind(server.get(), reinterpret_cast<sockaddr*>(&address), length) == 0);
  REQUIRE(listen(server.get(), 1) == 0);
  getsockname(server.get(), reinterpret_cast<sockaddr*>(&address), &length);
  const UniqueFd left(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(connect(left.get(), reinterpret_cast<sockaddr*>(&address), length) == 0);
  const UniqueFd right(accept(server.get(), nullptr, nullptr));
  for (const int fd : {left.get(), right.get()}) {
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  }
  const auto pass = [](int fd, bool send_it) {
    char line[64] = {};
    if (send_it) return send(fd, line, sizeof line, MSG_NOSIGNAL) == sizeof line;
    while (recv(fd, line, sizeof line, MSG_DONTWAIT) != sizeof line) {
    }
    return true;
  };
  std::thread other([&] {
    const falcon::test::conformance::Pinned pinned(1);
    for (uint64_t i = 0; i < kRounds; ++i) pass(right.get(), false), pass(right.get(), true);
  });
  const falcon::test::conformance::Pinned pinned(0);
  for (uint64_t i = 0; i < kRounds; ++i) {
    const Nanoseconds start = MonotonicNow();
    pass(left.get(), true);
    pass(left.get(), false);
    times.push_back(MonotonicNow() - start);
  }
  other.join();
  Report("plain TCP", times);
}

}  // namespace

int main(int argc, char** argv) {
  falcon::test::AddConformanceCases<TcpBed>();
  return falcon::test::Main(argc, argv);
}
