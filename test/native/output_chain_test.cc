// Output chains: positions, not packets; masks; what a replica can answer for.
#include "vm/output_chain.h"

#include <random>
#include <string>

#include "frame_builder.h"

namespace falcon::test {
namespace {

constexpr OutputChain::Shape kShape{64, 4};

struct Guest {
  explicit Guest(Seq seq = 1000, const MaskSet* mask = nullptr) : first(seq), masks(mask) {
    chain.Open(seq);
  }
  bool Say(size_t at, const std::string& text, bool fin = false) {
    return chain.Emit(kShape, masks, ring, first + static_cast<Seq>(at), Text(text), fin);
  }
  // All of `text` in pieces of random size, some of them again or overlapping.
  void SayAll(const std::string& text, uint64_t seed, bool fin = true) {
    std::mt19937_64 random(seed);
    size_t said = 0;
    while (said < text.size()) {
      const size_t back = std::min<size_t>(said, random() % 3 == 0 ? random() % 100 : 0);
      const size_t count = std::min<size_t>(text.size() - said, 1 + random() % 200);
      (void)Say(said - back, text.substr(said - back, back + count));
      said += count;
    }
    if (fin) (void)Say(said, "", true);
  }
  std::optional<OutputHash> At(uint64_t position) const {
    return chain.HashAt(kShape, ring, position);
  }
  std::string Tail(uint64_t position, size_t bytes) const {
    Bytes into(bytes);
    into.resize(chain.CopyTail(ring, position, into));
    return {reinterpret_cast<const char*>(into.data()), into.size()};
  }
  Seq first;
  const MaskSet* masks;
  OutputChain chain;
  Bytes ring = Bytes(kShape.RingBytes());
};

std::string Words(size_t bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string text;
  while (text.size() < bytes) text += static_cast<char>('a' + random() % 26);
  return text;
}

TEST(segmentation_retransmission_and_wrap_do_not_matter) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    const std::string text = Words(1 + seed * 37, seed);
    Guest plain(5);
    REQUIRE(plain.Say(0, text) && plain.Say(text.size(), "", true));
    Guest other(static_cast<Seq>(0 - seed * 20));  // the numbers wrap on the way
    other.SayAll(text, seed);
    CHECK(plain.chain.position() == text.size() && other.chain.position() == text.size());
    CHECK(plain.chain.ended() && other.chain.ended());
    CHECK(plain.At(text.size()).has_value() && plain.At(text.size()) == other.At(text.size()));
  }
}

TEST(one_byte_makes_every_later_hash_differ) {
  const std::string text = Words(1000, 7);
  Guest right;
  (void)right.Say(0, text);
  for (size_t at = 0; at < text.size(); at += 13) {
    std::string bent = text;
    bent[at] ^= 1;
    Guest wrong;
    (void)wrong.Say(0, bent);
    for (const uint64_t position : {uint64_t{1000}, uint64_t{960}, uint64_t{768}}) {
      REQUIRE(right.At(position).has_value());
      CHECK((right.At(position) == wrong.At(position)) == (at >= position));
    }
  }
}

// Bytes moved across a queue's border are not the same output.
TEST(the_chain_is_that_of_its_definition) {
  const std::string text = Words(2 * 64 + 10, 3);
  Guest guest;
  (void)guest.Say(0, text);
  OutputHash hash{};
  for (size_t at = 0; at < text.size(); at += 64) {
    const Bytes queue = Text(text.substr(at, 64));
    Bytes both(64);
    const OutputHash inner = HashOutput(queue);
    std::memcpy(both.data(), hash.data(), 32);
    std::memcpy(both.data() + 32, inner.data(), 32);
    hash = HashOutput(both);
  }
  CHECK(guest.At(text.size()) == hash && guest.At(0) == OutputHash{});
}

TEST(passed_positions_are_known_for_a_while) {
  const std::string text = Words(20'000, 9);
  Guest slow, fast;
  (void)fast.Say(0, text);
  size_t partial = 0, milestones = 0;
  for (size_t at = 1; at <= text.size(); ++at) {
    (void)slow.Say(at - 1, text.substr(at - 1, 1));
    const auto known = fast.At(at);
    if (!known.has_value()) continue;
    CHECK(known == slow.At(at));
    (at % 64 == 0 ? milestones : partial)++;
  }
  CHECK(partial >= 64 && milestones >= OutputChain::kMilestones);
  CHECK(!slow.At(text.size() + 1).has_value());
}

TEST(a_gap_waits_for_its_bytes) {
  Guest guest, whole;
  (void)whole.Say(0, "one two three");
  CHECK(guest.Say(0, "one "));
  CHECK(!guest.Say(8, "three"));
  CHECK(guest.chain.position() == 4);
  CHECK(guest.Say(4, "two three"));
  CHECK(guest.At(13) == whole.At(13));
}

TEST(nothing_counts_behind_the_end) {
  Guest guest;
  CHECK(guest.Say(0, "bye", true) && guest.chain.ended());
  (void)guest.Say(3, "and more");
  CHECK(guest.chain.position() == 3 && guest.chain.ended());
  CHECK(guest.Tail(3, 10) == "bye");
}

TEST(masks_hide_across_segments) {
  MaskSet date;
  const std::string start = "\r\nDate: ";
  REQUIRE(date.Add({80, Text(start), 29}));
  const auto answer = [](const std::string& time, const std::string& body) {
    return "HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: " + time + "\r\nContent-Length: 5\r\n\r\n" +
           body + "\r\nDate";
  };
  const std::string a = answer("Mon, 01 Jan 2024 00:00:00 GMT", "hello");
  const std::string b = answer("Fri, 31 Dec 2027 23:59:59 GMT", "hello");
  const std::string c = answer("Fri, 31 Dec 2027 23:59:59 GMT", "hallo");
  Guest one(1, &date), other(1, &date), wrong(1, &date), bare(1), bare_other(1);
  for (int i = 0; i < 5; ++i) {
    (void)one.Say(i * a.size(), a);
    (void)bare.Say(i * a.size(), a);
    (void)bare_other.Say(i * a.size(), b);
    (void)wrong.Say(i * a.size(), i == 3 ? c : b);
  }
  std::string all;
  for (int i = 0; i < 5; ++i) all += b;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    Guest again(1, &date);
    again.SayAll(all, seed, false);
    CHECK(again.At(all.size()) == one.At(all.size()));
  }
  for (size_t at = 0; at < all.size(); ++at) (void)other.Say(at, all.substr(at, 1));
  CHECK(one.At(all.size()) == other.At(all.size()));
  CHECK(one.At(all.size()) != wrong.At(all.size()));
  CHECK(bare.At(all.size()) != bare_other.At(all.size()));
}

// Against a search that has the whole text at once.
TEST(masks_find_what_a_plain_search_finds) {
  std::mt19937_64 random(4);
  for (int round = 0; round < 500; ++round) {
    std::vector<std::pair<std::string, uint32_t>> wanted;
    MaskSet masks;
    for (size_t n = 1 + random() % 3; n > 0; --n) {
      std::string start;
      for (size_t i = 1 + random() % 5; i > 0; --i) start += static_cast<char>('a' + random() % 2);
      wanted.emplace_back(start, 1 + random() % 4);
      REQUIRE(masks.Add({1, Text(start), wanted.back().second}));
    }
    std::string text;
    for (int i = 0; i < 200; ++i) text += static_cast<char>('a' + random() % 2);
    std::string expected = text;
    size_t from = 0;  // where the search began, behind what was hidden
    for (size_t at = 0; at < text.size(); ++at) {
      uint32_t hidden = 0;
      for (const auto& [start, bytes] : wanted) {
        const bool ends = at + 1 - from >= start.size() &&
                          text.compare(at + 1 - start.size(), start.size(), start) == 0;
        if (ends) hidden = std::max(hidden, bytes);
      }
      for (; hidden > 0 && at + 1 < text.size(); --hidden) expected[++at] = '*';
      if (expected[at] == '*') from = at + 1;
    }
    Bytes bytes = Text(text);
    MaskSet::State state;
    for (size_t at = 0; at < bytes.size();) {
      const size_t count = std::min<size_t>(bytes.size() - at, 1 + random() % 9);
      masks.Apply(std::span(bytes).subspan(at, count), &state);
      at += count;
    }
    CHECK(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()) == expected);
  }
}

}  // namespace
}  // namespace falcon::test

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
