// The second half of VerbsPeer: what has completed, and what to do when nothing does.
//
// An acknowledgement says less than it seems. rxe of Linux 6.1 takes any acknowledgement with a
// later sequence number for one of its own, so a peer that has come up anew makes it report writes
// of the old connection as done that were dropped. Hence the probe: a read of the connection's
// number from the peer's memory. Nothing is lost silently for longer than it takes a probe to fail.
#include <cstring>

#include "fabric/shared_copy.h"
#include "fabric/verbs_peer.h"
#include "os/check.h"

namespace falcon {

// A completion proves everything posted before it, too.
void VerbsPeer::Retire(uint64_t through) {
  FALCON_CHECK(through < next_);
  waiting_since_ = 0;
  for (; free_ <= through; ++free_) {
    Slot& slot = slots_[free_ % slots_.size()];
    staged_from_ = slot.staging_end;
    if (slot.kind == Kind::kControl || slot.kind == Kind::kProbe)
      --control_;
    else
      ++completed_;
    if (slot.kind == Kind::kProbe) TakeProbe();
    if (slot.kind == Kind::kRead && !slot.into.empty())
      std::memcpy(slot.into.data(), slot.staged, slot.into.size());
    while (!large_.empty() && large_.front().slot <= free_) large_.pop_front();
  }
}

int VerbsPeer::PollSends() {
  if (free_ == next_) return 0;
  int happened = 0;
  ibv_wc completion;
  while (state_ == PeerState::kUp && ibv_poll_cq(sends_.get(), 1, &completion) > 0) {
    ++happened;
    if (completion.status == IBV_WC_SUCCESS)
      Retire(completion.wr_id);
    else
      Break(std::string("send: ") + ibv_wc_status_str(completion.status));
  }
  return happened;
}

int VerbsPeer::PollReceives() {
  int happened = 0;
  ibv_wc completion;
  while (state_ == PeerState::kUp && ibv_poll_cq(receives_.get(), 1, &completion) > 0) {
    if (completion.status != IBV_WC_SUCCESS) {
      Break(std::string("receive: ") + ibv_wc_status_str(completion.status));
      break;
    }
    ++happened;
    ++wakes_taken_;
    sleep.rang_us = true;
    if (!PostReceive()) Break("the receive queue takes nothing");
  }
  return happened;
}

// A read of one word in the peer's memory. Its answer is data, which an acknowledgement that
// belongs to something else cannot take the place of, and it stands behind everything posted
// before.
void VerbsPeer::PostProbe() {
  ibv_sge target{reinterpret_cast<uint64_t>(probe_.into), sizeof(uint64_t), probe_.lkey};
  ibv_send_wr request{};
  request.opcode = IBV_WR_RDMA_READ;
  request.sg_list = &target;
  request.num_sge = 1;
  request.wr.rdma.remote_addr = probe_.remote;
  request.wr.rdma.rkey = probe_.rkey;
  Slot slot;
  slot.kind = Kind::kProbe;
  if (!PostControl(&request, slot, true)) return;
  probing_ = true;
  proving_ = posted_;
  ++counters_->probes;
}

void VerbsPeer::TakeProbe() {
  probing_ = false;
  proved_ = proving_;
  unproved_since_ = 0;
  if (LoadSharedWord(probe_.into) != probe_.connection)
    Break("the peer answers for another connection");
}

// A device that forgets a request would leave it for ever; a queue that does not move breaks.
bool VerbsPeer::Stalled(Nanoseconds now) {
  if (signaled_until_ <= free_) return false;
  if (waiting_since_ == 0) waiting_since_ = now;
  if (now - waiting_since_ <= stall_) return false;
  Break("stalled: " + std::to_string(next_ - free_) + " posts, none completed for " +
        std::to_string((now - waiting_since_) / 1'000'000) + " ms");
  return true;
}

// True if somebody waits for a write, and nothing that is on its way tells of it.
bool VerbsPeer::IsAwaited() const { return completed_ < wanted_ && signaled_until_ <= free_; }

void VerbsPeer::RequestCompletion() {
  wanted_ = posted_;
  if (state_ == PeerState::kUp && !probing_ && IsAwaited()) PostProbe();
}

// True if nobody asks for the completion of the last few writes.
bool VerbsPeer::IsQuiet(Nanoseconds now) {
  if (completed_ == posted_ || signaled_until_ > free_) return false;
  if (quiet_slot_ != next_) {
    quiet_slot_ = next_;
    quiet_since_ = now;
  }
  return now - quiet_since_ >= Nanoseconds{options_->quiet_us} * 1000;
}

void VerbsPeer::Tend(Nanoseconds now) {
  if (!busy() || Stalled(now) || probing_ || proved_ == posted_) return;
  if (unproved_since_ == 0) unproved_since_ = now;
  // A probe is a completion that is asked for: where writes are rare or slow, time alone would ask
  // for many. What a new connection has written first is looked after at once.
  const bool worth = posted_ - proved_ >= options_->send_queue / 4;
  const uint32_t wait_us = worth ? options_->probe_us : options_->probe_late_us;
  const bool overdue = now - unproved_since_ >= Nanoseconds{wait_us} * 1000;
  if (overdue || IsAwaited() || (proved_ == 0 && IsQuiet(now))) PostProbe();
}

void VerbsPeer::Arm() {
  if (state_ != PeerState::kUp) return;
  int error = ibv_req_notify_cq(receives_.get(), 0);
  if (error == 0 && completed_ < posted_) error = ibv_req_notify_cq(sends_.get(), 0);
  if (error != 0) Break(ErrnoText("completion event", error));
}

}  // namespace falcon
