#include "fabric/verbs_exposure.h"

#include <utility>

#include "os/check.h"

namespace falcon {

Status VerbsExposures::Lock(const VerbsDevice& device, ExposedMemory* memory) {
  // As with a region of the fabric's own: the order of writes is relied upon.
  constexpr int kAccess = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;
  VerbsKey key;
  if (Status s = RegisterVerbsMemory(device, memory->memory, kAccess, &key); !s.ok()) return s;
  // Memory that cannot be closed would go on being written while somebody else uses it.
  memory->locked = std::shared_ptr<ibv_mr>(
      key.release(), [](ibv_mr* held) { FALCON_CHECK(ibv_dereg_mr(held) == 0); });
  return Ok();
}

Status VerbsExposures::Open(const VerbsDevice& device, Grant grant, const ExposedMemory& memory,
                            std::string* text) {
  ExposedMemory exposed = memory;
  if (exposed.locked == nullptr) {
    if (Status s = Lock(device, &exposed); !s.ok()) return s;
  }
  grant.exposure = ++count_;
  grant.bytes = memory.memory.size();
  grant.address = reinterpret_cast<uint64_t>(memory.memory.data());
  grant.key = std::static_pointer_cast<ibv_mr>(exposed.locked)->rkey;
  *text = FormatGrant(grant);
  open_[grant.region] = {grant.writer, std::move(exposed.locked)};
  return Ok();
}

void VerbsExposures::Close(RegionId region) { open_[region] = {}; }

void VerbsExposures::CloseFor(PeerId writer) {
  for (RegionId region = 0; region < kMaxRegions; ++region) {
    if (IsOpen(region) && open_[region].writer == writer) Close(region);
  }
}

}  // namespace falcon
