#include "fabric/verbs_peer.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "os/check.h"

namespace falcon {
namespace {

constexpr size_t kStagingAlignment = 64;

uint64_t Address(const std::byte* at) { return reinterpret_cast<uint64_t>(at); }

}  // namespace

Status VerbsPeer::Make(const VerbsOptions& options, const VerbsDevice& device,
                       ibv_comp_channel* channel, VerbsCounters* counters) {
  options_ = &options;
  stall_ = VerbsStallBound(options);
  device_ = &device;
  counters_ = counters;
  const uint32_t depth = options.send_queue + kVerbsControlSlots;
  slots_.resize(depth);
  ibv_context* context = device.context.get();
  sends_.reset(ibv_create_cq(context, static_cast<int>(depth) + 1, nullptr, channel, 0));
  receives_.reset(ibv_create_cq(context, kVerbsReceives + 1, nullptr, channel, 0));
  if (sends_ == nullptr || receives_ == nullptr) return NoVerbsObject("completion queue", errno);
  return MakePair();
}

Status VerbsPeer::MakePair() {
  VerbsPair made;
  ibv_qp_init_attr wanted{};
  wanted.send_cq = sends_.get();
  wanted.recv_cq = receives_.get();
  wanted.qp_type = IBV_QPT_RC;
  wanted.sq_sig_all = 0;
  wanted.cap.max_send_wr = static_cast<uint32_t>(slots_.size());
  wanted.cap.max_recv_wr = kVerbsReceives;
  wanted.cap.max_send_sge = Fabric::kMaxPieces;
  wanted.cap.max_recv_sge = 1;
  // A device refuses more inline bytes than it can take instead of granting fewer.
  for (uint32_t inline_bytes = options_->inline_bytes;; inline_bytes /= 2) {
    wanted.cap.max_inline_data = inline_bytes;
    ibv_qp_init_attr granted = wanted;
    made.reset(ibv_create_qp(device_->domain.get(), &granted));
    inline_bytes_ = std::min(inline_bytes, granted.cap.max_inline_data);
    if (made != nullptr || inline_bytes == 0) break;
  }
  if (made == nullptr) return NoVerbsObject("queue pair", errno);
  pair_ = std::move(made);
  spoiled_ = false;
  return Ok();
}

Status VerbsPeer::Connect(const VerbsMember& peer, const VerbsRoute& route,
                          const VerbsProbe& probe) {
  FALCON_CHECK(state_ == PeerState::kDown && free_ == next_);
  if (!staging_.ok()) {
    Status status = VerbsBuffer::Make(*device_, options_->staging_bytes, &staging_);
    if (!status.ok()) return status;
  }
  member_ = peer;
  probe_ = probe;
  Status status = InitPair(pair_.get(), *options_);
  if (status.ok()) status = PostReceives();
  if (status.ok()) status = PairReadyToReceive(pair_.get(), *options_, *device_, peer, route);
  if (status.ok()) status = PairReadyToSend(pair_.get(), *options_, route);
  state_ = PeerState::kUp;
  if (!status.ok()) Disconnect();
  return status;
}

// rxe of Linux 6.1 can lose a queue pair where packets overtake each other: it then answers no
// packet any more, and is not emptied when it is reset. The next one has another number.
Status VerbsPeer::PostReceives() {
  uint32_t posted = 0;
  while (!spoiled_ && posted < options_->receives && PostReceive()) ++posted;
  if (posted == options_->receives) return Ok();
  const std::string number = std::to_string(pair_->qp_num);
  if (Status status = MakePair(); !status.ok()) return {"FABRIC_CONNECT", status.detail()};
  return {"FABRIC_CONNECT", "the device no longer resets queue pair " + number +
                                "; it was replaced, and the peer has to be told"};
}

void VerbsPeer::Disconnect() {
  if (state_ == PeerState::kDown) return;
  const Status status = ResetPair(pair_.get());
  // A queue pair that cannot even be reset would go on touching memory that is about to be reused.
  FALCON_CHECK(status.ok());
  DrainQueues();
  ForgetPosts();
  state_ = PeerState::kDown;
  because_.clear();
}

void VerbsPeer::DrainQueues() {
  ibv_wc completion;
  while (ibv_poll_cq(sends_.get(), 1, &completion) > 0) continue;
  while (ibv_poll_cq(receives_.get(), 1, &completion) > 0) continue;
}

void VerbsPeer::ForgetPosts() {
  free_ = signaled_until_ = quiet_slot_ = next_;
  staged_from_ = staged_signaled_ = staged_until_;
  control_ = control_unsignaled_ = 0;
  unsignaled_bytes_ = 0;
  probing_ = false;
  unproved_since_ = waiting_since_ = 0;
  posted_ = completed_ = wanted_ = proving_ = proved_ = 0;
  wakes_taken_ = 0;
  large_.clear();
  sleep = {};
}

void VerbsPeer::Break(std::string because) {
  if (state_ != PeerState::kUp) return;
  state_ = PeerState::kBroken;
  because_ = std::move(because);
}

// ---- posting

Status VerbsPeer::Usable() {
  if (state_ != PeerState::kUp) return {"FABRIC_DOWN", "not connected"};
  if (posted_ - completed_ >= options_->send_queue)
    return {"FABRIC_BUSY", "the send queue is full"};
  return Ok();
}

// Finds registered room for `bytes`: in the ring if it is small enough, else in a buffer of its
// own.
Status VerbsPeer::Stage(size_t bytes, std::byte** at, uint32_t* lkey) {
  const size_t capacity = staging_.bytes().size();
  if (bytes > capacity / 2) {
    Large large{next_, {}};
    Status status = VerbsBuffer::Make(*device_, bytes, &large.buffer);
    if (!status.ok()) return {"FABRIC_BUSY", status.detail()};
    *at = large.buffer.bytes().data();
    *lkey = large.buffer.lkey();
    large_.push_back(std::move(large));
    return Ok();
  }
  const size_t rounded = (bytes + kStagingAlignment - 1) / kStagingAlignment * kStagingAlignment;
  uint64_t start = staged_until_;
  if (start % capacity + rounded > capacity) start += capacity - start % capacity;
  if (start + rounded - staged_from_ > capacity) return {"FABRIC_BUSY", "the staging ring is full"};
  staged_until_ = start + rounded;
  *at = staging_.bytes().data() + start % capacity;
  *lkey = staging_.lkey();
  return Ok();
}

// Turns pieces into what the device gathers: registered ones as they are, the others copied side by
// side.
Status VerbsPeer::Gather(std::span<const std::span<const std::byte>> pieces, size_t bytes,
                         std::span<const VerbsSource> sources, std::span<ibv_sge> gathered,
                         int* count) {
  if (bytes <= inline_bytes_) {
    for (const std::span<const std::byte> piece : pieces) {
      if (!piece.empty())
        gathered[static_cast<size_t>((*count)++)] = {Address(piece.data()),
                                                     static_cast<uint32_t>(piece.size()), 0};
    }
    return Ok();
  }
  const auto source_of = [&](std::span<const std::byte> piece) {
    return std::find_if(sources.begin(), sources.end(), [&](const VerbsSource& source) {
      return piece.data() >= source.memory.data() &&
             piece.data() + piece.size() <= source.memory.data() + source.memory.size();
    });
  };
  size_t to_copy = 0;
  for (const std::span<const std::byte> piece : pieces) {
    if (source_of(piece) == sources.end()) to_copy += piece.size();
  }
  std::byte* staged = nullptr;
  uint32_t staged_key = 0;
  if (to_copy > 0) {
    if (Status status = Stage(to_copy, &staged, &staged_key); !status.ok()) return status;
    ++counters_->staged;
  }
  bool beside = false;  // the piece before was copied, too
  for (const std::span<const std::byte> piece : pieces) {
    if (piece.empty()) continue;
    const auto source = source_of(piece);
    const auto length = static_cast<uint32_t>(piece.size());
    if (source != sources.end()) {
      gathered[static_cast<size_t>((*count)++)] = {Address(piece.data()), length, source->lkey};
      beside = false;
      continue;
    }
    std::memcpy(staged, piece.data(), piece.size());
    if (beside)
      gathered[static_cast<size_t>(*count - 1)].length += length;
    else
      gathered[static_cast<size_t>((*count)++)] = {Address(staged), length, staged_key};
    staged += piece.size();
    beside = true;
  }
  return Ok();
}

Status VerbsPeer::Write(uint64_t remote, uint32_t rkey,
                        std::span<const std::span<const std::byte>> pieces, size_t bytes,
                        std::span<const VerbsSource> sources) {
  Status status = Usable();
  if (!status.ok()) {
    RequestCompletion();  // who was refused waits
    return status;
  }
  std::array<ibv_sge, Fabric::kMaxPieces> gathered{};
  int count = 0;
  status = Gather(pieces, bytes, sources, gathered, &count);
  if (!status.ok()) {
    RequestCompletion();
    return status;
  }
  ibv_send_wr request{};
  request.opcode = IBV_WR_RDMA_WRITE;
  request.sg_list = gathered.data();
  request.num_sge = count;
  request.wr.rdma.remote_addr = remote;
  request.wr.rdma.rkey = rkey;
  if (count > 0 && bytes <= inline_bytes_) {
    request.send_flags = IBV_SEND_INLINE;
    ++counters_->inlined;
  }
  Slot slot;
  slot.kind = Kind::kUser;
  status = Post(&request, slot, bytes, false);
  if (status.ok()) ++posted_;
  return status;
}

Status VerbsPeer::Read(uint64_t remote, uint32_t rkey, std::span<std::byte> into) {
  if (Status status = Usable(); !status.ok()) return RequestCompletion(), status;
  ibv_sge target{};
  Slot slot;
  slot.kind = Kind::kRead;
  slot.into = into;
  if (!into.empty()) {
    std::byte* staged = nullptr;
    if (Status status = Stage(into.size(), &staged, &target.lkey); !status.ok())
      return RequestCompletion(), status;
    ++counters_->staged;
    slot.staged = staged;
    target.addr = Address(staged);
    target.length = static_cast<uint32_t>(into.size());
  }
  ibv_send_wr request{};
  request.opcode = IBV_WR_RDMA_READ;
  request.sg_list = &target;
  request.num_sge = into.empty() ? 0 : 1;
  request.wr.rdma.remote_addr = remote;
  request.wr.rdma.rkey = rkey;
  Status status = Post(&request, slot, into.size(), true);
  if (status.ok()) ++posted_;
  return status;
}

// The one place where work is posted: keeps the book and decides what asks for a completion.
Status VerbsPeer::Post(ibv_send_wr* request, const Slot& slot, size_t bytes, bool signaled) {
  FALCON_CHECK(next_ - free_ < slots_.size());
  const uint64_t unsignaled = next_ - signaled_until_;
  signaled = signaled || unsignaled + 1 >= options_->send_queue / 4 ||
             staged_until_ - staged_signaled_ >= options_->staging_bytes / 4 ||
             unsignaled_bytes_ + bytes >= kVerbsSignalBytes ||
             (!large_.empty() && large_.back().slot == next_);
  request->wr_id = next_;
  if (signaled) request->send_flags |= IBV_SEND_SIGNALED;
  ibv_send_wr* refused = nullptr;
  if (const int error = ibv_post_send(pair_.get(), request, &refused); error != 0) {
    Break(ErrnoText("post", error));
    return {"FABRIC_DOWN", because_};
  }
  slots_[next_ % slots_.size()] = slot;
  slots_[next_ % slots_.size()].staging_end = staged_until_;
  ++next_;
  ++counters_->posted;
  unsignaled_bytes_ += bytes;
  if (signaled) {
    unsignaled_bytes_ = 0;
    ++counters_->signaled;
    signaled_until_ = next_;
    staged_signaled_ = staged_until_;
    control_unsignaled_ = 0;
  }
  return Ok();
}

bool VerbsPeer::PostControl(ibv_send_wr* request, const Slot& slot, bool signaled) {
  // The last one is for the probe that makes room again.
  const uint32_t room = signaled ? kVerbsControlSlots : kVerbsControlSlots - 1;
  if (state_ != PeerState::kUp || control_ >= room) return false;
  signaled = signaled || control_unsignaled_ + 1 >= kVerbsControlSlots / 2;
  ++control_unsignaled_;
  if (!Post(request, slot, 0, signaled).ok()) return false;
  ++control_;
  return true;
}

bool VerbsPeer::PostWord(uint64_t remote, uint32_t rkey, uint64_t word) {
  // No device that speaks RC takes fewer than eight inline bytes, but one that does would be told
  // by its error.
  ibv_sge source{reinterpret_cast<uint64_t>(&word), sizeof word, 0};
  ibv_send_wr request{};
  request.opcode = IBV_WR_RDMA_WRITE;
  request.send_flags = IBV_SEND_INLINE;
  request.sg_list = &source;
  request.num_sge = 1;
  request.wr.rdma.remote_addr = remote;
  request.wr.rdma.rkey = rkey;
  return PostControl(&request, Slot{}, false);
}

bool VerbsPeer::PostWake() {
  ibv_send_wr request{};
  request.opcode = IBV_WR_RDMA_WRITE_WITH_IMM;
  request.send_flags = IBV_SEND_SOLICITED;
  request.wr.rdma.remote_addr = member_.control.address;
  request.wr.rdma.rkey = member_.control.rkey;
  return PostControl(&request, Slot{}, false);
}

bool VerbsPeer::PostReceive() {
  ibv_recv_wr request{};  // a wake carries no bytes
  ibv_recv_wr* refused = nullptr;
  return ibv_post_recv(pair_.get(), &request, &refused) == 0;
}

}  // namespace falcon
