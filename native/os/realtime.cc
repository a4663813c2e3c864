#include "os/realtime.h"

#include <sched.h>

namespace falcon {

bool MakeRealtime(RealtimePriority priority) {
  sched_param parameters{};
  parameters.sched_priority = static_cast<int>(priority);
  return sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &parameters) == 0;
}

}  // namespace falcon
