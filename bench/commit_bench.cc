// Append to commit of a log in memory, all of its members polled in turn by one thread; prints one
// JSON object. No thread waits for another and no processor is shared, so what is measured is what
// the members and the fabric do for a commit, whatever the scheduler is like and however few
// processors there are.
//
// Usage: commit_bench shm|tcp|verbs MEMBERS-UP BYTES COUNT FOLDER [DEVICE,DEVICE,DEVICE]
// FOLDER: for the log files, and the regions of shm.
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

#include "members.h"
#include "program.h"

namespace {

using namespace falcon;
using bench::Cluster;
using bench::kMembers;
using bench::Membership;
using bench::PrintTimes;

constexpr uint64_t kWarmUp = 100;

void Run(const Membership& membership, size_t bytes, uint64_t count) {
  Cluster cluster(membership);
  const std::vector<std::byte> payload(bytes, std::byte{0x5A});
  std::vector<Nanoseconds> times;
  times.reserve(count);
  for (uint64_t i = 0; i < kWarmUp + count; ++i) {
    const Nanoseconds took = cluster.Commit(payload);
    if (i >= kWarmUp) times.push_back(took);
    cluster.Settle();
  }
  PrintTimes(std::move(times));
  std::printf("}\n");
}

}  // namespace

int main(int argc, char** argv) {
  Membership membership;
  size_t bytes = 0;
  uint64_t count = 0;
  if (argc >= 6) {
    membership.fabric = argv[1];
    membership.up = std::strtoull(argv[2], nullptr, 10);
    bytes = std::strtoull(argv[3], nullptr, 10);
    count = std::strtoull(argv[4], nullptr, 10);
    membership.folder = argv[5];
    if (argc > 6) membership.devices = bench::SplitDevices(argv[6]);
  }
  if (membership.up < 2 || membership.up > kMembers || bytes == 0 || count == 0) {
    std::fprintf(stderr,
                 "usage: commit_bench shm|tcp|verbs MEMBERS-UP BYTES COUNT FOLDER "
                 "[DEVICE,DEVICE,DEVICE]\n");
    return 2;
  }
  Run(membership, bytes, count);
  return 0;
}
