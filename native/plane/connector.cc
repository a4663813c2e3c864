#include "plane/connector.h"

#include <utility>

#include "os/check.h"
#include "os/threads.h"

namespace falcon {
namespace {

Status Replaced() { return {"FABRIC_CONNECT", "a newer connection took its place"}; }

}  // namespace

Connector::~Connector() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  for (Worker& worker : workers_) {
    if (worker.thread.joinable()) worker.thread.join();
  }
}

void Connector::Submit(Request request) {
  FALCON_CHECK(request.peer < kMaxMembers);
  Worker& worker = workers_[request.peer];
  {
    const std::lock_guard lock(mutex_);
    // Under the lock, so that the one that takes its place is told of after it.
    if (worker.waiting.has_value()) done_(*worker.waiting, Replaced());
    worker.waiting = std::move(request);
    if (!worker.thread.joinable())
      worker.thread = StartOrdinaryThread("falcon-connect", [this, &worker] { Run(worker); });
  }
  changed_.notify_all();
}

void Connector::Run(Worker& worker) {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stop_ || worker.waiting.has_value(); });
    if (stop_) return;
    const Request request = *std::exchange(worker.waiting, std::nullopt);
    lock.unlock();
    Status status = prepare_(request.peer, request.descriptor);
    lock.lock();
    if (stop_) return;
    // Under the lock, so that a request that comes now is told of after this one.
    done_(request, worker.waiting.has_value() ? Replaced() : status);
  }
}

}  // namespace falcon
