// Stands in for the verbs fabric where libibverbs was not there when this was built.
#include "fabric/verbs.h"

namespace falcon {

constexpr const char* kMissing = "built without libibverbs; install libibverbs-dev and build again";

std::string VerbsMissing() { return kMissing; }

Status MakeVerbsFabric(const VerbsOptions& /*options*/, PeerId /*self*/,
                       std::unique_ptr<Fabric>* /*fabric*/) {
  return {"VERBS_OPEN", std::string("verbs: ") + kMissing};
}

}  // namespace falcon
