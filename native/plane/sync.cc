// State transfer at the data plane: delivery at rest behind a vm-sync entry, and what travels with
// a guest beside its memory and its devices: flows, and frames that wait in the rings.
#include <algorithm>
#include <cstring>

#include "os/check.h"
#include "plane/data_plane.h"

namespace falcon {
namespace {

constexpr uint32_t kStateMagic = 0x31535046;  // "FPS1"

struct StateHeader {
  uint32_t magic;
  uint32_t reserved;
  uint64_t flow_bytes;
  uint64_t frame_bytes;
  uint64_t builtin_bytes;
};

std::vector<std::byte> Text(const std::string& text) {
  const auto* begin = reinterpret_cast<const std::byte*>(text.data());
  return {begin, begin + text.size()};
}

void Append(std::vector<std::byte>* to, std::span<const std::byte> bytes) {
  to->insert(to->end(), bytes.begin(), bytes.end());
}

std::string Coded(const Status& status) {
  return std::string(status.code()) + " " + status.detail();
}

}  // namespace

PlaneEvent& DataPlane::EmitTransfer(PlaneEvent::Kind kind, SessionId session) {
  PlaneEvent& event = Emit(kind);
  event.op = session;
  return event;
}

void DataPlane::TransferFailed(SessionId session, const std::string& why) {
  EmitTransfer(PlaneEvent::Kind::kTransferFailed, session).bytes = Text(why);
}

void DataPlane::TransferOpen(TransferOptions options) {
  if (transfer_ != nullptr) TransferClose(transfer_->options().session);
  const SessionId session = options.session;
  options.digest_threads = options_.digest_threads;
  LetLeave();
  if (leaving_ != nullptr)
    return TransferFailed(session, "SYNC_MEMORY the session before has not left yet");
  guest_pages_ = options.ram_bytes / kPageBytes;
  if (options.verify) {
    auto verify = MakeVerifySession(std::move(options), fabric_, aside_.get());
    verify_ = verify.get();
    transfer_ = std::move(verify);
  } else if (options.source) {
    auto source = MakeTransferSource(std::move(options), fabric_, aside_.get());
    source_ = source.get();
    transfer_ = std::move(source);
  } else {
    const PageSet* changed = options.based ? bases_.Since(options.peer) : nullptr;
    auto target = MakeTransferTarget(std::move(options), fabric_, aside_.get(), changed);
    target_ = target.get();
    transfer_ = std::move(target);
  }
  // It is destroyed aside, too, so it is there for as long as this takes.
  prepared_ = aside_->Do([this, made = transfer_.get()] { prepare_status_ = made->Prepare(); });
  opening_ = true;
}

// What was prepared aside is opened to the peer.
void DataPlane::OpenPrepared() {
  opening_ = false;
  const SessionId session = transfer_->options().session;
  std::string inbox, ram;
  Status status = prepare_status_;
  if (status.ok()) status = transfer_->Open(&inbox, &ram);
  if (!status.ok()) return TransferFailed(session, Coded(status));
  PlaneEvent& event = EmitTransfer(PlaneEvent::Kind::kTransferOpened, session);
  event.bytes = {static_cast<std::byte>(inbox.size() & 0xFF),
                 static_cast<std::byte>(inbox.size() >> 8)};
  Append(&event.bytes, Text(inbox));
  Append(&event.bytes, Text(ram));
}

void DataPlane::TransferAttach(SessionId session, std::string_view inbox, std::string_view ram) {
  if (!InSession(session) || source_ == nullptr) return;
  if (Status s = source_->Attach(inbox, ram); !s.ok()) TransferFailed(session, Coded(s));
}

void DataPlane::TransferCollected(SessionId session, const std::string& path) {
  PageSet changed(guest_pages_);
  if (Status s = changed.LoadFile(path); guest_pages_ > 0 && !s.ok()) {
    // What has changed is not known any more.
    bases_.ForgetAll();
    return TransferFailed(session, Coded(s));
  }
  bases_.Changed(changed);
  if (InSession(session) && source_ != nullptr) source_->Changed(changed);
  if (InSession(session) && verify_ != nullptr) verify_->Changed(changed);
}

void DataPlane::TransferRound(SessionId session, uint32_t round, RoundPages pages, bool final) {
  if (InSession(session) && source_ != nullptr) source_->Round(round, pages, final, &bases_);
}

void DataPlane::TransferSync(SessionId session) {
  if (!InSession(session) || !transfer_->options().source) return;
  const VmSyncPayload payload{session, options_.self, transfer_->options().peer, {}};
  if (!Propose(EntryKind::kVmSync, std::as_bytes(std::span(&payload, 1))))
    TransferFailed(session, "LEADERSHIP_LOST the vm-sync was not proposed");
}

// A vm-sync has been delivered. If it is of the session that runs here, nothing behind it is.
void DataPlane::HoldBehind(Op op, std::span<const std::byte> payload) {
  VmSyncPayload sync{};
  if (payload.size() != sizeof sync) return;
  std::memcpy(&sync, payload.data(), sizeof sync);
  if (!InSession(sync.session)) return;
  held_op_ = op;
  held_since_ = clock_->Now();
  EmitTransfer(PlaneEvent::Kind::kTransferHeld, sync.session).numbers[0] = op;
}

void DataPlane::TransferSend(SessionId session, const std::string& path) {
  if (!InSession(session) || source_ == nullptr || held_op_ == 0) return;
  std::vector<std::byte> state;
  CaptureState(&state, clock_->Now());
  if (Status s = source_->Send(held_op_, boot_op_, path, state); !s.ok())
    TransferFailed(session, Coded(s));
}

// A verification begins with a look at a guest that runs.
void DataPlane::TransferLook(SessionId session) {
  if (!InSession(session) || verify_ == nullptr) return;
  verify_->Look();
}

// A verification: the guest stands still, and the state of its devices is in the file.
void DataPlane::TransferTake(SessionId session, const std::string& path) {
  if (!InSession(session) || verify_ == nullptr || held_op_ == 0) return;
  if (Status s = verify_->Take(held_op_, path, CaptureFacts(clock_->Now())); !s.ok())
    TransferFailed(session, Coded(s));
}

void DataPlane::TransferSettle(SessionId session) {
  EmitTransfer(PlaneEvent::Kind::kTransferSettled, session);
}

void DataPlane::TransferRelease(SessionId session) {
  if (!InSession(session)) return;
  if (verify_ != nullptr) verify_->GoesOn(clock_->Now() - held_since_);
  held_op_ = 0;
}

void DataPlane::TransferRings(SessionId session) {
  if (!InSession(session) || rings_ == nullptr) return;
  rings_->Restart();
  deliver_.Attach(rings_->shm(), FALCON_RING_DELIVER, rings_->to_guest_fd());
  egress_.Attach(rings_->shm(), FALCON_RING_EGRESS, rings_->to_guest_fd());
  if (builtin_ != nullptr) builtin_->Attach(rings_);
}

void DataPlane::TransferInstall(SessionId session) {
  if (!InSession(session) || target_ == nullptr) return;
  if (held_op_ == 0 || held_op_ != target_->op())
    return TransferFailed(session, "SYNC_PEER the state is not of this vm-sync");
  if (Status s = InstallState(target_->plane_state(), clock_->Now()); !s.ok())
    return TransferFailed(session, Coded(s));
  boot_op_ = target_->boot_op();
  guest_ = GuestMode::kRunning;
  next_flow_tick_ = 0;
  held_op_ = 0;
  // The guest is a copy of the source's, and of nobody else's, since now.
  bases_.ForgetAll();
  bases_.Begin(transfer_->options().peer, guest_pages_);
  EmitTransfer(PlaneEvent::Kind::kTransferInstalled, session);
}

void DataPlane::TransferClose(SessionId session) {
  if (transfer_ == nullptr || transfer_->options().session != session) return;
  const PeerId peer = transfer_->options().peer;
  transfer_->End();
  leaving_ = std::move(transfer_);
  leaving_generation_ = peers_[peer]->generation;
  leaving_ticket_ = fabric_->Posted(peer);
  LetLeave();
  source_ = nullptr;
  target_ = nullptr;
  verify_ = nullptr;
  held_op_ = 0;
  arrived_ = false;
  opening_ = false;
}

// The buffers of a session that is over, until nothing is sent from them any more.
void DataPlane::LetLeave() {
  if (leaving_ == nullptr) return;
  const PeerLink& peer = *peers_[leaving_->options().peer];
  if (peer.up && peer.generation == leaving_generation_ && !HasLeft(peer.id, leaving_ticket_))
    return;
  aside_->Destroy(std::move(leaving_));
}

void DataPlane::EndSessions() {
  for (std::unique_ptr<TransferSession>* session : {&transfer_, &leaving_}) {
    if (*session == nullptr) continue;
    // Nothing is sent from its buffers any more.
    fabric_->Disconnect((*session)->options().peer);
    (*session)->End();
    aside_->Destroy(std::move(*session));
  }
  source_ = nullptr;
  target_ = nullptr;
  verify_ = nullptr;
  opening_ = false;
  aside_.reset();
}

void DataPlane::TransferForget(size_t peer) {
  if (peer < kMaxMembers) {
    bases_.Forget(static_cast<PeerId>(peer));
  } else {
    bases_.ForgetAll();
  }
}

// While both guests run: steps that take some time together, and when the next are due.
int DataPlane::PatientSteps() {
  const Nanoseconds began = clock_->Now();
  Nanoseconds ended = began;
  int done = 0;
  for (bool more = true; more;) {
    const int step = transfer_->Poll(ended, &transfer_news_);
    done += step;
    const Nanoseconds now = clock_->Now();
    // A simulated clock stands still.
    more = step > 0 && now > ended && now - began < kStepLeast && transfer_->patient();
    ended = now;
  }
  transfer_rests_ = done > 0;
  const Nanoseconds rest = std::min(kRests * (ended - began), kRestMost);
  transfer_due_ = ended + (transfer_rests_ ? rest : kPatientLook);
  return done;
}

int DataPlane::PollTransfer(Nanoseconds now) {
  if (opening_) {
    if (!prepared_.done()) return 0;
    OpenPrepared();
    return 1;
  }
  TellArrival();
  // This thread may be a realtime one, and a guest's the ordinary one beside it that gets what is
  // left.
  const bool patient = transfer_->patient();
  if (patient && transfer_rests_ && now < transfer_due_) return 0;
  transfer_news_.clear();
  const SessionId session = transfer_->options().session;
  const PeerId peer = transfer_->options().peer;
  const int done = patient ? PatientSteps() : transfer_->Poll(now, &transfer_news_);
  if (done > 0) fabric_->Ring(peer);
  for (const TransferNews& news : transfer_news_) {
    switch (news.kind) {
      case TransferNews::Kind::kRound:
        EmitTransfer(PlaneEvent::Kind::kTransferRound, session).numbers = news.numbers;
        break;
      case TransferNews::Kind::kSent:
        EmitTransfer(PlaneEvent::Kind::kTransferSent, session).numbers = news.numbers;
        break;
      case TransferNews::Kind::kProgress:
        EmitTransfer(PlaneEvent::Kind::kTransferProgress, session);
        break;
      case TransferNews::Kind::kArrived:
        arrived_ = true;
        break;
      case TransferNews::Kind::kTaken:
        EmitTransfer(PlaneEvent::Kind::kTransferTaken, session);
        break;
      case TransferNews::Kind::kVerified: {
        const auto report = verify_->report();
        EmitTransfer(PlaneEvent::Kind::kTransferVerified, session)
            .bytes.assign(report.begin(), report.end());
        break;
      }
      case TransferNews::Kind::kFailed:
        TransferFailed(session, news.why);
        break;
    }
  }
  TellArrival();
  return done;
}

// The state may be here before the log is.
void DataPlane::TellArrival() {
  if (!arrived_ || target_ == nullptr || held_op_ != target_->op()) return;
  arrived_ = false;
  EmitTransfer(PlaneEvent::Kind::kTransferArrived, target_->options().session).numbers = {
      target_->op(), target_->boot_op()};
}

// Of a guest that stands still. All that it has said is taken first.
void DataPlane::CaptureState(std::vector<std::byte>* state, Nanoseconds now) {
  while (PollEgress(now) > 0) {
  }
  std::vector<std::byte> flows, frames, builtin;
  flows_->Save(&flows, now);
  if (!deliver_.CopyWaiting(&frames)) return Fail("VM_LINK", "the deliver ring is corrupt");
  if (builtin_ != nullptr) builtin_->Save(&builtin);
  const StateHeader header{kStateMagic, 0, flows.size(), frames.size(), builtin.size()};
  Append(state, std::as_bytes(std::span(&header, 1)));
  Append(state, flows);
  Append(state, frames);
  Append(state, builtin);
}

PlaneFacts DataPlane::CaptureFacts(Nanoseconds now) {
  while (PollEgress(now) > 0) {
  }
  PlaneFacts facts;
  flows_->Facts(&facts.flows);
  std::vector<std::byte> frames;
  if (!deliver_.CopyWaiting(&frames)) Fail("VM_LINK", "the deliver ring is corrupt");
  for (auto rest = std::span<const std::byte>(frames); rest.size() >= sizeof(uint32_t);) {
    uint32_t length = 0;
    std::memcpy(&length, rest.data(), sizeof length);
    rest = rest.subspan(std::min(sizeof length + length, rest.size()));
    ++facts.frames_waiting;
  }
  if (builtin_ != nullptr) builtin_->Save(&facts.builtin);
  return facts;
}

Status DataPlane::InstallState(std::span<const std::byte> state, Nanoseconds now) {
  StateHeader header{};
  if (state.size() < sizeof header) return {"SYNC_PEER", "the state is cut"};
  std::memcpy(&header, state.data(), sizeof header);
  auto rest = state.subspan(sizeof header);
  const bool fits = header.magic == kStateMagic && header.flow_bytes <= rest.size() &&
                    header.frame_bytes <= rest.size() - header.flow_bytes &&
                    header.builtin_bytes == rest.size() - header.flow_bytes - header.frame_bytes;
  if (!fits) return {"SYNC_PEER", "the state is malformed"};
  if (Status s = flows_->Load(rest.first(header.flow_bytes), now); !s.ok()) return s;
  rest = rest.subspan(header.flow_bytes);
  for (auto frames = rest.first(header.frame_bytes); !frames.empty();) {
    uint32_t length = 0;
    if (frames.size() < sizeof length) return {"SYNC_PEER", "a frame is cut"};
    std::memcpy(&length, frames.data(), sizeof length);
    frames = frames.subspan(sizeof length);
    if (length == 0 || length > frames.size() || length > FALCON_FRAME_MAX_BYTES ||
        !deliver_.Push(frames.first(length)))
      return {"SYNC_PEER", "a frame does not fit"};
    frames = frames.subspan(length);
  }
  deliver_.Ring();
  if (builtin_ != nullptr && !builtin_->Load(rest.subspan(header.frame_bytes)))
    return {"SYNC_PEER", "not the state of the built-in service"};
  return Ok();
}

}  // namespace falcon
