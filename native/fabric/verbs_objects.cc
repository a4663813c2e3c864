#include "fabric/verbs_objects.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace falcon {
namespace {

Status NotOpen(const std::string& why) { return {"VERBS_OPEN", why}; }

struct DeviceList {
  int count = 0;
  ibv_device** devices = ibv_get_device_list(&count);
  DeviceList() = default;
  ~DeviceList() {
    if (devices != nullptr) ibv_free_device_list(devices);
  }
  DeviceList(const DeviceList&) = delete;
  DeviceList& operator=(const DeviceList&) = delete;
};

bool IsIpv4(const ibv_gid& gid) {
  static constexpr uint8_t kMapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF};
  return std::memcmp(gid.raw, kMapped, sizeof kMapped) == 0;
}

// The better the higher; 0: of no use.
int Rank(const ibv_gid_entry& entry) {
  if (entry.gid_type != IBV_GID_TYPE_ROCE_V2) return 0;
  return IsIpv4(entry.gid) ? 2 : 1;
}

Status ChooseGid(const VerbsOptions& options, VerbsDevice* device) {
  if (!device->ethernet() && options.gid_index < 0) return Ok();
  ibv_gid_entry best{};
  if (options.gid_index >= 0) {
    const auto index = static_cast<uint32_t>(options.gid_index);
    if (const int error = ibv_query_gid_ex(device->context.get(), options.port, index, &best, 0);
        error != 0)
      return NotOpen(ErrnoText("GID index " + std::to_string(index), error));
  } else {
    for (int index = 0; index < device->port.gid_tbl_len; ++index) {
      ibv_gid_entry entry{};
      if (ibv_query_gid_ex(device->context.get(), options.port, static_cast<uint32_t>(index),
                           &entry, 0) != 0)
        continue;
      if (Rank(entry) > Rank(best)) best = entry;
    }
    if (Rank(best) == 0)
      return NotOpen("the port has no RoCE v2 address; give its network device an IPv4 address");
  }
  device->gid = best.gid;
  device->gid_index = static_cast<int>(best.gid_index);
  return Ok();
}

Status TryDevice(const VerbsOptions& options, ibv_device* candidate, VerbsDevice* device) {
  const std::string name = ibv_get_device_name(candidate);
  VerbsDevice opened;
  opened.context.reset(ibv_open_device(candidate));
  if (opened.context == nullptr) return NotOpen(ErrnoText("open " + name, errno));
  if (const int error = ibv_query_device(opened.context.get(), &opened.attributes); error != 0)
    return NotOpen(ErrnoText("query " + name, error));
  const std::string port = "port " + std::to_string(options.port) + " of " + name;
  if (const int error = ibv_query_port(opened.context.get(), options.port, &opened.port);
      error != 0)
    return NotOpen(ErrnoText(port, error));
  if (opened.port.state != IBV_PORT_ACTIVE) return NotOpen(port + " is not active");
  if (Status status = ChooseGid(options, &opened); !status.ok()) return status;
  opened.domain.reset(ibv_alloc_pd(opened.context.get()));
  if (opened.domain == nullptr) return NotOpen(ErrnoText("protection domain on " + name, errno));
  // Members go in the order that destroys the domain before the context.
  device->domain.reset();
  *device = std::move(opened);
  return Ok();
}

// Both kernels' ways to say that too much memory would be locked.
std::string MemlockAdvice(int error, const std::string& needed) {
  rlimit limit{};
  if ((error != ENOMEM && error != EPERM) || getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return {};
  std::string has =
      limit.rlim_cur == RLIM_INFINITY ? "unlimited" : std::to_string(limit.rlim_cur) + " bytes";
  return "; RDMA memory is locked: RLIMIT_MEMLOCK is " + has + " and " + needed +
         " needed; raise it (ulimit -l unlimited, or LimitMEMLOCK=infinity in the systemd unit)";
}

ibv_ah_attr AddressOf(const VerbsOptions& options, const VerbsDevice& device,
                      const VerbsMember& peer) {
  ibv_ah_attr address{};
  address.port_num = options.port;
  address.dlid = peer.lid;
  address.is_global = device.gid_index >= 0 ? 1 : 0;
  if (device.gid_index >= 0) {
    std::memcpy(address.grh.dgid.raw, peer.gid.data(), peer.gid.size());
    address.grh.sgid_index = static_cast<uint8_t>(device.gid_index);
    address.grh.hop_limit = 64;
  }
  return address;
}

Status StepFailed(const ibv_qp* pair, const char* step, int error) {
  return {"FABRIC_CONNECT",
          ErrnoText("queue pair " + std::to_string(pair->qp_num) + " to " + step, error)};
}

}  // namespace

Status OpenVerbsDevice(const VerbsOptions& options, VerbsDevice* device) {
  const DeviceList list;
  if (list.devices == nullptr) {
    return NotOpen(errno == ENOSYS ? "this kernel has no RDMA devices (no ib_uverbs)"
                                   : ErrnoText("no list of devices", errno));
  }
  Status first = Ok();
  for (int i = 0; i < list.count; ++i) {
    if (!options.device.empty() && options.device != ibv_get_device_name(list.devices[i])) continue;
    Status status = TryDevice(options, list.devices[i], device);
    if (status.ok()) return status;
    if (first.ok()) first = std::move(status);
  }
  if (!first.ok()) return first;
  return NotOpen(options.device.empty() ? "this machine has no RDMA device"
                                        : "no RDMA device is called " + options.device);
}

std::string VerbsMissing() {
  VerbsDevice device;
  return OpenVerbsDevice({}, &device).detail();
}

VerbsBuffer::VerbsBuffer(VerbsBuffer&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      key_(std::move(other.key_)) {}

VerbsBuffer& VerbsBuffer::operator=(VerbsBuffer&& other) noexcept {
  if (this == &other) return *this;
  Free();
  base_ = std::exchange(other.base_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  key_ = std::move(other.key_);
  return *this;
}

void VerbsBuffer::Free() {
  key_.reset();
  if (base_ != nullptr) munmap(base_, bytes_);
  base_ = nullptr;
}

Status VerbsBuffer::Make(const VerbsDevice& device, size_t bytes, VerbsBuffer* buffer) {
  void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED)
    return {"FABRIC_REGION", ErrnoText("map " + std::to_string(bytes) + " bytes", errno)};
  VerbsBuffer made;
  made.base_ = static_cast<std::byte*>(base);
  made.bytes_ = bytes;
  if (madvise(base, bytes, MADV_DONTFORK) != 0)
    return {"FABRIC_REGION", ErrnoText("keep memory from children", errno)};
  // Never IBV_ACCESS_RELAXED_ORDERING: readers rely on the order of writes.
  constexpr int kAccess = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;
  if (Status status = RegisterVerbsMemory(device, made.bytes(), kAccess, &made.key_); !status.ok())
    return status;
  *buffer = std::move(made);
  return Ok();
}

VerbsMemory VerbsBuffer::memory() const {
  return {reinterpret_cast<uint64_t>(base_), bytes_, key_->rkey, 0};
}

Status RegisterVerbsMemory(const VerbsDevice& device, std::span<std::byte> memory, int access,
                           VerbsKey* key) {
  key->reset(ibv_reg_mr(device.domain.get(), memory.data(), memory.size(), access));
  if (*key != nullptr) return Ok();
  const int error = errno;
  return {"FABRIC_REGION",
          ErrnoText("register " + std::to_string(memory.size()) + " bytes", error) +
              MemlockAdvice(error, std::to_string(memory.size()) + " more are")};
}

Status NoVerbsObject(const char* what, int error) {
  return NotOpen(ErrnoText(what, error) + MemlockAdvice(error, "more is"));
}

Status ResetPair(ibv_qp* pair) {
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_RESET;
  const int error = ibv_modify_qp(pair, &attr, IBV_QP_STATE);
  return error == 0 ? Ok() : StepFailed(pair, "RESET", error);
}

Status FailPair(ibv_qp* pair) {
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_ERR;
  const int error = ibv_modify_qp(pair, &attr, IBV_QP_STATE);
  return error == 0 ? Ok() : StepFailed(pair, "ERR", error);
}

Status InitPair(ibv_qp* pair, const VerbsOptions& options) {
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_INIT;
  attr.pkey_index = 0;
  attr.port_num = options.port;
  attr.qp_access_flags = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;
  const int error = ibv_modify_qp(
      pair, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
  return error == 0 ? Ok() : StepFailed(pair, "INIT", error);
}

Status ResolveVerbsPeer(const VerbsOptions& options, const VerbsDevice& device,
                        const VerbsMember& peer) {
  ibv_ah_attr address = AddressOf(options, device, peer);
  const std::unique_ptr<ibv_ah, VerbsDeleter<ibv_destroy_ah>> handle(
      ibv_create_ah(device.domain.get(), &address));
  if (handle != nullptr) return Ok();
  return {"FABRIC_CONNECT", ErrnoText("the peer's address is not found", errno)};
}

Status PairReadyToReceive(ibv_qp* pair, const VerbsOptions& options, const VerbsDevice& device,
                          const VerbsMember& peer, const VerbsRoute& route) {
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_RTR;
  attr.path_mtu = route.mtu;
  attr.dest_qp_num = route.queue_pair;
  attr.rq_psn = route.receive_psn;
  attr.max_dest_rd_atomic = route.max_reads;
  attr.min_rnr_timer = options.min_rnr_timer;
  attr.ah_attr = AddressOf(options, device, peer);
  const int error =
      ibv_modify_qp(pair, &attr,
                    IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                        IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
  return error == 0 ? Ok() : StepFailed(pair, "RTR", error);
}

Status PairReadyToSend(ibv_qp* pair, const VerbsOptions& options, const VerbsRoute& route) {
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_RTS;
  attr.timeout = options.timeout;
  attr.retry_cnt = options.retry;
  attr.rnr_retry = options.rnr_retry;
  attr.sq_psn = route.send_psn;
  attr.max_rd_atomic = route.max_reads;
  const int error = ibv_modify_qp(pair, &attr,
                                  IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
                                      IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
  return error == 0 ? Ok() : StepFailed(pair, "RTS", error);
}

}  // namespace falcon
