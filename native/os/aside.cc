#include "os/aside.h"

#include <utility>

#include "os/threads.h"

namespace falcon {

Aside::Aside(bool thread) {
  if (thread) thread_ = StartOrdinaryThread("falcon-aside", [this] { Run(); });
}

Aside::~Aside() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

AsideTicket Aside::Do(std::function<void()> work, bool here) {
  AsideTicket ticket;
  ticket.done_ = std::make_shared<std::atomic<bool>>(false);
  Piece piece{std::move(work), ticket.done_};
  if (here || !thread_.joinable()) {
    Carry(std::move(piece));
    return ticket;
  }
  {
    const std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(piece));
  }
  changed_.notify_one();
  return ticket;
}

// What the work holds has gone when it is said to be done.
void Aside::Carry(Piece piece) {
  piece.work();
  piece.work = nullptr;
  piece.done->store(true, std::memory_order_release);
}

void Aside::Run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return ended_ || !waiting_.empty(); });
    if (waiting_.empty()) return;
    Piece piece = std::move(waiting_.front());
    waiting_.pop_front();
    lock.unlock();
    Carry(std::move(piece));
    lock.lock();
  }
}

}  // namespace falcon
