// The guest of `vm: none`: a small deterministic service on the guest's side of the rings. It
// answers each frame of ethertype 0x88B5 (IEEE 802, local experimental) to its sender with what it
// has seen so far, so that delivery, order and the gate can be checked from outside on any fabric
// and without QEMU.
#pragma once

#include <cstdint>

#include "vm/vm_rings.h"

namespace falcon {

inline constexpr uint16_t kBuiltinEthertype = 0x88B5;

// What an answer carries behind its Ethernet header.
struct BuiltinAnswer {
  uint64_t frames;  // taken so far, this one included
  uint32_t digest;  // CRC32C over all payloads taken so far, in order
  uint32_t reserved;
  uint8_t request[32];  // the first bytes of the payload that is answered, zero padded
};
static_assert(sizeof(BuiltinAnswer) == 48);

class BuiltinService {
 public:
  void Attach(VmRings* rings);
  // Takes and answers what is there. Returns frames taken.
  int Poll();
  // What makes it this service and no other, for a state transfer. Load refuses other lengths.
  void Save(std::vector<std::byte>* state) const;
  [[nodiscard]] bool Load(std::span<const std::byte> state);
  [[nodiscard]] uint64_t frames() const { return frames_; }
  [[nodiscard]] uint32_t digest() const { return digest_; }

 private:
  bool Answer(std::span<const std::byte> frame);

  RingConsumer deliver_;
  RingProducer egress_;
  uint64_t frames_ = 0;
  uint32_t digest_ = 0;
};

}  // namespace falcon
