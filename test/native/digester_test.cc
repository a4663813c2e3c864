// Digests: equal for equal pages, different for any flipped bit; and the threads that make them,
// cancelled at any moment.
#include "pages/digester.h"

#include <dirent.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <ctime>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "os/clock.h"
#include "os/random.h"
#include "pages/guest_memory.h"

namespace {

using falcon::Digest;
using falcon::Digester;
using falcon::DigestJob;
using falcon::DigestKey;
using falcon::kPageBytes;
using falcon::Nanoseconds;
using falcon::PageHasher;
using falcon::PageSet;
using falcon::Random;
using Bytes = std::vector<std::byte>;

Bytes Noise(uint64_t seed, size_t bytes) {
  Bytes noise(bytes);
  Random random(seed);
  for (size_t at = 0; at + 8 <= bytes; at += 8) {
    const uint64_t word = random.Next();
    std::memcpy(noise.data() + at, &word, 8);
  }
  return noise;
}

std::unique_ptr<Digester> Make(int threads) {
  std::unique_ptr<Digester> digester;
  CHECK(Digester::Make({threads}, &digester).ok());
  return digester;
}

DigestJob Job(const Bytes& memory, const PageSet& pages, const DigestKey& key,
              std::vector<Digest>* digests) {
  digests->assign(pages.Count(), Digest{});
  return {memory, pages, nullptr, key, *digests};
}

bool AwaitEvent(const Digester& digester, int milliseconds = 20000) {
  pollfd wait{digester.event_fd(), POLLIN, 0};
  return poll(&wait, 1, milliseconds) == 1;
}

// By the event, as a reactor would.
bool Await(Digester* digester) {
  const falcon::Nanoseconds give_up = falcon::MonotonicNow() + 60 * falcon::kSecond;
  while (falcon::MonotonicNow() < give_up) {
    if (!AwaitEvent(*digester)) return false;
    if (digester->Finished()) return true;
  }
  return false;
}

TEST(any_flipped_bit_changes_the_digest) {
  CHECK(falcon::StartDigests().ok());
  const PageHasher hasher(falcon::MakeDigestKey());
  Bytes page = Noise(1, kPageBytes);
  const Digest digest = hasher.Page(page.data());
  for (size_t bit = 0; bit < kPageBytes * 8; ++bit) {
    page[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    CHECK(hasher.Page(page.data()) != digest);
    page[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
  }
  CHECK(hasher.Page(page.data()) == digest);
  Bytes zero(kPageBytes);
  CHECK(hasher.Page(zero.data()) == Digest{});
  for (size_t bit = 0; bit < kPageBytes * 8; ++bit) {
    zero[bit / 8] = static_cast<std::byte>(1 << bit % 8);
    CHECK(hasher.Page(zero.data()) != Digest{});
    zero[bit / 8] = std::byte{0};
  }
}

TEST(the_key_goes_in) {
  const Bytes page = Noise(2, kPageBytes);
  std::set<Digest> seen;
  std::set<uint64_t> seen_blocks;
  DigestKey key{};
  for (size_t byte = 0; byte < key.size(); ++byte) {
    key[byte] ^= 1;
    seen.insert(PageHasher(key).Page(page.data()));
    seen_blocks.insert(PageHasher(key).Blocks(page.data())[7]);
  }
  CHECK(seen.size() == key.size() && seen_blocks.size() == key.size());
  CHECK(falcon::MakeDigestKey() != falcon::MakeDigestKey());
}

TEST(a_flipped_bit_changes_the_digest_of_its_block_only) {
  const PageHasher hasher(falcon::MakeDigestKey());
  Bytes page = Noise(3, kPageBytes);
  const falcon::BlockDigests before = hasher.Blocks(page.data());
  CHECK(falcon::DifferingBlocks(before, before) == 0);
  for (size_t bit = 0; bit < kPageBytes * 8; bit += 5) {
    page[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    CHECK(falcon::DifferingBlocks(hasher.Blocks(page.data()), before) ==
          uint64_t{1} << bit / 8 / falcon::kBlockBytes);
    page[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
  }
  Bytes zero(kPageBytes);
  CHECK(falcon::FilledBlocks(zero.data()) == 0);
  zero[falcon::kBlockBytes - 1] = zero[kPageBytes - 1] = std::byte{1};
  CHECK(falcon::FilledBlocks(zero.data()) == (uint64_t{1} | uint64_t{1} << 63));
}

// Both replicas must say the same of the same page, whatever they were built with. The value was
// computed from the definitions of ChaCha20, Poly1305 and SipHash, not by the library.
TEST(a_digest_is_what_it_was) {
  Bytes page(kPageBytes);
  for (size_t i = 0; i < page.size(); ++i) page[i] = static_cast<std::byte>(i * 7 + i / 256);
  DigestKey key{};
  for (size_t i = 0; i < key.size(); ++i) key[i] = static_cast<uint8_t>(i);
  const PageHasher hasher(key);
  const Digest digest = hasher.Page(page.data());
  std::string text;
  for (const std::byte byte : digest) {
    char digits[3];
    std::snprintf(digits, sizeof digits, "%02x", std::to_integer<unsigned>(byte));
    text += digits;
  }
  std::printf("# %s\n", text.c_str());
  CHECK(text == "f5b1ff618ca03bb8cf54d43d63015486");
  const falcon::BlockDigests blocks = hasher.Blocks(page.data());
  CHECK(blocks.front() == 0x233ff5166d90aacf && blocks.back() == 0xbbd0be5d26d77c02);
}

TEST(the_workers_do_what_a_plain_loop_does) {
  Random random(11);
  for (int round = 0; round < 40; ++round) {
    const size_t pages = 1 + random.Below(5000);
    const Bytes memory = Noise(static_cast<uint64_t>(round), pages * kPageBytes);
    PageSet set(pages);
    for (size_t i = random.Below(pages + 1); i > 0; --i) set.Set(random.Below(pages));
    PageSet resident(pages);
    resident.SetAll();
    for (size_t i = random.Below(20); i > 0; --i) resident.Clear(random.Below(pages));
    const DigestKey key = falcon::MakeDigestKey();
    const auto digester = Make(1 + round % 4);
    std::vector<Digest> digests;
    DigestJob job = Job(memory, set, key, &digests);
    if (round % 2 == 0) job.resident = &resident;
    digester->Start(std::move(job));
    CHECK(Await(digester.get()));
    CHECK(!digester->running() && digester->progress() == set.Count());
    size_t rank = 0;
    for (size_t page = set.Next(0); page < pages; page = set.Next(page + 1), ++rank) {
      const bool hole = round % 2 == 0 && !resident.Test(page);
      CHECK(digests[rank] ==
            (hole ? Digest{} : PageHasher(key).Page(memory.data() + page * kPageBytes)));
    }
  }
}

Nanoseconds ProcessTime() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return t.tv_sec * falcon::kSecond + t.tv_nsec;
}

// A busy machine only makes it longer. The set is spread thin, as a heal's is.
TEST(a_patient_worker_rests_as_long_as_it_works) {
  constexpr size_t kPages = 32768;
  const Bytes memory = Noise(5, kPages * kPageBytes);
  PageSet set(kPages);
  for (size_t page = 0; page < kPages; page += 8) set.Set(page);
  const auto digester = Make(1);
  std::vector<Digest> digests;
  DigestJob job = Job(memory, set, falcon::MakeDigestKey(), &digests);
  job.patient = true;
  const Nanoseconds began = falcon::MonotonicNow();
  const Nanoseconds worked_before = ProcessTime();
  digester->Start(std::move(job));
  CHECK(Await(digester.get()));
  const Nanoseconds took = falcon::MonotonicNow() - began;
  const Nanoseconds worked = ProcessTime() - worked_before;
  CHECK(digester->progress() == set.Count());
  std::printf("# %ld us of work in %ld\n", worked / falcon::kMicrosecond,
              took / falcon::kMicrosecond);
  CHECK(took * 10 >= worked * 18);
}

TEST(differing_pages_are_found_and_no_others) {
  Random random(13);
  for (int round = 0; round < 30; ++round) {
    const size_t pages = 1 + random.Below(600);
    const Bytes ours = Noise(99, pages * kPageBytes);
    Bytes theirs = ours;
    PageSet our_set(pages);
    PageSet their_set(pages);
    PageSet expected(pages);
    for (size_t page = 0; page < pages; ++page) {
      const bool in_ours = random.Chance(9, 10);
      const bool in_theirs = random.Chance(9, 10);
      const bool flipped = random.Chance(1, 7);
      if (in_ours) our_set.Set(page);
      if (in_theirs) their_set.Set(page);
      if (flipped)
        theirs[page * kPageBytes + random.Below(kPageBytes)] ^=
            static_cast<std::byte>(1 << round % 8);
      if (in_ours != in_theirs || (in_ours && flipped)) expected.Set(page);
    }
    const DigestKey key = falcon::MakeDigestKey();
    const auto digester = Make(2);
    std::vector<Digest> our_digests;
    std::vector<Digest> their_digests;
    digester->Start(Job(ours, our_set, key, &our_digests));
    CHECK(Await(digester.get()));
    digester->Start(Job(theirs, their_set, key, &their_digests));
    CHECK(Await(digester.get()));
    PageSet differing;
    CHECK(falcon::DifferingPages(our_set, our_digests, their_set, their_digests, &differing).ok());
    CHECK(differing == expected);
  }
}

TEST(arrays_that_do_not_fit_are_refused) {
  PageSet set(100);
  set.SetAll();
  PageSet differing;
  const std::vector<Digest> digests(101);
  const auto compare = [&](size_t ours, size_t theirs, size_t pages) {
    PageSet other(pages);
    other.SetAll();
    return std::string(falcon::DifferingPages(set, std::span(digests).first(ours), other,
                                              std::span(digests).first(theirs), &differing)
                           .code());
  };
  CHECK(compare(99, 100, 100) == "PAGE_SET" && compare(101, 100, 100) == "PAGE_SET");
  CHECK(compare(100, 99, 100) == "PAGE_SET" && compare(100, 99, 99) == "PAGE_SET");
  CHECK(compare(100, 100, 100) == "OK" && differing.Empty());
}

TEST(nothing_to_do_is_done_at_once) {
  const auto digester = Make(2);
  const Bytes memory(10 * kPageBytes);
  std::vector<Digest> digests;
  for (const size_t pages : {0u, 10u}) {
    digester->Start(Job(memory, PageSet(pages), {}, &digests));
    CHECK(Await(digester.get()));
  }
  CHECK(!digester->Finished() && !AwaitEvent(*digester, 0));
  digester->Cancel();
  CHECK(digester->TryCancel());
}

// The memory and the digests are gone when Cancel has returned: whoever still touched them would be
// stopped by the kernel.
TEST(cancelled_at_any_moment_nobody_touches_the_memory) {
  constexpr size_t kPages = 4096;
  Random random(17);
  size_t cut_short = 0;
  size_t waited = 0;
  for (int round = 0; round < 400; ++round) {
    static std::unique_ptr<Digester> digester;
    if (round % 40 == 0) digester = Make(1 + round / 40 % 4);
    const size_t bytes = kPages * (kPageBytes + sizeof(Digest));
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(at != MAP_FAILED);
    auto* base = static_cast<std::byte*>(at);
    for (size_t page = 0; page < kPages; ++page) base[page * kPageBytes] = std::byte{1};
    auto* digests = reinterpret_cast<Digest*>(base + kPages * kPageBytes);
    DigestJob job;
    job.memory = {base, kPages * kPageBytes};
    job.pages = PageSet(kPages);
    job.pages.SetAll();
    job.digests = {digests, kPages};
    digester->Start(std::move(job));
    CHECK(digester->running());
    const falcon::Nanoseconds until =
        falcon::MonotonicNow() + static_cast<falcon::Nanoseconds>(random.Below(3000000));
    while (falcon::MonotonicNow() < until && digester->progress() < kPages) sched_yield();
    if (round % 2 == 0) {
      digester->Cancel();
    } else {
      for (; !digester->TryCancel(); ++waited) sched_yield();
    }
    CHECK(!digester->running());
    if (digester->progress() < kPages) ++cut_short;
    munmap(at, bytes);
    if (round % 40 == 39) digester.reset();
  }
  std::printf("# %zu of 400 jobs cut short, %zu looks in vain\n", cut_short, waited);
  CHECK(cut_short > 0);
}

TEST(a_digester_ends_with_its_job) {
  const Bytes memory = Noise(3, 2000 * kPageBytes);
  PageSet set(2000);
  set.SetAll();
  for (int round = 0; round < 50; ++round) {
    std::vector<Digest> digests;
    const auto digester = Make(3);
    digester->Start(Job(memory, set, {}, &digests));
    if (round % 3 == 0) sched_yield();
  }
}

TEST(without_threads_a_job_is_done_when_it_is_started) {
  const Bytes memory = Noise(4, 3000 * kPageBytes);
  PageSet set(3000);
  for (size_t page = 0; page < 3000; page += 3) set.Set(page);
  std::vector<Digest> inline_digests, digests;
  const auto digester = Make(0);
  CHECK(digester->threads() == 0);
  digester->Start(Job(memory, set, {}, &inline_digests));
  CHECK(digester->running() && digester->Finished() && !digester->running());
  digester->Start(Job(memory, PageSet(3000), {}, &digests));
  CHECK(digester->Finished());
  digester->Start(Job(memory, set, {}, &digests));
  digester->Cancel();
  CHECK(!digester->Finished());
  const auto threads = Make(2);
  threads->Start(Job(memory, set, {}, &digests));
  while (!threads->Finished()) sched_yield();
  CHECK(digests == inline_digests);
}

TEST(the_workers_are_named_and_ordinary) {
  const auto digester = Make(falcon::DigesterOptions::kAuto);
  CHECK(digester->threads() >= 1 && digester->threads() <= 2);
  usleep(50000);
  size_t found = 0;
  DIR* tasks = opendir("/proc/self/task");
  REQUIRE(tasks != nullptr);
  while (const dirent* entry = readdir(tasks)) {
    if (entry->d_name[0] == '.') continue;
    const std::string task = entry->d_name;
    std::string name;
    std::getline(std::ifstream("/proc/self/task/" + task + "/comm") >> std::ws, name);
    if (!name.starts_with("falcon-digest")) continue;
    ++found;
    CHECK(sched_getscheduler(std::stoi(task)) == SCHED_OTHER);
  }
  closedir(tasks);
  CHECK(found == digester->threads());
  std::unique_ptr<Digester> none;
  CHECK(!Digester::Make({-2}, &none).ok() && !Digester::Make({17}, &none).ok());
}

}  // namespace

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
