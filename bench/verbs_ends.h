// Two ends of a connection between two RDMA devices of this machine, by plain libibverbs with
// nothing around it: what the fabric is compared with. Each end may have a thread of its own.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "fabric/shared_copy.h"
#include "fabric/verbs_objects.h"
#include "program.h"

namespace falcon::bench {

class VerbsEnds {
 public:
  static constexpr uint32_t kDepth = 512;

  VerbsEnds(const std::string& one, const std::string& other, size_t bytes) : bytes_(bytes) {
    for (size_t i = 0; i < ends_.size(); ++i) {
      End& end = ends_[i];
      end.options.device = i == 0 ? one : other;
      Must(OpenVerbsDevice(end.options, &end.device));
      Must(VerbsBuffer::Make(end.device, bytes_, &end.source));
      Must(VerbsBuffer::Make(end.device, bytes_, &end.target));
      end.queue.reset(ibv_create_cq(end.device.context.get(), kDepth, nullptr, nullptr, 0));
      if (end.queue == nullptr) Fail("no completion queue");
      ibv_qp_init_attr wanted{};
      wanted.send_cq = wanted.recv_cq = end.queue.get();
      wanted.qp_type = IBV_QPT_RC;
      wanted.cap = {kDepth, 1, 1, 1, kInlineBytes};
      end.pair.reset(ibv_create_qp(end.device.domain.get(), &wanted));
      if (end.pair == nullptr) Fail("no queue pair");
    }
    Connect(ends_[0], ends_[1]);
    Connect(ends_[1], ends_[0]);
  }

  // Writes `bytes` from `from` to the other end, the last word of them `number`. Numbers of an end
  // grow by one.
  void Post(size_t from, uint64_t number) {
    End& end = ends_[from];
    const std::span<std::byte> source = end.source.bytes();
    std::memcpy(source.data() + bytes_ - 8, &number, 8);
    ibv_sge piece{reinterpret_cast<uint64_t>(source.data()), static_cast<uint32_t>(bytes_),
                  end.source.lkey()};
    ibv_send_wr request{};
    request.opcode = IBV_WR_RDMA_WRITE;
    request.sg_list = &piece;
    request.num_sge = 1;
    if (bytes_ <= kInlineBytes) request.send_flags |= IBV_SEND_INLINE;
    if (number % kSignalEvery == 0) request.send_flags |= IBV_SEND_SIGNALED;
    const VerbsMemory target = ends_[1 - from].target.memory();
    request.wr.rdma.remote_addr = target.address;
    request.wr.rdma.rkey = target.rkey;
    ibv_send_wr* refused = nullptr;
    if (ibv_post_send(end.pair.get(), &request, &refused) != 0) Fail("post");
  }

  // True once the number has been written to `at`.
  [[nodiscard]] bool Has(size_t at, uint64_t number) const {
    return LoadSharedWord(ends_[at].target.bytes().data() + bytes_ - 8) == number;
  }

  // What is to follow each Post that has arrived.
  void Reap(size_t from, uint64_t number) {
    if (number % kSignalEvery != 0) return;
    ibv_wc completion;
    while (ibv_poll_cq(ends_[from].queue.get(), 1, &completion) == 0) continue;
    if (completion.status != IBV_WC_SUCCESS) Fail(ibv_wc_status_str(completion.status));
  }

 private:
  static constexpr uint64_t kSignalEvery = kDepth / 4;
  static constexpr uint32_t kInlineBytes = 256;

  struct End {
    VerbsOptions options;
    VerbsDevice device;
    VerbsBuffer source;
    VerbsBuffer target;
    VerbsQueue queue;
    VerbsPair pair;
  };

  static void Connect(End& own, const End& other) {
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
  std::array<End, 2> ends_;
};

}  // namespace falcon::bench
