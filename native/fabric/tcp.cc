#include "fabric/tcp.h"

#include <sys/epoll.h>
#include <sys/random.h>

#include <algorithm>
#include <utility>

#include "fabric/tcp_fabric.h"

namespace falcon {
namespace {

constexpr int kEventsPerPoll = 64;
// Up to so many peers' streams are read without asking first whether there is anything to read, and
// everything else is asked for in one of so many turns.
constexpr size_t kDirectReceivers = 4;
constexpr uint64_t kTurnsPerAsking = 16;

}  // namespace

Status TcpFabric::Start() {
  const std::string& advertised =
      options_.advertise.empty() ? options_.address : options_.advertise;
  TcpAddress address;
  if (Status s = ParseTcpAddress(advertised, 0, &address); !s.ok()) return s;
  if (address.wildcard) return {"FABRIC_CONNECT", "peers cannot dial the wildcard " + advertised};
  if (Status s = ParseTcpAddress(options_.address, options_.port, &address); !s.ok()) return s;
  if (Status s = ListenTcp(address, Tuning(), &listener_, &member_.port); !s.ok()) return s;
  member_.address = advertised;
  if (getrandom(member_.token.data(), member_.token.size(), 0) !=
      static_cast<ssize_t>(member_.token.size()))
    return {"FABRIC_CONNECT", ErrnoText("getrandom", errno)};
  events_.Reset(epoll_create1(EPOLL_CLOEXEC));
  wake_.Reset(epoll_create1(EPOLL_CLOEXEC));
  epoll_event event{};
  if (!events_.valid() || !wake_.valid() ||
      epoll_ctl(wake_.get(), EPOLL_CTL_ADD, events_.get(), &event) != 0 ||
      !Watch(listener_.get(), EPOLLIN, TcpEventKey(TcpPlace::kListener, 0, 0), true))
    return {"FABRIC_CONNECT", ErrnoText("epoll", errno)};
  return Ok();
}

Status TcpFabric::AddRegion(RegionId region, size_t bytes) {
  const std::string number = "region " + std::to_string(region);
  if (region >= kMaxRegions || bytes == 0 || bytes > kMaxTcpRegionBytes)
    return {"FABRIC_REGION", number + " of " + std::to_string(bytes) + " bytes is out of range"};
  if (!regions_[region].bytes().empty()) return {"FABRIC_REGION", number + " was made before"};
  if (connected_once_) return {"FABRIC_REGION", number + " comes after the first connection"};
  if (Status s = regions_[region].Make(bytes); !s.ok()) return s;
  own_.regions[region] = regions_[region].bytes();
  member_.region_bytes[region] = bytes;
  return Ok();
}

// ---- connections

Status TcpFabric::Connect(PeerId peer, uint64_t connection, std::string_view descriptor) {
  Disconnect(peer);
  Status status = Dial(peer, connection, descriptor);
  if (!status.ok()) {
    ++counters_.errors;
    Drop(peer, Link::kNone);
    return status;
  }
  // The peer may have been told of this connection first.
  for (size_t i = 0; i < kMaxTcpGuests; ++i) {
    if (guests_[i].fd.valid() && guests_[i].greeted() && guests_[i].hello().from == peer)
      Receive(i);
  }
  return status;
}

Status TcpFabric::Dial(PeerId id, uint64_t connection, std::string_view descriptor) {
  TcpMember member;
  if (Status s = TcpMember::Parse(descriptor, &member); !s.ok()) return s;
  if (member.self != id || id == member_.self)
    return {"FABRIC_CONNECT", "the descriptor is of another member"};
  TcpAddress address;
  if (Status s = ParseTcpAddress(member.address, member.port, &address); !s.ok()) return s;
  UniqueFd fd;
  if (Status s = DialTcp(address, Tuning(), &fd); !s.ok()) return s;
  Peer& peer = At(id);
  connected_once_ = true;
  peer.link = Link::kLive;
  peer.connection = connection;
  peer.region_bytes = member.region_bytes;
  peer.attached = {};
  peer.reach = own_;
  peer.answer_by = MonotonicNow() + options_.greet_within;
  peer.sender.Start(std::move(fd), MakeTcpHello(member_.self, id, connection, member.token),
                    options_.queue_operations);
  peer.sender_serial = ++serials_;
  peer.sender_watch = EPOLLIN | EPOLLOUT;
  if (!Watch(peer.sender.fd(), peer.sender_watch,
             TcpEventKey(TcpPlace::kSender, id, peer.sender_serial), true))
    return {"FABRIC_CONNECT", ErrnoText("epoll_ctl", errno)};
  return Ok();
}

void TcpFabric::Disconnect(PeerId peer) { Drop(peer, Link::kNone); }

// Closing a descriptor takes it out of the epoll set; events of it that were taken already do not
// find its serial any more.
void TcpFabric::Drop(PeerId id, Link after) {
  Peer& peer = At(id);
  if (peer.link == Link::kLive) {
    peer.retired[peer.retired_count++ % kRetiredTcpNumbers] = peer.connection;
  }
  peer.link = after;
  peer.sender.Close();
  peer.receiver.Close();
  peer.reach = {};
  peer.sender_serial = peer.receiver_serial = 0;
}

void TcpFabric::Break(PeerId id) {
  Drop(id, Link::kBroken);
  ++counters_.errors;
  ++done_;
}

bool TcpFabric::WasRetired(const Peer& peer, uint64_t connection) {
  const auto end = peer.retired.begin() +
                   static_cast<ptrdiff_t>(std::min(peer.retired_count, kRetiredTcpNumbers));
  return std::find(peer.retired.begin(), end, connection) != end;
}

PeerState TcpFabric::State(PeerId id) const {
  const Peer& peer = At(id);
  if (peer.link == Link::kBroken) return PeerState::kBroken;
  return peer.sender.phase() == TcpSender::Phase::kUp ? PeerState::kUp : PeerState::kDown;
}

// ---- operations

Status TcpFabric::Admissible(PeerId id, RemoteAddress address, size_t bytes) {
  const Peer& peer = At(id);
  if (peer.link != Link::kLive) {
    ++counters_.errors;
    return {"FABRIC_DOWN", "not connected"};
  }
  if (bytes > kMaxTcpOperationBytes || !IsWithin(peer.region_bytes, address, bytes)) {
    ++counters_.errors;
    return {"FABRIC_BOUNDS", "beyond the end of the peer's region"};
  }
  if (peer.sender.full()) return {"FABRIC_BUSY", ""};
  return Ok();
}

Status TcpFabric::Write(PeerId id, RemoteAddress to,
                        std::span<const std::span<const std::byte>> pieces) {
  FALCON_CHECK(pieces.size() <= kMaxPieces);
  size_t bytes = 0;
  for (const std::span<const std::byte> piece : pieces) bytes += piece.size();
  if (Status s = Admissible(id, to, bytes); !s.ok()) return s;
  Peer& peer = At(id);
  peer.sender.PostWrite(to, peer.attached[to.region], pieces, bytes);
  ++counters_.writes;
  counters_.written_bytes += bytes;
  return Ok();
}

Status TcpFabric::Read(PeerId id, RemoteAddress from, std::span<std::byte> into) {
  if (Status s = Admissible(id, from, into.size()); !s.ok()) return s;
  Peer& peer = At(id);
  peer.sender.PostRead(from, peer.attached[from.region], into);
  ++counters_.reads;
  return Ok();
}

// ---- progress

bool TcpFabric::Watch(int fd, uint32_t events, uint64_t key, bool is_new) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = key;
  return epoll_ctl(events_.get(), is_new ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event) == 0;
}

// Watches a peer's sockets for what they can use now, and for nothing that would wake us in vain.
void TcpFabric::WatchPeer(PeerId id) {
  Peer& peer = At(id);
  if (peer.link != Link::kLive) return;
  const uint32_t sender = EPOLLIN | (peer.sender.wants_output() ? uint32_t{EPOLLOUT} : 0);
  if (sender != peer.sender_watch) {
    peer.sender_watch = sender;
    FALCON_CHECK(Watch(peer.sender.fd(), sender,
                       TcpEventKey(TcpPlace::kSender, id, peer.sender_serial), false));
  }
  if (!peer.receiver.open()) return;
  const uint32_t receiver = (peer.receiver.wants_input() ? uint32_t{EPOLLIN} : 0) |
                            (peer.receiver.wants_output() ? uint32_t{EPOLLOUT} : 0);
  if (receiver == peer.receiver_watch) return;
  peer.receiver_watch = receiver;
  FALCON_CHECK(Watch(peer.receiver.fd(), receiver,
                     TcpEventKey(TcpPlace::kReceiver, id, peer.receiver_serial), false));
}

void TcpFabric::FlushPeer(PeerId id) {
  Peer& peer = At(id);
  if (peer.link != Link::kLive) return;
  if (!peer.sender.Flush(&done_)) return Break(id);
  WatchPeer(id);
}

void TcpFabric::ServeReceiver(PeerId id) {
  if (!At(id).receiver.Serve(At(id).reach, &done_)) return Break(id);
  WatchPeer(id);
}

int TcpFabric::Poll() {
  for (PeerId id = 0; id < kMaxMembers; ++id) FlushPeer(id);
  if (++turns_ % kTurnsPerAsking != 0 && MayReadDirectly()) {
    for (PeerId id = 0; id < kMaxMembers; ++id) {
      if (peers_[id].receiver.open()) ServeReceiver(id);
    }
  } else {
    Ask();
  }
  for (Peer& peer : peers_) done_ += peer.sender.Retire();
  return std::exchange(done_, 0);
}

// Nothing but writes of peers is waited for, and of few of them.
bool TcpFabric::MayReadDirectly() const {
  if (guest_count_ > 0 || listen_again_ != 0) return false;
  size_t receivers = 0;
  for (const Peer& peer : peers_) {
    receivers += peer.receiver.open() ? 1 : 0;
    if (peer.link == Link::kLive && peer.sender.waits()) return false;
  }
  return receivers > 0 && receivers <= kDirectReceivers;
}

void TcpFabric::Ask() {
  std::array<epoll_event, kEventsPerPoll> events;
  const int count = epoll_wait(events_.get(), events.data(), kEventsPerPoll, 0);
  for (int i = 0; i < count; ++i) Dispatch(events[static_cast<size_t>(i)].data.u64);
  WatchTheClock();
}

void TcpFabric::Dispatch(uint64_t key) {
  const auto place = static_cast<TcpPlace>(key >> 56);
  const auto index = static_cast<uint8_t>(key >> 48);
  const uint64_t serial = key & kTcpSerialMask;
  if (place == TcpPlace::kListener) return Accept();
  if (place == TcpPlace::kGuest) {
    if (guests_[index].fd.valid() && guests_[index].serial == serial) HearGuest(index);
    return;
  }
  Peer& peer = At(index);
  if (place == TcpPlace::kReceiver) {
    if (peer.receiver_serial == serial) ServeReceiver(index);
    return;
  }
  if (peer.sender_serial != serial) return;
  peer.sender.OnWritable();
  if (!peer.sender.Flush(&done_) || !peer.sender.Receive(&done_)) return Break(index);
  FlushPeer(index);
}

void TcpFabric::ArmWake() {
  armed_ = true;
  epoll_event event{};
  event.events = EPOLLIN;
  FALCON_CHECK(epoll_ctl(wake_.get(), EPOLL_CTL_MOD, events_.get(), &event) == 0);
  // What came before is in memory for the last look; what comes later is an event.
  turns_ = kTurnsPerAsking - 1;
  done_ = Poll();
}

void TcpFabric::DisarmWake() {
  if (!std::exchange(armed_, false)) return;
  epoll_event event{};
  if (epoll_wait(wake_.get(), &event, 1, 0) == 1) ++counters_.wakes_received;
  event = {};
  FALCON_CHECK(epoll_ctl(wake_.get(), EPOLL_CTL_MOD, events_.get(), &event) == 0);
}

// Looks at a clock only while somebody is waited for.
void TcpFabric::WatchTheClock() {
  bool waiting = guest_count_ > 0 || listen_again_ != 0;
  const auto dialling = [](const Peer& peer) {
    return peer.link == Link::kLive && peer.sender.phase() != TcpSender::Phase::kUp;
  };
  for (const Peer& peer : peers_) waiting = waiting || dialling(peer);
  if (!waiting) return;
  const Nanoseconds now = MonotonicNow();
  for (size_t i = 0; i < kMaxTcpGuests; ++i) {
    if (guests_[i].fd.valid() && now >= guests_[i].leave_by) Refuse(i);
  }
  for (PeerId id = 0; id < kMaxMembers; ++id) {
    if (dialling(peers_[id]) && now >= peers_[id].answer_by) Break(id);
  }
  if (listen_again_ == 0 || now < listen_again_) return;
  listen_again_ = 0;
  FALCON_CHECK(Watch(listener_.get(), EPOLLIN, TcpEventKey(TcpPlace::kListener, 0, 0), false));
}

Status MakeTcpFabric(const TcpFabricOptions& options, PeerId self,
                     std::unique_ptr<Fabric>* fabric) {
  FALCON_CHECK(self < kMaxMembers && options.queue_operations > 0);
  FALCON_CHECK(options.greet_within > 0 && options.dead_after >= 2 * kSecond);
  auto made = std::make_unique<TcpFabric>(options, self);
  Status status = made->Start();
  if (status.ok()) *fabric = std::move(made);
  return status;
}

}  // namespace falcon
