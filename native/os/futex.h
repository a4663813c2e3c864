// Sleeping on a word of memory inside one process (futex(2)).
//
// Sleeper makes the wake-up race-free for one sleeping thread: the sleeper announces itself, looks
// for work once more, then sleeps; the waker makes the work visible first and calls Wake, which is
// a system call only if somebody sleeps. Both sides go through a read-modify-write of the same
// word, so one of them sees the other whatever the interleaving.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <ctime>

#include "os/clock.h"

namespace falcon {

class Sleeper {
 public:
  // The sleeping thread. After it, look for work; then Sleep or Cancel.
  void Announce() { word_.exchange(1, std::memory_order_acq_rel); }
  void Cancel() { word_.store(0, std::memory_order_release); }

  // Returns when woken, after `bound`, or on a signal.
  void Sleep(Nanoseconds bound) {
    const timespec timeout{.tv_sec = static_cast<time_t>(bound / kSecond),
                           .tv_nsec = static_cast<long>(bound % kSecond)};
    ::syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word_), FUTEX_WAIT_PRIVATE, 1, &timeout,
              nullptr, 0);
    Cancel();
  }

  // Any thread, after it has made the work visible.
  void Wake() {
    if (word_.fetch_add(0, std::memory_order_acq_rel) == 0) return;
    if (word_.exchange(0, std::memory_order_acq_rel) == 0) return;
    ::syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word_), FUTEX_WAKE_PRIVATE, 1, nullptr,
              nullptr, 0);
  }

 private:
  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));
  static_assert(std::atomic<uint32_t>::is_always_lock_free);
  std::atomic<uint32_t> word_{0};
};

}  // namespace falcon
