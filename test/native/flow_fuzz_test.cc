// Made-up and mutated frames through every way into the flow table, and into the pool of unproposed
// frames. Judged from outside: bounds hold, counts agree with what came out, no frame is longer
// than it may be, what came in with right checksums goes out with right ones, and what came in
// damaged is never made right.
//
//   FALCON_FUZZ_SEED=n   another run
//   FALCON_FUZZ_ROUNDS=n a longer or shorter one
#include <cstdlib>
#include <random>

#include "flow_fixture.h"
#include "flow_fuzz_frames.h"
#include "vm/ingress_pool.h"

namespace falcon::test {
namespace {

constexpr uint64_t kDefaultRounds = 1'500'000;
constexpr size_t kMaxMadeBytes = kMaxLinkBytes + kIpv6HeaderBytes + kTcpHeaderBytes + 1460;

// What may come out during a call.
enum class Expect { kRight, kStillWrong, kAnything };

struct JudgingSink : FlowSink {
  size_t guest = 0, wire = 0;
  bool full = false;
  Frame input{};  // of the call that runs
  Expect expect = Expect::kRight;

  bool ToGuest(Frame frame) override {
    if (full) return false;
    ++guest;
    Judge(frame);
    return true;
  }
  void ToWire(Frame frame) override {
    ++wire;
    Judge(frame);
  }
  void Judge(Frame frame) const {
    CHECK(frame.size() <= std::max(input.size(), kMaxMadeBytes));
    const Packet p = ParseFrame(frame);
    if (p.kind != PacketKind::kTcp || expect == Expect::kAnything) return;
    CHECK(PlainChecksumsAreRight(frame, p) == (expect == Expect::kRight));
  }
};

// A replica's table with small bounds, and what has been asked of it.
struct Subject {
  explicit Subject(FlowRole role, bool log_is_clean = true) : trusted(log_is_clean) {
    std::memcpy(options.vm_mac, kVmMac.data(), 6);
    options.max_flows = 24;
    options.max_half_open = 8;
    options.max_neighbours = 8;
    options.retain_bytes_per_flow = 8 << 10;
    options.retain_bytes = 64 << 10;
    options.hold_bytes_per_flow = 16 << 10;
    options.hold_bytes = 128 << 10;
    table = MakeFlowTable(options, &sink);
    SetRole(role, kStart);
  }
  void SetRole(FlowRole next, Nanoseconds now) {
    Call({}, Expect::kRight);
    table->SetRole(next);
    if (next == FlowRole::kPrimary) table->TakeOver(now);
  }
  Admission Admit(const Bytes& frame, Bytes* out, Nanoseconds now) {
    ++admits;
    Call(frame, Expect::kRight);
    size_t length = 0;
    out->assign(frame.size(), std::byte{0});
    const Admission admission = table->Admit(frame, *out, &length, now);
    CHECK(length <= frame.size() && (length > 0) == (admission == Admission::kPropose));
    out->resize(length);
    return admission;
  }
  void Deliver(const Bytes& frame, Nanoseconds now) {
    ++delivers;
    Call(frame, Expect::kRight);
    table->Deliver(frame, now);
  }
  void FromGuest(const Bytes& frame, Nanoseconds now) {
    ++from_guest;
    const Packet p = ParseFrame(frame);
    const bool wrong = p.kind == PacketKind::kTcp && !PlainChecksumsAreRight(frame, p);
    Call(frame, wrong ? Expect::kStillWrong : Expect::kRight);
    table->FromGuest(frame, now);
  }
  void Tick(Nanoseconds now) {
    Call({}, Expect::kRight);
    Nanoseconds next = now;
    for (int i = 0; next <= now && i < 100; ++i) next = table->Tick(now);
    CHECK(next > now && next <= now + kSecond);
  }
  void GuestWritable(Nanoseconds now) {
    Call({}, Expect::kRight);
    table->GuestWritable(now);
  }
  void Reset() {
    Call({}, Expect::kRight);
    table->Reset();
    const FlowCounters c = table->counters();
    CHECK(c.flows == 0 && c.half_open == 0 && c.held_bytes == 0 && c.retained_bytes == 0);
  }

  // Counts against what was asked and what came out; bounds.
  void Check() {
    const FlowCounters c = table->counters();
    CHECK(c.frames_admitted + c.frames_refused == admits);
    CHECK(c.frames_delivered == delivers && c.frames_from_guest == from_guest);
    CHECK(c.frames_to_guest == sink.guest && c.frames_to_wire == sink.wire);
    CHECK(c.flows <= options.max_flows + options.max_half_open);
    CHECK(c.half_open <= 2 * options.max_half_open && c.half_open <= c.flows);
    CHECK(c.held_bytes <= options.hold_bytes && c.retained_bytes <= options.retain_bytes);
    CHECK(c.flows_closed <= c.flows_opened && c.flows_opened - c.flows_closed <= c.flows);
    CHECK(c.evicted_half_open <= c.flows_opened && c.diverged <= delivers);
    CHECK(c.local_acks + c.neighbour_answers <= c.frames_to_guest);
    CHECK(c.retained_resent <= c.frames_to_wire && c.malformed <= admits + from_guest);
    CHECK(c.frames_refused >= last.frames_refused && c.diverged >= last.diverged);
    CHECK(c.flows_closed >= last.flows_closed && c.dropped_to_guest >= last.dropped_to_guest);
    last = c;
  }

  bool trusted;  // only frames that Admit has seen come as the log's
  FlowOptions options;
  JudgingSink sink;
  std::unique_ptr<FlowTable> table;
  size_t admits = 0, delivers = 0, from_guest = 0;
  FlowCounters last;

 private:
  void Call(Frame input, Expect expect) {
    sink.input = input;
    sink.expect = trusted ? expect : Expect::kAnything;
  }
};

// A cluster of two that follow one log, and a third table that is fed whatever there is.
class Fuzz {
 public:
  explicit Fuzz(uint64_t seed) : frames_(seed), random_(seed ^ 0xF0F0) {}

  void Run(uint64_t rounds) {
    for (uint64_t round = 0; round < rounds; ++round) {
      now_ += static_cast<Nanoseconds>(Below(8) == 0 ? Below(20 * kMillisecond) : Below(50'000));
      if (Below(4000) == 0) now_ += static_cast<Nanoseconds>(Below(100)) * kSecond;
      Step();
      if (round % 16 == 0) Check();
      if (Failures() > 0) return Fail(__FILE__, __LINE__, "in round " + std::to_string(round));
    }
    // The run was worth something: every way was gone.
    const FlowCounters &p = a_.last, &b = b_.last;
    CHECK(rounds < kDefaultRounds || (p.local_acks > 0 && p.clamped_acks > 0 && p.held > 0));
    CHECK(rounds < kDefaultRounds || (p.reoffered > 0 && p.retained_resent > 0 && b.diverged > 0));
    CHECK(rounds < kDefaultRounds || (b.neighbour_answers > 0 && b.evicted_half_open > 0));
    CHECK(rounds < kDefaultRounds ||
          (b.refused_full > 0 && b.malformed > 0 && b.retain_dropped > 0));
  }

 private:
  uint64_t Below(uint64_t bound) { return random_() % bound; }
  Subject& Any() { return Below(2) == 0 ? a_ : b_; }

  void Step() {
    const uint64_t what = Below(100);
    if (what < 50) {
      FromNetwork();
    } else if (what < 85) {
      Subject& subject = Any();
      subject.FromGuest(frames_.OfGuest(&subject == &b_ ? 1 : 0), now_);
    } else if (what < 92) {
      for (Subject* subject : {&a_, &b_, &rubbish_}) subject->Tick(now_);
    } else if (what < 95) {
      Rubbish();
    } else if (what < 97) {
      Subject& subject = Any();
      subject.sink.full = Below(3) == 0;
      if (!subject.sink.full) subject.GuestWritable(now_);
    } else if (Below(100) == 0) {
      Failover();
    }
    CatchUp(Below(6));
  }

  // To the primary and to the backup's pool; what is proposed goes into the log.
  void FromNetwork() {
    const Bytes frame = frames_.OfClient();
    const Packet p = ParseFrame(frame);
    Bytes proposed, pooled;
    const Admission admission = Primary().Admit(frame, &proposed, now_);
    const bool kept = Backup().Admit(frame, &pooled, now_) == Admission::kPropose;
    if (kept) pool_->Saw(pooled, now_);
    if (admission != Admission::kPropose) return;
    if (kept) CHECK(pooled == proposed);
    const Packet q = ParseFrame(proposed);
    CHECK(q.kind == p.kind && q.kind != PacketKind::kMalformed);
    if (q.kind == PacketKind::kTcp) {
      CHECK(PlainChecksumsAreRight(frame, p) && PlainChecksumsAreRight(proposed, q));
    } else {
      CHECK(proposed == frame);
    }
    Log(proposed);
  }

  void Log(const Bytes& frame) {
    pool_->Logged(frame, now_);
    log_.push_back(frame);
    Primary().Deliver(frame, now_);
  }
  void CatchUp(uint64_t most) {
    if (log_.size() - behind_ > 40) most = 40;
    for (; most > 0 && behind_ < log_.size(); --most) Backup().Deliver(log_[behind_++], now_);
    if (behind_ == log_.size() && behind_ > 1000) {
      log_.clear();
      behind_ = 0;
    }
  }

  void Rubbish() {
    const Bytes frame = Below(2) == 0 ? frames_.OfClient() : frames_.OfGuest(0);
    rubbish_.Deliver(frame, now_);
    rubbish_.FromGuest(frame, now_);
    if (Below(300) == 0) rubbish_.Reset();
    if (Below(50) == 0)
      rubbish_.SetRole(Below(2) == 0 ? FlowRole::kPrimary : FlowRole::kBackup, now_);
  }

  void Failover() {
    CatchUp(SIZE_MAX);
    Subject &old = Primary(), &next = Backup();
    if (Below(8) == 0) {  // both guests begin anew
      old.Reset();
      next.Reset();
    }
    old.SetRole(FlowRole::kBackup, now_);
    next.SetRole(FlowRole::kPrimary, now_);
    first_leads_ = !first_leads_;
    behind_ = log_.size();
    std::vector<Bytes> left;
    pool_->Drain(
        now_,
        [](void* context, Frame frame) {
          static_cast<std::vector<Bytes>*>(context)->emplace_back(frame.begin(), frame.end());
          return true;
        },
        &left);
    CHECK(pool_->frames() == 0 && pool_->bytes() == 0);
    for (const Bytes& frame : left) Log(frame);
  }

  void Check() {
    for (Subject* subject : {&a_, &b_, &rubbish_}) subject->Check();
    CHECK(pool_->frames() <= kPool.max_frames && pool_->bytes() <= kPool.max_bytes);
  }

  Subject& Primary() { return first_leads_ ? a_ : b_; }
  Subject& Backup() { return first_leads_ ? b_ : a_; }

  static constexpr IngressPoolOptions kPool{.max_frames = 32, .max_bytes = 20'000};
  FuzzFrames frames_;
  std::mt19937_64 random_;
  Nanoseconds now_ = kStart;
  Subject a_{FlowRole::kPrimary}, b_{FlowRole::kBackup}, rubbish_{FlowRole::kBackup, false};
  bool first_leads_ = true;
  std::vector<Bytes> log_;
  size_t behind_ = 0;  // where the backup is in the log
  std::unique_ptr<IngressPool> pool_ = MakeIngressPool(kPool);
};

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

TEST(tables_survive_made_up_and_mutated_frames) {
  const uint64_t seed = FromEnvironment("FALCON_FUZZ_SEED", 1);
  Fuzz(seed).Run(FromEnvironment("FALCON_FUZZ_ROUNDS", kDefaultRounds));
  if (Failures() > 0) Fail(__FILE__, __LINE__, "FALCON_FUZZ_SEED=" + std::to_string(seed));
}

}  // namespace
}  // namespace falcon::test

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
