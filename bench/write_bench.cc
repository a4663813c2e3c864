// One-sided writes over RDMA between two devices of this machine, one after the other, both ends in
// one thread: post, and look until the last word has come. Nothing waits for a scheduler, so on a
// machine whose clock counts instructions (cluster/softroce/run --count-instructions) the time is
// the work: of a write and, where the kernel drives the device, of its acknowledgement. Prints one
// JSON object.
//
//   bare    plain libibverbs, with nothing around it: the floor
//   verbs   the fabric
//
// Usage: write_bench bare|verbs BYTES COUNT DEVICE,DEVICE
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fabric/shared_copy.h"
#include "fabric/verbs_objects.h"
#include "os/clock.h"
#include "program.h"

namespace {

using namespace falcon;
using bench::Fail;
using bench::Must;
using bench::PrintTimes;

constexpr uint64_t kWarmUp = 100;
constexpr uint32_t kDepth = 512;
constexpr uint64_t kSignalEvery = kDepth / 4;
constexpr uint32_t kInlineBytes = 256;

struct Task {
  std::string kind;
  size_t bytes = 0;
  uint64_t count = 0;
  std::array<std::string, 2> devices;
};

class Writer {
 public:
  virtual ~Writer() = default;
  // Writes `number` as the last word of the peer's memory, and returns when it is there.
  virtual void Write(uint64_t number) = 0;
};

class Bare final : public Writer {
 public:
  explicit Bare(const Task& task) : bytes_(task.bytes) {
    for (size_t i = 0; i < 2; ++i) {
      Side& side = sides_[i];
      side.options.device = task.devices[i];
      Must(OpenVerbsDevice(side.options, &side.device));
      Must(VerbsBuffer::Make(side.device, bytes_, &side.memory));
      side.queue.reset(ibv_create_cq(side.device.context.get(), kDepth, nullptr, nullptr, 0));
      if (side.queue == nullptr) Fail("no completion queue");
      ibv_qp_init_attr wanted{};
      wanted.send_cq = wanted.recv_cq = side.queue.get();
      wanted.qp_type = IBV_QPT_RC;
      wanted.cap = {kDepth, 1, 1, 1, kInlineBytes};
      side.pair.reset(ibv_create_qp(side.device.domain.get(), &wanted));
      if (side.pair == nullptr) Fail("no queue pair");
    }
    Connect(sides_[0], sides_[1]);
    Connect(sides_[1], sides_[0]);
  }

  void Write(uint64_t number) override {
    const std::span<std::byte> source = sides_[0].memory.bytes();
    std::memcpy(source.data() + bytes_ - 8, &number, 8);
    ibv_sge piece{reinterpret_cast<uint64_t>(source.data()), static_cast<uint32_t>(bytes_),
                  sides_[0].memory.lkey()};
    ibv_send_wr request{};
    request.opcode = IBV_WR_RDMA_WRITE;
    request.sg_list = &piece;
    request.num_sge = 1;
    if (bytes_ <= kInlineBytes) request.send_flags |= IBV_SEND_INLINE;
    if (number % kSignalEvery == 0) request.send_flags |= IBV_SEND_SIGNALED;
    const VerbsMemory target = sides_[1].memory.memory();
    request.wr.rdma.remote_addr = target.address;
    request.wr.rdma.rkey = target.rkey;
    ibv_send_wr* refused = nullptr;
    if (ibv_post_send(sides_[0].pair.get(), &request, &refused) != 0) Fail("post");
    const std::byte* word = sides_[1].memory.bytes().data() + bytes_ - 8;
    ibv_wc completion;
    while (LoadSharedWord(word) != number) continue;
    if (number % kSignalEvery != 0) return;
    while (ibv_poll_cq(sides_[0].queue.get(), 1, &completion) == 0) continue;
    if (completion.status != IBV_WC_SUCCESS) Fail(ibv_wc_status_str(completion.status));
  }

 private:
  struct Side {
    VerbsOptions options;
    VerbsDevice device;
    VerbsBuffer memory;
    VerbsQueue queue;
    VerbsPair pair;
  };

  static void Connect(Side& own, const Side& other) {
    VerbsMember peer{};
    peer.lid = other.device.port.lid;
    std::memcpy(peer.gid.data(), other.device.gid.raw, peer.gid.size());
    const ibv_mtu mtu = std::min(own.device.port.active_mtu, other.device.port.active_mtu);
    const VerbsRoute route{other.pair->qp_num, 1, 1, mtu, 1};
    Must(InitPair(own.pair.get(), own.options));
    Must(PairReadyToReceive(own.pair.get(), own.options, own.device, peer, route));
    Must(PairReadyToSend(own.pair.get(), own.options, route));
  }

  const size_t bytes_;
  std::array<Side, 2> sides_;
};

class OverFabric final : public Writer {
 public:
  explicit OverFabric(const Task& task) : bytes_(task.bytes), sources_(2 * kDepth * task.bytes) {
    for (PeerId i = 0; i < 2; ++i) {
      VerbsOptions options;
      options.device = task.devices[i];
      Must(MakeVerbsFabric(options, i, &fabrics_[i]));
      Must(fabrics_[i]->AddRegion(0, bytes_));
    }
    Must(fabrics_[0]->AddSource(sources_));
    for (PeerId i = 0; i < 2; ++i) {
      const PeerId other = i == 0 ? 1 : 0;
      Must(fabrics_[i]->Connect(other, 1, fabrics_[other]->Descriptor()));
    }
  }

  void Write(uint64_t number) override {
    const std::span<std::byte> source =
        std::span(sources_).subspan(number % (2 * kDepth) * bytes_, bytes_);
    std::memcpy(source.data() + bytes_ - 8, &number, 8);
    const std::span<const std::byte> pieces[] = {source};
    Must(fabrics_[0]->Write(1, {0, 0}, pieces));
    fabrics_[0]->Ring(1);
    fabrics_[0]->Poll();
    const std::byte* word = fabrics_[1]->region(0).data() + bytes_ - 8;
    while (LoadSharedWord(word) != number) {
      fabrics_[0]->Poll();
      if (fabrics_[0]->State(1) == PeerState::kBroken) Fail("the connection broke");
    }
  }

 private:
  const size_t bytes_;
  std::vector<std::byte> sources_;  // more places than a send queue holds
  std::array<std::unique_ptr<Fabric>, 2> fabrics_;
};

void Run(const Task& task) {
  std::unique_ptr<Writer> writer;
  if (task.kind == "bare")
    writer = std::make_unique<Bare>(task);
  else
    writer = std::make_unique<OverFabric>(task);
  std::vector<Nanoseconds> times;
  times.reserve(task.count);
  for (uint64_t i = 1; i <= kWarmUp + task.count; ++i) {
    const Nanoseconds from = MonotonicNow();
    writer->Write(i);
    if (i > kWarmUp) times.push_back(MonotonicNow() - from);
  }
  PrintTimes(std::move(times));
  std::printf("}\n");
}

}  // namespace

int main(int argc, char** argv) {
  Task task;
  if (argc == 5) {
    task.kind = argv[1];
    task.bytes = std::strtoull(argv[2], nullptr, 10);
    task.count = std::strtoull(argv[3], nullptr, 10);
    const std::string devices = argv[4];
    const size_t comma = devices.find(',');
    task.devices = {devices.substr(0, comma), devices.substr(comma + 1)};
  }
  if ((task.kind != "bare" && task.kind != "verbs") || task.bytes < 8 || task.bytes % 8 != 0 ||
      task.count == 0) {
    std::fprintf(stderr, "usage: write_bench bare|verbs BYTES COUNT DEVICE,DEVICE\n");
    return 2;
  }
  alarm(300);
  Run(task);
  return 0;
}
