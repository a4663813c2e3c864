// The log as its owner sees it: a queue in front of the writer, the writer's thread, and what they
// tell each other. The writing itself is in wal_writer.h.
#include "log/wal.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>

#include "log/wal_scan.h"
#include "log/wal_writer.h"
#include "os/check.h"
#include "os/futex.h"
#include "os/realtime.h"
#include "os/spsc_queue.h"
#include "os/threads.h"
#include "os/unique_fd.h"

namespace falcon {
namespace {

// A sleeping writer looks up this often even if nobody wakes it, to carry out a release.
constexpr Nanoseconds kSleepBound = kSecond;

// No data: the log begins anew.
struct Queued {
  const std::byte* data;
  size_t bytes;
};

class WalImpl final : public Wal {
 public:
  WalImpl(Storage& storage, const WalOptions& options, ScannedLog&& scanned)
      : realtime_(options.realtime),
        spin_(options.writer_spin),
        queue_(options.queue_entries),
        writer_(storage, options, std::move(scanned)) {}
  ~WalImpl() override { StopThread(); }

  Status ForceRecovered() { return writer_.ForceRecovered(); }

  uint64_t Append(std::span<const std::byte> entry) override {
    if (failed() || !queue_.Push({entry.data(), entry.size()})) return 0;
    return ++appended_;
  }

  uint64_t Rebase(const LogPosition& base) override {
    FALCON_CHECK(durable() == appended_);
    rebase_ = base;
    return Append({});
  }

  [[nodiscard]] LogPosition base() const override { return writer_.base(); }

  void Flush() override {
    queue_.Publish();
    if (thread_.joinable()) sleeper_.Wake();
  }

  [[nodiscard]] uint64_t durable() const override {
    return durable_.load(std::memory_order_acquire);
  }

  [[nodiscard]] int wake_fd() const override { return wake_.get(); }
  void ArmWake() override { armed_.exchange(true, std::memory_order_acq_rel); }
  void DisarmWake() override;

  [[nodiscard]] bool failed() const override { return failed_.load(std::memory_order_acquire); }
  [[nodiscard]] Status failure() const override { return failed() ? failure_ : Ok(); }

  Status Read(Op from, Op until, size_t max_bytes, std::vector<std::byte>* into) override {
    return writer_.Read(from, until, max_bytes, &read_scratch_, into);
  }

  void Release(Op op, Op hard_floor) override {
    needed_from_.store(std::min(op, hard_floor), std::memory_order_relaxed);
    release_below_.store(hard_floor, std::memory_order_relaxed);
  }

  [[nodiscard]] Counters counters() const override { return writer_.counters(); }

  size_t Step() override;
  Status StartThread() override;
  void StopThread() override;

 private:
  void RunWriter();
  bool WaitForWork();
  void Fail(Status failure);
  void RingOwner();

  const bool realtime_;
  const Nanoseconds spin_;
  SpscQueue<Queued> queue_;

  // The owner's.
  uint64_t appended_ = 0;
  std::vector<std::byte> read_scratch_;
  LogPosition rebase_;  // the writer's from Flush until durable() covers it

  // The writer's.
  WalWriter writer_;
  uint64_t written_ = 0;
  Status failure_;  // written once, before failed_ is

  // Both threads'.
  std::atomic<uint64_t> durable_{0};
  std::atomic<bool> failed_{false};
  std::atomic<bool> armed_{false};
  std::atomic<bool> stop_{false};
  std::atomic<Op> needed_from_{0};
  std::atomic<Op> release_below_{0};
  Sleeper sleeper_;
  UniqueFd wake_;
  std::thread thread_;  // last: it uses everything above
};

size_t WalImpl::Step() {
  if (failed()) return 0;
  const Status released = writer_.ReleaseSegments(needed_from_.load(std::memory_order_relaxed),
                                                  release_below_.load(std::memory_order_relaxed));
  if (!released.ok()) {
    Fail(released);
    return 0;
  }
  const size_t readable = queue_.Readable();
  if (readable == 0) return 0;
  // Nothing was queued in front of it.
  const bool rebase = queue_.Peek(0).data == nullptr;
  for (size_t i = 0; i < readable && !rebase; ++i) {
    const Queued& next = queue_.Peek(i);
    if (!writer_.Gather({next.data, next.bytes})) break;
  }
  const size_t entries = rebase ? 1 : writer_.gathered();
  const Status status = rebase ? writer_.Rebase(rebase_) : writer_.WriteBatch();
  if (!status.ok()) {
    Fail(status);
    return 0;
  }
  queue_.Pop(entries);
  written_ += entries;
  durable_.store(written_, std::memory_order_release);
  RingOwner();
  return entries;
}

void WalImpl::Fail(Status failure) {
  failure_ = std::move(failure);
  failed_.store(true, std::memory_order_release);
  RingOwner();
}

// The owner arms, then looks at durable() again, then sleeps. Arming and this are
// read-modify-writes of one word: either the owner's look sees the new value, or this sees the word
// armed.
void WalImpl::RingOwner() {
  if (!armed_.exchange(false, std::memory_order_acq_rel) || !wake_.valid()) return;
  const uint64_t one = 1;
  // The counter cannot overflow, so the write cannot fail.
  FALCON_CHECK(::write(wake_.get(), &one, sizeof one) == sizeof one);
}

void WalImpl::DisarmWake() {
  armed_.exchange(false, std::memory_order_acq_rel);
  uint64_t count = 0;
  if (wake_.valid() && ::read(wake_.get(), &count, sizeof count) < 0) FALCON_CHECK(errno == EAGAIN);
}

Status WalImpl::StartThread() {
  FALCON_CHECK(!thread_.joinable());
  if (!wake_.valid()) wake_.Reset(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!wake_.valid()) return {"WAL_OPEN", ErrnoText("eventfd", errno)};
  stop_.store(false, std::memory_order_relaxed);
  thread_ = std::thread([this] { RunWriter(); });
  return Ok();
}

void WalImpl::StopThread() {
  if (!thread_.joinable()) return;
  queue_.Publish();
  stop_.store(true, std::memory_order_release);
  sleeper_.Wake();
  thread_.join();
}

void WalImpl::RunWriter() {
  NameThread("falcon-log");
  if (realtime_) MakeRealtime(RealtimePriority::kDataPath);
  do {
    while (Step() > 0) continue;
  } while (WaitForWork());
}

// False: the thread shall end, and everything that was published is written (or the log has
// failed).
bool WalImpl::WaitForWork() {
  const bool spins = spin_ > 0 && !failed();
  for (const Nanoseconds until = spins ? MonotonicNow() + spin_ : 0;
       spins && MonotonicNow() < until;) {
    if (queue_.Readable() > 0) return true;
  }
  sleeper_.Announce();
  if (stop_.load(std::memory_order_acquire)) return !failed() && queue_.Readable() > 0;
  if (queue_.Readable() > 0 && !failed()) {
    sleeper_.Cancel();
    return true;
  }
  sleeper_.Sleep(kSleepBound);
  return true;
}

Status CheckOptions(const WalOptions& options) {
  constexpr size_t kLargestEntry = EntryBytes(kMaxPayloadBytes);
  if (options.batch_bytes < kLargestEntry || options.batch_bytes > UINT32_MAX / 2) {
    return {"WAL_OPEN", "batch_bytes must hold the largest entry"};
  }
  if (options.segment_bytes < kSegmentHeaderBytes + BatchBytes(options.batch_bytes) ||
      options.segment_bytes % kWalAlignment != 0) {
    return {"WAL_OPEN", "segment_bytes must be a multiple of 512 and hold the largest batch"};
  }
  const size_t queue = options.queue_entries;
  if (queue == 0 || (queue & (queue - 1)) != 0) {
    return {"WAL_OPEN", "queue_entries must be a power of two"};
  }
  return Ok();
}

// Removes segments that were being made when the process died (nothing was ever written into them),
// and forces the directory.
Status TidyDirectory(Storage& storage, const WalOptions& options) {
  std::vector<std::string> names;
  const int listed = storage.List(options.directory, &names);
  if (listed < 0) return {"WAL_OPEN", ErrnoText("list " + options.directory, -listed)};
  for (const std::string& name : names) {
    if (!IsUnfinishedSegmentName(name)) continue;
    const std::string path = options.directory + "/" + name;
    const int removed = storage.Remove(path);
    if (removed < 0) return {"WAL_OPEN", ErrnoText("remove " + path, -removed)};
  }
  if (!options.force) return Ok();
  // A segment that was renamed just before the process died may not have its name on disk yet.
  const int forced = storage.ForceDirectory(options.directory);
  if (forced < 0) return {"WAL_FAILED", ErrnoText("force " + options.directory, -forced)};
  return Ok();
}

}  // namespace

Status OpenWal(Storage& storage, const WalOptions& options, RecoveredLog* recovered,
               std::unique_ptr<Wal>* wal) {
  Status status = CheckOptions(options);
  if (!status.ok()) return status;
  ScannedLog scanned;
  status = ScanLog(storage, options, &scanned);
  if (!status.ok()) return status;
  status = TidyDirectory(storage, options);
  if (!status.ok()) return status;
  *recovered = scanned.recovered;
  auto made = std::make_unique<WalImpl>(storage, options, std::move(scanned));
  status = made->ForceRecovered();
  if (!status.ok()) return status;
  *wal = std::move(made);
  return Ok();
}

}  // namespace falcon
