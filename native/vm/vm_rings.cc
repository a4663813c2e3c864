#include "vm/vm_rings.h"

#include <sys/eventfd.h>
#include <sys/mman.h>

#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>

#include "os/check.h"

namespace falcon {
namespace {

template <typename T>
T LoadAcquire(const T& word) {
  return std::atomic_ref<T>(const_cast<T&>(word)).load(std::memory_order_acquire);
}

template <typename T>
void StoreRelease(T& word, T value) {
  std::atomic_ref<T>(word).store(value, std::memory_order_release);
}

// The store of a position and the look at the other side's waiting word must not change places, or
// a wake-up is lost: both sides put a full fence between.
bool TakeWaiting(uint32_t& word) {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  std::atomic_ref<uint32_t> waiting(word);
  if (waiting.load(std::memory_order_relaxed) == 0) return false;
  return waiting.exchange(0, std::memory_order_acq_rel) != 0;
}

void SetWaiting(uint32_t& word) {
  std::atomic_ref<uint32_t>(word).store(1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

constexpr uint64_t RecordBytes(uint64_t length) {
  return (FALCON_RING_RECORD_HEADER + length + 7) & ~uint64_t{7};
}

}  // namespace

void RingDoorbell(int fd) {
  const uint64_t one = 1;
  while (write(fd, &one, sizeof one) < 0 && errno == EINTR) {
  }
}

void DrainDoorbell(int fd) {
  uint64_t value = 0;
  while (read(fd, &value, sizeof value) < 0 && errno == EINTR) {
  }
}

void RingProducer::Attach(FalconShm* shm, int ring, int doorbell_fd) {
  ring_ = &shm->ring[ring];
  bytes_ = reinterpret_cast<std::byte*>(shm) + ring_->offset;
  capacity_ = ring_->capacity;
  tail_ = LoadAcquire(ring_->tail);
  published_ = tail_;
  frames_ = ring_->produced_frames;
  doorbell_fd_ = doorbell_fd;
}

bool RingProducer::HasSpace(size_t frame_bytes) const {
  const uint64_t head = LoadAcquire(ring_->head);
  if (head > tail_ || tail_ - head > capacity_) return false;
  const uint64_t need = RecordBytes(frame_bytes);
  const uint64_t to_end = capacity_ - (tail_ & (capacity_ - 1));
  return tail_ - head + need + (to_end < need ? to_end : 0) <= capacity_;
}

bool RingProducer::Push(std::span<const std::byte> frame) {
  FALCON_CHECK(frame.size() <= FALCON_FRAME_MAX_BYTES && !frame.empty());
  if (!HasSpace(frame.size())) return false;
  const uint64_t need = RecordBytes(frame.size());
  const uint64_t to_end = capacity_ - (tail_ & (capacity_ - 1));
  if (to_end < need) {
    const uint32_t wrap[2] = {FALCON_RING_WRAP, 0};
    std::memcpy(bytes_ + (tail_ & (capacity_ - 1)), wrap, sizeof wrap);
    tail_ += to_end;
  }
  std::byte* at = bytes_ + (tail_ & (capacity_ - 1));
  const uint32_t header[2] = {static_cast<uint32_t>(frame.size()), 0};
  std::memcpy(at, header, sizeof header);
  std::memcpy(at + sizeof header, frame.data(), frame.size());
  tail_ += need;
  ++frames_;
  std::atomic_ref<uint64_t>(ring_->produced_frames).store(frames_, std::memory_order_relaxed);
  StoreRelease(ring_->tail, tail_);
  return true;
}

void RingProducer::Ring() {
  if (published_ == tail_) return;
  published_ = tail_;
  if (TakeWaiting(ring_->consumer_waiting)) {
    ++doorbells_;
    RingDoorbell(doorbell_fd_);
  }
}

bool RingProducer::WaitForSpace(size_t bytes) {
  SetWaiting(ring_->producer_waiting);
  return HasSpace(bytes);
}

bool RingProducer::Empty() const { return LoadAcquire(ring_->head) == tail_; }

bool RingProducer::CopyWaiting(std::vector<std::byte>* frames) const {
  uint64_t head = LoadAcquire(ring_->head);
  if (head > tail_ || tail_ - head > capacity_ || (head & 7) != 0) return false;
  while (head != tail_) {
    // The records are this side's own; only where the consumer stands was told by it.
    const uint64_t at = head & (capacity_ - 1);
    uint32_t header[2];
    std::memcpy(header, bytes_ + at, sizeof header);
    if (header[0] == FALCON_RING_WRAP) {
      if (tail_ - head < capacity_ - at) return false;
      head += capacity_ - at;
      continue;
    }
    const uint64_t bytes = RecordBytes(header[0]);
    if (header[0] == 0 || header[0] > FALCON_FRAME_MAX_BYTES || bytes > tail_ - head ||
        at + bytes > capacity_)
      return false;
    const auto* length = reinterpret_cast<const std::byte*>(header);
    frames->insert(frames->end(), length, length + sizeof(uint32_t));
    frames->insert(frames->end(), bytes_ + at + sizeof header,
                   bytes_ + at + sizeof header + header[0]);
    head += bytes;
  }
  return true;
}

void RingConsumer::Attach(FalconShm* shm, int ring, int doorbell_fd) {
  ring_ = &shm->ring[ring];
  bytes_ = reinterpret_cast<const std::byte*>(shm) + ring_->offset;
  capacity_ = ring_->capacity;
  head_ = LoadAcquire(ring_->head);
  released_ = head_;
  front_bytes_ = 0;
  frames_ = ring_->consumed_frames;
  doorbell_fd_ = doorbell_fd;
  corrupt_ = false;
}

std::span<const std::byte> RingConsumer::Corrupt() {
  corrupt_ = true;
  return {};
}

std::span<const std::byte> RingConsumer::Front() {
  if (corrupt_) return {};
  for (;;) {
    const uint64_t tail = LoadAcquire(ring_->tail);
    if (tail == head_) return {};
    if (tail < head_ || tail - head_ > capacity_ || (tail & 7) != 0) return Corrupt();
    const uint64_t at = head_ & (capacity_ - 1);
    uint32_t header[2];
    std::memcpy(header, bytes_ + at, sizeof header);
    if (header[0] == FALCON_RING_WRAP) {
      if (at == 0 || tail - head_ < capacity_ - at) return Corrupt();
      head_ += capacity_ - at;
      continue;
    }
    const uint64_t bytes = RecordBytes(header[0]);
    if (header[0] == 0 || header[0] > FALCON_FRAME_MAX_BYTES || bytes > tail - head_ ||
        at + bytes > capacity_) {
      return Corrupt();
    }
    front_bytes_ = bytes;
    return {bytes_ + at + sizeof header, header[0]};
  }
}

void RingConsumer::Pop() {
  FALCON_CHECK(front_bytes_ != 0);
  head_ += front_bytes_;
  front_bytes_ = 0;
  ++frames_;
}

void RingConsumer::Release() {
  if (released_ == head_) return;
  released_ = head_;
  std::atomic_ref<uint64_t>(ring_->consumed_frames).store(frames_, std::memory_order_relaxed);
  StoreRelease(ring_->head, head_);
  if (TakeWaiting(ring_->producer_waiting)) RingDoorbell(doorbell_fd_);
}

bool RingConsumer::HasData() const { return LoadAcquire(ring_->tail) != head_; }

bool RingConsumer::WaitForData() {
  SetWaiting(ring_->consumer_waiting);
  return HasData();
}

void RingConsumer::StopWaiting() {
  std::atomic_ref<uint32_t>(ring_->consumer_waiting).store(0, std::memory_order_relaxed);
}

VmRings::~VmRings() {
  if (shm_ != nullptr) munmap(shm_, total_bytes_);
}

Status VmRings::Make(uint64_t ring_bytes) {
  FALCON_CHECK(shm_ == nullptr);
  FALCON_CHECK(std::has_single_bit(ring_bytes) && ring_bytes >= 4 * FALCON_FRAME_MAX_BYTES);
  ring_bytes_ = ring_bytes;
  total_bytes_ = FALCON_CONTROL_BYTES + FALCON_RING_COUNT * ring_bytes;
  static_assert(sizeof(FalconShm) <= FALCON_CONTROL_BYTES);
  memory_fd_.Reset(memfd_create("falcon-vm-rings", MFD_CLOEXEC));
  if (!memory_fd_.valid() || ftruncate(memory_fd_.get(), static_cast<off_t>(total_bytes_)) != 0) {
    return {"VM_LINK", ErrnoText("memory for the guest's rings", errno)};
  }
  void* memory = mmap(nullptr, total_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                      memory_fd_.get(), 0);
  if (memory == MAP_FAILED) return {"VM_LINK", ErrnoText("map the guest's rings", errno)};
  shm_ = static_cast<FalconShm*>(memory);
  to_falcond_.Reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  to_guest_.Reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!to_falcond_.valid() || !to_guest_.valid()) return {"VM_LINK", ErrnoText("doorbells", errno)};
  Reset();
  return Ok();
}

void VmRings::Reset() {
  std::memset(shm_, 0, FALCON_CONTROL_BYTES);
  shm_->magic = FALCON_SHM_MAGIC;
  shm_->version = FALCON_LAYOUT_VERSION;
  shm_->control_bytes = FALCON_CONTROL_BYTES;
  shm_->total_bytes = total_bytes_;
  for (uint64_t i = 0; i < FALCON_RING_COUNT; ++i) {
    shm_->ring[i].offset = FALCON_CONTROL_BYTES + i * ring_bytes_;
    shm_->ring[i].capacity = ring_bytes_;
  }
  DrainDoorbell(to_falcond_.get());
  DrainDoorbell(to_guest_.get());
}

void VmRings::Restart() {
  for (const int index : {FALCON_RING_DELIVER, FALCON_RING_EGRESS}) {
    FalconRing& ring = shm_->ring[index];
    ring.head = ring.tail = 0;
    ring.produced_frames = ring.consumed_frames = 0;
    ring.producer_waiting = ring.consumer_waiting = 0;
  }
}

}  // namespace falcon
