// How fast pages are digested, beside a copy of the same pages in the same run; prints one JSON object.
//
//   copy      memcpy of all pages, one after the other
//   digest    their digests, by one thread
//   zero      the digests of as many pages that are all zero
//   workers   their digests, by the workers of a Digester
//   blake2b   a keyed BLAKE2b-128 of each page: what was not taken
//
// Each is the best of several rounds, in GB/s.
#include <poll.h>
#include <sodium/crypto_generichash.h>
#include <sodium/randombytes.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "os/clock.h"
#include "pages/digest.h"
#include "pages/digester.h"

namespace {

using falcon::Digest;
using falcon::kPageBytes;
using falcon::MonotonicNow;
using falcon::Nanoseconds;

constexpr size_t kPages = 32768;  // 128 MiB: more than any cache
constexpr int kRounds = 7;

double Best(const std::function<void()>& round) {
  Nanoseconds best = 0;
  for (int i = 0; i < kRounds; ++i) {
    const Nanoseconds from = MonotonicNow();
    round();
    const Nanoseconds took = std::max<Nanoseconds>(MonotonicNow() - from, 1);
    if (best == 0 || took < best) best = took;
  }
  return static_cast<double>(kPages * kPageBytes) / static_cast<double>(best);
}

}  // namespace

int main() {
  if (!falcon::StartDigests().ok()) return 1;
  std::vector<std::byte> memory(kPages * kPageBytes);
  std::vector<std::byte> other(memory.size());
  std::vector<Digest> digests(kPages);
  randombytes_buf(memory.data(), memory.size());
  const falcon::DigestKey key = falcon::MakeDigestKey();
  const falcon::PageHasher hasher(key);
  const auto digest_all = [&](const std::vector<std::byte>& of) {
    for (size_t page = 0; page < kPages; ++page)
      digests[page] = hasher.Page(of.data() + page * kPageBytes);
  };
  const double zero = Best([&] { digest_all(other); });
  const double copy = Best([&] {
    for (size_t page = 0; page < kPages; ++page)
      std::memcpy(other.data() + page * kPageBytes, memory.data() + page * kPageBytes, kPageBytes);
  });
  const double digest = Best([&] { digest_all(memory); });
  const double blake = Best([&] {
    for (size_t page = 0; page < kPages; ++page)
      crypto_generichash(reinterpret_cast<unsigned char*>(digests[page].data()), digests[page].size(),
                         reinterpret_cast<const unsigned char*>(memory.data()) + page * kPageBytes, kPageBytes,
                         key.data(), key.size());
  });
  std::unique_ptr<falcon::Digester> digester;
  if (!falcon::Digester::Make({}, &digester).ok()) return 1;
  const double workers = Best([&] {
    falcon::DigestJob job;
    job.memory = memory;
    job.pages = falcon::PageSet(kPages);
    job.pages.SetAll();
    job.key = key;
    job.digests = digests;
    digester->Start(std::move(job));
    while (!digester->Finished()) {
      pollfd wait{digester->event_fd(), POLLIN, 0};
      poll(&wait, 1, -1);
    }
  });
  std::printf("{\"copyGBs\":%.2f,\"digestGBs\":%.2f,\"zeroGBs\":%.2f,\"workersGBs\":%.2f,\"workers\":%zu,"
              "\"blake2bGBs\":%.2f}\n",
              copy, digest, zero, workers, digester->threads(), blake);
  return 0;
}
