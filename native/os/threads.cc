#include "os/threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>

#include <utility>

#include "os/check.h"

namespace falcon {

void NameThread(const std::string& name) {
  FALCON_CHECK(pthread_setname_np(pthread_self(), name.c_str()) == 0);
}

std::thread StartOrdinaryThread(const std::string& name, std::function<void()> run) {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread([name, run = std::move(run)] {
    NameThread(name);
    const sched_param parameters{};
    // Giving priority up needs no permission.
    FALCON_CHECK(sched_setscheduler(0, SCHED_OTHER, &parameters) == 0);
    run();
  });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

bool Rests::Did(size_t pieces) {
  done_ += pieces;
  if (done_ < every_) return false;
  done_ = 0;
  const Nanoseconds worked = MonotonicNow() - began_;
  const timespec rest{worked / kSecond, worked % kSecond};
  nanosleep(&rest, nullptr);
  began_ = MonotonicNow();
  return true;
}

}  // namespace falcon
