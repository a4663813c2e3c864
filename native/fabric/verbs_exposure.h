// Memory of this member that is registered for one peer while it is exposed.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "fabric/grant.h"
#include "fabric/verbs_objects.h"

namespace falcon {

class VerbsExposures {
 public:
  // Registers memory for a peer. Errors: FABRIC_REGION.
  static Status Lock(const VerbsDevice& device, ExposedMemory* memory);
  // The same, unless that was done, and completes `grant`, which says who, where and for whom.
  // Errors: FABRIC_REGION.
  Status Open(const VerbsDevice& device, Grant grant, const ExposedMemory& memory,
              std::string* text);
  // When these return the device takes nothing more for the memory, unless somebody else holds what
  // Lock gave.
  void Close(RegionId region);
  void CloseFor(PeerId writer);

  [[nodiscard]] bool IsOpen(RegionId region) const { return open_[region].key != nullptr; }

 private:
  struct Exposure {
    PeerId writer = 0;
    std::shared_ptr<void> key;  // an ibv_mr
  };
  std::array<Exposure, kMaxRegions> open_;
  uint64_t count_ = 0;
};

}  // namespace falcon
