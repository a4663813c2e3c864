// From the primary's log to every other log, to disk, and back as acknowledgements.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "fabric/shared_copy.h"
#include "os/check.h"
#include "os/crc32c.h"
#include "plane/data_plane.h"
#include "plane/quorum.h"

namespace falcon {
namespace {

constexpr size_t kRecordBytesMax =
    64 << 10;  // entries that travel as one record, unless one alone is larger
constexpr int kRecordsPerRound = 64;
constexpr size_t kDiskChunkBytes = 256 << 10;
// What the file of a log in memory may lag by, beside the writer's own time.
constexpr Nanoseconds kWalGather = kMillisecond;
constexpr size_t kWalGatherEntries = 1024;  // far below what the writer's queue holds

uint32_t WordsChecksum(const PeerWords& words) {
  return Crc32c(std::as_bytes(std::span(&words, 1)).first(offsetof(PeerWords, checksum)));
}

}  // namespace

// ---- what peers say

int DataPlane::PollPeers(Nanoseconds now) {
  int done = 0;
  for (auto& peer : peers_) {
    if (peer == nullptr || !peer->up) continue;
    if (fabric_->State(peer->id) == PeerState::kBroken) {
      const std::string because = fabric_->BrokenBecause(peer->id);
      StreamBroken(peer->id, {"FABRIC_DOWN", because.empty() ? "the connection broke" : because});
      continue;
    }
    ReadWords(*peer);
    done += TakeAck(*peer, now);  // which may have waited for these words
    done += ReadMail(*peer);
    // Fed or not: what was posted holds the log's memory until it has left.
    NoteSent(*peer);
  }
  return done;
}

void DataPlane::ReadWords(PeerLink& peer) {
  const RegionLayout layout{options_.ring_bytes};
  std::byte* at = fabric_->region(0).data() + layout.WordsAt(peer.id);
  auto* sequence = reinterpret_cast<uint64_t*>(at + offsetof(PeerWords, sequence));
  const uint64_t seen = std::atomic_ref<uint64_t>(*sequence).load(std::memory_order_acquire);
  if (seen == peer.seen_sequence) return;
  PeerWords words;
  std::memcpy(&words, at, sizeof words);
  if (words.connection != peer.connection || words.checksum != WordsChecksum(words)) return;
  peer.seen_sequence = words.sequence;
  peer.words_at = clock_->Now();
  TakeWords(peer, words);
}

// Its words have told of the stream before: they were written first. Until then, what it had in an
// earlier view stands there.
int DataPlane::TakeAck(PeerLink& peer, Nanoseconds now) {
  if (role_ != PlaneRole::kLeading || !peer.up || !peer.feeding) return 0;
  const RegionLayout layout{options_.ring_bytes};
  const std::byte* at = fabric_->region(0).data() + layout.AckAt(peer.id);
  if (LoadSharedWord(at + offsetof(PeerAck, mark)) == peer.seen_ack) return 0;
  PeerAck ack;
  CopyFromShared(std::as_writable_bytes(std::span(&ack, 1)), at);
  if (ack.mark != AckMark(peer.connection, promised_view_, ack)) return 0;
  if (peer.feed_waits || peer.words.following_view != promised_view_) return 0;
  peer.seen_ack = ack.mark;
  peer.words_at = now;
  // Words that were posted before it may have been read first, and those behind it say no less.
  peer.words.durable_op = std::max(peer.words.durable_op, ack.durable_op);
  peer.entries_out.SetConsumed(ack.entries_consumed);
  return 1;
}

void DataPlane::TakeWords(PeerLink& peer, const PeerWords& words) {
  const bool same = words.following_view == peer.words.following_view;
  const Op acknowledged = same ? peer.words.durable_op : 0;
  peer.words = words;
  peer.words.durable_op = std::max(words.durable_op, acknowledged);
  peer.mail_out.SetConsumed(words.mail_consumed);
  if (role_ == PlaneRole::kLeading && peer.feeding && !peer.feed_waits &&
      words.following_view == peer.feed_view) {
    peer.entries_out.SetConsumed(words.entries_consumed);
  }
  // A heartbeat is acknowledged only if it is of the very view that was promised: after promise(v)
  // a lower primary's lease is never extended from here.
  const bool heartbeat = words.leading_view != 0 && words.leading_view == promised_view_ &&
                         role_ != PlaneRole::kLeading;
  if (!heartbeat) return;
  if (heard_view_ == words.leading_view && words.heartbeat_round <= heard_round_) return;
  heard_view_ = words.leading_view;
  heard_from_ = peer.id;
  heard_round_ = words.heartbeat_round;
  heard_at_ = clock_->Now();
  peer.words_dirty = true;
}

int DataPlane::ReadMail(PeerLink& peer) {
  int taken = 0;
  while (taken < 16 && peer.mail_in.NextInto(&peer.mail_buffer)) {
    PlaneEvent& event = Emit(PlaneEvent::Kind::kMail);
    event.peer = peer.id;
    event.op = peer.generation;
    event.bytes = peer.mail_buffer;
    peer.words_dirty = true;
    ++taken;
  }
  return taken;
}

void DataPlane::StreamBroken(PeerId id, const Status& why) {
  PlaneEvent& event = Emit(PlaneEvent::Kind::kStreamBroken);
  event.peer = id;
  event.op = peers_[id]->generation;
  event.bytes = TextOf(why);
  Disconnect(id);
}

// ---- following: ring -> log

int DataPlane::TakeEntries(Nanoseconds now) {
  PeerLink& peer = *peers_[primary_];
  int records = 0;
  while (records < kRecordsPerRound && role_ == PlaneRole::kFollowing) {
    if (received_.empty() && !CopyRecord(peer)) break;
    if (!TakeReceived(now)) break;
    ++records;
  }
  return records;
}

// What the primary's words say; entries say it, too.
int DataPlane::LearnCommit() {
  const PeerWords& words = peers_[primary_]->words;
  const Op known = words.leading_view == promised_view_ ? words.commit_op : 0;
  const Op commit = std::min(known, log_.last_op());
  if (commit <= commit_op_) return 0;
  commit_op_ = commit;
  return 1;
}

// True if a record that is not whole never will be. A slow network may take its time for it, but
// words that its writer wrote later are seen later. When its header is first seen, all words from
// before it are there; they are read by the second look.
bool DataPlane::StaysTorn(PeerLink& peer) {
  if (++peer.torn_looks == 2) peer.torn_sequence = peer.seen_sequence;
  return peer.torn_looks > 2 && peer.seen_sequence > peer.torn_sequence;
}

// Copies the next record out of the ring, and lets go of its place, if all its entries are whole.
bool DataPlane::CopyRecord(PeerLink& peer) {
  uint32_t last = 0;
  const auto copy = peer.entries_in.CopyNext({record_.get(), options_.ring_bytes}, &last);
  if (copy.empty()) return false;
  if (!EntriesAreWhole(copy, last)) {
    if (StaysTorn(peer)) StreamBroken(peer.id, {"PEER_STREAM", "a record stays torn"});
    return false;
  }
  received_ = copy;
  peer.torn_looks = 0;
  peer.entries_in.Consume();
  peer.ack_dirty = true;
  return true;
}

// False: the log has no room now (or the stream broke); the rest waits.
bool DataPlane::TakeReceived(Nanoseconds now) {
  while (!received_.empty()) {
    const size_t bytes = EntryBytes(ReadEntryHeader(received_).payload_length);
    if (!AppendReceived(received_.first(bytes), now)) return false;
    received_ = received_.subspan(bytes);
  }
  return true;
}

bool DataPlane::AppendReceived(std::span<const std::byte> entry, Nanoseconds now) {
  const EntryHeader header = ReadEntryHeader(entry);
  if (header.view > promised_view_)
    return StreamBroken(primary_, {"PEER_STREAM", "an entry of a later view"}), false;
  if (header.op <= log_.last_op()) {
    // Entries that this log already has may come again when the point of agreement was taken low.
    const bool same = header.op <= commit_op_ || ChecksumOf(header.op) == header.checksum;
    if (failed_) return false;
    if (!same) StreamBroken(primary_, {"PEER_STREAM", "an entry contradicts the log"});
    return same;
  }
  if (header.op != log_.last_op() + 1 || header.previous != log_.last_checksum() ||
      header.view < log_.last_view()) {
    return StreamBroken(primary_, {"PEER_STREAM", "an entry does not continue the log"}), false;
  }
  const auto room = log_.Reserve(entry.size());
  if (room.empty()) return AskForRoom(), false;
  std::memcpy(room.data(), entry.data(), entry.size());
  log_.Commit(header);
  commit_op_ = std::max(commit_op_, std::min(header.commit_op, log_.last_op()));
  if (header.kind == EntryKind::kFrame && pool_ != nullptr && options_.keep_unproposed)
    NoteLogged(entry.subspan(kEntryHeaderBytes, header.payload_length), now);
  return true;
}

void DataPlane::NoteLogged(std::span<const std::byte> frame, Nanoseconds now) {
  pool_->Logged(frame, now);
}

// ---- the WAL

void DataPlane::HandToWal() {
  while (wal_handed_op_ < log_.last_op()) {
    const uint64_t sequence = wal_->Append(log_.Entry(wal_handed_op_ + 1));
    if (sequence == 0) break;
    FALCON_CHECK(sequence == wal_sequence_ + 1);
    wal_sequence_ = sequence;
    ++wal_handed_op_;
  }
}

// A log in memory is durable where it was taken.
void DataPlane::NoteTaken() {
  if (options_.force || durable_op_ == log_.last_op()) return;
  durable_op_ = log_.last_op();
  MarkAck();
}

// After the posts of a round: waking the writer is a system call, and where processors are few the
// writer runs in place of this thread. A peer's way to an acknowledgement is the longer one. For
// the file of a log in memory nobody waits as long as no command does, so its writer gets what has
// gathered.
void DataPlane::WakeWal(Nanoseconds now) {
  if (wal_woken_sequence_ == wal_sequence_) return;
  const bool gathers = !options_.force && pending_ == Pending::kNone &&
                       now - wal_woken_at_ < kWalGather &&
                       wal_sequence_ - wal_woken_sequence_ < kWalGatherEntries;
  if (gathers) return;
  wal_woken_at_ = now;
  FlushWal();
}

void DataPlane::FlushWal() {
  if (wal_woken_sequence_ == wal_sequence_) return;
  wal_->Flush();
  wal_woken_sequence_ = wal_sequence_;
}

Op DataPlane::WalDurableOp() const {
  const uint64_t durable = wal_->durable();
  return wal_base_op_ + (durable - std::min(durable, wal_base_sequence_));
}

int DataPlane::PollWal() {
  if (wal_->failed()) {
    Fail(wal_->failure().code(), wal_->failure().detail());
    return 1;
  }
  const Op op = WalDurableOp();
  if (op == wal_durable_op_) return 0;
  FALCON_CHECK(op > wal_durable_op_ && op <= log_.last_op());
  wal_durable_op_ = op;
  if (options_.force) {
    durable_op_ = op;
    MarkAck();
  }
  return 1;
}

// ---- leading: log -> peers

bool DataPlane::AppendOwn(EntryKind kind, std::span<const std::byte> payload) {
  const auto room = log_.Reserve(EntryBytes(payload.size()));
  if (room.empty()) return AskForRoom(), false;
  WriteEntry(room, promised_view_, log_.last_op() + 1, commit_op_, kind, log_.last_checksum(),
             payload);
  log_.Commit(ReadEntryHeader(room));
  ++count_.entries_proposed;
  return true;
}

void DataPlane::NoteSent(PeerLink& peer) {
  const uint64_t completed = fabric_->Completed(peer.id);
  while (peer.sent_tail != peer.sent_head &&
         peer.sent[peer.sent_tail % PeerLink::kSentSlots].ticket <= completed) {
    ++peer.sent_tail;
  }
}

// True if nothing is sent any more from where the post with this ticket was made; else it will
// soon be.
bool DataPlane::HasLeft(PeerId peer, uint64_t ticket) {
  if (fabric_->Completed(peer) >= ticket) return true;
  fabric_->RequestCompletion(peer);
  return false;
}

// The log has no room while entries wait that may have left.
void DataPlane::AskForRoom() {
  for (const auto& peer : peers_) {
    if (peer != nullptr && peer->up && peer->sent_head != peer->sent_tail)
      fabric_->RequestCompletion(peer->id);
  }
}

// A stream starts only when everything posted earlier on the connection has left: then no old
// source can be overwritten while it is still being sent.
bool DataPlane::StartFeed(PeerLink& peer) {
  if (!HasLeft(peer.id, peer.feed_ticket)) return false;
  const RegionLayout layout{options_.ring_bytes};
  peer.entries_out.Reset(peer.connection, peer.feed_view, options_.ring_bytes,
                         {0, layout.RingAt(options_.self)});
  peer.sent_head = peer.sent_tail = 0;
  peer.feed_waits = false;
  return true;
}

int DataPlane::FeedPeers(bool disk) {
  int posted = 0;
  for (auto& peer : peers_) {
    if (peer == nullptr || !peer->feeding || !peer->up) continue;
    if (peer->feed_waits && !StartFeed(*peer)) continue;
    for (int i = 0; i < kRecordsPerRound && peer->next_op <= log_.last_op(); ++i) {
      if (peer->next_op < log_.first_op()) {
        if (disk) posted += FeedFromDisk(*peer);
        break;
      }
      const size_t space = peer->entries_out.Space();
      size_t count = 0;
      const auto run = log_.Run(peer->next_op, std::min(space, kRecordBytesMax), &count);
      if (run.size() > space) break;
      const uint32_t last = ReadEntryHeader(log_.Entry(peer->next_op + count - 1)).checksum;
      if (!PostRecord(*peer, run, peer->next_op, count, last, true)) break;
      ++posted;
    }
  }
  return posted;
}

// The record is known by its last entry: whole entries of an earlier lap, still lying where new
// ones are about to land, must not be taken for them.
bool DataPlane::PostRecord(PeerLink& peer, std::span<const std::byte> entries, Op first_op,
                           size_t count, uint32_t last_checksum, bool from_memory) {
  if (from_memory && peer.sent_head - peer.sent_tail == PeerLink::kSentSlots) {
    fabric_->RequestCompletion(peer.id);
    return false;
  }
  if (!peer.entries_out.PostTagged(*fabric_, peer.id, entries, last_checksum).ok()) return false;
  if (from_memory) {
    peer.sent[peer.sent_head++ % PeerLink::kSentSlots] = {first_op, fabric_->Posted(peer.id)};
  }
  peer.next_op = first_op + count;
  peer.wrote = true;
  ++count_.records_posted;
  return true;
}

int DataPlane::FeedFromDisk(PeerLink& peer) {
  if (!HasLeft(peer.id, peer.disk_ticket)) return 0;
  const size_t space = peer.entries_out.Space();
  peer.disk_chunk.clear();
  const Op until = std::min(log_.first_op(), wal_durable_op_ + 1);
  const Status s =
      wal_->Read(peer.next_op, until, std::min(space, kDiskChunkBytes), &peer.disk_chunk);
  if (!s.ok()) {
    peer.feeding = false;
    PlaneEvent& event = Emit(PlaneEvent::Kind::kFeedLost);
    event.peer = peer.id;
    event.view = promised_view_;
    event.op = peer.generation;
    event.bytes = TextOf(s);
    return 0;
  }
  size_t count = 0;
  uint32_t last = 0;
  for (size_t at = 0; at < peer.disk_chunk.size(); ++count) {
    const auto header = ReadEntryHeader(std::span<const std::byte>(peer.disk_chunk).subspan(at));
    last = header.checksum;
    at += EntryBytes(header.payload_length);
  }
  if (count == 0 || peer.disk_chunk.size() > space) return 0;
  if (!PostRecord(peer, peer.disk_chunk, peer.next_op, count, last, false)) return 0;
  peer.disk_ticket = fabric_->Posted(peer.id);
  return 1;
}

void DataPlane::AdvanceCommit() {
  if (commit_op_ == log_.last_op()) return;
  std::array<Op, kMaxMembers> durable{};
  for (PeerId i = 0; i < options_.members; ++i) {
    const PeerLink* peer = peers_[i].get();
    if (peer == nullptr) {
      durable[i] = durable_op_;
    } else if (peer->up && peer->feeding && peer->words.following_view == promised_view_) {
      durable[i] = std::min(peer->words.durable_op, log_.last_op());
    }
  }
  const Op op = ReachedBy(durable, options_.members, Quorum());
  // Entries of older views are committed only together with one of this view (Raft, figure 8).
  if (op < view_start_op_ || op <= commit_op_) return;
  commit_op_ = op;
  if (time_commits_) committed_at_ = clock_->Now();
  MarkWords();
}

// Entries stay in memory until they are on disk, delivered here, and gone to those who are being
// sent them.
void DataPlane::SetEvictionFloor() {
  Op floor = std::min(delivered_op_, wal_durable_op_);
  for (const auto& peer : peers_) {
    if (peer == nullptr || peer->sent_head == peer->sent_tail) continue;
    floor = std::min(floor, peer->sent[peer->sent_tail % PeerLink::kSentSlots].first_op - 1);
  }
  log_.SetFloor(floor);
}

// ---- what this replica says

void DataPlane::MarkWords() {
  for (auto& peer : peers_) {
    if (peer != nullptr) peer->words_dirty = true;
  }
}

// Only the primary waits for it.
void DataPlane::MarkAck() {
  if (role_ == PlaneRole::kFollowing) peers_[primary_]->ack_dirty = true;
}

void DataPlane::PostWords() {
  const RegionLayout layout{options_.ring_bytes};
  for (auto& peer : peers_) {
    if (peer == nullptr || !peer->up) continue;
    const size_t slot = peer->words_sent % PeerLink::kWordsSlab;
    const bool dirty = peer->words_dirty || peer->ack_dirty;
    if (dirty && HasLeft(peer->id, peer->words_ticket[slot])) {
      std::span<const std::byte> piece;
      uint64_t at = layout.WordsAt(options_.self);
      if (peer->words_dirty) {
        FillWords(*peer, &peer->words_slab[slot]);
        piece = std::as_bytes(std::span(&peer->words_slab[slot], 1));
      } else {
        FillAck(*peer, &peer->ack_slab[slot]);
        piece = std::as_bytes(std::span(&peer->ack_slab[slot], 1));
        at = layout.AckAt(options_.self);
      }
      if (fabric_->Write(peer->id, {0, at}, std::span(&piece, 1)).ok()) {
        peer->words_ticket[slot] = fabric_->Posted(peer->id);
        ++peer->words_sent;
        peer->words_dirty = peer->ack_dirty = false;
        peer->wrote = true;
      }
    }
  }
  RingPeers();
}

void DataPlane::RingPeers() {
  for (auto& peer : peers_) {
    if (peer == nullptr || !peer->up || !peer->wrote) continue;
    fabric_->Ring(peer->id);
    peer->wrote = false;
  }
}

void DataPlane::FillWords(const PeerLink& peer, PeerWords* words) const {
  *words = {};
  words->connection = peer.connection;
  words->sequence = peer.words_sent + 1;
  if (role_ == PlaneRole::kLeading) {
    words->leading_view = promised_view_;
    words->heartbeat_round = round_;
    words->commit_op = commit_op_;
  }
  if (role_ == PlaneRole::kFollowing && primary_ == peer.id) {
    words->following_view = promised_view_;
    words->durable_op = durable_op_;
    words->entries_consumed = peer.entries_in.consumed();
  }
  if (heard_from_ == peer.id && heard_view_ == promised_view_) {
    words->echo_view = heard_view_;
    words->echo_round = heard_round_;
  }
  words->mail_consumed = peer.mail_in.consumed();
  words->checksum = WordsChecksum(*words);
}

void DataPlane::FillAck(const PeerLink& peer, PeerAck* ack) const {
  FALCON_CHECK(role_ == PlaneRole::kFollowing && primary_ == peer.id);
  ack->durable_op = durable_op_;
  ack->entries_consumed = peer.entries_in.consumed();
  ack->mark = AckMark(peer.connection, promised_view_, *ack);
}

}  // namespace falcon
