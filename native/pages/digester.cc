#include "pages/digester.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <utility>

#include "os/check.h"
#include "os/threads.h"

namespace falcon {
namespace {

constexpr size_t kChunkWords = 16;  // of the set; up to 1024 pages
constexpr size_t kWordPages = 64;
constexpr size_t kPagesPerRest = 64;  // an eighth of a millisecond

int DefaultThreads() {
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()) - 1, 1, 2);
}

}  // namespace

Status Digester::Make(const DigesterOptions& options, std::unique_ptr<Digester>* digester) {
  if (options.threads < DigesterOptions::kAuto || options.threads > DigesterOptions::kMaxThreads)
    return {"START_FAILED", "digester: the number of threads is out of range"};
  if (Status status = StartDigests(); !status.ok()) return status;
  std::unique_ptr<Digester> made(new Digester());
  made->inline_pages_ = options.inline_pages;
  made->event_.Reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!made->event_.valid()) return {"START_FAILED", ErrnoText("digester: eventfd", errno)};
  const int threads =
      options.threads == DigesterOptions::kAuto ? DefaultThreads() : options.threads;
  for (int i = 0; i < threads; ++i)
    made->threads_.push_back(StartOrdinaryThread("falcon-digest" + std::to_string(i),
                                                 [self = made.get()] { self->Run(); }));
  *digester = std::move(made);
  return Ok();
}

Digester::~Digester() {
  Cancel();
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Digester::Start(DigestJob job) {
  FALCON_CHECK(!running_);
  FALCON_CHECK(job.memory.size() / kPageBytes >= job.pages.pages());
  FALCON_CHECK(job.resident == nullptr || job.resident->pages() == job.pages.pages());
  std::unique_lock lock(mutex_);
  FALCON_CHECK(busy_ == 0);
  holes_known_ = job.resident != nullptr;
  resident_ = holes_known_ ? *job.resident : PageSet();
  job_ = std::move(job);
  job_.resident = nullptr;
  hasher_ = PageHasher(job_.key);
  ranks_.clear();
  size_t rank = 0;
  const std::span<const uint64_t> words = job_.pages.words();
  for (size_t i = 0; i < words.size(); ++i) {
    if (i % kChunkWords == 0) ranks_.push_back(rank);
    rank += static_cast<size_t>(std::popcount(words[i]));
  }
  FALCON_CHECK(job_.digests.size() == rank);
  running_ = true;
  cancelled_.store(false, std::memory_order_relaxed);
  next_chunk_.store(0, std::memory_order_relaxed);
  chunks_left_.store(ranks_.size(), std::memory_order_relaxed);
  progress_.store(0, std::memory_order_relaxed);
  ++started_;
  lock.unlock();
  if (ranks_.empty()) {  // no worker will say that it is done
    const uint64_t one = 1;
    FALCON_CHECK(write(event_.get(), &one, sizeof one) == sizeof one);
    return;
  }
  if (threads_.empty() || rank <= inline_pages_) return Work(nullptr);
  work_.notify_all();
}

bool Digester::Finished() {
  return running_ && chunks_left_.load(std::memory_order_acquire) == 0 && TryCancel();
}

bool Digester::TryCancel() {
  if (!running_) return true;
  cancelled_.store(true, std::memory_order_relaxed);
  const std::lock_guard lock(mutex_);
  if (busy_ == 0) PutDown();
  return !running_;
}

void Digester::Cancel() {
  if (!running_) return;
  cancelled_.store(true, std::memory_order_relaxed);
  std::unique_lock lock(mutex_);
  idle_.wait(lock, [this] { return busy_ == 0; });
  PutDown();
}

// With the mutex held, and no worker busy. One that has not woken yet finds the job cancelled.
void Digester::PutDown() {
  running_ = false;
  job_.memory = {};
  job_.digests = {};
  DrainEvent();
}

void Digester::DrainEvent() {
  uint64_t count = 0;
  // It fails only if nothing is there.
  static_cast<void>(read(event_.get(), &count, sizeof count) == sizeof count);
}

void Digester::Run() {
  uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  while (true) {
    work_.wait(lock, [this, seen] { return ended_ || started_ != seen; });
    if (ended_) return;
    seen = started_;
    // A job that was over before this worker woke is nobody's to touch.
    if (cancelled_.load(std::memory_order_relaxed)) continue;
    ++busy_;
    lock.unlock();
    Rests rests(kPagesPerRest);
    Work(job_.patient ? &rests : nullptr);
    lock.lock();
    if (--busy_ == 0) idle_.notify_all();
  }
}

void Digester::Work(Rests* rests) {
  while (!cancelled_.load(std::memory_order_relaxed)) {
    const size_t chunk = next_chunk_.fetch_add(1, std::memory_order_relaxed);
    if (chunk >= ranks_.size()) return;
    DigestChunk(chunk, rests);
    if (cancelled_.load(std::memory_order_relaxed)) return;
    // Who does the last one has seen, by this order, what the others did.
    if (chunks_left_.fetch_sub(1, std::memory_order_acq_rel) != 1) continue;
    const uint64_t one = 1;
    FALCON_CHECK(write(event_.get(), &one, sizeof one) == sizeof one);
  }
}

void Digester::DigestChunk(size_t chunk, Rests* rests) {
  const size_t end = std::min(job_.pages.pages(), (chunk + 1) * kChunkWords * kWordPages);
  size_t rank = ranks_[chunk];
  for (size_t page = job_.pages.Next(chunk * kChunkWords * kWordPages); page < end;
       page = job_.pages.Next(page + 1)) {
    if (cancelled_.load(std::memory_order_relaxed)) return;
    Digest& digest = job_.digests[rank++];
    if (holes_known_ && !resident_.Test(page)) {
      digest = {};
    } else {
      if (rests != nullptr) rests->Did(1);
      digest = hasher_.Page(job_.memory.data() + page * kPageBytes);
    }
    progress_.fetch_add(1, std::memory_order_relaxed);
  }
}

}  // namespace falcon
