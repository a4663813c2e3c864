// A guest that lags, drops what it is given, or has no window for it.
#include <random>

#include "flow_fixture.h"

namespace falcon::test {
namespace {

TEST(acknowledgements_of_bytes_not_sent_yet_are_clamped_and_made_up_later) {
  Replica r(7000);
  r.Open(500);
  r.Deliver(r.Client(1, 501, kTcpAck, "GET"));
  r.FromGuest(r.Guest(1, 4, kTcpAck));
  // The primary's guest has answered ten bytes already, and the client goes on.
  r.Deliver(r.Client(4, 511, kTcpAck, "GET", 100));
  Packet p = Last(r.sink.guest);
  CHECK(p.ack == 7001 && PayloadText(r.sink.guest.back()) == "GET");
  CHECK(p.window ==
        100 + 3);  // ten bytes in units of four, rounded up: the right edge is the client's
  CHECK(r.table->counters().clamped_acks == 1);
  r.sink.Clear();
  r.FromGuest(r.Guest(1, 7, kTcpAck, "12345"));
  REQUIRE(r.sink.guest.size() == 1);
  p = Last(r.sink.guest);
  CHECK(p.flags == kTcpAck && p.ack == 7006 && p.seq == kClientIss + 7 && p.PayloadBytes() == 0);
  CHECK(p.window == 100 + 2);  // five bytes are still ahead
  CHECK(r.table->counters().retained_bytes == 0);
  r.FromGuest(r.Guest(6, 7, kTcpAck, "67890abc"));
  CHECK(Last(r.sink.guest).ack == 7011 && r.table->counters().retained_bytes == 3);
  CHECK(r.table->counters().local_acks == 2);
  r.FromGuest(r.Guest(1, 7, kTcpAck, "12345"));  // it missed the first of them
  CHECK(Last(r.sink.guest).ack == 7011 && r.table->counters().local_acks == 3);
}

TEST(a_clamped_fin_acknowledgement_is_made_up_later) {
  Replica r(7000);
  r.Open(500);
  r.Deliver(r.Client(1, 502, kTcpAck | kTcpFin));
  CHECK(Last(r.sink.guest).ack == 7001);
  r.FromGuest(r.Guest(1, 2, kTcpAck | kTcpFin));
  CHECK(Last(r.sink.guest).ack == 7002 && r.table->counters().flows_closed == 1);
}

TEST(input_beyond_the_guests_window_waits_for_it) {
  Replica r(7000);
  r.Open(500, 10);
  r.Deliver(r.Client(1, 501, kTcpAck, "0123456789"));
  CHECK(PayloadText(r.sink.guest.back()) == "0123456789");
  r.Deliver(r.Client(11, 501, kTcpAck, "abcdefgh"));
  CHECK(r.table->counters().held == 1 && Last(r.sink.guest).PayloadBytes() == 0);
  r.FromGuest(r.Guest(1, 11, kTcpAck, {}, 0));
  r.sink.Clear();
  r.FromGuest(r.Guest(1, 11, kTcpAck, {}, 1));  // four bytes of window
  REQUIRE(r.sink.guest.size() == 1);
  CHECK(PayloadText(r.sink.guest[0]) == "abcd");
  r.FromGuest(r.Guest(1, 15, kTcpAck, {}, 100));
  CHECK(PayloadText(r.sink.guest.back()) == "efgh" && Last(r.sink.guest).seq == kClientIss + 15);
  r.FromGuest(r.Guest(1, 19, kTcpAck, {}, 100));
  CHECK(r.table->counters().held_bytes == 0);
}

TEST(unacknowledged_input_is_offered_again_with_back_off) {
  Replica r(7000);
  r.Open(500);
  r.Deliver(r.Client(1, 501, kTcpAck, "lost"));
  r.sink.Clear();
  r.Wait(21 * kMillisecond);
  REQUIRE(r.sink.guest.size() == 1);
  CHECK(PayloadText(r.sink.guest[0]) == "lost" && Last(r.sink.guest).seq == kClientIss + 1);
  r.Wait(20 * kMillisecond);
  CHECK(r.sink.guest.size() == 1);
  r.Wait(10 * kSecond);
  CHECK(r.sink.guest.size() >= 7 && r.sink.guest.size() <= 12);
  r.FromGuest(r.Guest(1, 5, kTcpAck));
  r.sink.Clear();
  r.Wait(20 * kSecond);
  CHECK(r.sink.guest.empty());
}

TEST(a_closed_window_is_probed_in_case_its_opening_got_lost) {
  Replica r(7000);
  r.Open(500, 4);
  r.Deliver(r.Client(1, 501, kTcpAck, "1234"));
  r.FromGuest(r.Guest(1, 5, kTcpAck, {}, 0));
  r.Deliver(r.Client(5, 501, kTcpAck, "5678"));
  r.sink.Clear();
  r.Wait(25 * kMillisecond);
  REQUIRE(r.sink.guest.size() == 1);
  CHECK(Last(r.sink.guest).seq == kClientIss + 4 && Last(r.sink.guest).PayloadBytes() == 0);
  r.FromGuest(r.Guest(1, 5, kTcpAck, {}, 50));
  CHECK(PayloadText(r.sink.guest.back()) == "5678");
}

TEST(a_full_ring_is_made_up_for_when_it_empties) {
  Replica r(7000);
  r.sink.guest_full = true;
  r.Syn();
  r.sink.guest_full = false;
  r.table->GuestWritable(r.now);
  REQUIRE(r.sink.guest.size() == 1);
  CHECK(Last(r.sink.guest).flags == kTcpSyn);
  r.SynAck();
  r.sink.guest_full = true;
  r.Deliver(r.Client(1, 501, kTcpAck));
  r.Deliver(r.Client(1, 501, kTcpAck, "abc"));
  r.Deliver(r.Client(4, 501, kTcpAck | kTcpFin, "def"));
  r.sink.guest_full = false;
  r.sink.Clear();
  r.table->GuestWritable(r.now);
  REQUIRE(r.sink.guest.size() == 1);
  CHECK(PayloadText(r.sink.guest[0]) == "abcdef" && Last(r.sink.guest).Has(kTcpFin));
  r.sink.guest_full = true;
  r.Deliver(
      FromHex("ffffffffffff02000000000a0806"
              "0001080006040001"
              "02000000000a0a090002"
              "0000000000000a090001"));
  CHECK(r.table->counters().dropped_to_guest == 1);  // nothing keeps what is not of a flow
}

TEST(holes_are_filled_and_what_came_early_is_not_given_twice) {
  Replica r(7000);
  r.Open(500);
  r.Deliver(r.Client(4, 501, kTcpAck, "def"));
  CHECK(PayloadText(r.sink.guest.back()) ==
        "def");  // the guest sorts; it may tell the primary's client of the hole
  r.Deliver(r.Client(1, 501, kTcpAck, "abc"));
  r.Deliver(r.Client(7, 501, kTcpAck, "ghi"));
  CHECK(PayloadText(r.sink.guest.back()) == "ghi" && r.sink.guest.size() == 3);
  r.sink.Clear();
  r.Wait(21 * kMillisecond);
  REQUIRE(!r.sink.guest.empty());
  CHECK(PayloadText(r.sink.guest[0]) == "abcdefghi");
}

TEST(overlapping_segments_with_other_bytes_show_every_guest_the_first) {
  Replica r(7000);
  r.Open(500);
  r.Deliver(r.Client(1, 501, kTcpAck, "abcdef"));
  r.Deliver(r.Client(3, 501, kTcpAck, "XXXXghi"));
  CHECK(PayloadText(r.sink.guest.back()) == "cdefghi");
  r.Deliver(r.Client(14, 501, kTcpAck, "mno"));
  r.Deliver(r.Client(10, 501, kTcpAck, "jjllYYYpq"));
  CHECK(PayloadText(r.sink.guest.back()) == "jjllmnopq");
  r.sink.Clear();
  r.Wait(21 * kMillisecond);
  REQUIRE(!r.sink.guest.empty());
  CHECK(PayloadText(r.sink.guest[0]) == "abcdefghijjllmnopq");
}

TEST(too_many_holes_are_refused_by_every_replica_alike) {
  Replica r(7000);
  r.Open(500);
  for (Seq i = 0; i < 40; ++i) r.Deliver(r.Client(10 + i * 10, 501, kTcpAck, "x"));
  size_t given = 0;
  for (const Bytes& frame : r.sink.guest) given += ParseFrame(frame).PayloadBytes();
  CHECK(given == 16 && r.table->counters().diverged == 0 && r.table->counters().held == 24);
}

TEST(a_bare_acknowledgement_that_is_held_is_not_answered) {
  // Answered, it would go round between the client and the guest for ever.
  Replica r(7000);
  r.Open(500, 4);
  r.Deliver(r.Client(1, 501, kTcpAck, "12345678"));
  r.FromGuest(r.Guest(1, 5, kTcpAck, {}, 0));
  r.table->SetRole(FlowRole::kPrimary);
  r.table->TakeOver(r.now);
  r.sink.Clear();
  r.Deliver(r.Client(9, 501, kTcpAck));
  for (const Bytes& frame : r.sink.guest) CHECK(ParseFrame(frame).seq == kClientIss + 5);
  r.sink.Clear();
  r.Deliver(r.Client(8, 501, kTcpAck));  // a probe of the closed window
  REQUIRE(r.sink.guest.size() == 1);
  CHECK(Last(r.sink.guest).seq == kClientIss + 4);
}

TEST(on_a_primary_the_client_speaks_for_itself) {
  Replica r(7000, FlowRole::kPrimary);
  r.Open(7000);
  r.Deliver(r.Client(1, 7001, kTcpAck, "abc"));
  r.sink.Clear();
  r.Wait(kSecond);
  CHECK(r.sink.guest.empty());          // the client repeats it
  r.FromGuest(r.Guest(0, 1, kTcpAck));  // a keep-alive
  CHECK(r.sink.guest.empty() && r.sink.wire.size() == 1);
  r.table->SetRole(FlowRole::kBackup);  // deposed: nobody repeats for it any more
  r.Wait(kSecond);
  CHECK(!r.sink.guest.empty() && PayloadText(r.sink.guest[0]) == "abc");
}

TEST(what_is_offered_here_is_cut_as_the_guest_can_take_it) {
  for (const uint16_t mss : {uint16_t{536}, uint16_t{1460}, uint16_t{9000}}) {
    for (const bool v6 : {false, true}) {
      Replica r(7000);
      r.v6 = v6;
      r.Syn();
      for (Seq at = 1; at < 9000; at += 3000)
        r.Deliver(r.Client(at, 501, kTcpAck, std::string(3000, 'q')));
      Bytes options = FromHex("02040000");
      Store16(options, 2, mss);
      r.sink.Clear();
      r.FromGuest(r.Guest(0, 1, kTcpSyn | kTcpAck, {}, 64000, options));
      const size_t most = std::min<size_t>(mss, v6 ? 1440 : 1460);
      size_t given = 0;
      for (const Bytes& frame : r.sink.guest) {
        CHECK(ParseFrame(frame).PayloadBytes() <= most);
        given += ParseFrame(frame).PayloadBytes();
      }
      CHECK(given == 9000 && r.sink.guest.size() == (9000 + most - 1) / most);
    }
  }
}

// A client that sends overlapping segments with different bytes, to a primary whose guest takes all
// and a backup whose guest is slow, loses frames and has little room. Whatever byte a guest is
// given for a position, no guest is ever given another one for it.
class Liar {
 public:
  explicit Liar(uint32_t seed) : random_(seed) {
    for (Replica* r : {&primary_, &backup_}) {
      r->client_iss = kIss;
      r->Open(7000, r == &primary_ ? 60000 : 200);
    }
  }
  size_t Run() {
    for (int i = 0; i < 300; ++i) {
      SendOne();
      if (Below(3) == 0) GuestTurn(&primary_, &primary_next_, 60000 >> 2);
      if (Below(6) == 0) GuestTurn(&backup_, &backup_next_, 200 >> 2);
      backup_.Wait(static_cast<Nanoseconds>(Below(10)) * kMillisecond);
    }
    CHECK(backup_.table->counters().diverged == 0);
    for (int i = 0; i < 2000 && backup_next_ != primary_next_; ++i) {
      GuestTurn(&primary_, &primary_next_, 60000 >> 2);
      GuestTurn(&backup_, &backup_next_, 200 >> 2);
      backup_.Wait(30 * kMillisecond);
    }
    CHECK(backup_next_ == primary_next_);
    return primary_next_;
  }

 private:
  static constexpr Seq kIss = 0xFFFFFE00;
  size_t Below(size_t bound) { return random_() % bound; }

  void SendOne() {
    const size_t place = primary_next_ + Below(400) - std::min(primary_next_, Below(300));
    std::string text(1 + Below(120), 0);
    for (char& c : text) c = static_cast<char>('a' + Below(26));
    Bytes logged;
    const Bytes frame = primary_.Client(static_cast<Seq>(1 + place), 7001, kTcpAck | kTcpPsh, text);
    if (primary_.Admit(frame, &logged) != Admission::kPropose) return;
    for (Replica* r : {&primary_, &backup_}) r->Deliver(logged);
  }

  // Takes what it was given, loses some of it if it is the backup's, and acknowledges.
  void GuestTurn(Replica* r, size_t* next, uint16_t window) {
    std::vector<bool>& has = r == &primary_ ? primary_has_ : backup_has_;
    for (const Bytes& frame : r->sink.guest) {
      const Packet p = ParseFrame(frame);
      const std::string text = PayloadText(frame);
      const bool lost = r == &backup_ && Below(4) == 0;
      for (size_t i = 0; i < text.size(); ++i) {
        const size_t place = static_cast<Seq>(p.seq + i - (kIss + 1));
        if (SeqDistance(static_cast<Seq>(*next), static_cast<Seq>(place)) < 0)
          continue;  // acknowledged: nobody reads it again
        if (place >= given_.size())
          given_.resize(place + 1), primary_has_.resize(place + 1), backup_has_.resize(place + 1);
        CHECK(given_[place] == 0 || given_[place] == text[i]);
        given_[place] = text[i];
        if (!lost) has[place] = true;
      }
    }
    r->sink.Clear();
    while (*next < has.size() && has[*next]) ++*next;
    r->FromGuest(r->Guest(1, static_cast<Seq>(1 + *next), kTcpAck, {}, window));
  }

  std::mt19937 random_;
  Replica primary_{7000, FlowRole::kPrimary}, backup_{0xFFFFFFF0};
  std::string given_;
  std::vector<bool> primary_has_, backup_has_;
  size_t primary_next_ = 0, backup_next_ = 0;
};

TEST(whatever_a_client_overlaps_all_guests_read_the_same) {
  size_t read = 0;
  for (uint32_t seed = 1; seed <= 100 && Failures() == 0; ++seed) {
    read += Liar(seed).Run();
    if (Failures() > 0) Fail(__FILE__, __LINE__, "seed " + std::to_string(seed));
  }
  CHECK(read > 100 * 1000);
}

}  // namespace
}  // namespace falcon::test

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
