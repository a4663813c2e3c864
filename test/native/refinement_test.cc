// What the target has at other places is copied there, and of the rest the blocks that differ are
// sent: whatever the memories hold, the target's is the source's afterwards.
#include "plane/refinement.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "check.h"
#include "os/random.h"

namespace {

using falcon::BlockMask;
using falcon::Digest;
using falcon::kBlockBytes;
using falcon::kPageBlocks;
using falcon::kPageBytes;
using falcon::PageHasher;
using falcon::PageSet;
using falcon::Random;
using falcon::Refinement;
using falcon::RefinementAnswer;
using Bytes = std::vector<std::byte>;

constexpr size_t kPages = 300;

std::byte* PageOf(Bytes& memory, size_t page) { return memory.data() + page * kPageBytes; }

struct Guests {
  explicit Guests(uint64_t seed) : random(seed), source(kPages * kPageBytes) {
    for (size_t page = 0; page < kPages; ++page) {
      if (random.Below(8) > 0) Noise(PageOf(source, page), kPageBytes);
    }
    target = source;
    looked_at = PageSet(kPages);
  }

  void Noise(std::byte* at, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) at[i] = static_cast<std::byte>(random.Below(256));
  }

  // A page of the target is swapped with another, emptied, filled, or written to here and there.
  void Change() {
    const size_t page = random.Below(kPages), other = random.Below(kPages);
    looked_at.Set(page);
    switch (random.Below(6)) {
      case 0:
        looked_at.Set(other);
        std::swap_ranges(PageOf(target, page), PageOf(target, page) + kPageBytes,
                         PageOf(target, other));
        break;
      case 1:
        std::memset(PageOf(target, page), 0, kPageBytes);
        break;
      case 2:
        Noise(PageOf(target, page), kPageBytes);
        break;
      case 3:
        std::memset(PageOf(source, page), 0, kPageBytes);
        break;
      default:
        for (size_t i = 1 + random.Below(12); i > 0; --i)
          Noise(PageOf(target, page) + random.Below(kPageBytes), 1);
    }
  }

  [[nodiscard]] std::vector<Digest> Digests(const Bytes& memory) const {
    std::vector<Digest> digests;
    for (size_t page = looked_at.Next(0); page < kPages; page = looked_at.Next(page + 1))
      digests.push_back(hasher.Page(memory.data() + page * kPageBytes));
    return digests;
  }

  // Returns the bytes that were sent; *round is what was decided.
  uint64_t Heal(Refinement* round, size_t slice) {
    const auto own = Digests(source), theirs = Digests(target);
    PageSet differing(kPages);
    CHECK(falcon::DifferingPages(looked_at, own, looked_at, theirs, &differing).ok());
    *round = Refinement({looked_at, own, theirs}, differing);
    RefinementAnswer answer;
    if (round->asks()) {
      while (!round->Prepare(hasher, source, slice)) {
      }
      CHECK(answer.Take(round->Question(), looked_at).ok());
      while (!answer.Step(hasher, target, slice)) {
      }
      CHECK(round->TakeAnswer(answer.answer()).ok());
    }
    while (!round->Step(hasher, source, slice)) {
    }
    uint64_t bytes = 0;
    const auto send = [&](size_t at, size_t count) {
      std::memcpy(&target[at], &source[at], count);
      bytes += count;
    };
    for (size_t page = 0; page < kPages; ++page) {
      if (round->whole().Test(page)) send(page * kPageBytes, kPageBytes);
    }
    for (const falcon::PagePart& part : round->parts()) {
      CHECK(!round->whole().Test(part.page) && part.blocks != 0);
      for (size_t i = 0; i < kPageBlocks; ++i) {
        if ((part.blocks >> i & 1) != 0)
          send(part.page * kPageBytes + i * kBlockBytes, kBlockBytes);
      }
    }
    return bytes;
  }

  Random random;
  PageHasher hasher{falcon::MakeDigestKey()};
  Bytes source, target;
  PageSet looked_at;
};

TEST(the_target_becomes_the_source) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    Guests guests(seed);
    for (size_t i = guests.random.Below(200); i > 0; --i) guests.Change();
    Refinement round;
    guests.Heal(&round, 1 + guests.random.Below(100));
    CHECK(guests.source == guests.target);
  }
}

TEST(a_swap_sends_nothing) {
  Guests guests(5);
  for (const auto& [one, other] : {std::pair<size_t, size_t>{3, 9}, {9, 100}, {100, 7}}) {
    guests.Noise(PageOf(guests.source, one), kPageBytes);
    guests.Noise(PageOf(guests.source, other), kPageBytes);
  }
  guests.target = guests.source;
  // A ring: every page is both read and written.
  for (const auto& [one, other] : {std::pair<size_t, size_t>{3, 9}, {9, 100}, {100, 7}}) {
    guests.looked_at.Set(one);
    guests.looked_at.Set(other);
    std::swap_ranges(PageOf(guests.target, one), PageOf(guests.target, one) + kPageBytes,
                     PageOf(guests.target, other));
  }
  Refinement round;
  CHECK(guests.Heal(&round, 1) == 0 && round.found() == 4);
  CHECK(guests.source == guests.target);
}

TEST(a_flipped_bit_sends_a_block) {
  Guests guests(6);
  guests.Noise(PageOf(guests.source, 17), kPageBytes);
  guests.target = guests.source;
  PageOf(guests.target, 17)[4000] ^= std::byte{4};
  guests.looked_at.Set(17);
  Refinement round;
  CHECK(guests.Heal(&round, 100) == kBlockBytes && round.found() == 0);
  CHECK(guests.source == guests.target);
}

// The page lies elsewhere, and a few bytes of it differ: those are sent.
TEST(a_similar_page_is_taken_from_elsewhere) {
  Guests guests(10);
  for (const size_t page : {20, 30}) guests.Noise(PageOf(guests.source, page), kPageBytes);
  guests.target = guests.source;
  std::swap_ranges(PageOf(guests.target, 20), PageOf(guests.target, 20) + kPageBytes,
                   PageOf(guests.target, 30));
  PageOf(guests.target, 20)[100] ^= std::byte{1};
  PageOf(guests.target, 30)[200] ^= std::byte{1};
  PageOf(guests.target, 30)[3000] ^= std::byte{1};
  guests.looked_at.Set(20);
  guests.looked_at.Set(30);
  Refinement round;
  CHECK(guests.Heal(&round, 1) == 3 * kBlockBytes && round.parts().size() == 2);
  CHECK(guests.source == guests.target);
}

// Both guests may have written to the page since the digests: no block of it differs any more.
TEST(a_page_that_became_equal_is_not_sent) {
  Guests guests(7);
  guests.Noise(PageOf(guests.source, 17), kPageBytes);
  guests.looked_at.Set(17);
  const auto own = guests.Digests(guests.source), theirs = guests.Digests(guests.target);
  PageSet differing(kPages);
  REQUIRE(falcon::DifferingPages(guests.looked_at, own, guests.looked_at, theirs, &differing).ok());
  Refinement round({guests.looked_at, own, theirs}, differing);
  std::memcpy(PageOf(guests.source, 17), PageOf(guests.target, 17), kPageBytes);
  RefinementAnswer answer;
  if (round.asks()) {
    REQUIRE(round.Prepare(guests.hasher, guests.source, 100));
    REQUIRE(answer.Take(round.Question(), guests.looked_at).ok());
    REQUIRE(answer.Step(guests.hasher, guests.target, 100));
    REQUIRE(round.TakeAnswer(answer.answer()).ok());
  }
  REQUIRE(round.Step(guests.hasher, guests.source, 100));
  CHECK(round.whole().Empty() && round.parts().empty());
}

// A peer may send anything: nothing outside of the pages of this round is touched.
TEST(malformed_questions_and_answers_are_refused) {
  Guests guests(8);
  for (size_t i = 0; i < 100; ++i) guests.Change();
  const auto own = guests.Digests(guests.source), theirs = guests.Digests(guests.target);
  PageSet differing(kPages);
  REQUIRE(falcon::DifferingPages(guests.looked_at, own, guests.looked_at, theirs, &differing).ok());
  Refinement round({guests.looked_at, own, theirs}, differing);
  REQUIRE(round.asks() && round.found() > 0);
  REQUIRE(round.Prepare(guests.hasher, guests.source, kPages));
  const Bytes question = round.Question();
  RefinementAnswer answer;
  for (size_t size = 0; size < question.size(); ++size)
    CHECK(!answer.Take(std::span(question).first(size), guests.looked_at).ok());
  CHECK(answer.Take(question, guests.looked_at).ok());
  // Pages that are not of this round.
  CHECK(!answer.Take(question, PageSet(kPages)).ok());
  for (const uint64_t wrong : {uint64_t{kPages}, uint64_t{1} << 40, ~uint64_t{1}}) {
    for (const size_t at : {size_t{16}, size_t{24}}) {
      Bytes broken = question;
      std::memcpy(&broken[at], &wrong, sizeof wrong);
      CHECK(!answer.Take(broken, guests.looked_at).ok());
    }
  }
  Bytes counted = question;
  const uint64_t many = ~uint64_t{0} / sizeof(falcon::PageCopy);
  std::memcpy(counted.data(), &many, sizeof many);
  CHECK(!answer.Take(counted, guests.looked_at).ok());
  REQUIRE(answer.Take(question, guests.looked_at).ok());
  while (!answer.Step(guests.hasher, guests.target, 7)) {
  }
  Bytes longer = answer.answer();
  longer.push_back(std::byte{0});
  CHECK(!round.TakeAnswer(longer).ok());
  CHECK(round.TakeAnswer(answer.answer()).ok());
}

}  // namespace

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
