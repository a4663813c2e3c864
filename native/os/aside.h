// A thread for what takes as long as memory is large (to lock it, to unmap it, to look for its
// holes), beside a thread that must never wait: one that owes others a heartbeat every few
// milliseconds.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

namespace falcon {

// One piece of work that was given away.
class AsideTicket {
 public:
  AsideTicket() = default;
  // What the work has done is seen by whoever has seen this. False for a ticket of nothing.
  [[nodiscard]] bool done() const {
    return done_ != nullptr && done_->load(std::memory_order_acquire);
  }

 private:
  friend class Aside;
  std::shared_ptr<std::atomic<bool>> done_;
};

class Aside {
 public:
  // Without a thread whoever gives work does it there and then (simulations, where nothing may
  // depend on threads).
  explicit Aside(bool thread);
  // Everything that was given is done first.
  ~Aside();
  Aside(const Aside&) = delete;
  Aside& operator=(const Aside&) = delete;

  // Does it soon, after what was given before, and destroys it there. `here`: there and then, since
  // waking a thread would take longer.
  AsideTicket Do(std::function<void()> work, bool here = false);
  // Destroys what is owned, after what was given before.
  template <typename T>
  void Destroy(std::unique_ptr<T> owned) {
    if (owned != nullptr) Do([held = std::shared_ptr<T>(std::move(owned))] {});
  }

 private:
  struct Piece {
    std::function<void()> work;
    std::shared_ptr<std::atomic<bool>> done;
  };
  static void Carry(Piece piece);
  void Run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Piece> waiting_;
  bool ended_ = false;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace falcon
