// Those who dial us: taken in, heard, and admitted or refused.
#include <sys/epoll.h>

#include <utility>

#include "fabric/tcp_fabric.h"

namespace falcon {
namespace {

constexpr int kAcceptsPerPoll = 16;
constexpr Nanoseconds kNoRoomPause = 100 * kMillisecond;

}  // namespace

void TcpFabric::Accept() {
  for (int i = 0; i < kAcceptsPerPoll; ++i) {
    bool no_room = false;
    UniqueFd fd = AcceptTcp(listener_.get(), Tuning(), &no_room);
    if (no_room) {  // of descriptors: the listener would stay readable
      ++counters_.errors;
      listen_again_ = MonotonicNow() + kNoRoomPause;
      FALCON_CHECK(Watch(listener_.get(), 0, TcpEventKey(TcpPlace::kListener, 0, 0), false));
    }
    if (!fd.valid()) return;
    TakeGuest(std::move(fd));
  }
}

// With all places taken the one who must leave first leaves now.
void TcpFabric::TakeGuest(UniqueFd fd) {
  size_t index = 0;
  for (size_t i = 0; i < kMaxTcpGuests && guests_[index].fd.valid(); ++i) {
    if (!guests_[i].fd.valid() || guests_[i].leave_by < guests_[index].leave_by) index = i;
  }
  if (guests_[index].fd.valid()) Refuse(index);
  Guest& guest = guests_[index];
  guest.fd = std::move(fd);
  guest.serial = ++serials_ & kTcpSerialMask;
  guest.leave_by = MonotonicNow() + options_.greet_within;
  guest.count = 0;
  ++guest_count_;
  ++done_;
  if (!Watch(guest.fd.get(), EPOLLIN, TcpEventKey(TcpPlace::kGuest, index, guest.serial), true))
    return Refuse(index);
  HearGuest(index);  // a dialler that is connected says its hello at once
}

void TcpFabric::HearGuest(size_t index) {
  Guest& guest = guests_[index];
  if (guest.greeted()) return Refuse(index);  // it ended while it waited
  size_t got = 0;
  const TcpMoved moved =
      ReceiveTcp(guest.fd.get(), std::span(guest.bytes).subspan(guest.count), &got);
  if (moved == TcpMoved::kEnded) return Refuse(index);
  guest.count += got;
  if (!guest.greeted()) return;
  if (!IsSound(guest.hello(), member_.self, member_.token)) return Refuse(index);
  ++done_;
  // A peer waits once: its newest stream.
  for (size_t i = 0; i < kMaxTcpGuests; ++i) {
    if (i != index && guests_[i].fd.valid() && guests_[i].greeted() &&
        guests_[i].hello().from == guest.hello().from)
      Refuse(i);
  }
  Receive(index);
}

// Admits a guest whose connection is the current one. One that is not known yet waits, unheard.
void TcpFabric::Receive(size_t index) {
  Guest& guest = guests_[index];
  const TcpHello hello = guest.hello();
  Peer& peer = At(hello.from);
  if (peer.link != Link::kLive || peer.connection != hello.connection) {
    const uint64_t key = TcpEventKey(TcpPlace::kGuest, index, guest.serial);
    if (WasRetired(peer, hello.connection) || !Watch(guest.fd.get(), 0, key, false)) Refuse(index);
    return;
  }
  const TcpWelcome welcome = MakeTcpWelcome(hello.connection);
  size_t sent = 0;
  if (SendTcp(guest.fd.get(), std::as_bytes(std::span(&welcome, 1)), &sent) != TcpMoved::kSome ||
      sent != sizeof welcome)
    return Refuse(index);
  peer.receiver.Start(std::move(guest.fd));
  peer.receiver_serial = ++serials_ & kTcpSerialMask;
  peer.receiver_watch = EPOLLIN;
  --guest_count_;
  ++done_;
  FALCON_CHECK(Watch(peer.receiver.fd(), EPOLLIN,
                     TcpEventKey(TcpPlace::kReceiver, hello.from, peer.receiver_serial), false));
}

void TcpFabric::Refuse(size_t index) {
  guests_[index].fd.Reset();
  --guest_count_;
  ++counters_.errors;
  ++done_;
}

}  // namespace falcon
