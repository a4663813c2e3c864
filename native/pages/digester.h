// Threads that digest the pages of a set, so that the thread that asked goes on with its work.
//
// One job at a time. The owner starts, watches and cancels; the workers take pieces of the set in
// order. They are ordinary threads, whatever the priority of the one that makes them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "os/status.h"
#include "os/threads.h"
#include "os/unique_fd.h"
#include "pages/digest.h"
#include "pages/page_set.h"

namespace falcon {

struct DigesterOptions {
  // 1 to kMaxThreads; kAuto: one processor is left to others, and two are enough; 0: whoever starts
  // a job does it there and then (simulations, where nothing may depend on threads).
  int threads = kAuto;
  static constexpr int kAuto = -1;
  static constexpr int kMaxThreads = 16;
  // A job of so few pages is done by who starts it, in Start (about 0.4 ms): waking a worker, and
  // waiting for a processor for it, can take longer, and a guest may be standing still.
  size_t inline_pages = 256;
};

struct DigestJob {
  std::span<const std::byte> memory;  // of the guest, a page for each of the set's
  PageSet pages;
  // Pages outside of it are holes: zero, and not looked at. Null: all are looked at.
  const PageSet* resident = nullptr;
  DigestKey key{};
  std::span<Digest> digests;  // one for each page of the set, in their order
  // Guests run meanwhile, and matter more: each worker rests for as long as it works.
  bool patient = false;
};

class Digester {
 public:
  // Errors: START_FAILED.
  static Status Make(const DigesterOptions& options, std::unique_ptr<Digester>* digester);
  ~Digester();
  Digester(const Digester&) = delete;
  Digester& operator=(const Digester&) = delete;

  // Begins a job; memory and digests stay where they are until it is over. Nothing may be running.
  // `resident` is copied. Without threads all digests are there when it returns.
  void Start(DigestJob job);
  // A job is running until the owner has seen the end of it in Finished, or cancelled it.
  [[nodiscard]] bool running() const { return running_; }
  // True once all digests are there; the job is over then, and the event taken. Does not wait.
  [[nodiscard]] bool Finished();
  // Pages digested so far, of the job that runs or ran last.
  [[nodiscard]] uint64_t progress() const { return progress_.load(std::memory_order_relaxed); }
  // Readable when the job is done.
  [[nodiscard]] int event_fd() const { return event_.get(); }
  // Ends the job; idempotent. When it returns, no worker touches memory or digests any more. It
  // waits for the page that each is at: microseconds of work or a rest of a tenth of a millisecond,
  // and on a busy machine the worker's turn to do it.
  void Cancel();
  // The same without waiting: false until the workers are done, then ask again.
  [[nodiscard]] bool TryCancel();

  [[nodiscard]] size_t threads() const { return threads_.size(); }

 private:
  Digester() = default;
  void Run();
  void Work(Rests* rests);
  void DigestChunk(size_t chunk, Rests* rests);
  void PutDown();
  void DrainEvent();

  UniqueFd event_;
  bool running_ = false;  // as the owner sees it

  std::mutex mutex_;
  std::condition_variable work_;  // for the workers
  std::condition_variable idle_;  // for the owner: the last worker has put the job down
  uint64_t started_ = 0;          // jobs; under the mutex, as what follows
  size_t busy_ = 0;               // workers that have the job in hand
  bool ended_ = false;            // the threads are to end

  // Written by Start while nobody has a job in hand.
  DigestJob job_;
  PageHasher hasher_;
  PageSet resident_;
  bool holes_known_ = false;
  size_t inline_pages_ = 0;
  std::vector<size_t> ranks_;  // of the first page of each chunk

  std::atomic<bool> cancelled_{false};
  std::atomic<size_t> next_chunk_{0};
  std::atomic<size_t> chunks_left_{0};
  std::atomic<uint64_t> progress_{0};
  std::vector<std::thread> threads_;  // last: they use everything above
};

}  // namespace falcon
