// The lease: how long this primary may let output leave.
//
// A heartbeat round that f others have acknowledged lets output leave until one lease after the
// round was *sent*. Nobody who acknowledged it helps another primary into office before that time
// and a margin for clock drift have passed.
#include <algorithm>

#include "plane/data_plane.h"
#include "plane/quorum.h"

namespace falcon {

void DataPlane::PollLease(Nanoseconds now) {
  if (surrendered_) return;
  const bool decider_lives = now - decider_at_ < options_.decider_stall;
  if (now >= next_heartbeat_ && decider_lives) {
    ++round_;
    round_sent_at_[round_ % kRounds] = now;
    next_heartbeat_ = now + options_.heartbeat_interval;
    MarkWords();
  } else if (now >= next_heartbeat_) {
    next_heartbeat_ = now + options_.heartbeat_interval;
  }
  // The newest round counts already.
  if (lease_end_ >= round_sent_at_[round_ % kRounds] + options_.lease) return;
  std::array<uint64_t, kMaxMembers> echoed{};
  for (PeerId i = 0; i < options_.members; ++i) {
    const PeerLink* peer = peers_[i].get();
    if (peer == nullptr) {
      echoed[i] = round_;
    } else if (peer->up && peer->words.echo_view == promised_view_) {
      echoed[i] = std::min(peer->words.echo_round, round_);
    }
  }
  const uint64_t round = ReachedBy(echoed, options_.members, Quorum());
  if (round < first_countable_round_ || round_ - round >= kRounds) return;
  lease_end_ = std::max(lease_end_, round_sent_at_[round % kRounds] + options_.lease);
}

// Asked for each frame that is about to leave, against the clock of this very moment.
bool DataPlane::MayRelease() {
  return role_ == PlaneRole::kLeading && gate_open_ && !surrendered_ && clock_->Now() < lease_end_;
}

}  // namespace falcon
