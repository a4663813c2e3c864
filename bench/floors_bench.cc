// Floors for the log's figures, measured on the same machine in the same run; prints one JSON object.
//
//   spin    two processes take turns on a word of shared memory, both spinning: one hand-over there and back
//   wake    the same through two pipes, both sleeping: what a blocking wake-up costs here
//   force   a lone 512-byte pwrite + fdatasync in the given directory
//
// Usage: floors_bench DIRECTORY
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <string>
#include <vector>

#include "os/clock.h"

namespace {

using falcon::MonotonicNow;
using falcon::Nanoseconds;

struct Figures {
  Nanoseconds p50 = 0;
  Nanoseconds p99 = 0;
};

Figures Summarise(std::vector<Nanoseconds>* times) {
  std::sort(times->begin(), times->end());
  return {(*times)[times->size() / 2], (*times)[times->size() * 99 / 100]};
}

struct Shared {
  alignas(64) std::atomic<uint64_t> there{0};
  alignas(64) std::atomic<uint64_t> back{0};
};

Figures Spin(int rounds) {
  void* memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  auto* shared = new (memory) Shared;
  const pid_t child = fork();
  if (child == 0) {
    for (uint64_t i = 1; i <= static_cast<uint64_t>(rounds); ++i) {
      while (shared->there.load(std::memory_order_acquire) < i) {
      }
      shared->back.store(i, std::memory_order_release);
    }
    _exit(0);
  }
  std::vector<Nanoseconds> times;
  times.reserve(static_cast<size_t>(rounds));
  for (uint64_t i = 1; i <= static_cast<uint64_t>(rounds); ++i) {
    const Nanoseconds from = MonotonicNow();
    shared->there.store(i, std::memory_order_release);
    while (shared->back.load(std::memory_order_acquire) < i) {
    }
    times.push_back(MonotonicNow() - from);
  }
  waitpid(child, nullptr, 0);
  munmap(memory, sizeof(Shared));
  return Summarise(&times);
}

Figures Wake(int rounds) {
  int there[2], back[2];
  if (pipe(there) != 0 || pipe(back) != 0) return {};
  const pid_t child = fork();
  char byte = 0;
  if (child == 0) {
    for (int i = 0; i < rounds; ++i) {
      if (read(there[0], &byte, 1) != 1 || write(back[1], &byte, 1) != 1) _exit(1);
    }
    _exit(0);
  }
  std::vector<Nanoseconds> times;
  for (int i = 0; i < rounds; ++i) {
    const Nanoseconds from = MonotonicNow();
    if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1) break;
    times.push_back(MonotonicNow() - from);
  }
  waitpid(child, nullptr, 0);
  for (int fd : {there[0], there[1], back[0], back[1]}) close(fd);
  return Summarise(&times);
}

Figures Force(const std::string& directory, int rounds) {
  const std::string path = directory + "/floor";
  const int fd = open(path.c_str(), O_CREAT | O_RDWR | O_TRUNC, 0600);
  if (fd < 0 || posix_fallocate(fd, 0, 512L * rounds) != 0) return {};
  const std::vector<char> block(512, 'x');
  std::vector<Nanoseconds> times;
  for (int i = 0; i < rounds; ++i) {
    const Nanoseconds from = MonotonicNow();
    if (pwrite(fd, block.data(), block.size(), 512L * i) != 512 || fdatasync(fd) != 0) break;
    times.push_back(MonotonicNow() - from);
  }
  close(fd);
  unlink(path.c_str());
  if (times.empty()) return {};
  return Summarise(&times);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: floors_bench DIRECTORY\n");
    return 2;
  }
  const Figures spin = Spin(200000);
  const Figures wake = Wake(20000);
  const Figures force = Force(argv[1], 2000);
  std::printf("{\"spin\":{\"p50Ns\":%ld,\"p99Ns\":%ld},\"wake\":{\"p50Ns\":%ld,\"p99Ns\":%ld},"
              "\"force\":{\"p50Ns\":%ld,\"p99Ns\":%ld}}\n",
              spin.p50, spin.p99, wake.p50, wake.p99, force.p50, force.p99);
  return 0;
}
