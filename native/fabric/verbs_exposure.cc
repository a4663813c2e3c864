#include "fabric/verbs_exposure.h"

#include "os/check.h"

namespace falcon {

Status VerbsExposures::Open(const VerbsDevice& device, Grant grant, const ExposedMemory& memory,
                            std::string* text) {
  // As with a region of the fabric's own: the order of writes is relied upon.
  constexpr int kAccess = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;
  VerbsKey key;
  Status status = RegisterVerbsMemory(device, memory.memory, kAccess, &key);
  if (!status.ok()) return status;
  grant.exposure = ++count_;
  grant.bytes = memory.memory.size();
  grant.address = reinterpret_cast<uint64_t>(memory.memory.data());
  grant.key = key->rkey;
  *text = FormatGrant(grant);
  open_[grant.region] = {grant.writer, std::move(key)};
  return status;
}

void VerbsExposures::Close(RegionId region) {
  if (!IsOpen(region)) return;
  // Memory that cannot be closed would go on being written while somebody else uses it.
  FALCON_CHECK(ibv_dereg_mr(open_[region].key.release()) == 0);
  open_[region].writer = 0;
}

void VerbsExposures::CloseFor(PeerId writer) {
  for (RegionId region = 0; region < kMaxRegions; ++region) {
    if (open_[region].writer == writer) Close(region);
  }
}

}  // namespace falcon
