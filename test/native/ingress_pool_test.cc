// The pool of frames that a backup has seen and the log has not.
#include "vm/ingress_pool.h"

#include <map>
#include <random>
#include <string>

#include "frame_builder.h"
#include "os/hash.h"

namespace falcon::test {
namespace {

std::vector<std::string> DrainAll(IngressPool& pool, Nanoseconds now, size_t most = SIZE_MAX) {
  struct Context {
    std::vector<std::string> frames;
    size_t most;
  } context{{}, most};
  pool.Drain(
      now,
      [](void* opaque, Frame frame) {
        auto* c = static_cast<Context*>(opaque);
        if (c->frames.size() == c->most) return false;
        c->frames.emplace_back(reinterpret_cast<const char*>(frame.data()), frame.size());
        return true;
      },
      &context);
  return context.frames;
}

TEST(what_the_log_has_is_struck_out_in_either_order) {
  auto pool = MakeIngressPool({});
  pool->Saw(Text("a"), 1);
  pool->Saw(Text("b"), 2);
  pool->Saw(Text("c"), 3);
  pool->Logged(Text("b"), 4);
  pool->Logged(Text("d"), 5);  // before this tap shows it
  pool->Saw(Text("d"), 6);
  CHECK(pool->frames() == 2 && pool->bytes() == 2);
  CHECK((DrainAll(*pool, 7) == std::vector<std::string>{"a", "c"}));
  CHECK(pool->frames() == 0 && pool->bytes() == 0);
}

TEST(equal_frames_are_counted_not_merged) {
  auto pool = MakeIngressPool({});
  for (int i = 0; i < 3; ++i) pool->Saw(Text("x"), 1);
  pool->Logged(Text("x"), 2);
  CHECK(pool->frames() == 2);
  pool->Logged(Text("x"), 2);
  pool->Logged(Text("x"), 2);
  pool->Logged(Text("x"), 2);  // one more than was seen
  CHECK(pool->frames() == 0);
  pool->Saw(Text("x"), 3);
  CHECK(pool->frames() == 0);
  pool->Saw(Text("x"), 3);
  CHECK(pool->frames() == 1);
}

TEST(old_frames_and_old_memories_go) {
  auto pool = MakeIngressPool({.max_frames = 8, .max_bytes = 1000, .max_age = 2 * kSecond});
  pool->Saw(Text("old"), kSecond);
  pool->Logged(Text("early"), kSecond);
  pool->Saw(Text("young"), 3 * kSecond);
  pool->Saw(Text("early"), 3 * kSecond + 1);
  CHECK((DrainAll(*pool, 3 * kSecond + 1) == std::vector<std::string>{"young", "early"}));
}

TEST(bounds_hold_and_the_oldest_go_first) {
  auto pool = MakeIngressPool({.max_frames = 3, .max_bytes = 100});
  for (const char* text : {"1", "2", "3", "4"}) pool->Saw(Text(text), 1);
  CHECK((DrainAll(*pool, 1) == std::vector<std::string>{"2", "3", "4"}));
  pool->Saw(Text(std::string(60, 'a')), 1);
  pool->Saw(Text(std::string(60, 'b')), 1);
  CHECK((DrainAll(*pool, 1) == std::vector<std::string>{std::string(60, 'b')}));
  pool->Saw(Text(std::string(101, 'c')), 1);
  CHECK(pool->frames() == 0);
}

TEST(draining_can_stop_and_go_on) {
  auto pool = MakeIngressPool({});
  for (const char* text : {"1", "2", "3"}) pool->Saw(Text(text), 1);
  CHECK((DrainAll(*pool, 1, 1) == std::vector<std::string>{"1"}));
  CHECK(pool->frames() == 2);
  CHECK((DrainAll(*pool, 1) == std::vector<std::string>{"2", "3"}));
  pool->Saw(Text("4"), 1);
  pool->Clear();
  CHECK(pool->frames() == 0 && pool->bytes() == 0 && DrainAll(*pool, 1).empty());
}

// Against a plain list, on random frames that are all the same age.
TEST(agrees_with_a_plain_multiset) {
  std::mt19937 random(7);
  auto pool = MakeIngressPool({.max_frames = 100'000, .max_bytes = 4 << 20});
  std::map<std::string, int> balance;  // seen minus logged
  for (int i = 0; i < 20'000; ++i) {
    const std::string text(1 + random() % 40, static_cast<char>('a' + random() % 8));
    if (random() % 2 == 0) {
      pool->Saw(Text(text), 1);
      ++balance[text];
    } else {
      pool->Logged(Text(text), 1);
      --balance[text];
    }
  }
  size_t left = 0;
  for (const auto& [text, count] : balance) left += count > 0 ? static_cast<size_t>(count) : 0;
  CHECK(pool->frames() == left);
  for (const std::string& text : DrainAll(*pool, 1)) --balance[text];
  for (const auto& [text, count] : balance) CHECK(count <= 0);
}

// The ring of bytes under frames of all sizes, many times round.
TEST(frames_come_out_whole_after_many_wraps) {
  std::mt19937 random(9);
  auto pool = MakeIngressPool({.max_frames = 16, .max_bytes = 5000, .max_age = 100});
  for (int i = 0; i < 50'000; ++i) {
    const std::string text(1 + random() % 1800, static_cast<char>(i));
    pool->Saw(Text(text), i);
    if (random() % 3 == 0) pool->Logged(Text(text), i);
    CHECK(pool->frames() <= 16 && pool->bytes() <= 5000);
    if (random() % 50 != 0) continue;
    for (const std::string& frame : DrainAll(*pool, i)) {
      CHECK(frame.find_first_not_of(frame[0]) == std::string::npos);
    }
  }
}

// Two frames that the hash takes for one if its seed is known: a first word that makes the product
// zero, whatever the second is.
TEST(frames_made_to_look_equal_do_not_strike_each_other_out) {
  constexpr uint64_t kMixA = 0x9E3779B97F4A7C15, kMixB = 0xD6E8FEB86659FD93;
  const auto forged = [&](uint64_t second) {
    const uint64_t words[2] = {kMixA ^ MixWords(kMixA, 16 ^ kMixB), second};
    Bytes frame(16);
    std::memcpy(frame.data(), words, 16);
    return frame;
  };
  CHECK(HashBytes(forged(1), 0) == HashBytes(forged(2), 0));
  auto pool = MakeIngressPool({.hash_seed = 0x5DEECE66D});
  pool->Logged(forged(1), 1);
  pool->Saw(forged(2), 2);
  CHECK(pool->frames() == 1);
}

}  // namespace
}  // namespace falcon::test

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
