// No allocation per frame: calls of operator new are counted while frames go through every way of
// the table and the pool.
#include <cstdlib>
#include <new>

#include "flow_fixture.h"
#include "vm/ingress_pool.h"

namespace {
size_t allocations = 0;
}  // namespace

// Behind every other form of new. malloc itself is not used by the native code.
[[gnu::noinline]] void* operator new(size_t bytes) {
  ++allocations;
  void* block = std::malloc(bytes == 0 ? 1 : bytes);
  if (block == nullptr) std::abort();
  return block;
}
[[gnu::noinline]] void operator delete(void* block) noexcept { std::free(block); }
[[gnu::noinline]] void operator delete(void* block, size_t) noexcept { std::free(block); }

namespace falcon::test {
namespace {

constexpr int kFrames = 20'000;

// Counts frames and keeps none.
struct CountingSink : FlowSink {
  size_t guest = 0, wire = 0, refuse_one_in = 0, asked = 0;
  bool ToGuest(Frame) override {
    if (refuse_one_in != 0 && ++asked % refuse_one_in == 0) return false;
    ++guest;
    return true;
  }
  void ToWire(Frame) override { ++wire; }
};

// A table on a sink that does not allocate, and frames of one connection that lie ready.
struct Bench {
  explicit Bench(FlowRole role) : speaker(7000) {
    FlowOptions options;
    std::memcpy(options.vm_mac, kVmMac.data(), 6);
    table = MakeFlowTable(options, &sink);
    table->SetRole(role);
    if (role == FlowRole::kPrimary) table->TakeOver(now);
  }
  void Open(Seq wire) {
    table->Deliver(speaker.Client(0, 0, kTcpSyn, {}, 64000, kSynOptions), now);
    table->FromGuest(speaker.Guest(0, 1, kTcpSyn | kTcpAck, {}, 64000, kSynOptions), now);
    table->Deliver(speaker.Client(1, wire + 1, kTcpAck), now);
  }
  CountingSink sink;
  Replica speaker;
  std::unique_ptr<FlowTable> table;
  Nanoseconds now = kStart;
};

// Calls `turn` for every number, and returns how often that allocated behind the first tenth.
template <typename Turn>
size_t AllocationsOf(int count, Turn turn) {
  size_t before = 0;
  for (int i = 0; i < count; ++i) {
    if (i == count / 10) before = allocations;
    turn(i);
  }
  return allocations - before;
}

TEST(the_count_counts) {
  const size_t none = AllocationsOf(100, [](int) {});
  const size_t each = AllocationsOf(100, [](int i) { Bytes(static_cast<size_t>(i) + 1); });
  CHECK(none == 0 && each == 90);
}

TEST(a_served_connection_allocates_nothing_in_either_direction) {
  for (const FlowRole role : {FlowRole::kPrimary, FlowRole::kBackup}) {
    Bench b(role);
    const Seq wire = role == FlowRole::kPrimary ? 7000 : 500;
    b.Open(wire);
    std::vector<Bytes> in, out;
    for (Seq at = 1; in.size() < kFrames; at += 100) {
      in.push_back(b.speaker.Client(at, wire + at, kTcpAck | kTcpPsh, std::string(100, 'q')));
      out.push_back(b.speaker.Guest(at, at + 100, kTcpAck | kTcpPsh, std::string(100, 'r')));
    }
    Bytes normalised(2000);
    size_t refused = 0;
    const size_t count = AllocationsOf(kFrames, [&](int i) {
      size_t length = 0;
      const auto n = static_cast<size_t>(i);
      if (b.table->Admit(in[n], normalised, &length, b.now) != Admission::kPropose) ++refused;
      b.table->Deliver(Frame(normalised).first(length), b.now);
      b.table->FromGuest(out[n], b.now);
      b.now = std::max(b.now + kMicrosecond, std::min(b.table->Tick(b.now), b.now + kMillisecond));
    });
    CHECK(count == 0 && refused == 0);
    CHECK(b.sink.guest >= kFrames && b.sink.wire >= kFrames);
  }
}

TEST(a_lagging_guest_with_a_full_ring_allocates_nothing) {
  Bench b(FlowRole::kBackup);
  b.Open(500);
  b.sink.refuse_one_in = 7;
  std::vector<Bytes> in, out;
  const Bytes sack = FromHex("0101050a0000020000000280");
  for (Seq at = 1; in.size() < kFrames;
       at += 1000) {  // far beyond what the guest has sent and can take
    in.push_back(b.speaker.Client(at, 501 + at, kTcpAck, std::string(1000, 'q'), 100, sack));
    out.push_back(b.speaker.Guest(at, at + 500, kTcpAck, std::string(1000, 'r'), 50));
  }
  const size_t count = AllocationsOf(kFrames, [&](int i) {
    const auto n = static_cast<size_t>(i);
    b.table->Deliver(in[n], b.now);
    if (i >= 20) b.table->FromGuest(out[n - 20], b.now);
    b.table->GuestWritable(b.now);
    b.now += 5 * kMillisecond;
    b.table->Tick(b.now);
  });
  const FlowCounters c = b.table->counters();
  CHECK(count == 0 && c.diverged == 0);
  CHECK(c.held > 0 && c.reoffered > 0 && c.local_acks > 0);
}

TEST(floods_divergence_and_take_over_allocate_nothing) {
  Bench b(FlowRole::kBackup);
  std::vector<Bytes> syns, acks, questions;
  for (int i = 0; i < kFrames; ++i) {
    const auto port = static_cast<uint16_t>(i);
    const auto host = static_cast<uint8_t>(2 + (i >> 16));
    syns.push_back(Make({.client_port = port, .client_host = host, .seq = 9, .flags = kTcpSyn}));
    acks.push_back(Make({.client_port = port,
                         .client_host = host,
                         .seq = 10,
                         .ack = 77,
                         .flags = kTcpAck,
                         .payload = Text("lost")}));
  }
  const Bytes question = FromHex(
      "ffffffffffff5254000000010806"
      "0001080006040001"
      "5254000000010a090001"
      "0000000000000a090002");
  Bytes normalised(200);
  const size_t count = AllocationsOf(kFrames, [&](int i) {
    const auto n = static_cast<size_t>(i);
    size_t length = 0;
    (void)b.table->Admit(syns[n], normalised, &length, b.now);
    b.table->Deliver(syns[n], b.now);
    if (i % 3 == 0) b.table->Deliver(acks[n], b.now);
    b.table->FromGuest(question, b.now);
    b.now += 2 * kMillisecond;
    b.table->Tick(b.now);
    if (i % 1000 == 999) {
      b.table->SetRole(FlowRole::kPrimary);
      b.table->TakeOver(b.now);
      b.table->SetRole(FlowRole::kBackup);
    }
  });
  const FlowCounters c = b.table->counters();
  CHECK(count == 0 && c.diverged > 0 && c.evicted_half_open > 0 && c.neighbour_answers == kFrames);
}

TEST(the_pool_of_unproposed_frames_allocates_nothing) {
  auto pool = MakeIngressPool({});
  std::vector<Bytes> frames;
  for (int i = 0; i < kFrames; ++i)
    frames.push_back(Bytes(60 + i % 1400, static_cast<std::byte>(i)));
  const size_t count = AllocationsOf(kFrames, [&](int i) {
    const auto n = static_cast<size_t>(i);
    pool->Saw(frames[n], i);
    if (i >= 5 && i % 2 == 0) pool->Logged(frames[n - 5], i);
    if (i % 1000 == 0)
      pool->Drain(
          i, [](void*, Frame) { return true; }, nullptr);
  });
  CHECK(count == 0 && pool->frames() > 0);
}

}  // namespace
}  // namespace falcon::test

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
