#include "vm/builtin_service.h"

#include <algorithm>
#include <cstring>

#include "os/crc32c.h"

namespace falcon {
namespace {

constexpr size_t kEthernetBytes = 14;

}  // namespace

void BuiltinService::Attach(VmRings* rings) {
  deliver_.Attach(rings->shm(), FALCON_RING_DELIVER, rings->to_falcond_fd());
  egress_.Attach(rings->shm(), FALCON_RING_EGRESS, rings->to_falcond_fd());
  frames_ = 0;
  digest_ = 0;
}

void BuiltinService::Save(std::vector<std::byte>* state) const {
  state->resize(sizeof frames_ + sizeof digest_);
  std::memcpy(state->data(), &frames_, sizeof frames_);
  std::memcpy(state->data() + sizeof frames_, &digest_, sizeof digest_);
}

bool BuiltinService::Load(std::span<const std::byte> state) {
  if (state.size() != sizeof frames_ + sizeof digest_) return false;
  std::memcpy(&frames_, state.data(), sizeof frames_);
  std::memcpy(&digest_, state.data() + sizeof frames_, sizeof digest_);
  return true;
}

int BuiltinService::Poll() {
  int taken = 0;
  for (; taken < 64; ++taken) {
    const auto frame = deliver_.Front();
    if (frame.empty() || !Answer(frame)) break;
    deliver_.Pop();
  }
  deliver_.Release();
  egress_.Ring();
  return taken;
}

bool BuiltinService::Answer(std::span<const std::byte> frame) {
  if (frame.size() < kEthernetBytes) return true;
  const auto type = static_cast<uint16_t>(static_cast<unsigned>(frame[12]) << 8 |
                                          static_cast<unsigned>(frame[13]));
  if (type != kBuiltinEthertype) return true;
  if (!egress_.HasSpace(kEthernetBytes + sizeof(BuiltinAnswer))) return false;
  const auto payload = frame.subspan(kEthernetBytes);
  ++frames_;
  digest_ = Crc32c(payload, digest_);
  BuiltinAnswer answer{};
  answer.frames = frames_;
  answer.digest = digest_;
  std::memcpy(answer.request, payload.data(), std::min(payload.size(), sizeof answer.request));
  std::byte reply[kEthernetBytes + sizeof answer];
  std::memcpy(reply, frame.data() + 6, 6);
  std::memcpy(reply + 6, frame.data(), 6);
  std::memcpy(reply + 12, frame.data() + 12, 2);
  std::memcpy(reply + kEthernetBytes, &answer, sizeof answer);
  return egress_.Push(reply);
}

}  // namespace falcon
