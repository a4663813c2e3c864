// Checks of output between two flow tables: what agrees, what is late, what has diverged, what
// cannot be told. The bytes that the deciding thread reads are those of
// test/golden/output-check.hex, which TypeScript's view is checked against too.
//
// `output_book_test --golden` prints the golden file.
#include <fstream>
#include <random>
#include <sstream>

#include "flow_fixture.h"
#include "vm/output_check.h"

#ifndef FALCON_GOLDEN_DIRECTORY
#define FALCON_GOLDEN_DIRECTORY "test/golden"
#endif

namespace falcon::test {
namespace {

constexpr Seq kWire = 7000;

std::string Hex(const Bytes& bytes) {
  std::string text;
  for (const std::byte b : bytes) {
    text += "0123456789abcdef"[static_cast<unsigned>(b) >> 4];
    text += "0123456789abcdef"[static_cast<unsigned>(b) & 15];
  }
  return text;
}

struct Found {
  VerdictRecord record;
  std::string tail;
  [[nodiscard]] Verdict verdict() const { return static_cast<Verdict>(record.verdict); }
};

// A primary and a backup with one connection, and the log between them.
struct Two {
  Two() {
    for (Replica* r : {&a, &b}) r->Open(kWire);
  }
  void Say(Replica* r, Seq at, const std::string& text, uint8_t flags = kTcpAck | kTcpPsh) {
    r->FromGuest(r->Guest(1 + at, 1, flags, text));
  }
  // What the primary wants checked, at once.
  Bytes Collect(Bytes* tails = nullptr) {
    Bytes payload, ignored;
    a.now += 2 * kSecond;
    b.now = a.now;
    a.table->CollectChecks(0, a.now, &payload, tails != nullptr ? tails : &ignored);
    return payload;
  }
  std::vector<Found> Take(const Bytes& payload, uint64_t op = 5) {
    b.table->TakeCheck(op, payload, b.now);
    return Verdicts();
  }
  std::vector<Found> Verdicts() {
    Bytes bytes;
    b.table->TakeVerdicts(&bytes);
    std::vector<Found> found;
    for (size_t at = 0; at < bytes.size();) {
      Found one;
      std::memcpy(&one.record, bytes.data() + at, sizeof one.record);
      one.tail.assign(reinterpret_cast<const char*>(bytes.data()) + at + sizeof one.record,
                      one.record.tail_bytes);
      at += sizeof one.record + one.record.tail_bytes;
      found.push_back(one);
    }
    return found;
  }
  Verdict Only(const std::vector<Found>& found) {
    CHECK(found.size() == 1);
    return found.size() == 1 ? found[0].verdict() : Verdict::kSkipped;
  }
  Replica a{kWire, FlowRole::kPrimary}, b{9'000'000};
};

std::string GoldenText() {
  Two two;
  two.Say(&two.a, 0, "hello");
  two.Say(&two.b, 0, "hellO!");
  Bytes tails, verdicts;
  const Bytes payload = two.Collect(&tails);
  two.b.table->TakeCheck(77, payload, two.b.now);
  two.b.table->TakeVerdicts(&verdicts);
  Bytes due(4);
  const auto length = static_cast<uint32_t>(payload.size());
  std::memcpy(due.data(), &length, sizeof length);
  due.insert(due.end(), payload.begin(), payload.end());
  due.insert(due.end(), tails.begin(), tails.end());
  return "# A check of \"hello\" and its verdict; made by output_book_test --golden.\ndue: " +
         Hex(due) + "\nverdicts: " + Hex(verdicts) + "\n";
}

TEST(checks_and_verdicts_are_the_golden_bytes) {
  std::ifstream file(FALCON_GOLDEN_DIRECTORY "/output-check.hex");
  std::stringstream text;
  text << file.rdbuf();
  CHECK(text.str() == GoldenText());
}

TEST(the_same_output_agrees_however_it_is_cut) {
  Two two;
  two.Say(&two.a, 0, "one two");
  two.Say(&two.b, 0, "one");
  two.Say(&two.b, 3, " two");
  CHECK(two.Only(two.Take(two.Collect())) == Verdict::kAgree);
  CHECK(two.Collect().empty());  // nothing new, no check
}

TEST(a_guest_that_is_ahead_still_answers) {
  Two two;
  two.Say(&two.a, 0, "one");
  two.Say(&two.b, 0, "one two three");
  CHECK(two.Only(two.Take(two.Collect())) == Verdict::kAgree);
}

TEST(a_guest_that_lags_is_late_and_agrees_afterwards) {
  Two two;
  two.Say(&two.a, 0, "answer");
  const Bytes check = two.Collect();
  CHECK(two.Take(check).empty());
  two.b.Wait(3 * kSecond);
  CHECK(two.Only(two.Verdicts()) == Verdict::kLate);
  two.Say(&two.b, 0, "ans");
  CHECK(two.Verdicts().empty());
  two.Say(&two.b, 3, "wer, and more");
  CHECK(two.Only(two.Verdicts()) == Verdict::kAgree);
}

TEST(an_end_is_compared) {
  struct Case {
    const char* said;
    Verdict verdict;
  };
  for (const auto& [said, verdict] : {Case{"bye", Verdict::kAgree}, Case{"by", Verdict::kDiverged},
                                      Case{"bye!", Verdict::kDiverged}}) {
    Two two;
    two.Say(&two.a, 0, "bye", kTcpAck | kTcpFin);
    two.Say(&two.b, 0, said, kTcpAck | kTcpFin);
    CHECK(two.Only(two.Take(two.Collect())) == verdict);
  }
}

TEST(a_reply_too_much_behind_the_end_is_found_later) {
  Two two;
  two.Say(&two.a, 0, "bye", kTcpAck | kTcpFin);
  two.Say(&two.b, 0, "bye");
  CHECK(two.Take(two.Collect()).empty());  // is that all?
  two.Say(&two.b, 3, "!");
  CHECK(two.Only(two.Verdicts()) == Verdict::kDiverged);
}

TEST(what_a_reset_cuts_is_no_divergence) {
  for (const bool by_client : {true, false}) {
    Two two;
    two.Say(&two.a, 0, "all of the answer");
    two.Say(&two.b, 0, "all");
    if (by_client) {
      for (Replica* r : {&two.a, &two.b}) r->Deliver(r->Client(1, 0, kTcpRst));
    } else {
      two.b.FromGuest(two.b.Guest(4, 1, kTcpRst | kTcpAck));
    }
    CHECK(two.Only(two.Take(two.Collect())) == Verdict::kSkipped);
    // What came before is compared all the same.
    Two other;
    other.Say(&other.a, 0, "all");
    other.Say(&other.b, 0, "alL");
    if (by_client) {
      for (Replica* r : {&other.a, &other.b}) r->Deliver(r->Client(1, 0, kTcpRst));
    } else {
      other.b.FromGuest(other.b.Guest(4, 1, kTcpRst | kTcpAck));
    }
    CHECK(other.Only(other.Take(other.Collect())) == Verdict::kDiverged);
  }
}

TEST(a_connection_that_is_forgotten_is_still_known) {
  Two two;
  two.Say(&two.a, 0, "bye", kTcpAck | kTcpFin);
  two.Say(&two.b, 0, "bye", kTcpAck | kTcpFin);
  const Bytes check = two.Collect();
  // The client is through, and uses its port again before the check comes.
  two.b.Deliver(two.b.Client(1, kWire + 5, kTcpAck | kTcpFin));
  two.b.FromGuest(two.b.Guest(5, 2, kTcpAck));
  two.b.client_iss += 100'000;
  two.b.Syn();
  CHECK(two.Only(two.Take(check)) == Verdict::kAgree);
}

TEST(summaries_do_not_depend_on_the_order_of_ends) {
  Two one, other;
  const auto end = [](Replica* r, uint16_t port, const std::string& said) {
    r->port = port;
    r->FromGuest(r->Guest(1, 1, kTcpAck | kTcpFin, said));
  };
  for (Replica* r : {&one.a, &other.a}) {
    for (const uint16_t port : {uint16_t{41000}, uint16_t{42000}}) {
      r->port = port;
      r->Open(kWire);
    }
  }
  end(&one.a, 41000, "first");
  end(&one.a, 42000, "second");
  end(&other.a, 42000, "second");
  CHECK(one.a.table->Applications()[0].summary != other.a.table->Applications()[0].summary);
  end(&other.a, 41000, "first");
  CHECK(one.a.table->Applications()[0].summary == other.a.table->Applications()[0].summary);
  CHECK(one.a.table->Applications()[0].flows_ended == 2);
  // The same texts on each other's connections are another output.
  Two swapped;
  for (const uint16_t port : {uint16_t{41000}, uint16_t{42000}}) {
    swapped.a.port = port;
    swapped.a.Open(kWire);
  }
  end(&swapped.a, 41000, "second");
  end(&swapped.a, 42000, "first");
  CHECK(one.a.table->Applications()[0].summary != swapped.a.table->Applications()[0].summary);
}

TEST(checks_that_no_primary_made_change_nothing) {
  std::mt19937_64 random(3);
  Two two;
  two.Say(&two.a, 0, "answer");
  two.Say(&two.b, 0, "answer");
  const Bytes check = two.Collect();
  for (int round = 0; round < 20'000; ++round) {
    Bytes bent = check;
    const uint64_t how = random() % 4;
    if (how == 0) bent.resize(random() % bent.size());
    if (how == 1) bent.resize(bent.size() + random() % 200);
    for (uint64_t times = random() % 6; times > 0 && !bent.empty(); --times)
      bent[random() % bent.size()] = static_cast<std::byte>(random());
    for (const Found& found : two.Take(bent, 5 + static_cast<uint64_t>(round)))
      CHECK(found.record.index < kMaxCheckItems && found.record.tail_bytes <= kTailBytes);
    if (round % 100 == 0) two.b.Wait(kSecond);
    (void)two.Verdicts();
  }
  two.b.Wait(100 * kSecond);
  (void)two.Verdicts();
  two.Say(&two.a, 6, "!");
  two.Say(&two.b, 6, "!");
  CHECK(two.Only(two.Take(two.Collect())) == Verdict::kAgree);
}

}  // namespace
}  // namespace falcon::test

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "--golden") {
    std::fputs(falcon::test::GoldenText().c_str(), stdout);
    return 0;
  }
  return falcon::test::Main(argc, argv);
}
