// Owners of libibverbs objects, the choice of device and GID, and the steps of a queue pair: each
// one function and one error.
#pragma once

#include <infiniband/verbs.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "fabric/verbs.h"
#include "fabric/verbs_descriptor.h"
#include "os/status.h"

namespace falcon {

template <auto Destroy>
struct VerbsDeleter {
  template <typename T>
  void operator()(T* object) const {
    Destroy(object);
  }
};
using VerbsContext = std::unique_ptr<ibv_context, VerbsDeleter<ibv_close_device>>;
using VerbsDomain = std::unique_ptr<ibv_pd, VerbsDeleter<ibv_dealloc_pd>>;
using VerbsChannel = std::unique_ptr<ibv_comp_channel, VerbsDeleter<ibv_destroy_comp_channel>>;
using VerbsQueue = std::unique_ptr<ibv_cq, VerbsDeleter<ibv_destroy_cq>>;
using VerbsPair = std::unique_ptr<ibv_qp, VerbsDeleter<ibv_destroy_qp>>;
using VerbsKey = std::unique_ptr<ibv_mr, VerbsDeleter<ibv_dereg_mr>>;

// An open device and what its port says.
struct VerbsDevice {
  VerbsContext context;
  VerbsDomain domain;
  ibv_device_attr attributes{};
  ibv_port_attr port{};
  ibv_gid gid{};
  int gid_index = -1;  // -1: the LID is the address
  [[nodiscard]] bool ethernet() const { return port.link_layer == IBV_LINK_LAYER_ETHERNET; }
};

// Errors: VERBS_OPEN.
Status OpenVerbsDevice(const VerbsOptions& options, VerbsDevice* device);

// Zeroed memory, registered. Not inherited by children: a page that a child shares could be copied
// away from under the device.
class VerbsBuffer {
 public:
  VerbsBuffer() = default;
  VerbsBuffer(VerbsBuffer&& other) noexcept;
  VerbsBuffer& operator=(VerbsBuffer&& other) noexcept;
  ~VerbsBuffer() { Free(); }

  // Errors: FABRIC_REGION.
  static Status Make(const VerbsDevice& device, size_t bytes, VerbsBuffer* buffer);

  [[nodiscard]] bool ok() const { return base_ != nullptr; }
  [[nodiscard]] std::span<std::byte> bytes() const { return {base_, bytes_}; }
  [[nodiscard]] uint32_t lkey() const { return key_->lkey; }
  [[nodiscard]] VerbsMemory memory() const;

 private:
  void Free();

  std::byte* base_ = nullptr;
  size_t bytes_ = 0;
  VerbsKey key_;
};

// Registers memory that somebody else owns. Errors: FABRIC_REGION.
Status RegisterVerbsMemory(const VerbsDevice& device, std::span<std::byte> memory, int access,
                           VerbsKey* key);

// VERBS_OPEN for an object that the kernel does not make, with the remedy if it is the limit on
// locked memory.
Status NoVerbsObject(const char* what, int error);

// What a queue pair is told of its peer when it comes up.
struct VerbsRoute {
  uint32_t queue_pair;
  uint32_t receive_psn;
  uint32_t send_psn;
  ibv_mtu mtu;
  uint8_t max_reads;
};

// The life of a queue pair: any state -> RESET -> INIT -> RTR -> RTS. Errors: FABRIC_CONNECT, with
// the step named.
Status ResetPair(ibv_qp* pair);
Status InitPair(ibv_qp* pair, const VerbsOptions& options);
// Waits until the kernel knows the Ethernet address of the peer, or has given up. Errors:
// FABRIC_CONNECT.
Status ResolveVerbsPeer(const VerbsOptions& options, const VerbsDevice& device,
                        const VerbsMember& peer);
Status PairReadyToReceive(ibv_qp* pair, const VerbsOptions& options, const VerbsDevice& device,
                          const VerbsMember& peer, const VerbsRoute& route);
Status PairReadyToSend(ibv_qp* pair, const VerbsOptions& options, const VerbsRoute& route);
Status FailPair(ibv_qp* pair);

}  // namespace falcon
