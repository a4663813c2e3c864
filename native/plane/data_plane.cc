// Construction, commands, and the order of work in one round.
#include "plane/data_plane.h"

#include <algorithm>
#include <cstring>

#include "fabric/shared_copy.h"
#include "os/check.h"

namespace falcon {
namespace {

constexpr size_t kMaxEvents = 4096;

}  // namespace

std::vector<std::byte> DataPlane::TextOf(const Status& status) {
  const std::string text = std::string(status.code()) + " " + status.detail();
  const auto* begin = reinterpret_cast<const std::byte*>(text.data());
  return {begin, begin + text.size()};
}

DataPlane::DataPlane(const PlaneOptions& options, Clock* clock, Fabric* fabric, Wal* wal,
                     const RecoveredLog& recovered, VmRings* rings, WireSink* wire)
    : options_(options),
      clock_(clock),
      fabric_(fabric),
      wal_(wal),
      rings_(rings),
      wire_(wire),
      log_(options.log_bytes, options.log_entries),
      record_(std::make_unique_for_overwrite<std::byte[]>(options.ring_bytes)),
      aside_(std::make_unique<Aside>(options.digest_threads != 0)) {
  FALCON_CHECK(options.members >= 1 && options.members <= kMaxMembers &&
               options.self < options.members);
  FALCON_CHECK(fabric->region(0).size() >= RegionBytes(options));
  promised_view_ = options.promised_view;
  log_.Restore(recovered);
  recovered_op_ = delivered_op_ = durable_op_ = wal_durable_op_ = recovered.last_op;
  wal_base_op_ = wal_handed_op_ = recovered.last_op;
  commit_op_ = recovered.base.op;
  for (PeerId i = 0; i < options.members; ++i) {
    peers_.push_back(i == options.self ? nullptr : std::make_unique<PeerLink>(i));
  }
  normalised_.resize(FALCON_FRAME_MAX_BYTES);
  if (rings_ == nullptr) return;
  flows_ = MakeFlowTable(options.flows, this);
  pool_ = MakeIngressPool(options.pool);
  AttachRings();
}

void DataPlane::AttachRings() {
  ingress_.Attach(rings_->shm(), FALCON_RING_INGRESS, rings_->to_guest_fd());
  deliver_.Attach(rings_->shm(), FALCON_RING_DELIVER, rings_->to_guest_fd());
  egress_.Attach(rings_->shm(), FALCON_RING_EGRESS, rings_->to_guest_fd());
}

DataPlane::~DataPlane() { EndSessions(); }

size_t DataPlane::RegionBytes(const PlaneOptions& options) {
  return RegionLayout{options.ring_bytes}.Bytes(options.members);
}

PlaneEvent& DataPlane::Emit(PlaneEvent::Kind kind) {
  FALCON_CHECK(events_.size() < 2 * kMaxEvents);
  events_.push_back({});
  events_.back().kind = kind;
  return events_.back();
}

void DataPlane::Fail(const char* code, const std::string& detail) {
  if (failed_) return;
  failed_ = true;
  BecomeIdle();
  Emit(PlaneEvent::Kind::kFailed).bytes = TextOf({code, detail});
}

// ---- connections

Status DataPlane::Connect(PeerId id, uint64_t connection, std::string_view descriptor) {
  FALCON_CHECK(id < peers_.size() && peers_[id] != nullptr);
  Disconnect(id);
  PeerLink& peer = *peers_[id];
  ++peer.generation;
  if (Status s = fabric_->Connect(id, connection, descriptor); !s.ok()) {
    StreamBroken(id, s);
    return s;
  }
  const RegionLayout layout{options_.ring_bytes};
  const auto region = fabric_->region(0);
  peer.connection = connection;
  peer.up = true;
  peer.words = {};
  peer.words_at = 0;
  peer.seen_sequence = 0;
  peer.seen_ack = 0;
  peer.words_ticket.fill(0);
  peer.words_sent = 0;
  peer.words_dirty = true;
  peer.mail_ticket.fill(0);
  peer.sent_head = peer.sent_tail = 0;
  peer.disk_ticket = 0;
  peer.feed_view = 0;
  peer.mail_out.Reset(connection, kMailStream, kMailboxBytes, {0, layout.MailboxAt(options_.self)});
  peer.mail_in.Reset(connection, kMailStream, region.subspan(layout.MailboxAt(id), kMailboxBytes));
  return Ok();
}

void DataPlane::NotConnected(PeerId id, const Status& why) {
  FALCON_CHECK(id < peers_.size() && peers_[id] != nullptr && !why.ok());
  Disconnect(id);
  ++peers_[id]->generation;
  StreamBroken(id, why);
}

void DataPlane::Disconnect(PeerId id) {
  FALCON_CHECK(id < peers_.size() && peers_[id] != nullptr);
  PeerLink& peer = *peers_[id];
  fabric_->Disconnect(id);
  peer.up = false;
  peer.feeding = false;
  peer.sent_head = peer.sent_tail = 0;  // the fabric sends nothing any more
  peer.connection = 0;
  peer.words = {};
  if (role_ == PlaneRole::kFollowing && primary_ == id) BecomeIdle();
}

bool DataPlane::SendMail(PeerId id, std::span<const std::byte> message) {
  FALCON_CHECK(id < peers_.size() && peers_[id] != nullptr && !message.empty());
  PeerLink& peer = *peers_[id];
  const size_t slot = peer.mail_next % PeerLink::kMailSlots;
  if (!peer.up || peer.mail_ticket[slot] > fabric_->Completed(id)) {
    ++count_.mail_dropped;
    return false;
  }
  peer.mail_slots[slot].assign(message.begin(), message.end());
  if (!peer.mail_out.Post(*fabric_, id, peer.mail_slots[slot]).ok()) {
    ++count_.mail_dropped;
    return false;
  }
  peer.mail_ticket[slot] = fabric_->Posted(id);
  ++peer.mail_next;
  peer.wrote = true;
  // Before the places run out: what finds none is dropped.
  const size_t ahead = (peer.mail_next + PeerLink::kMailSlots / 2) % PeerLink::kMailSlots;
  static_cast<void>(HasLeft(id, peer.mail_ticket[ahead]));
  return true;
}

// ---- roles

void DataPlane::BecomeIdle() {
  role_ = PlaneRole::kIdle;
  gate_open_ = gate_armed_ = false;
  input_held_ = surrendered_ = caught_up_told_ = false;
  lease_end_ = 0;
  pending_ = Pending::kNone;
  received_ = {};
  for (auto& peer : peers_) {
    if (peer != nullptr) peer->feeding = false;
  }
  if (flows_ != nullptr) flows_->SetRole(FlowRole::kBackup);
  MarkWords();
}

void DataPlane::Promise(View view) {
  if (view < promised_view_ || failed_) return;
  BecomeIdle();
  promised_view_ = view;
  pending_ = Pending::kPromise;
}

void DataPlane::Lead(View view) {
  if (view != promised_view_ || failed_) return;
  FALCON_CHECK(view > log_.last_view());
  BecomeIdle();
  pending_ = Pending::kLead;
}

void DataPlane::Follow(View view, PeerId primary, Op agree_op, const LogPosition& base) {
  FALCON_CHECK(primary < peers_.size() && peers_[primary] != nullptr);
  if (view != promised_view_ || failed_ || !peers_[primary]->up) return;
  BecomeIdle();
  pending_ = Pending::kFollow;
  pending_agree_ = agree_op;
  pending_base_ = base;
  pending_primary_ = primary;
}

void DataPlane::Feed(PeerId id, View view, Op agree_op) {
  FALCON_CHECK(id < peers_.size() && peers_[id] != nullptr);
  PeerLink& peer = *peers_[id];
  if (role_ != PlaneRole::kLeading || view != promised_view_ || !peer.up) return;
  if (peer.feed_view == view) {
    // Its records of the first time still lie in the ring, valid: a stream is a new one only on a
    // new connection.
    StreamBroken(id, {"PEER_STREAM", "fed again in one view"});
    return;
  }
  peer.feeding = true;
  peer.feed_waits = true;
  peer.feed_ticket = fabric_->Posted(id);
  peer.feed_view = view;
  peer.next_op = agree_op + 1;
}

void DataPlane::Resign(View view) {
  if (view == promised_view_ && (role_ == PlaneRole::kLeading || pending_ == Pending::kLead))
    BecomeIdle();
}

void DataPlane::HoldInput(View view) {
  if (role_ != PlaneRole::kLeading || view != promised_view_) return;
  input_held_ = true;
  PlaneEvent& event = Emit(PlaneEvent::Kind::kInputHeld);
  event.view = view;
  event.op = log_.last_op();
}

void DataPlane::ReleaseInput(View view) {
  if (view == promised_view_) input_held_ = false;
}

void DataPlane::Surrender(View view) {
  if (role_ != PlaneRole::kLeading || view != promised_view_) return;
  surrendered_ = true;
  lease_end_ = 0;
  Emit(PlaneEvent::Kind::kSurrendered).view = view;
}

void DataPlane::Reclaim(View view) {
  if (role_ != PlaneRole::kLeading || view != promised_view_ || !surrendered_) return;
  // Only rounds that start from now on count: what peers acknowledged before the surrender is void.
  surrendered_ = false;
  first_countable_round_ = round_ + 1;
  next_heartbeat_ = 0;
}

void DataPlane::OpenGate(View view) {
  if (role_ == PlaneRole::kLeading && view == promised_view_) gate_armed_ = true;
}

void DataPlane::SetGuest(GuestMode mode, Op boot_op) {
  // What was said of an earlier boot opens nothing for this one.
  if (mode == GuestMode::kRunning && boot_op != boot_op_) return;
  guest_ = mode;
  next_flow_tick_ = 0;
}

bool DataPlane::CanPropose() const {
  return role_ == PlaneRole::kLeading &&
         log_.last_op() - std::min(commit_op_, log_.last_op()) < options_.inflight_entries;
}

[[gnu::flatten]] bool DataPlane::Propose(EntryKind kind, std::span<const std::byte> payload) {
  if (role_ != PlaneRole::kLeading || !AppendOwn(kind, payload)) return false;
  BeDue();
  return true;
}

// ---- one round

// The few words that tell, what is waited for most before the others. A session always has
// something to do. What an earlier connection has left at the start of a ring may say yes until the
// first that comes over this one.
bool DataPlane::HasNews() const {
  if (role_ == PlaneRole::kFollowing && peers_[primary_]->entries_in.MayHaveNext()) return true;
  if (!fabric_->IsQuiet() || pending_ != Pending::kNone || transfer_ != nullptr) return true;
  const RegionLayout layout{options_.ring_bytes};
  const std::byte* region = fabric_->region(0).data();
  for (const auto& peer : peers_) {
    if (peer == nullptr || !peer->up) continue;
    const std::byte* words = region + layout.WordsAt(peer->id);
    const std::byte* ack = region + layout.AckAt(peer->id);
    if (LoadSharedWord(words + offsetof(PeerWords, sequence)) != peer->seen_sequence ||
        (peer->feeding && LoadSharedWord(ack + offsetof(PeerAck, mark)) != peer->seen_ack) ||
        peer->mail_in.MayHaveNext())
      return true;
  }
  if (WalDurableOp() != wal_durable_op_) return true;
  return rings_ != nullptr && (ingress_.HasData() || egress_.HasData());
}

// What a commit waits for, before anything else is looked at: what was proposed since the last
// round, a backup's acknowledgement, and that it has come back. Most of it runs when the kernel has
// just been here, so calls count, and pages of code: each side's part but the fabric's is one
// function and one page, and what is rare is kept out of it (gnu::noinline).
int DataPlane::PollUrgent(Nanoseconds now) {
  if (role_ == PlaneRole::kFollowing) return FollowUrgently(now);
  return role_ == PlaneRole::kLeading ? LeadUrgently(now) : 0;
}

[[gnu::flatten, gnu::noinline, gnu::aligned(4096)]] int DataPlane::FollowUrgently(Nanoseconds now) {
  const int records = TakeEntries(now);
  if (records == 0) return 0;
  NoteTaken();
  PostWords();
  return records;
}

[[gnu::flatten, gnu::noinline, gnu::aligned(4096)]] int DataPlane::LeadUrgently(Nanoseconds now) {
  const int fed = FeedPeers(false);
  if (fed > 0) RingPeers();
  int acks = 0;
  for (auto& peer : peers_) {
    if (peer != nullptr) acks += TakeAck(*peer, now);
  }
  if (acks > 0) AdvanceCommit();
  return acks + fed;
}

int DataPlane::PollOnce(Nanoseconds now) {
  if (failed_) return 0;
  ++count_.polls;
  looks_ = 0;
  const bool quiet = fabric_->IsQuiet();
  int done = quiet ? 0 : fabric_->Poll();
  done += PollUrgent(now);
  if (events_.size() < kMaxEvents) done += PollPeers(now);
  done += PollWal();
  done += FinishPending();
  if (pending_ == Pending::kLead && LogAtRest()) FinishLead(now);
  if (role_ == PlaneRole::kFollowing) done += LearnCommit();
  if (rings_ != nullptr) done += PollIngress(now);
  // What peers wait for goes first: the entries, and a backup's acknowledgement.
  NoteTaken();
  if (role_ == PlaneRole::kLeading) {
    done += FeedPeers(true);
    AdvanceCommit();
  } else {
    PostWords();
  }
  HandToWal();
  if (role_ == PlaneRole::kLeading) PollLease(now);
  done += PollDelivery(now);
  if (rings_ != nullptr) done += PollEgress(now);
  if (transfer_ != nullptr) done += PollTransfer(now);
  LetLeave();
  if (role_ == PlaneRole::kLeading) PollGate(now);
  if (rings_ != nullptr && events_.size() < kMaxEvents) PollOutputs(now);
  SetEvictionFloor();
  PostWords();
  if (quiet) done += fabric_->Poll();
  WakeWal(now);
  if (now >= next_release_) {
    next_release_ = now + options_.release_interval;
    const Op done_op = std::min(commit_op_, delivered_op_);
    wal_->Release(std::min(done_op, NeededFrom()), done_op);
    // A replica that returns agrees by a view that both know, so rows outlive the entries in
    // memory; only their number bounds them.
    if (log_.table().size() > kTableRowsMax)
      log_.PruneTable(std::min(done_op, log_.first_op() - 1));
  }
  if (done > 0) ++count_.busy_polls;
  if (done >= kFullRound) BeDue();
  return done;
}

bool DataPlane::ArmWake() {
  FlushWal();  // who sleeps does not come back for it
  fabric_->ArmWake();
  wal_->ArmWake();
  if (rings_ == nullptr || failed_) return false;
  bool work = false;
  // Input that is held back must not keep this replica awake.
  if (!ingress_blocked_) work = ingress_.WaitForData();
  if (egress_.WaitForData()) work = true;
  if (deliver_blocked_ && deliver_.WaitForSpace(kDeliverSpace)) work = true;
  return work;
}

void DataPlane::DisarmWake() {
  fabric_->DisarmWake();
  wal_->DisarmWake();
  if (rings_ == nullptr) return;
  ingress_.StopWaiting();
  egress_.StopWaiting();
}

Nanoseconds DataPlane::NextDeadline(Nanoseconds now) const {
  Nanoseconds next = now + 10 * kMillisecond;
  if (role_ == PlaneRole::kLeading && !surrendered_) next = std::min(next, next_heartbeat_);
  // Flows rest while delivery does: a tick that is due already must not keep this thread awake.
  if (guest_ == GuestMode::kRunning && held_op_ == 0) next = std::min(next, next_flow_tick_);
  // The guest tells nobody when its ring has run empty: looked after while somebody waits for it.
  if (role_ == PlaneRole::kLeading && guest_ == GuestMode::kRunning && !caught_up_told_)
    next = std::min(next, now + kMillisecond / 2);
  if (opening_) {
    next = std::min(next, now + kPatientLook);
  } else if (transfer_ != nullptr && transfer_->busy()) {
    // What is due was looked at just before this; a plane that has failed does not look.
    const Nanoseconds look = transfer_due_ > now ? transfer_due_ : now + kPatientLook;
    next = std::min(next, transfer_->patient() ? look : now + kUrgentLook);
  }
  return std::max(next, now);
}

void DataPlane::FillSnapshot(PlaneSnapshot* s) const {
  *s = count_;
  s->role = role_;
  s->promised_view = promised_view_;
  s->log_view = log_.last_view();
  s->last_op = log_.last_op();
  s->durable_op = durable_op_;
  s->commit_op = commit_op_;
  const LogPosition base = wal_->base();
  s->base = base.op < begun_.op ? begun_ : base;
  s->committed = CommittedPosition();
  s->delivered_op = std::min(delivered_op_, std::max(commit_op_, recovered_op_));
  for (const auto& peer : peers_) {
    if (peer == nullptr) continue;
    s->words_at[peer->id] = peer->words_at;
    s->acks[peer->id] = role_ == PlaneRole::kLeading && peer->up && peer->feeding &&
                        peer->words.following_view == promised_view_;
    s->acked[peer->id] = s->acks[peer->id] ? peer->words.durable_op : 0;
  }
  s->lease_end = lease_end_;
  s->gate_open = gate_open_;
  s->gate_armed = gate_armed_;
  s->heard_view = heard_view_;
  s->heard_from = heard_from_;
  s->heard_at = heard_at_;
  s->guest = guest_;
  s->fabric = fabric_->counters();
  s->wal = wal_->counters();
  if (flows_ != nullptr) {
    s->flows = flows_->counters();
    const auto outputs = flows_->Applications();
    s->outputs.assign(outputs.begin(), outputs.end());
    s->pool_frames = pool_->frames();
  }
  s->doorbells = deliver_.doorbells();
}

}  // namespace falcon
