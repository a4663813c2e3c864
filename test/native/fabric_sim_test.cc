// The sim fabric: the conformance suite, and each of the test's powers over the network.
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "fabric/sim.h"
#include "fabric_conformance.h"

namespace {

using falcon::Fabric;
using falcon::PeerId;
using falcon::PeerState;
using falcon::SimNetwork;
using falcon::Tear;
using falcon::test::conformance::Bytes;
using falcon::test::conformance::Holds;
using falcon::test::conformance::Is;
using falcon::test::conformance::IsZero;
using falcon::test::conformance::Pattern;
using falcon::test::conformance::Span;
using falcon::test::conformance::WriteOne;

class SimBed final : public falcon::test::FabricBed {
 public:
  [[nodiscard]] const char* name() const override { return "sim"; }
  void Start(PeerId member) override {
    fabrics_[member].reset();
    fabrics_[member] = network.MakeFabric(member);
    CHECK(fabrics_[member]->AddRegion(0, falcon::test::kRegion0Bytes).ok());
    CHECK(fabrics_[member]->AddRegion(1, falcon::test::kRegion1Bytes).ok());
  }
  [[nodiscard]] Fabric& at(PeerId member) override { return *fabrics_[member]; }
  void Close(PeerId member) override { fabrics_[member].reset(); }
  void Kill(PeerId member) override { network.Crash(member); }
  void Drive() override {
    network.DeliverEverything();
    for (const auto& fabric : fabrics_) {
      if (fabric != nullptr) fabric->Poll();
    }
  }
  bool Step() override {
    for (PeerId from = 0; from < falcon::kMaxMembers; ++from) {
      for (PeerId to = 0; to < falcon::kMaxMembers; ++to) {
        if (network.Pending(from, to) == 0) continue;
        if (network.DeliverPart(from, to, 24) == 0) network.DeliverNext(from, to);
        return true;
      }
    }
    return false;
  }
  void KeepLate(PeerId from, PeerId to) override { CHECK(network.KeepStale(from, to) > 0); }
  void DeliverLate(PeerId from, PeerId to) override {
    while (network.StalePending(from, to) > 0) network.DeliverStale(from, to);
  }
  [[nodiscard]] bool concurrent() const override { return false; }
  [[nodiscard]] size_t queue_bound() const override { return network.options().queue_bound; }
  [[nodiscard]] size_t Leftovers() const override { return 0; }

  SimNetwork network;

 private:
  std::array<std::unique_ptr<Fabric>, falcon::kMaxMembers> fabrics_;
};

TEST(nothing_moves_by_itself) {
  SimBed bed;
  bed.StartAll(2);
  const Bytes data = Pattern(1, 64);
  CHECK(!bed.network.DeliverNext(0, 1));
  CHECK(WriteOne(bed.at(0), 1, {0, 0}, data).ok());
  for (int i = 0; i < 10; ++i) CHECK(bed.at(0).Poll() == 0 && bed.at(1).Poll() == 0);
  CHECK(IsZero(bed.at(1).region(0)));
  CHECK(bed.network.Pending(0, 1) == 1 && bed.network.NextBytes(0, 1) == 64);
  CHECK(bed.network.DeliverNext(0, 1));
  CHECK(Holds(bed.at(1), 0, 0, data));
  CHECK(bed.at(0).Poll() == 1);
  CHECK(bed.network.Pending(0, 1) == 0 && bed.network.NextBytes(0, 1) == 0);
}

TEST(a_write_tears_where_the_test_says) {
  const Bytes data = Pattern(2, 61);
  for (size_t cut = 0; cut < data.size(); ++cut) {
    SimBed bed;
    bed.StartAll(2);
    const Span pieces[] = {Span(data).first(13), Span(data).subspan(13)};
    CHECK(bed.at(0).Write(1, {0, 3}, pieces).ok());
    CHECK(bed.network.DeliverPart(0, 1, cut, Tear::kBytes) == cut);
    CHECK(Holds(bed.at(1), 0, 3, Span(data).first(cut)));
    CHECK(IsZero(bed.at(1).region(0).subspan(3 + cut)));
    CHECK(bed.at(0).Completed(1) == 0 && bed.network.NextBytes(0, 1) == data.size() - cut);
    CHECK(bed.network.DeliverNext(0, 1));
    CHECK(Holds(bed.at(1), 0, 3, data));
    CHECK(bed.at(0).Completed(1) == 1);
    // Between words only, unless the test asks for more.
    CHECK(bed.at(0).Write(1, {1, 8}, pieces).ok());
    CHECK(bed.network.DeliverPart(0, 1, cut) == cut / 8 * 8);
    CHECK(IsZero(bed.at(1).region(1).subspan(8 + cut / 8 * 8)));
  }
}

TEST(regions_overtake_each_other_but_completions_do_not) {
  SimBed bed;
  bed.StartAll(2);
  const Bytes a = Pattern(3, 32), b = Pattern(4, 32), c = Pattern(5, 32);
  CHECK(WriteOne(bed.at(0), 1, {0, 0}, a).ok());
  CHECK(WriteOne(bed.at(0), 1, {1, 0}, b).ok());
  CHECK(WriteOne(bed.at(0), 1, {1, 32}, c).ok());
  CHECK(bed.network.PendingOfRegion(0, 1, 1) == 2);
  CHECK(bed.network.DeliverNextOfRegion(0, 1, 1));
  CHECK(Holds(bed.at(1), 1, 0, b) && IsZero(bed.at(1).region(0)));
  CHECK(IsZero(bed.at(1).region(1).subspan(32)));
  CHECK(bed.at(0).Completed(1) == 0);
  CHECK(bed.network.Pending(0, 1) == 2);
  CHECK(bed.network.DeliverNext(0, 1));
  CHECK(Holds(bed.at(1), 0, 0, a) && bed.at(0).Completed(1) == 2);
  CHECK(!bed.network.DeliverNextOfRegion(0, 1, 0));
  CHECK(bed.network.DeliverNextOfRegion(0, 1, 1));
  CHECK(bed.at(0).Completed(1) == 3);
}

TEST(a_buffer_that_is_reused_too_early_sends_the_new_bytes) {
  const Bytes old_bytes = Pattern(6, 32), new_bytes = Pattern(7, 32);
  for (const bool capture : {false, true}) {
    SimNetwork network({.queue_bound = 4, .capture_at_post = capture});
    const std::unique_ptr<Fabric> a = network.MakeFabric(0), b = network.MakeFabric(1);
    CHECK(b->AddRegion(0, 4096).ok());
    CHECK(a->Connect(1, 1, b->Descriptor()).ok());
    Bytes buffer = old_bytes;
    CHECK(WriteOne(*a, 1, {0, 0}, buffer).ok());
    std::copy(new_bytes.begin(), new_bytes.end(), buffer.begin());
    CHECK(network.DeliverNext(0, 1));
    CHECK(Holds(*b, 0, 0, capture ? old_bytes : new_bytes));
  }
}

TEST(a_cut_is_one_way_and_keeps_what_was_posted) {
  SimBed bed;
  bed.StartAll(2);
  const Bytes data = Pattern(8, 32);
  bed.network.Cut(0, 1, true);
  CHECK(bed.network.IsCut(0, 1) && !bed.network.IsCut(1, 0));
  CHECK(WriteOne(bed.at(0), 1, {0, 0}, data).ok());
  CHECK(WriteOne(bed.at(1), 0, {0, 0}, data).ok());
  CHECK(!bed.network.DeliverNext(0, 1) && bed.network.DeliverPart(0, 1, 8) == 0);
  CHECK(!bed.network.DeliverNextOfRegion(0, 1, 0));
  CHECK(bed.network.DeliverEverything() == 1);
  CHECK(Holds(bed.at(0), 0, 0, data) && IsZero(bed.at(1).region(0)));
  CHECK(bed.at(0).State(1) == PeerState::kUp);
  bed.network.Cut(0, 1, false);
  CHECK(bed.network.DeliverNext(0, 1));
  CHECK(Holds(bed.at(1), 0, 0, data));
}

TEST(a_lossy_wire_and_a_broken_connection_differ_in_what_the_sender_knows) {
  SimBed bed;
  bed.StartAll(2);
  const Bytes data = Pattern(9, 32);
  CHECK(WriteOne(bed.at(0), 1, {0, 0}, data).ok());
  bed.network.DropAll(0, 1);
  CHECK(bed.network.Pending(0, 1) == 0 && !bed.network.DeliverNext(0, 1));
  CHECK(bed.at(0).State(1) == PeerState::kUp);
  size_t posted = 1;
  while (WriteOne(bed.at(0), 1, {0, 0}, data).ok()) ++posted;
  CHECK(posted == bed.network.options().queue_bound);
  CHECK(Is(WriteOne(bed.at(0), 1, {0, 0}, data), "FABRIC_BUSY"));
  bed.Drive();
  CHECK(IsZero(bed.at(1).region(0)) && bed.at(0).Completed(1) == 0);
  bed.network.Break(0, 1);
  CHECK(bed.at(0).State(1) == PeerState::kBroken);
  CHECK(Is(WriteOne(bed.at(0), 1, {0, 0}, data), "FABRIC_DOWN"));
  CHECK(bed.at(1).State(0) == PeerState::kUp);
  CHECK(bed.Connect(0, 1).ok());
  CHECK(bed.at(0).State(1) == PeerState::kUp);
  CHECK(WriteOne(bed.at(0), 1, {0, 0}, data).ok());
  bed.Drive();
  CHECK(Holds(bed.at(1), 0, 0, data));
}

TEST(late_writes_of_a_replaced_connection_land_in_the_same_memory) {
  SimBed bed;
  bed.StartAll(2);
  Bytes old_bytes = Pattern(10, 32);
  const Bytes expected = old_bytes;
  const Bytes fresh = Pattern(11, 32);
  CHECK(WriteOne(bed.at(0), 1, {0, 0}, old_bytes).ok());
  CHECK(bed.network.DeliverPart(0, 1, 8) == 8);
  CHECK(bed.network.KeepStale(0, 1) == 1);
  CHECK(bed.Connect(0, 1).ok());
  CHECK(bed.network.Pending(0, 1) == 0 && bed.network.StalePending(0, 1) == 1);
  old_bytes.assign(32, std::byte{0});  // packets on the wire do not change any more
  CHECK(WriteOne(bed.at(0), 1, {0, 0}, fresh).ok());
  bed.Drive();
  CHECK(Holds(bed.at(1), 0, 0, fresh));
  CHECK(bed.network.DeliverStalePart(0, 1, 8) == 8);
  CHECK(bed.network.DeliverStale(0, 1));
  CHECK(!bed.network.DeliverStale(0, 1));
  CHECK(Holds(bed.at(1), 0, 0, Span(fresh).first(8)));
  CHECK(Holds(bed.at(1), 0, 8, Span(expected).subspan(8)));
  CHECK(bed.at(0).Completed(1) == 1);  // of the new connection only
}

TEST(a_crash_takes_the_memory_and_what_was_not_sent) {
  for (const bool keep_wire : {false, true}) {
    SimBed bed;
    bed.StartAll(3);
    const Bytes data = Pattern(12, 32);
    CHECK(WriteOne(bed.at(1), 0, {0, 0}, data).ok());
    CHECK(WriteOne(bed.at(0), 1, {0, 0}, data).ok());
    bed.network.Crash(1, keep_wire);
    CHECK(bed.network.Pending(1, 0) == 0 && bed.network.Pending(0, 1) == 0);
    CHECK(bed.network.StalePending(1, 0) == (keep_wire ? 1 : 0));
    CHECK(Is(WriteOne(bed.at(1), 0, {0, 0}, data), "FABRIC_DOWN"));
    CHECK(bed.at(1).State(0) == PeerState::kDown);
    CHECK(Is(bed.at(1).Connect(0, 9, bed.at(0).Descriptor()), "FABRIC_CONNECT"));
    CHECK(bed.at(0).State(1) == PeerState::kUp);  // nobody has told it
    bed.Drive();
    CHECK(IsZero(bed.at(0).region(0)));
    bed.Start(1);
    CHECK(IsZero(bed.at(1).region(0)));
    CHECK(bed.network.DeliverStale(1, 0) == keep_wire);
    CHECK(keep_wire == Holds(bed.at(0), 0, 0, data));
    CHECK(bed.Connect(0, 1).ok() && bed.Connect(1, 0).ok());
    CHECK(WriteOne(bed.at(0), 1, {0, 0}, data).ok());
    bed.Drive();
    CHECK(Holds(bed.at(1), 0, 0, data));
  }
}

}  // namespace

int main(int argc, char** argv) {
  falcon::test::AddConformanceCases<SimBed>();
  return falcon::test::Main(argc, argv);
}
