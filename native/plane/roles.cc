// From one role to the next: commands that wait until the log is at rest, when all of it is on disk
// and nothing is under way.
#include <algorithm>
#include <limits>

#include "os/check.h"
#include "plane/data_plane.h"

namespace falcon {

bool DataPlane::LogAtRest() const {
  return wal_handed_op_ == log_.last_op() && wal_->durable() == wal_sequence_ &&
         wal_durable_op_ == log_.last_op();
}

uint32_t DataPlane::ChecksumOf(Op op) {
  if (op == 0) return 0;
  if (op == log_.last_op()) return log_.last_checksum();
  if (log_.Holds(op)) return ReadEntryHeader(log_.Entry(op)).checksum;
  if (const LogPosition base = wal_->base(); op == base.op) return base.checksum;
  disk_buffer_.clear();
  if (Status s = wal_->Read(op, op + 1, 0, &disk_buffer_); !s.ok() || !EntryIsWhole(disk_buffer_)) {
    Fail("WAL_READ", "op " + std::to_string(op) + ": " + s.detail());
    return 0;
  }
  return ReadEntryHeader(disk_buffer_).checksum;
}

int DataPlane::FinishPending() {
  if (pending_ == Pending::kNone || pending_ == Pending::kLead) return 0;
  HandToWal();
  NoteTaken();
  if (!LogAtRest()) return 0;
  const Pending what = pending_;
  pending_ = Pending::kNone;
  if (what == Pending::kPromise) FinishPromise();
  if (what == Pending::kFollow) FinishFollow();
  return 1;
}

void DataPlane::FinishPromise() {
  PlaneEvent& event = Emit(PlaneEvent::Kind::kPromised);
  event.view = promised_view_;
  event.op = log_.last_op();
  event.last_view = log_.last_view();
  event.commit_op = commit_op_;
  event.at = heard_at_;
  event.table = log_.table();
}

// The log begins anew behind an entry that is committed and that this replica has never had; what
// it had is given up. On disk the change is one rename, so all that is needed here is to wait for
// it.
void DataPlane::BeginAnew() {
  const LogPosition base = pending_base_;
  FALCON_CHECK(base.op >= commit_op_ && base.view <= promised_view_);
  const uint64_t sequence = wal_->Rebase(base);
  if (sequence == 0) return;  // the log has failed, as PollWal will tell
  FALCON_CHECK(sequence == wal_sequence_ + 1);
  wal_base_sequence_ = wal_sequence_ = sequence;
  FlushWal();
  log_.Rebase(base);
  begun_ = base;
  wal_base_op_ = wal_handed_op_ = wal_durable_op_ = durable_op_ = base.op;
  commit_op_ = delivered_op_ = base.op;
  recovered_op_ = std::min(recovered_op_, base.op);
  // Whatever guest there was has not taken the entries in between.
  guest_ = GuestMode::kNone;
  boot_op_ = 0;
  held_op_ = 0;
  pending_base_ = {};
  pending_agree_ = base.op;
  pending_ = Pending::kFollow;
}

LogPosition DataPlane::CommittedPosition() const {
  if (!log_.Holds(commit_op_)) return {.op = commit_op_, .view = 0, .checksum = 0};
  const EntryHeader header = ReadEntryHeader(log_.Entry(commit_op_));
  return {.op = header.op, .view = header.view, .checksum = header.checksum};
}

// The first op that somebody who is being sent entries still has to be sent.
Op DataPlane::NeededFrom() const {
  Op needed = std::numeric_limits<Op>::max();
  for (const auto& peer : peers_) {
    if (peer != nullptr && peer->feeding && peer->up) needed = std::min(needed, peer->next_op);
  }
  return needed;
}

void DataPlane::FinishFollow() {
  PeerLink& peer = *peers_[pending_primary_];
  if (!peer.up) return;
  if (pending_base_.op > 0) return BeginAnew();
  // What is committed here stands in the log of every later primary: never cut below it.
  const Op agree = std::min(std::max(pending_agree_, commit_op_), log_.last_op());
  if (agree < log_.last_op()) {
    const uint32_t checksum = ChecksumOf(agree);
    if (failed_) return;
    log_.CutAfter(agree, checksum);
    wal_base_sequence_ = wal_sequence_;
    wal_base_op_ = wal_handed_op_ = wal_durable_op_ = durable_op_ = agree;
    recovered_op_ = std::min(recovered_op_, agree);
    delivered_op_ = std::min(delivered_op_, agree);
  }
  const RegionLayout layout{options_.ring_bytes};
  primary_ = pending_primary_;
  peer.entries_in.Reset(peer.connection, promised_view_,
                        fabric_->region(0).subspan(layout.RingAt(primary_), options_.ring_bytes));
  peer.torn_looks = 0;
  role_ = PlaneRole::kFollowing;
  peer.words_dirty = true;
  Emit(PlaneEvent::Kind::kFollowing).view = promised_view_;
}

void DataPlane::FinishLead(Nanoseconds now) {
  pending_ = Pending::kNone;
  role_ = PlaneRole::kLeading;
  first_countable_round_ = round_ + 1;
  next_heartbeat_ = now;
  const std::byte self[1] = {static_cast<std::byte>(options_.self)};
  view_start_op_ = log_.last_op() + 1;
  if (!AppendOwn(EntryKind::kViewStart, self)) {
    // The log is at rest, so all of it can be evicted but what waits for delivery: retried next
    // round.
    role_ = PlaneRole::kIdle;
    pending_ = Pending::kLead;
    return;
  }
  if (flows_ != nullptr) flows_->SetRole(FlowRole::kPrimary);
  PlaneEvent& event = Emit(PlaneEvent::Kind::kLeading);
  event.view = promised_view_;
  event.op = view_start_op_;
  ProposeUnproposed(now);
  MarkWords();
}

}  // namespace falcon
