#include "fabric/verbs.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "fabric/shared_copy.h"
#include "fabric/verbs_descriptor.h"
#include "fabric/verbs_fabric.h"

namespace falcon {
namespace {

// The words of a peer's control line.
// Written by the peer. The upper 48 bits number a sleep of that peer (0: awake), the lower 16 count
// the wakes that it took.
constexpr size_t kSleepWord = 0;
// Read by the peer: the number of the connection that this member has to it.
constexpr size_t kConnectionWord = 8;
// What was read there.
constexpr size_t kProbedWord = 16;
constexpr int kPollsBetweenEvents = 1024;
constexpr int kPollsBetweenTends = 16;

uint64_t Mix(uint64_t x) {  // the finisher of SplitMix64
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

}  // namespace

// Queue pairs first fall silent, then go; events that were not taken would hold their queues.
VerbsFabricImpl::~VerbsFabricImpl() {
  for (VerbsPeer& peer : peers_) peer.Disconnect();
  if (channel_ != nullptr) TakeEvents();
}

Status VerbsFabricImpl::Watch(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0 ||
      epoll_ctl(wake_.get(), EPOLL_CTL_ADD, fd, &event) != 0)
    return {"VERBS_OPEN", ErrnoText("watch a descriptor", errno)};
  return Ok();
}

Status VerbsFabricImpl::Start() {
  Status status = OpenVerbsDevice(options_, &device_);
  if (!status.ok()) return status;
  if (getrandom(&incarnation_, sizeof incarnation_, 0) != sizeof incarnation_)
    return {"VERBS_OPEN", ErrnoText("getrandom", errno)};
  wake_.Reset(epoll_create1(EPOLL_CLOEXEC));
  kick_.Reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  channel_.reset(ibv_create_comp_channel(device_.context.get()));
  if (!wake_.valid() || !kick_.valid() || channel_ == nullptr)
    return {"VERBS_OPEN", ErrnoText("wake descriptors", errno)};
  for (const int fd : {kick_.get(), channel_->fd, device_.context->async_fd}) {
    if (status = Watch(fd); !status.ok()) return status;
  }
  status = VerbsBuffer::Make(device_, kMaxMembers * kControlStride, &control_);
  for (PeerId peer = 0; status.ok() && peer < kMaxMembers; ++peer)
    status = peers_[peer].Make(options_, device_, channel_.get(), &verbs_counters_);
  return status;
}

Status VerbsFabricImpl::AddRegion(RegionId region, size_t bytes) {
  const std::string number = "region " + std::to_string(region);
  if (region >= kMaxRegions || bytes == 0)
    return {"FABRIC_REGION", number + " of " + std::to_string(bytes) + " bytes is out of range"};
  if (regions_[region].ok()) return {"FABRIC_REGION", number + " was made before"};
  if (connected_once_) return {"FABRIC_REGION", number + " comes after the first connection"};
  Status status = VerbsBuffer::Make(device_, bytes, &regions_[region]);
  if (status.ok()) sources_.push_back({regions_[region].bytes(), regions_[region].lkey()});
  return status;
}

std::span<std::byte> VerbsFabricImpl::region(RegionId region) {
  FALCON_CHECK(region < kMaxRegions);
  return regions_[region].bytes();
}

Status VerbsFabricImpl::AddSource(std::span<std::byte> memory) {
  VerbsKey key;
  Status status = RegisterVerbsMemory(device_, memory, 0, &key);
  if (!status.ok()) return status;
  sources_.push_back({memory, key->lkey});
  source_keys_.push_back(std::move(key));
  return status;
}

void VerbsFabricImpl::RemoveSource(std::span<std::byte> memory) {
  const auto source = std::find_if(sources_.begin(), sources_.end(), [&](const VerbsSource& each) {
    return each.memory.data() == memory.data() && each.memory.size() == memory.size();
  });
  if (source == sources_.end()) return;
  std::erase_if(source_keys_, [&](const VerbsKey& key) { return key->lkey == source->lkey; });
  sources_.erase(source);
}

std::string VerbsFabricImpl::Descriptor() const {
  VerbsMember member{};
  member.incarnation = incarnation_;
  member.self = self_;
  member.ethernet = device_.ethernet() ? 1 : 0;
  member.mtu = static_cast<uint8_t>(device_.port.active_mtu);
  member.max_reads = static_cast<uint8_t>(std::clamp(
      std::min(device_.attributes.max_qp_rd_atom, device_.attributes.max_qp_init_rd_atom), 1, 16));
  member.lid = device_.port.lid;
  std::memcpy(member.gid.data(), device_.gid.raw, member.gid.size());
  for (PeerId peer = 0; peer < kMaxMembers; ++peer) member.queue_pairs[peer] = QueuePair(peer);
  for (RegionId region = 0; region < kMaxRegions; ++region) {
    if (regions_[region].ok()) member.regions[region] = regions_[region].memory();
  }
  member.control = control_.memory();
  return FormatVerbsMember(member);
}

// An address handle costs the same look-up as a queue pair that is about to receive. What it found
// stays in the kernel's table.
Status VerbsFabricImpl::Prepare(PeerId /*peer*/, std::string_view descriptor) {
  VerbsMember member;
  if (Status status = ParseVerbsMember(descriptor, &member); !status.ok()) return status;
  if (!device_.ethernet()) return Ok();
  return ResolveVerbsPeer(options_, device_, member);
}

Status VerbsFabricImpl::Connect(PeerId id, uint64_t connection, std::string_view descriptor) {
  Disconnect(id);
  VerbsMember member;
  Status status = ParseVerbsMember(descriptor, &member);
  if (!status.ok()) return status;
  VerbsMember own;
  status = ParseVerbsMember(Descriptor(), &own);
  FALCON_CHECK(status.ok());
  if (member.self != id) return {"FABRIC_CONNECT", "the descriptor is of another member"};
  if (id == self_) return {"FABRIC_CONNECT", "a member does not connect to itself"};
  if (member.ethernet != own.ethernet)
    return {"FABRIC_CONNECT", "one side is Ethernet, the other InfiniBand"};
  if (member.control.bytes != own.control.bytes)
    return {"FABRIC_CONNECT", "the peer counts members differently"};
  const VerbsRoute route{member.queue_pairs[self_], VerbsPsn(connection, id, self_),
                         VerbsPsn(connection, self_, id),
                         static_cast<ibv_mtu>(std::min(member.mtu, own.mtu)),
                         std::clamp<uint8_t>(member.max_reads, 1, own.max_reads)};
  // What an earlier connection said must not be taken for this one's; the pair is in RESET, so
  // nobody writes here now.
  StoreSharedWord(ControlWord(id, kSleepWord), 0);
  StoreSharedWord(ControlWord(id, kConnectionWord), connection);
  status =
      At(id).Connect(member, route,
                     {connection, member.control.address + self_ * kControlStride + kConnectionWord,
                      member.control.rkey, control_.lkey(), ControlWord(id, kProbedWord)});
  if (!status.ok()) return {"FABRIC_CONNECT", status.detail()};
  connected_once_ = true;
  connections_[id] = connection;
  connected_ |= 1u << id;
  return Ok();
}

void VerbsFabricImpl::Disconnect(PeerId peer) {
  At(peer).Disconnect();
  connected_ &= ~(1u << peer);
  attached_[peer] = {};
  exposures_.CloseFor(peer);
}

// ---- exposed memory

Status VerbsFabricImpl::Expose(RegionId region, PeerId id, const ExposedMemory& memory,
                               std::string* grant) {
  const bool in_use = region < kMaxRegions && (regions_[region].ok() || exposures_.IsOpen(region));
  if (Status status = CheckExposable(region, memory, in_use); !status.ok()) return status;
  if (At(id).state() != PeerState::kUp) return {"FABRIC_DOWN", "not connected"};
  return exposures_.Open(device_, {name(), self_, id, region, connections_[id]}, memory, grant);
}

void VerbsFabricImpl::Conceal(RegionId region) {
  FALCON_CHECK(region < kMaxRegions);
  exposures_.Close(region);
}

Status VerbsFabricImpl::Attach(PeerId id, RegionId region, std::string_view grant) {
  VerbsPeer& peer = At(id);
  if (peer.state() != PeerState::kUp) return {"FABRIC_DOWN", "not connected"};
  Grant taken;
  Status status = ParseGrant(grant, {name(), id, self_, region, connections_[id]}, &taken);
  if (!status.ok()) return status;
  if (peer.member().regions[region].bytes > 0 && !attached_[id][region])
    return {"FABRIC_GRANT", "the peer has a region of its own there"};
  peer.SetRegion(region, {taken.address, taken.bytes, taken.key, 0});
  attached_[id][region] = true;
  return status;
}

void VerbsFabricImpl::Detach(PeerId id, RegionId region) {
  FALCON_CHECK(region < kMaxRegions);
  if (std::exchange(attached_[id][region], false)) At(id).SetRegion(region, {});
}

// ---- writes and reads

Status VerbsFabricImpl::Refuse(Status status) {
  if (std::strcmp(status.code(), "FABRIC_BUSY") != 0) ++counters_.errors;
  return status;
}

Status VerbsFabricImpl::Find(const VerbsPeer& peer, RemoteAddress address, size_t bytes,
                             VerbsMemory* at) const {
  if (peer.state() != PeerState::kUp) return {"FABRIC_DOWN", "not connected"};
  if (address.region >= kMaxRegions || peer.member().regions[address.region].bytes == 0)
    return {"FABRIC_BOUNDS", "the peer has no such region"};
  const VerbsMemory& region = peer.member().regions[address.region];
  if (address.offset > region.bytes || bytes > region.bytes - address.offset)
    return {"FABRIC_BOUNDS", "beyond the end of the peer's region"};
  if (bytes > device_.port.max_msg_sz)
    return {"FABRIC_BOUNDS", "larger than one message of this device"};
  *at = {region.address + address.offset, bytes, region.rkey, 0};
  return Ok();
}

[[gnu::flatten, gnu::aligned(4096)]] Status VerbsFabricImpl::Write(
    PeerId id, RemoteAddress to, std::span<const std::span<const std::byte>> pieces) {
  FALCON_CHECK(pieces.size() <= kMaxPieces);
  VerbsPeer& peer = At(id);
  size_t bytes = 0;
  for (const std::span<const std::byte> piece : pieces) bytes += piece.size();
  VerbsMemory at{};
  if (Status status = Find(peer, to, bytes, &at); !status.ok()) return Refuse(std::move(status));
  Status status = peer.Write(at.address, at.rkey, pieces, bytes, sources_);
  if (!status.ok()) return Refuse(std::move(status));
  peer.sleep.dirty = true;
  ++counters_.writes;
  counters_.written_bytes += bytes;
  return status;
}

Status VerbsFabricImpl::Read(PeerId id, RemoteAddress from, std::span<std::byte> into) {
  VerbsPeer& peer = At(id);
  VerbsMemory at{};
  Status status = Find(peer, from, into.size(), &at);
  if (status.ok()) status = peer.Read(at.address, at.rkey, into);
  if (!status.ok()) return Refuse(std::move(status));
  ++counters_.reads;
  return status;
}

// ---- polling

// The sleep word is looked at in each round, and so are completions that are due. `tend`: also what
// nobody waits for: wakes, which only who goes to sleep needs (and polls for), errors of writes
// that ask for no completion, and their probes. `now` is read by the first peer that has something
// on its way; 0: not yet.
int VerbsFabricImpl::PollPeer(PeerId id, bool tend, Nanoseconds* now) {
  VerbsPeer& peer = peers_[id];
  if (peer.state() != PeerState::kUp) return 0;
  ObserveSleep(id);
  if (!tend && !peer.awaits() && peer.state() == PeerState::kUp) return 0;
  int happened = peer.PollSends();
  const int wakes = peer.PollReceives();
  counters_.wakes_received += static_cast<uint64_t>(wakes);
  happened += wakes;
  if (peer.busy()) {
    if (*now == 0) *now = MonotonicNow();
    peer.Tend(*now);
  }
  if (peer.state() == PeerState::kBroken) {
    ++counters_.errors;
    ++happened;
  }
  return happened;
}

bool VerbsFabricImpl::IsQuiet() const {
  for (uint32_t left = connected_; left != 0; left &= left - 1) {
    if (peers_[static_cast<size_t>(std::countr_zero(left))].awaits()) return false;
  }
  return true;
}

int VerbsFabricImpl::Poll() {
  int happened = 0;
  Nanoseconds now = 0;
  const bool tend = polls_awake_++ % kPollsBetweenTends == 0;
  for (uint32_t left = connected_; left != 0; left &= left - 1)
    happened += PollPeer(static_cast<PeerId>(std::countr_zero(left)), tend, &now);
  if (++polls_ >= kPollsBetweenEvents) TakeDeviceEvents();
  return happened;
}

// What the device says of itself and of queue pairs, rarely.
void VerbsFabricImpl::TakeDeviceEvents() {
  polls_ = 0;
  ibv_async_event event;
  while (ibv_get_async_event(device_.context.get(), &event) == 0) {
    for (VerbsPeer& peer : peers_) {
      switch (event.event_type) {
        case IBV_EVENT_QP_FATAL:
        case IBV_EVENT_QP_REQ_ERR:
        case IBV_EVENT_QP_ACCESS_ERR:
          if (event.element.qp == peer.pair()) peer.Break(ibv_event_type_str(event.event_type));
          break;
        case IBV_EVENT_CQ_ERR:
          if (peer.owns(event.element.cq)) peer.Break(ibv_event_type_str(event.event_type));
          break;
        case IBV_EVENT_DEVICE_FATAL:
          peer.Break(ibv_event_type_str(event.event_type));
          break;
        default:
          break;
      }
    }
    ibv_ack_async_event(&event);
  }
}

// ---- sleeping

bool VerbsFabricImpl::Tell(VerbsPeer& peer, uint64_t sleep) {
  const VerbsMemory& control = peer.member().control;
  return peer.PostWord(control.address + self_ * kControlStride + kSleepWord, control.rkey,
                       sleep << 16 | peer.wakes_taken());
}

void VerbsFabricImpl::SendWake(VerbsPeer& peer) {
  const auto unanswered = static_cast<uint16_t>(peer.sleep.wakes_sent - peer.sleep.wakes_taken);
  if (unanswered >= kVerbsMaxWakes || !peer.PostWake()) return;
  ++peer.sleep.wakes_sent;
  peer.sleep.dirty = false;
  peer.sleep.asleep = false;
  ++counters_.wakes_sent;
}

// The peer may have gone to sleep without having seen our last writes, so a new sleep is answered
// if there were any since we last rang.
void VerbsFabricImpl::ObserveSleep(PeerId id) {
  VerbsPeer& peer = peers_[id];
  const uint64_t word = LoadSharedWord(ControlWord(id, kSleepWord));
  const uint64_t sleep = word >> 16;
  if (sleep == 0) peer.sleep.asleep = false;
  if (word != 0) peer.sleep.wakes_taken = static_cast<uint16_t>(word);
  if (sleep != 0 && sleep != peer.sleep.observed) {
    peer.sleep.observed = sleep;
    peer.sleep.asleep = true;
  }
  if (peer.sleep.asleep && peer.sleep.dirty) SendWake(peer);
}

void VerbsFabricImpl::Ring(PeerId peer) {
  if (At(peer).state() == PeerState::kUp) ObserveSleep(peer);
}

void VerbsFabricImpl::Kick() {
  const uint64_t one = 1;
  // It fails only if it is readable already.
  static_cast<void>(write(kick_.get(), &one, sizeof one) == sizeof one);
}

void VerbsFabricImpl::ArmWake() {
  TakeEvents();
  ++sleeps_;
  for (PeerId id = 0; id < kMaxMembers; ++id) {
    VerbsPeer& peer = peers_[id];
    if (peer.state() != PeerState::kUp) continue;
    ObserveSleep(id);
    // We shall not see it go to sleep.
    if (peer.sleep.dirty) SendWake(peer);
    peer.Arm();
    // What came before the event was asked for makes none.
    const int completions = peer.PollSends();
    counters_.wakes_received += static_cast<uint64_t>(peer.PollReceives());
    peer.sleep.rang_us = false;
    const bool told = Tell(peer, sleeps_);
    if (told) ++verbs_counters_.sleeps_told;
    if (!told || completions > 0) Kick();
  }
}

void VerbsFabricImpl::DisarmWake() {
  TakeEvents();
  polls_awake_ = 0;
  for (PeerId id = 0; id < kMaxMembers; ++id) {
    VerbsPeer& peer = peers_[id];
    if (peer.state() != PeerState::kUp) continue;
    counters_.wakes_received += static_cast<uint64_t>(peer.PollReceives());
    // Who rang knows. If there is no room to tell, the peer rings once for nothing.
    if (!peer.sleep.rang_us) static_cast<void>(Tell(peer, 0));
  }
}

// One system call if there are none, as there are mostly.
void VerbsFabricImpl::TakeEvents() {
  std::array<epoll_event, 3> readable{};
  const int count =
      epoll_wait(wake_.get(), readable.data(), static_cast<int>(readable.size()), /*timeout=*/0);
  for (int i = 0; i < count; ++i) {
    const int fd = readable[static_cast<size_t>(i)].data.fd;
    if (fd == channel_->fd) {
      ibv_cq* queue = nullptr;
      void* context = nullptr;
      while (ibv_get_cq_event(channel_.get(), &queue, &context) == 0) ibv_ack_cq_events(queue, 1);
    } else if (fd == kick_.get()) {
      uint64_t kicks = 0;
      static_cast<void>(read(fd, &kicks, sizeof kicks) == sizeof kicks);
    } else {
      TakeDeviceEvents();
    }
  }
}

VerbsLink VerbsFabricImpl::link() const {
  VerbsLink link;
  link.device = ibv_get_device_name(device_.context->device);
  link.link_layer = device_.ethernet() ? "ethernet" : "infiniband";
  link.port = options_.port;
  link.gid_index = device_.gid_index;
  link.mtu_bytes = 128u << static_cast<uint32_t>(device_.port.active_mtu);
  link.inline_bytes = peers_[0].inline_bytes();
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (device_.gid_index >= 0 &&
      inet_ntop(AF_INET6, device_.gid.raw, text.data(), text.size()) != nullptr)
    link.gid = text.data();
  return link;
}

uint32_t VerbsPsn(uint64_t connection, PeerId from, PeerId to) {
  const uint64_t direction = (uint64_t{from} << 8 | to) + 1;
  return static_cast<uint32_t>(Mix(Mix(connection + 0x9E3779B97F4A7C15) ^ Mix(direction))) &
         0xFFFFFF;
}

Nanoseconds VerbsStallBound(const VerbsOptions& options) {
  if (options.stall_us != 0) return Nanoseconds{options.stall_us} * 1000;
  // The InfiniBand specification's waits for a receive, in units of 10 µs.
  static constexpr std::array<uint32_t, 32> kRnr = {
      65536, 1,    2,    3,    4,    6,     8,     12,    16,    24,   32,
      48,    64,   96,   128,  192,  256,   384,   512,   768,   1024, 1536,
      2048,  3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152};
  const Nanoseconds answer = Nanoseconds{4096} << options.timeout;
  const Nanoseconds receive = Nanoseconds{kRnr[options.min_rnr_timer % kRnr.size()]} * 10'000;
  // The specification lets a device take four times the timeout.
  return 4 * answer * (options.retry + 1) + 2 * receive * (options.rnr_retry + 1) + kSecond / 10;
}

Status MakeVerbsFabric(const VerbsOptions& options, PeerId self, std::unique_ptr<Fabric>* fabric) {
  FALCON_CHECK(self < kMaxMembers);
  if (options.send_queue < 16 || options.probe_us == 0 ||
      options.probe_late_us < options.probe_us || options.receives > kVerbsReceives ||
      options.send_queue > 8192 || options.staging_bytes < 4096 || options.port == 0 ||
      options.timeout == 0 || options.timeout > 31 || options.retry > 7 || options.rnr_retry > 6 ||
      options.min_rnr_timer > 31 || options.gid_index > 255)
    return {"VERBS_OPEN", "an option is out of range"};
  auto made = std::make_unique<VerbsFabricImpl>(options, self);
  Status status = made->Start();
  if (status.ok()) *fabric = std::move(made);
  return status;
}

}  // namespace falcon
