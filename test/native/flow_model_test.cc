// Whole connections through three replicas of the flow table: a client, three guests with initial
// sequence numbers and speeds of their own, a network and guests that lose frames, a primary that
// dies at a random moment (sometimes the next one too), and replicas that are made anew as copies
// of the primary's guest and table. Judged from outside: the client's connection survives, each
// byte that it reads is right, and all guests that live read the same bytes. Their outputs are
// compared through the log: guests that answer alike never count as diverged, and one that answers
// otherwise always does.
#include <cstdlib>
#include <random>

#include "sim_tcp.h"
#include "vm/output_check.h"

namespace falcon::test {
namespace {

constexpr Nanoseconds kStep = kMillisecond;
constexpr int kMaxSteps = 400'000;

// What the service answers to the byte `c` at `place`: one to three bytes, the same on every guest.
std::string Answer(char c, size_t place) {
  const auto value = static_cast<unsigned char>(c);
  return std::string(1 + (value + place) % 3, static_cast<char>(value ^ (place * 7)));
}

std::string AnswerTo(const std::string& bytes) {
  std::string answer;
  for (size_t i = 0; i < bytes.size(); ++i) answer += Answer(bytes[i], i);
  return answer;
}

// How a guest answers otherwise than the others.
enum class Fault { kNone, kFlip, kMissing, kExtra, kSwapped, kSilentEnd };

class Model {
 public:
  explicit Model(uint64_t seed, Fault fault = Fault::kNone) : random_(seed), fault_(fault) {
    loss_ = Chance(3) ? 0 : Below(8);
    guest_loss_ = Chance(2) ? 0 : Below(10);
    const size_t window = 2000 + Below(60'000);
    client_ = std::make_unique<SimTcp>(false, RandomIss(), 1000 + Below(80'000), 1460,
                                       static_cast<uint8_t>(Below(4)));
    client_->send = [this](const Bytes& frame) { up_.push_back({now_ + Delay(), frame}); };
    const auto guest_scale = static_cast<uint8_t>(Below(3));
    for (size_t r = 0; r < kReplicas; ++r) {
      replicas_.push_back(std::make_unique<Replica>());
      Replica& replica = *replicas_[r];
      replica.model = this;
      replica.number = r;
      replica.lag = r == 0 ? 1 : 1 + Below(30);
      replica.appetite = 100 + Below(3000);
      replica.guest = std::make_unique<SimTcp>(true, RandomIss(), window, 1460, guest_scale);
      replica.guest->send = [this, &replica](const Bytes& frame) {
        replica.egress.push_back(frame);
      };
      FlowOptions options;
      std::memcpy(options.vm_mac, kVmMac.data(), 6);
      options.max_flows = 16;
      options.max_half_open = 8;
      options.output.queue_bytes = size_t{64} << Below(6);
      options.output.compare_every = static_cast<uint32_t>(1 + Below(8));
      options.output.check_after = static_cast<Nanoseconds>(10 + Below(300)) * kMillisecond;
      if (r > 0) options.output = replicas_[0]->output;
      replica.output = options.output;
      replica.table = MakeFlowTable(options, &replica);
    }
    replicas_[0]->table->SetRole(FlowRole::kPrimary);
    replicas_[0]->table->TakeOver(now_);
    to_send_.resize(1 + Below(120'000));
    for (char& c : to_send_) c = static_cast<char>(Below(256));
    expected_ = AnswerTo(to_send_);
    copies_ = Chance(2) ? 0 : 1 + static_cast<int>(Below(4));
    failovers_ = 1 + (Chance(3) ? 1 : 0) + (copies_ > 2 ? 2 : 0);
    next_failover_ = now_ + static_cast<Nanoseconds>(Below(Chance(4) ? 10 : 3000)) * kMillisecond;
    if (fault_ == Fault::kNone) return;
    failovers_ = copies_ = 0;
    faulty_ = 1 + Below(kReplicas - 1);
    fault_at_ = fault_ == Fault::kSilentEnd ? to_send_.size() - 1 : Below(to_send_.size());
  }

  // Empty if all went well, otherwise what did not.
  std::string Run() {
    client_->Connect(now_);
    for (int step = 0; step < kMaxSteps; ++step) {
      now_ += kStep;
      if (failovers_ > 0 && now_ >= next_failover_) Failover();
      if (copies_ > 0 && Chance(300)) CopyOne();
      ClientTurn();
      Network();
      Check();
      if (!verdict_.empty()) return verdict_;
      for (auto& replica : replicas_) {
        if (replica->alive) GuestTurn(*replica);
      }
      if (client_->reset()) return "the client's connection was reset";
      if (expected_.compare(0, client_->received().size(), client_->received()) != 0)
        return "wrong bytes";
      if (client_->peer_finished() && client_->all_acknowledged() && failovers_ == 0)
        return Settle();
    }
    return "no end: client sent " + std::to_string(client_->acknowledged()) + " of " +
           std::to_string(to_send_.size()) + ", got " + std::to_string(client_->received().size()) +
           " of " + std::to_string(expected_.size());
  }

 private:
  static constexpr size_t kReplicas = 3;

  struct Replica : FlowSink {
    Model* model = nullptr;
    size_t number = 0;
    bool alive = true;
    size_t delivered = 0;
    size_t lag = 1;
    size_t appetite = 1000;
    bool full = false;
    size_t answered = 0;
    std::unique_ptr<SimTcp> guest;
    std::unique_ptr<FlowTable> table;
    std::deque<Bytes> ingress, egress;
    OutputOptions output;
    uint64_t agreed = 0, diverged = 0;
    bool copied = false;  // perhaps after all was said

    bool ToGuest(Frame frame) override {
      full = full || model->Chance(200);
      if (full) return false;
      if (model->Below(100) >= model->guest_loss_) ingress.emplace_back(frame.begin(), frame.end());
      return true;
    }
    void ToWire(Frame frame) override {
      if (model->primary_ != number || model->Below(100) < model->loss_) return;
      model->down_.push_back({model->now_ + model->Delay(), Bytes(frame.begin(), frame.end())});
    }
  };
  struct Logged {
    bool check;
    Bytes bytes;
  };
  struct Flight {
    Nanoseconds arrives;
    Bytes frame;
  };

  uint64_t Below(uint64_t bound) { return random_() % bound; }
  bool Chance(uint64_t one_in) { return Below(one_in) == 0; }
  Seq RandomIss() {
    return Chance(2) ? static_cast<Seq>(0 - Below(60'000)) : static_cast<Seq>(random_());
  }
  Nanoseconds Delay() {
    return static_cast<Nanoseconds>(Below(Chance(20) ? 30 : 2)) * kMillisecond;
  }

  void ClientTurn() {
    client_->Tick(now_);
    client_->Read(Below(4000), now_);
    if (client_->open() && written_ < to_send_.size() && Chance(3)) {
      const size_t count = std::min<size_t>(1 + Below(5000), to_send_.size() - written_);
      client_->Write(to_send_.substr(written_, count), now_);
      written_ += count;
      if (written_ == to_send_.size()) client_->Finish(now_);
    }
  }

  void Network() {
    for (size_t i = 0; i < up_.size();) {
      if (up_[i].arrives > now_) {
        ++i;
        continue;
      }
      const Bytes frame = std::move(up_[i].frame);
      up_.erase(up_.begin() + static_cast<ptrdiff_t>(i));
      if (primary_ == kReplicas || Below(100) < loss_) continue;
      Bytes normalised(frame.size());
      size_t length = 0;
      for (int copies = Chance(50) ? 2 : 1; copies > 0; --copies) {
        if (replicas_[primary_]->table->Admit(frame, normalised, &length, now_) !=
            Admission::kPropose)
          continue;
        log_.push_back({false, Bytes(normalised.begin(),
                                     normalised.begin() + static_cast<ptrdiff_t>(length))});
      }
    }
    for (size_t i = 0; i < down_.size();) {
      if (down_[i].arrives > now_) {
        ++i;
        continue;
      }
      const Bytes frame = std::move(down_[i].frame);
      down_.erase(down_.begin() + static_cast<ptrdiff_t>(i));
      client_->Take(frame, now_);
    }
  }

  void GuestTurn(Replica& r) {
    if (Chance(r.lag)) {
      for (size_t n = 1 + Below(8); n > 0 && r.delivered < log_.size(); --n) DeliverNext(r);
    }
    r.table->Tick(now_);
    if (r.full && Chance(3)) {
      r.full = false;
      r.table->GuestWritable(now_);
    }
    while (!r.ingress.empty()) {
      const Bytes frame = std::move(r.ingress.front());
      r.ingress.pop_front();
      r.guest->Take(frame, now_);
    }
    r.guest->Tick(now_);
    if (Chance(1 + r.lag / 4)) {
      std::string answers;
      for (const char c : r.guest->Read(Below(r.appetite + 1), now_)) answers += AnswerOf(r, c);
      r.guest->Write(answers, now_);
      if (r.guest->peer_finished()) r.guest->Finish(now_);
    }
    while (!r.egress.empty()) {
      const Bytes frame = std::move(r.egress.front());
      r.egress.pop_front();
      r.table->FromGuest(frame, now_);
    }
  }

  std::string AnswerOf(Replica& r, char c) {
    const size_t place = r.answered++;
    std::string answer = Answer(c, place);
    if (fault_ == Fault::kNone || r.number != faulty_ || place != fault_at_) return answer;
    switch (fault_) {
      case Fault::kFlip:
        answer[0] = static_cast<char>(answer[0] ^ 1);
        return answer;
      case Fault::kExtra:
        return answer + "!";
      case Fault::kSwapped:
        return answer.front() == 'x' ? "yx" : "x" + answer;
      default:
        return "";
    }
  }

  void DeliverNext(Replica& r) {
    const uint64_t op = r.delivered++;
    const Logged& entry = log_[op];
    if (entry.check) {
      r.table->TakeCheck(op, entry.bytes, now_);
    } else {
      r.table->Deliver(entry.bytes, now_);
    }
  }

  // The primary's checks go into the log; what the replicas find is judged.
  void Check() {
    Bytes payload, tails;
    if (primary_ != kReplicas && replicas_[primary_]->table->CollectChecks(
                                     static_cast<uint16_t>(primary_), now_, &payload, &tails)) {
      log_.push_back({true, payload});
    }
    for (auto& replica : replicas_) {
      if (!replica->alive || !replica->table->HasVerdicts()) continue;
      Bytes found;
      replica->table->TakeVerdicts(&found);
      VerdictRecord record;
      for (size_t at = 0; at < found.size(); at += sizeof record + record.tail_bytes) {
        std::memcpy(&record, found.data() + at, sizeof record);
        const auto verdict = static_cast<Verdict>(record.verdict);
        if (verdict == Verdict::kAgree) ++replica->agreed;
        if (verdict != Verdict::kDiverged) continue;
        ++replica->diverged;
        if (fault_ == Fault::kNone || replica->number != faulty_)
          verdict_ = "replica " + std::to_string(replica->number) + " is said to have diverged";
      }
    }
  }

  // State transfer: a backup, or a replica that was dead, becomes a copy of the primary's guest
  // with all that lies between it and its table.
  void CopyOne() {
    const Replica& from = *replicas_[primary_];
    size_t to = Below(kReplicas);
    if (to == primary_) to = (to + 1) % kReplicas;
    Replica& r = *replicas_[to];
    --copies_;
    Bytes state;
    from.table->Save(&state, now_);
    const Status loaded = r.table->Load(state, now_);
    if (!loaded.ok()) Fail(__FILE__, __LINE__, loaded.detail());
    r.table->SetRole(FlowRole::kBackup);
    r.alive = r.copied = true;
    r.delivered = from.delivered;
    r.answered = from.answered;
    r.ingress = from.ingress;
    r.egress = from.egress;
    *r.guest = *from.guest;
    r.guest->send = [&r](const Bytes& frame) { r.egress.push_back(frame); };
  }

  void Failover() {
    size_t others = 0;
    for (auto& replica : replicas_) others += replica->alive && replica->number != primary_ ? 1 : 0;
    if (others == 0) {
      if (copies_ == 0) failovers_ = 0;
      return;  // nobody is left to take over
    }
    --failovers_;
    if (primary_ != kReplicas) replicas_[primary_]->alive = false;
    size_t next = Below(kReplicas);
    while (!replicas_[next]->alive) next = (next + 1) % kReplicas;
    primary_ = kReplicas;
    // The new primary's guest executes all committed input before the gate opens.
    Replica& r = *replicas_[next];
    while (r.delivered < log_.size()) DeliverNext(r);
    r.table->SetRole(FlowRole::kPrimary);
    primary_ = next;
    r.table->TakeOver(now_);
    next_failover_ = now_ + static_cast<Nanoseconds>(Below(2000)) * kMillisecond;
  }

  // The client is through; the guests that lag must come to the same end.
  std::string Settle() {
    if (client_->received() != expected_) return "the client's stream ended early";
    for (int step = 0; step < 120'000; ++step) {
      now_ += kStep;
      client_->Tick(now_);
      Network();
      Check();
      if (!verdict_.empty()) return verdict_;
      if (fault_ != Fault::kNone && replicas_[faulty_]->diverged > 0) return "";
      bool level = true;
      for (auto& replica : replicas_) {
        if (!replica->alive) continue;
        GuestTurn(*replica);
        level =
            level && replica->guest->received() == to_send_ && replica->guest->all_acknowledged();
      }
      // A while more, for the last checks.
      if (level && fault_ == Fault::kNone && ++settled_ > 1000) return Counters();
    }
    if (fault_ != Fault::kNone) return "the faulty guest was not found";
    std::string text = "guests not level:";
    for (auto& replica : replicas_) {
      if (!replica->alive) continue;
      text += " [" + std::to_string(replica->number) + " in " +
              std::to_string(replica->guest->received().size()) + "/" +
              std::to_string(to_send_.size()) + " acked " +
              std::to_string(replica->guest->acknowledged()) + "/" +
              std::to_string(replica->guest->sent()) + " diverged " +
              std::to_string(replica->table->counters().diverged) + "]";
    }
    return text;
  }

  std::string Counters() {
    for (auto& replica : replicas_) {
      if (!replica->alive) continue;
      const FlowCounters c = replica->table->counters();
      if (c.diverged != 0) return "a replica counted a divergence";
      if (replica->agreed == 0 && replica->number != primary_ && !replica->copied)
        return "nothing was compared";
      if (c.held_bytes != 0 || c.retained_bytes != 0)
        return "bytes are kept for a connection that is over";
    }
    return "";
  }

  std::mt19937_64 random_;
  Nanoseconds now_ = kSecond;
  uint64_t loss_ = 0, guest_loss_ = 0;
  std::unique_ptr<SimTcp> client_;
  std::vector<std::unique_ptr<Replica>> replicas_;
  std::vector<Logged> log_;
  std::vector<Flight> up_, down_;
  size_t primary_ = 0;
  std::string to_send_, expected_, verdict_;
  Fault fault_ = Fault::kNone;
  size_t faulty_ = kReplicas, fault_at_ = 0;
  int settled_ = 0;
  size_t written_ = 0;
  int failovers_ = 1, copies_ = 0;
  Nanoseconds next_failover_ = 0;
};

// FLOW_SEED=n runs one schedule; FLOW_SEEDS=n that many.
TEST(connections_survive_failover_under_random_schedules) {
  if (const char* one = std::getenv("FLOW_SEED"); one != nullptr) {
    const std::string verdict = Model(std::strtoull(one, nullptr, 10)).Run();
    if (!verdict.empty()) Fail(__FILE__, __LINE__, verdict);
    return;
  }
  const char* many = std::getenv("FLOW_SEEDS");
  const uint64_t seeds = many != nullptr ? std::strtoull(many, nullptr, 10) : 150;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    const int failures = Failures();
    const std::string verdict = Model(seed).Run();
    if (!verdict.empty() || Failures() != failures) {
      Fail(__FILE__, __LINE__, "FLOW_SEED=" + std::to_string(seed) + ": " + verdict);
    }
  }
}

TEST(a_guest_that_answers_otherwise_is_found) {
  for (const Fault fault :
       {Fault::kFlip, Fault::kMissing, Fault::kExtra, Fault::kSwapped, Fault::kSilentEnd}) {
    for (uint64_t seed = 1; seed <= 25; ++seed) {
      const std::string verdict = Model(seed, fault).Run();
      if (!verdict.empty()) {
        Fail(__FILE__, __LINE__,
             "fault " + std::to_string(static_cast<int>(fault)) +
                 ", FLOW_SEED=" + std::to_string(seed) + ": " + verdict);
      }
    }
  }
}

}  // namespace
}  // namespace falcon::test

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
