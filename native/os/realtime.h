// Realtime scheduling for the threads that the whole cluster waits for. A share of the processor,
// however large, is not enough: with automatic groups a nice value counts inside a session only,
// and a wake-up behind busy guests was seen to wait 270 ms, almost seven
// leases.
#pragma once

namespace falcon {

enum class RealtimePriority : int {
  kDecisions = 1,  // the event loop
  kDataPath = 2,   // reactor and log writer
};

// For the calling thread; threads and processes that it starts begin as ordinary ones. Returns
// false without the permission (CAP_SYS_NICE or RLIMIT_RTPRIO). The kernel's realtime throttling
// keeps a thread that spins from taking a whole processor.
bool MakeRealtime(RealtimePriority priority);

}  // namespace falcon
