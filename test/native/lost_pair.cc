// Preloaded into a daemon: loses a queue pair as rxe of Linux 6.1 does where packets overtake each
// other. There the receives of the pair stay through every reset, so that no more can be posted.
// Here the next one that becomes INIT is filled to the brim, once, when the file exists that
// FALCON_LOSE_PAIR names; it is removed.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>

#include "fabric/verbs_objects.h"

extern "C" __attribute__((visibility("default"))) int ibv_modify_qp(ibv_qp* pair,
                                                                    ibv_qp_attr* attributes,
                                                                    int mask) {
  // The addon has brought it, so it is none of the libraries that RTLD_NEXT looks through.
  static void* const library = dlopen("libibverbs.so.1", RTLD_LAZY | RTLD_NOLOAD);
  static const auto real =
      reinterpret_cast<int (*)(ibv_qp*, ibv_qp_attr*, int)>(dlsym(library, "ibv_modify_qp"));
  const int error = real(pair, attributes, mask);
  const bool init = (mask & IBV_QP_STATE) != 0 && attributes->qp_state == IBV_QPS_INIT;
  const char* order = getenv("FALCON_LOSE_PAIR");
  if (error != 0 || !init || order == nullptr || unlink(order) != 0) return error;
  ibv_recv_wr receive{};
  ibv_recv_wr* refused = nullptr;
  while (ibv_post_recv(pair, &receive, &refused) == 0) continue;
  return 0;
}
