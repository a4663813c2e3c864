// A flow table's state, copied to another replica: the copy does exactly what the original does,
// whatever comes; and a state that is not right in every part changes nothing.
//
//   FALCON_FUZZ_SEED=n   another run
//   FALCON_FUZZ_ROUNDS=n copies and damaged states, more or fewer
#include <cstdlib>
#include <random>

#include "flow_fixture.h"
#include "flow_fuzz_frames.h"
#include "os/crc32c.h"

namespace falcon::test {
namespace {

constexpr size_t kHeaderBytes = 20;

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

// Everything that leaves a table, in order.
struct Transcript : FlowSink {
  std::vector<std::pair<bool, Bytes>> said;
  bool full = false;
  bool ToGuest(Frame frame) override {
    if (!full) said.emplace_back(true, Bytes(frame.begin(), frame.end()));
    return !full;
  }
  void ToWire(Frame frame) override { said.emplace_back(false, Bytes(frame.begin(), frame.end())); }
};

FlowOptions SmallOptions() {
  FlowOptions options;
  std::memcpy(options.vm_mac, kVmMac.data(), 6);
  options.max_flows = 24;
  options.max_half_open = 8;
  options.max_neighbours = 256;
  options.retain_bytes_per_flow = 8 << 10;
  options.retain_bytes = 64 << 10;
  options.hold_bytes_per_flow = 16 << 10;
  options.hold_bytes = 128 << 10;
  return options;
}

// A table on a clock of its own.
struct Host {
  Host(FlowRole role, Nanoseconds clock, uint64_t hash_seed) : now(clock) {
    FlowOptions options = SmallOptions();
    options.hash_seed = hash_seed;
    table = MakeFlowTable(options, &sink);
    SetRole(role);
  }
  void SetRole(FlowRole role) {
    table->SetRole(role);
    if (role == FlowRole::kPrimary) table->TakeOver(now);
  }
  Bytes Save() {
    Bytes state;
    table->Save(&state, now);
    return state;
  }
  Transcript sink;
  std::unique_ptr<FlowTable> table;
  Nanoseconds now;
};

// The same calls for one or for several tables.
class Driver {
 public:
  explicit Driver(uint64_t seed) : frames_(seed), random_(seed ^ 0x5EED) {}
  uint64_t Below(uint64_t bound) { return random_() % bound; }

  void Turn(std::span<Host* const> hosts) {
    const auto step =
        static_cast<Nanoseconds>(Below(8) == 0 ? Below(20 * kMillisecond) : Below(50'000)) +
        (Below(4000) == 0 ? static_cast<Nanoseconds>(Below(100)) * kSecond : 0);
    const uint64_t what = Below(100);
    const Bytes frame = what < 50 ? frames_.OfClient() : frames_.OfGuest(0);
    const bool full = Below(3) == 0;
    const FlowRole role = Below(2) == 0 ? FlowRole::kPrimary : FlowRole::kBackup;
    const bool change = what == 99 && Below(20) == 0;
    for (Host* host : hosts) {
      host->now += step;
      Do(host, what, frame, full);
      if (change) host->SetRole(role);
    }
  }

 private:
  static void Do(Host* host, uint64_t what, const Bytes& frame, bool full) {
    if (what < 50) {
      Bytes normalised(frame.size());
      size_t length = 0;
      if (host->table->Admit(frame, normalised, &length, host->now) == Admission::kPropose)
        host->table->Deliver(Frame(normalised).first(length), host->now);
    } else if (what < 90) {
      host->table->FromGuest(frame, host->now);
    } else if (what < 95) {
      host->table->Tick(host->now);
    } else if (what < 98) {
      host->sink.full = full;
      if (!full) host->table->GuestWritable(host->now);
    }
  }

  FuzzFrames frames_;
  std::mt19937_64 random_;
};

void Refit(Bytes* state) {
  const uint64_t length = state->size() - kHeaderBytes;
  const uint32_t crc = Crc32c(std::span(*state).subspan(kHeaderBytes));
  std::memcpy(state->data() + 8, &length, sizeof length);
  std::memcpy(state->data() + 16, &crc, sizeof crc);
}

TEST(a_copy_does_what_the_original_does) {
  const uint64_t first = FromEnvironment("FALCON_FUZZ_SEED", 1);
  const uint64_t rounds = FromEnvironment("FALCON_FUZZ_ROUNDS", 120);
  uint64_t said = 0, resent = 0;
  for (uint64_t seed = first; seed < first + rounds; ++seed) {
    Driver driver(seed);
    const FlowRole role = seed % 2 == 0 ? FlowRole::kBackup : FlowRole::kPrimary;
    Host original(role, kStart, 0);
    Host* one[] = {&original};
    for (uint64_t turns = 2000 + driver.Below(4000); turns > 0; --turns) driver.Turn(one);
    if (driver.Below(3) == 0) original.SetRole(FlowRole::kBackup);
    const bool primary = role == FlowRole::kPrimary && driver.Below(2) == 0;
    if (primary) original.SetRole(FlowRole::kPrimary);
    if (!primary) original.SetRole(FlowRole::kBackup);

    // Its clock began earlier or later, its table hashes otherwise and was not empty.
    Host copy(primary ? FlowRole::kPrimary : FlowRole::kBackup,
              kStart + static_cast<Nanoseconds>(driver.Below(1000)) * kSecond, seed % 3);
    Host* other[] = {&copy};
    for (uint64_t turns = driver.Below(1000); turns > 0; --turns) driver.Turn(other);
    copy.SetRole(primary ? FlowRole::kPrimary : FlowRole::kBackup);
    const Bytes state = original.Save();
    copy.sink.said.clear();
    REQUIRE(copy.table->Load(state, copy.now).ok());
    CHECK(copy.sink.said.empty());
    const FlowCounters a = original.table->counters(), b = copy.table->counters();
    CHECK(a.flows == b.flows && a.half_open == b.half_open);
    CHECK(a.held_bytes == b.held_bytes && a.retained_bytes == b.retained_bytes);
    CHECK(b.flows_opened - b.flows_closed <= b.flows);

    original.sink.said.clear();
    original.sink.full = copy.sink.full = false;
    Host* both[] = {&original, &copy};
    for (int turns = 0; turns < 3000; ++turns) {
      driver.Turn(both);
      if (original.sink.said != copy.sink.said) {
        return Fail(__FILE__, __LINE__,
                    "FALCON_FUZZ_SEED=" + std::to_string(seed) + ": another answer in turn " +
                        std::to_string(turns));
      }
      said += original.sink.said.size();
      original.sink.said.clear();
      copy.sink.said.clear();
    }
    resent += copy.table->counters().retained_resent + copy.table->counters().reoffered;
    // Byte for byte, but for the places of waiting SYNs, which follow the hash.
    if (seed % 3 == 0) CHECK(original.Save() == copy.Save());
  }
  CHECK(said > rounds * 1000 && resent > rounds);
}

TEST(a_damaged_state_changes_nothing) {
  const uint64_t first = FromEnvironment("FALCON_FUZZ_SEED", 1);
  const uint64_t rounds = FromEnvironment("FALCON_FUZZ_ROUNDS", 120);
  uint64_t refused = 0, taken = 0;
  for (uint64_t seed = first; seed < first + rounds; ++seed) {
    Driver driver(seed);
    Host original(seed % 2 == 0 ? FlowRole::kPrimary : FlowRole::kBackup, kStart, 0);
    Host* one[] = {&original};
    for (int turns = 0; turns < 3000; ++turns) driver.Turn(one);
    const Bytes state = original.Save();
    Host target(FlowRole::kBackup, kStart, 0);
    Host* other[] = {&target};
    for (int turns = 0; turns < 200; ++turns) driver.Turn(other);
    for (int damage = 0; damage < 60; ++damage) {
      Bytes bent = state;
      const uint64_t how = driver.Below(8);
      if (how == 0) bent.resize(driver.Below(bent.size()));
      if (how == 1) bent.insert(bent.end(), 1 + driver.Below(30), std::byte{0});
      for (uint64_t times = how < 2 ? 0 : 1 + driver.Below(how < 5 ? 1 : 6); times > 0; --times) {
        const uint64_t value = driver.Below(4);
        bent[driver.Below(bent.size())] = value == 0   ? std::byte{0}
                                          : value == 1 ? std::byte{0xFF}
                                                       : static_cast<std::byte>(driver.Below(256));
      }
      const bool fitted = driver.Below(10) != 0 && bent.size() >= kHeaderBytes;
      if (fitted) Refit(&bent);
      const Bytes before = target.Save();
      const Status status = target.table->Load(bent, target.now);
      if (!status.ok()) {
        ++refused;
        CHECK(std::string(status.code()) == "FLOW_STATE" && !status.detail().empty());
        CHECK(target.Save() == before);
        continue;
      }
      ++taken;
      CHECK(fitted || bent == state);
      // Whatever passed, the table lives with it.
      for (int turns = 0; turns < 100; ++turns) driver.Turn(other);
      const FlowCounters c = target.table->counters();
      CHECK(c.held_bytes <= SmallOptions().hold_bytes);
      CHECK(c.retained_bytes <= SmallOptions().retain_bytes);
    }
    if (Failures() > 0) return Fail(__FILE__, __LINE__, "FALCON_FUZZ_SEED=" + std::to_string(seed));
  }
  CHECK(refused > rounds * 10 && taken > rounds * 5);
}

// Two guests that count by numbers of their own.
TEST(facts_are_equal_where_guests_have_said_the_same) {
  Replica a(7000), b(9000);
  const auto facts = [](const Replica& r) {
    std::vector<FlowFacts> out;
    r.table->Facts(&out);
    return out;
  };
  const auto equal = [&] {
    const auto x = facts(a), y = facts(b);
    return x.size() == y.size() &&
           std::memcmp(x.data(), y.data(), x.size() * sizeof(FlowFacts)) == 0;
  };
  for (Replica* r : {&a, &b}) {
    r->Syn();
    r->SynAck();
    CHECK(facts(*r).empty());  // half-open
    r->Deliver(r->Client(1, 501, kTcpAck));
    r->FromGuest(r->Guest(1, 1, kTcpAck, "hello"));
  }
  REQUIRE(facts(a).size() == 1);
  CHECK(equal());
  CHECK(facts(a)[0].wire_iss == 500 && facts(a)[0].said == 506);
  a.FromGuest(a.Guest(6, 1, kTcpAck, "more"));
  CHECK(!equal());
  b.FromGuest(b.Guest(6, 1, kTcpAck, "more"));
  CHECK(equal());
  a.Deliver(a.Client(1, 510, kTcpAck));
  CHECK(!equal());
  for (Replica* r : {&a, &b}) r->Deliver(r->Client(1, 510, kTcpRst | kTcpAck));
  CHECK(facts(a).empty() && facts(b).empty());  // closed
}

TEST(every_prefix_is_refused) {
  Replica a(7000, FlowRole::kPrimary);
  a.Open(7000);
  a.FromGuest(a.Guest(1, 1, kTcpAck | kTcpPsh, "kept until it is acknowledged"));
  Bytes state;
  a.table->Save(&state, a.now);
  Replica b(9000);
  for (size_t length = 0; length < state.size(); length += length < 2000 ? 1 : 97) {
    Bytes part(state.begin(), state.begin() + static_cast<ptrdiff_t>(length));
    CHECK(!b.table->Load(part, b.now).ok());
    if (length < kHeaderBytes) continue;
    Refit(&part);
    CHECK(!b.table->Load(part, b.now).ok());
  }
  CHECK(b.table->counters().flows == 0);
  CHECK(b.table->Load(state, b.now).ok() && b.table->counters().flows == 1);
}

TEST(tables_of_another_size_or_version_are_refused) {
  Replica a(7000);
  a.Open(500);
  Bytes state;
  a.table->Save(&state, a.now);
  FlowOptions smaller;
  smaller.max_flows = 100;
  Replica b(9000, FlowRole::kBackup, smaller);
  CHECK(!b.table->Load(state, b.now).ok());
  state[4] ^= std::byte{1};
  Replica c(9000);
  CHECK(!c.table->Load(state, c.now).ok());
}

// The primary's table goes to a backup, which takes over: what the client has not acknowledged
// comes from the copy, in the same numbers.
TEST(the_copy_of_a_primary_can_take_over) {
  Replica a(7000, FlowRole::kPrimary);
  a.Open(7000);
  a.Deliver(a.Client(1, 7001, kTcpAck | kTcpPsh, "question"));
  a.FromGuest(a.Guest(1, 9, kTcpAck | kTcpPsh, "answer"));
  Bytes state;
  a.table->Save(&state, a.now);
  Replica b(1);
  b.now = kStart + 1000 * kSecond;
  REQUIRE(b.table->Load(state, b.now).ok());
  b.table->SetRole(FlowRole::kPrimary);
  b.table->TakeOver(b.now);
  REQUIRE(b.sink.wire.size() == 1);
  CHECK(PayloadText(b.sink.wire[0]) == "answer" && ParseFrame(b.sink.wire[0]).seq == 7001);
  b.iss = 7000;  // its guest is the other's
  b.Deliver(b.Client(9, 7007, kTcpAck | kTcpPsh, "next"));
  REQUIRE(b.sink.guest.size() == 1);
  CHECK(ParseFrame(b.sink.guest[0]).ack == 7007 && PayloadText(b.sink.guest[0]) == "next");
}

}  // namespace
}  // namespace falcon::test

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
