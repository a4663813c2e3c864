// Memory of this member that is registered for one peer while it is exposed.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "fabric/grant.h"
#include "fabric/verbs_objects.h"

namespace falcon {

class VerbsExposures {
 public:
  // Registers memory and completes `grant`, which says who, where and for whom. Errors:
  // FABRIC_REGION.
  Status Open(const VerbsDevice& device, Grant grant, const ExposedMemory& memory,
              std::string* text);
  // When these return the device takes nothing more for the memory.
  void Close(RegionId region);
  void CloseFor(PeerId writer);

  [[nodiscard]] bool IsOpen(RegionId region) const { return open_[region].key != nullptr; }

 private:
  struct Exposure {
    PeerId writer = 0;
    VerbsKey key;
  };
  std::array<Exposure, kMaxRegions> open_;
  uint64_t count_ = 0;
};

}  // namespace falcon
