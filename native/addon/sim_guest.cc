#include "addon/sim_guest.h"

#include <cstring>
#include <utility>

namespace falcon::addon {
namespace {

constexpr size_t kWordsAPage = kPageBytes / sizeof(uint64_t);
// Of the noise: one in so many polls writes, and in bursts, so that sessions find few pages changed
// and many.
constexpr uint64_t kQuiet = 24;
constexpr uint64_t kBurstPages = 6;
// The first page says how far the service is. It belongs to the service's own state, so a copy
// taken at two different moments shows.
constexpr size_t kStatePage = 0;

// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
uint64_t Mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
  x = (x ^ x >> 27) * 0x94D049BB133111EB;
  return x ^ x >> 31;
}

}  // namespace

Status SimGuest::Start(const std::string& path, size_t pages, uint64_t seed) {
  GuestMemory made;
  if (Status s = GuestMemory::Create(path, pages * kPageBytes, &made); !s.ok()) return s;
  memory_ = std::move(made);
  dirty_ = PageSet(pages);
  noise_ = seed;
  running_ = false;
  return Ok();
}

void SimGuest::Stop() {
  running_ = false;
  memory_.Close();
}

PageSet SimGuest::TakeDirty() { return std::exchange(dirty_, PageSet(memory_.pages())); }

uint64_t SimGuest::Noise() { return Mix(noise_ += 0x9E3779B97F4A7C15); }

void SimGuest::WritePage(size_t page, uint64_t word, uint64_t value) {
  std::memcpy(memory_.ram().data() + page * kPageBytes + word % kWordsAPage * sizeof value, &value,
              sizeof value);
  dirty_.Set(page);
}

int SimGuest::Poll() {
  if (!running_) return 0;
  const uint64_t before = service_.frames();
  const int taken = service_.Poll();
  for (uint64_t frame = before + 1; frame <= service_.frames(); ++frame) {
    const uint64_t place = Mix(frame);
    WritePage(1 + place % (memory_.pages() / 2), place >> 32, frame);
  }
  if (service_.frames() != before) {
    WritePage(kStatePage, 0, service_.frames());
    WritePage(kStatePage, 1, service_.digest());
  }
  if (Noise() % kQuiet != 0) return taken;
  for (uint64_t left = Noise() % kBurstPages; left > 0; --left) {
    const uint64_t place = Noise();
    // Now and then a page becomes zero again.
    const uint64_t value = place % 16 == 0 ? 0 : Noise();
    WritePage(1 + (place >> 8) % (memory_.pages() - 1), place >> 40, value);
  }
  return taken;
}

}  // namespace falcon::addon
