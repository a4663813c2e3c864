// The rings between a falcond and its guest (vm/ring_layout.h), as both of their ends see them.
//
// falcond makes the memory and the doorbells; QEMU (or the built-in service) gets their
// descriptors. The other side is not trusted to keep the layout: every length and position it wrote
// is checked before use, and a ring that breaks the rules is reported as corrupt, never followed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "os/status.h"
#include "os/unique_fd.h"
#include "vm/ring_layout.h"

namespace falcon {

// The producing end of one ring.
class RingProducer {
 public:
  void Attach(FalconShm* shm, int ring, int doorbell_fd);
  // False: not enough space now (nothing was written).
  [[nodiscard]] bool Push(std::span<const std::byte> frame);
  [[nodiscard]] bool HasSpace(size_t frame_bytes) const;
  // Asks to be woken when the consumer makes space; true if space for the largest frame appeared
  // meanwhile.
  [[nodiscard]] bool WaitForSpace(size_t bytes);
  // Wakes the consumer if it waits. Once after a batch of pushes.
  void Ring();
  // True when the consumer has taken everything.
  [[nodiscard]] bool Empty() const;
  // Appends the frames that the consumer has not taken, each behind its length (uint32). The
  // consumer must stand still. False: its position is impossible.
  [[nodiscard]] bool CopyWaiting(std::vector<std::byte>* frames) const;
  [[nodiscard]] uint64_t doorbells() const { return doorbells_; }

 private:
  FalconRing* ring_ = nullptr;
  std::byte* bytes_ = nullptr;
  uint64_t capacity_ = 0;
  uint64_t tail_ = 0;
  uint64_t published_ = 0;
  uint64_t frames_ = 0;
  int doorbell_fd_ = -1;
  uint64_t doorbells_ = 0;
};

// The consuming end of one ring.
class RingConsumer {
 public:
  void Attach(FalconShm* shm, int ring, int doorbell_fd);
  // The next frame, in place; empty if there is none. Valid until Pop.
  [[nodiscard]] std::span<const std::byte> Front();
  void Pop();
  [[nodiscard]] bool HasData() const;
  // Publishes what was consumed and wakes a producer that waits for space.
  void Release();
  // Asks to be woken when data appears; true if some appeared meanwhile (do not sleep).
  [[nodiscard]] bool WaitForData();
  void StopWaiting();
  [[nodiscard]] bool corrupt() const { return corrupt_; }

 private:
  std::span<const std::byte> Corrupt();

  FalconRing* ring_ = nullptr;
  const std::byte* bytes_ = nullptr;
  uint64_t capacity_ = 0;
  uint64_t head_ = 0;
  uint64_t released_ = 0;
  uint64_t front_bytes_ = 0;  // of the record at head_, once Front has found it
  uint64_t frames_ = 0;
  int doorbell_fd_ = -1;
  bool corrupt_ = false;
};

// The memory and the two doorbells, owned by falcond.
class VmRings {
 public:
  VmRings() = default;
  VmRings(const VmRings&) = delete;
  VmRings& operator=(const VmRings&) = delete;
  ~VmRings();

  // `ring_bytes`: capacity of each ring, a power of two. Errors: VM_LINK.
  Status Make(uint64_t ring_bytes);
  // Empties the rings for a new guest. Only while no guest is attached.
  void Reset();
  // Empties deliver and egress under a guest that stands still and will look at them anew.
  void Restart();

  [[nodiscard]] FalconShm* shm() const { return shm_; }
  [[nodiscard]] uint64_t total_bytes() const { return total_bytes_; }
  [[nodiscard]] int memory_fd() const { return memory_fd_.get(); }
  [[nodiscard]] int to_falcond_fd() const { return to_falcond_.get(); }
  [[nodiscard]] int to_guest_fd() const { return to_guest_.get(); }

 private:
  FalconShm* shm_ = nullptr;
  uint64_t total_bytes_ = 0;
  uint64_t ring_bytes_ = 0;
  UniqueFd memory_fd_;
  UniqueFd to_falcond_;
  UniqueFd to_guest_;
};

void RingDoorbell(int fd);
void DrainDoorbell(int fd);

}  // namespace falcon
