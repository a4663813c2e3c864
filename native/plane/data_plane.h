// The data plane of one replica: everything between a frame's arrival and its delivery, as a state
// machine.
//
// PollOnce(now) does a bounded amount of work and never waits; a reactor thread calls it in a loop
// (reactor.h) and the simulator calls it when it likes. What to do (who leads, whom to follow, when
// the gate may open) is told by commands; what happened is told by events. Decisions are not taken
// here.
//
// Roles, as commands set them:  idle --Lead--> leading     idle --Follow--> following     any
// --Promise--> idle
//
// One thread owns a DataPlane. Commands are called on that thread (reactor.h carries them over).
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "fabric/fabric.h"
#include "fabric/verbs.h"
#include "log/memory_log.h"
#include "log/wal.h"
#include "os/clock.h"
#include "plane/peer_link.h"
#include "plane/transfer.h"
#include "plane/verify.h"
#include "vm/builtin_service.h"
#include "vm/flow_table.h"
#include "vm/ingress_pool.h"
#include "vm/output_check.h"
#include "vm/vm_rings.h"

namespace falcon {

struct PlaneOptions {
  PeerId self = 0;
  size_t members = 1;                 // 2f + 1
  View promised_view = 0;             // from the hard state: nothing below it is accepted
  bool force = true;                  // durability "disk": an acknowledgement means forced
  size_t log_bytes = 64 << 20;        // of the log in memory, a power of two
  size_t log_entries = 1 << 18;       // most entries in memory, a power of two
  size_t ring_bytes = 8 << 20;        // of the inbound entry ring for each peer, a power of two
  size_t inflight_entries = 1 << 14;  // most that wait for commit before the tap is held back
  Nanoseconds heartbeat_interval = 5 * kMillisecond;
  Nanoseconds lease = 40 * kMillisecond;
  Nanoseconds decider_stall =
      250 * kMillisecond;  // no tick from the deciding thread for so long: no heartbeats
  FlowOptions flows;
  IngressPoolOptions pool;
  bool keep_unproposed = true;  // lan: flood
  // For tests: in frames for this guest a text is replaced by another, as long. Its guest then
  // answers otherwise.
  struct Fault {
    std::vector<std::byte> from, to;
  };
  std::vector<Fault> faults;
  // Of state transfers; 0: none, and nothing else is done aside.
  int digest_threads = DigesterOptions::kAuto;
  Nanoseconds release_interval = kSecond;  // how often the log on disk is looked at
  uint32_t vm_address =
      0;  // IPv4 of the guest in network order, for the announcement; 0: RARP only
};

enum class PlaneRole : uint8_t { kIdle, kLeading, kFollowing };

enum class GuestMode : uint8_t {
  kNone,     // no guest here: frames are stored, not delivered
  kBooting,  // delivery waits
  kRunning,
};

struct PlaneEvent {
  enum class Kind : uint8_t {
    kPromised,      // view; tail in log_tail; at = heartbeat acked at (-1: never)
    kFollowing,     // view
    kLeading,       // view, op = view-start
    kMail,          // peer, op = generation of the connection, bytes
    kControl,       // a committed entry that is no frame: entry_kind, view, op, bytes = payload
    kCaughtUp,      // leader: its guest has taken all input up to view-start
    kGateOpened,    // view, at
    kInputHeld,     // view, op = last
    kSurrendered,   // view
    kStreamBroken,  // peer, op = generation, bytes = "CODE detail": broken, or what it writes
                    // cannot be; reconnect
    kFeedLost,      // peer, view, op = generation, bytes = "CODE detail": the entries that it needs
                    // cannot be read, or are not kept any more
    kFailed,        // the replica must stop: bytes = "CODE detail"
    kCheckDue,      // leader: bytes = length of the payload (4 bytes), payload of an output-check,
                    // what was said before each of its positions
    kVerdicts,      // bytes = VerdictRecords (vm/output_check.h)
    // State transfer; op = session.
    kTransferOpened,  // bytes = length of the first grant (u16), inbox grant, memory grant
    kTransferRound,   // numbers = figures
    kTransferHeld,    // numbers[0] = op of the vm-sync that delivery stands behind
    kTransferSent,    // numbers[0] = bytes
    kTransferProgress,
    kTransferArrived,  // numbers = op, boot op
    kTransferInstalled,
    kTransferFailed,  // bytes = "CODE detail"
    kTransferTaken,
    kTransferVerified,  // bytes = VerifyReport, and what is behind it
    kTransferSettled,   // all commands before TransferSettle have been carried out
  };
  Kind kind;
  PeerId peer = 0;
  EntryKind entry_kind = EntryKind::kNoop;
  View view = 0;
  Op op = 0;
  Nanoseconds at = 0;
  std::vector<std::byte> bytes;
  View last_view = 0;  // kPromised
  Op commit_op = 0;
  std::vector<ViewTableRow> table;
  std::array<uint64_t, kTransferNumbers> numbers{};
};

struct PlaneSnapshot {
  PlaneRole role = PlaneRole::kIdle;
  View promised_view = 0;
  View log_view = 0;
  Op last_op = 0, durable_op = 0, commit_op = 0, delivered_op = 0;
  LogPosition base;                      // the entry before the first that is kept
  LogPosition committed;                 // at commit_op, or view 0: not at hand
  std::array<Op, kMaxMembers> acked{};   // leading: durable op of each member in this view
  std::array<bool, kMaxMembers> acks{};  // it follows this view
  std::array<Nanoseconds, kMaxMembers> words_at{};  // when each member's words came last; 0: never
  Nanoseconds lease_end = 0;                        // leading; 0: none
  bool gate_open = false;
  bool gate_armed = false;
  View heard_view = 0;  // of the last heartbeat that was acknowledged
  PeerId heard_from = 0;
  Nanoseconds heard_at = -1;
  GuestMode guest = GuestMode::kNone;
  size_t pool_frames = 0;
  FlowCounters flows;
  std::vector<OutputApplication> outputs;
  FabricCounters fabric;
  VerbsCounters verbs;  // zero on another fabric
  Wal::Counters wal;
  uint64_t entries_proposed = 0, frames_in = 0, frames_out = 0, frames_gated = 0, wire_errors = 0;
  uint64_t polls = 0, busy_polls = 0, doorbells = 0, records_posted = 0, mail_dropped = 0,
           pool_proposed = 0;
  // Of the built-in service, where that is the guest.
  uint64_t service_frames = 0;
  uint32_t service_digest = 0;
  // Of the thread that polls: time asleep, and how late a round came at worst.
  Nanoseconds slept = 0, stall_max = 0;
  uint64_t stalls = 0;  // rounds that came later than kStall
};

// Where released output goes: the tap, or a recorder.
class WireSink {
 public:
  virtual ~WireSink() = default;
  // False: not now (the frame is lost, as on any busy wire).
  virtual bool Write(Frame frame) = 0;
};

// Time, as the check at the gate must see it: fresh, not as of the start of a poll round.
class Clock {
 public:
  virtual ~Clock() = default;
  [[nodiscard]] virtual Nanoseconds Now() = 0;
};

class DataPlane final : private FlowSink {
 public:
  // All arguments outlive the plane. `rings` may be null (a witness).
  DataPlane(const PlaneOptions& options, Clock* clock, Fabric* fabric, Wal* wal,
            const RecoveredLog& recovered, VmRings* rings, WireSink* wire);
  ~DataPlane() override;

  // Bytes of fabric region 0 that a plane with these options needs.
  [[nodiscard]] static size_t RegionBytes(const PlaneOptions& options);

  // ---- commands
  Status Connect(PeerId peer, uint64_t connection, std::string_view descriptor);
  // In place of a Connect that came to nothing before it got here: counts as one, and is told.
  void NotConnected(PeerId peer, const Status& why);
  void Disconnect(PeerId peer);
  void Promise(View view);
  void Lead(View view);
  // Cuts the log behind `agree_op`; or, with `base.op` > 0, which is then `agree_op`, begins it
  // anew there: the guest here must have ended.
  void Follow(View view, PeerId primary, Op agree_op, const LogPosition& base = {});
  void Feed(PeerId peer, View view, Op agree_op);
  void Resign(View view);
  void HoldInput(View view);
  void ReleaseInput(View view);
  void Surrender(View view);
  void Reclaim(View view);
  void OpenGate(View view);
  void AdmitInput(bool admit) { admit_input_ = admit; }
  // False: the mailbox is full, the message is dropped (every message is repeated by its sender).
  bool SendMail(PeerId peer, std::span<const std::byte> message);
  // Proposes a control entry. False: not leading, or no space.
  bool Propose(EntryKind kind, std::span<const std::byte> payload);
  // `boot_op`: the vm-boot that the guest was started by.
  void SetGuest(GuestMode mode, Op boot_op);
  // The rings were made empty for a new guest.
  void AttachRings();
  void Tick(Nanoseconds now) { decider_at_ = now; }
  void SetRetained(Op op) { release_op_ = op; }
  // The guest is the built-in service: its state is captured and installed with the rest.
  void SetBuiltin(BuiltinService* builtin) { builtin_ = builtin; }

  // ---- state transfer (transfer.h); what fails comes back as kTransferFailed
  void TransferOpen(TransferOptions options);
  void TransferAttach(SessionId session, std::string_view inbox, std::string_view ram);
  void TransferCollected(SessionId session, const std::string& path);
  void TransferRound(SessionId session, uint32_t round, RoundPages pages, bool final);
  void TransferSync(SessionId session);
  void TransferSend(SessionId session, const std::string& path);
  void TransferLook(SessionId session);
  void TransferTake(SessionId session, const std::string& path);
  void TransferRelease(SessionId session);
  // Answered by kTransferSettled, whether or not there is such a session.
  void TransferSettle(SessionId session);
  void TransferRings(SessionId session);
  void TransferInstall(SessionId session);
  void TransferClose(SessionId session);
  // kMaxMembers or more: all.
  void TransferForget(size_t peer);
  // The last that is asked of it: no session is there any more, nor what it held of the fabric,
  // which may then go. Waits for what is done aside. Idempotent.
  void EndSessions();

  // ---- the loop
  // One round. Returns how much was done (0: idle).
  int PollOnce(Nanoseconds now);
  // For who spins: whether a round is worth it, since something has come, or since the last few
  // calls said no. What is due by time, and commands, wait for that.
  [[nodiscard]] bool Due() { return ++looks_ > kLooksPerRound || HasNews(); }
  // Due() says yes next: who has slept does not know what for.
  void BeDue() { looks_ = kLooksPerRound; }
  // Asks all sources to wake this replica; true if there is work already (do not sleep).
  bool ArmWake();
  void DisarmWake();
  // When PollOnce wants to run again though nothing happens.
  [[nodiscard]] Nanoseconds NextDeadline(Nanoseconds now) const;

  [[nodiscard]] std::deque<PlaneEvent>& events() { return events_; }
  void FillSnapshot(PlaneSnapshot* snapshot) const;
  [[nodiscard]] Op commit_op() const { return commit_op_; }
  // For measuring: from now on, when commit_op() moved last, as primary. What follows from a commit
  // in the same round comes after it.
  void TimeCommits() { time_commits_ = true; }
  [[nodiscard]] Nanoseconds committed_at() const { return committed_at_; }
  [[nodiscard]] bool leading() const { return role_ == PlaneRole::kLeading; }
  [[nodiscard]] Op last_op() const { return log_.last_op(); }
  [[nodiscard]] bool CanPropose() const;
  // Output may leave at this very moment.
  [[nodiscard]] bool MayRelease();
  // Where entries are sent from, for a fabric that wants to know.
  [[nodiscard]] std::span<std::byte> log_memory() { return log_.memory(); }
  // The whole entry, or nothing if it is not in memory.
  [[nodiscard]] std::span<const std::byte> EntryInMemory(Op op) const {
    return log_.Holds(op) ? log_.Entry(op) : std::span<const std::byte>{};
  }

 private:
  // FlowSink
  bool ToGuest(Frame frame) override;
  void ToWire(Frame frame) override;

  [[nodiscard]] bool HasNews() const;
  int PollUrgent(Nanoseconds now);
  int FollowUrgently(Nanoseconds now);
  int LeadUrgently(Nanoseconds now);
  // A look takes a fifth of a round that finds nothing.
  static constexpr uint32_t kLooksPerRound = 64;
  // A round that has done so much may not have come to the end of what there was: the least of what
  // a part of it takes at most.
  static constexpr int kFullRound = 16;
  // replication.cc: ring -> log -> disk -> acknowledgement -> commit
  int PollPeers(Nanoseconds now);
  void ReadWords(PeerLink& peer);
  int TakeAck(PeerLink& peer, Nanoseconds now);
  int ReadMail(PeerLink& peer);
  int TakeEntries(Nanoseconds now);
  int LearnCommit();
  bool CopyRecord(PeerLink& peer);
  static bool StaysTorn(PeerLink& peer);
  bool TakeReceived(Nanoseconds now);
  [[gnu::cold, gnu::noinline]] bool StartFeed(PeerLink& peer);
  bool PostRecord(PeerLink& peer, std::span<const std::byte> entries, Op first_op, size_t count,
                  uint32_t last_checksum, bool from_memory);
  bool HasLeft(PeerId peer, uint64_t ticket);
  [[gnu::cold, gnu::noinline]] void AskForRoom();
  bool AppendReceived(std::span<const std::byte> entry, Nanoseconds now);
  [[gnu::noinline]] void NoteLogged(std::span<const std::byte> frame, Nanoseconds now);
  [[gnu::cold, gnu::noinline]] void StreamBroken(PeerId peer, const Status& why);
  int FeedPeers(bool disk);
  [[gnu::noinline]] int FeedFromDisk(PeerLink& peer);
  int PollWal();
  [[nodiscard]] Op WalDurableOp() const;
  void TakeWords(PeerLink& peer, const PeerWords& words);
  void NoteSent(PeerLink& peer);
  void MarkWords();
  void MarkAck();
  void BecomeIdle();
  bool AppendOwn(EntryKind kind, std::span<const std::byte> payload);
  void NoteTaken();
  void HandToWal();
  void WakeWal(Nanoseconds now);
  void FlushWal();
  void AdvanceCommit();
  void PostWords();
  void RingPeers();
  [[gnu::noinline]] void FillWords(const PeerLink& peer, PeerWords* words) const;
  void FillAck(const PeerLink& peer, PeerAck* ack) const;
  void SetEvictionFloor();

  // roles.cc: what waits for the log to be at rest
  int FinishPending();
  void FinishPromise();
  void FinishFollow();
  void BeginAnew();
  void FinishLead(Nanoseconds now);
  [[nodiscard]] bool LogAtRest() const;
  [[nodiscard, gnu::noinline]] uint32_t ChecksumOf(Op op);
  [[nodiscard]] LogPosition CommittedPosition() const;
  [[nodiscard]] Op NeededFrom() const;

  // lease.cc
  void PollLease(Nanoseconds now);

  // guest.cc: frames between the guest, the log and the wire
  int PollIngress(Nanoseconds now);
  int PollEgress(Nanoseconds now);
  int PollDelivery(Nanoseconds now);
  // The most that one entry can put into the deliver ring at once.
  static constexpr size_t kDeliverSpace = 2 * FALCON_FRAME_MAX_BYTES;
  static constexpr size_t kTableRowsMax = 512;
  // How often a session is looked at that waits for what rings no doorbell (digests, work aside):
  // while a guest stands still, and while it runs, since each look interrupts it.
  static constexpr Nanoseconds kUrgentLook = 100 * kMicrosecond;
  static constexpr Nanoseconds kPatientLook = 500 * kMicrosecond;
  // How many times as long as a step took a patient session rests: a quarter of the time is its
  // own. A step that was kept from running seems long: no rest is, since a guest may stand still by
  // then.
  static constexpr int kRests = 3;
  static constexpr Nanoseconds kRestMost = kMillisecond;
  // A wake-up takes 30 to 50 us: steps are joined until they are worth one.
  static constexpr Nanoseconds kStepLeast = 100 * kMicrosecond;
  void ProposeUnproposed(Nanoseconds now);
  bool ProposePooled(Frame frame, Nanoseconds now);
  void PollGate(Nanoseconds now);
  void PollOutputs(Nanoseconds now);
  [[nodiscard]] Frame WithFault(Frame frame);
  void Announce();

  // sync.cc: delivery at rest behind a vm-sync, and the state that travels with a guest
  int PollTransfer(Nanoseconds now);
  int PatientSteps();
  void TellArrival();
  void OpenPrepared();
  void LetLeave();
  void HoldBehind(Op op, std::span<const std::byte> payload);
  void CaptureState(std::vector<std::byte>* state, Nanoseconds now);
  [[nodiscard]] PlaneFacts CaptureFacts(Nanoseconds now);
  Status InstallState(std::span<const std::byte> state, Nanoseconds now);
  PlaneEvent& EmitTransfer(PlaneEvent::Kind kind, SessionId session);
  void TransferFailed(SessionId session, const std::string& why);
  [[nodiscard]] bool InSession(SessionId session) const {
    return transfer_ != nullptr && !opening_ && transfer_->options().session == session;
  }

  [[gnu::noinline]] PlaneEvent& Emit(PlaneEvent::Kind kind);
  [[gnu::cold, gnu::noinline]] void Fail(const char* code, const std::string& detail);
  static std::vector<std::byte> TextOf(const Status& status);
  [[nodiscard]] size_t Quorum() const { return options_.members / 2 + 1; }

  PlaneOptions options_;
  Clock* clock_;
  Fabric* fabric_;
  Wal* wal_;
  VmRings* rings_;
  WireSink* wire_;
  MemoryLog log_;
  std::vector<std::unique_ptr<PeerLink>> peers_;  // null at self
  std::deque<PlaneEvent> events_;
  bool failed_ = false;
  uint32_t looks_ = kLooksPerRound;  // since the last round

  PlaneRole role_ = PlaneRole::kIdle;
  View promised_view_ = 0;
  PeerId primary_ = 0;  // following
  Op commit_op_ = 0;
  Op durable_op_ = 0;
  // Ops and WAL sequence numbers run in parallel between two cuts.
  uint64_t wal_sequence_ = 0;  // last appended
  uint64_t wal_base_sequence_ = 0;
  Op wal_base_op_ = 0;
  Op wal_handed_op_ = 0;  // last op that the WAL's queue took

  // A command that waits until the log is at rest.
  enum class Pending : uint8_t { kNone, kPromise, kFollow, kLead };
  Pending pending_ = Pending::kNone;
  Op pending_agree_ = 0;
  LogPosition pending_base_;
  LogPosition begun_;  // where the log began anew last, which its disk may not know yet
  PeerId pending_primary_ = 0;
  std::vector<std::byte> disk_buffer_;
  // A copy of the last record, and what of its entries is not in the log yet.
  const std::unique_ptr<std::byte[]> record_;
  std::span<const std::byte> received_;
  uint64_t wal_woken_sequence_ = 0;  // the writer was woken for what is up to here
  Nanoseconds wal_woken_at_ = 0;
  Op wal_durable_op_ = 0;  // written (and forced, if the options say so)

  // leading
  Op view_start_op_ = 0;
  bool time_commits_ = false;
  Nanoseconds committed_at_ = 0;
  bool caught_up_told_ = false;
  bool input_held_ = false;
  bool admit_input_ = false;
  bool gate_armed_ = false;
  bool gate_open_ = false;
  bool surrendered_ = false;
  uint64_t round_ = 0;
  uint64_t first_countable_round_ = 1;
  static constexpr size_t kRounds = 256;
  std::array<Nanoseconds, kRounds> round_sent_at_{};
  Nanoseconds next_heartbeat_ = 0;
  Nanoseconds lease_end_ = 0;
  Nanoseconds decider_at_ = 0;

  // heartbeats acknowledged
  View heard_view_ = 0;
  PeerId heard_from_ = 0;
  Nanoseconds heard_at_ = -1;
  uint64_t heard_round_ = 0;

  // guest
  std::unique_ptr<FlowTable> flows_;
  std::unique_ptr<IngressPool> pool_;
  GuestMode guest_ = GuestMode::kNone;
  RingConsumer ingress_;
  RingProducer deliver_;
  RingConsumer egress_;
  Op recovered_op_ = 0;
  Op delivered_op_ = 0;
  Nanoseconds next_flow_tick_ = 0;
  Nanoseconds next_check_ = 0;
  std::vector<std::byte> check_payload_, check_tails_;
  bool deliver_blocked_ = false;
  bool ingress_blocked_ = false;  // for want of room, or on purpose
  Op boot_op_ = 0;                // newest vm-boot that was delivered
  std::vector<std::byte> normalised_;
  Op release_op_ = 0;
  Nanoseconds next_release_ = 0;
  BuiltinService* builtin_ = nullptr;

  // state transfer
  std::unique_ptr<TransferSession> transfer_;
  TransferSource* source_ = nullptr;  // transfer_, as what it is
  TransferTarget* target_ = nullptr;
  VerifySession* verify_ = nullptr;
  std::unique_ptr<TransferSession> leaving_;
  uint64_t leaving_generation_ = 0;
  uint64_t leaving_ticket_ = 0;
  TransferBases bases_;
  size_t guest_pages_ = 0;  // of the session that was opened last
  Op held_op_ = 0;          // delivery stands behind this vm-sync; 0: it does not stand
  Nanoseconds held_since_ = 0;
  bool arrived_ = false;  // target: the whole state, which may be ahead of the log
  std::vector<TransferNews> transfer_news_;
  // A patient session is looked at then; before, when something wakes this thread, unless it rests.
  Nanoseconds transfer_due_ = 0;
  bool transfer_rests_ = false;
  bool opening_ = false;  // transfer_: is being prepared
  AsideTicket prepared_;
  Status prepare_status_;
  std::unique_ptr<Aside> aside_;

  mutable PlaneSnapshot count_;  // the counters; the rest is filled in on demand
};

}  // namespace falcon
