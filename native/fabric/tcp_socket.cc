#include "fabric/tcp_socket.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace falcon {
namespace {

Status Failed(const std::string& what) { return {"FABRIC_CONNECT", ErrnoText(what, errno)}; }

bool Set(int fd, int level, int option, int value) {
  return setsockopt(fd, level, option, &value, sizeof value) == 0;
}

// Before connect or listen, which is when the window's scale is settled; accepted sockets inherit.
bool SizeBuffers(int fd, const TcpTuning& tuning) {
  if (tuning.buffer_bytes == 0) return true;
  const int bytes = static_cast<int>(std::min<size_t>(tuning.buffer_bytes, 1 << 30));
  return Set(fd, SOL_SOCKET, SO_SNDBUF, bytes) && Set(fd, SOL_SOCKET, SO_RCVBUF, bytes);
}

// The user timeout bounds how long sent bytes stay unacknowledged and a window stays shut;
// keep-alive probes do the same for a stream on which nothing is sent.
bool Tune(int fd, const TcpTuning& tuning) {
  const int dead_ms = static_cast<int>(tuning.dead_after / kMillisecond);
  const int dead_seconds = std::max(2, dead_ms / 1000);
  return Set(fd, IPPROTO_TCP, TCP_NODELAY, 1) && Set(fd, SOL_SOCKET, SO_KEEPALIVE, 1) &&
         Set(fd, IPPROTO_TCP, TCP_KEEPIDLE, dead_seconds / 2) &&
         Set(fd, IPPROTO_TCP, TCP_KEEPINTVL, 1) &&
         Set(fd, IPPROTO_TCP, TCP_KEEPCNT, dead_seconds - dead_seconds / 2) &&
         Set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, dead_ms);
}

}  // namespace

Status ParseTcpAddress(const std::string& text, uint16_t port, TcpAddress* address) {
  *address = {};
  auto* v4 = reinterpret_cast<sockaddr_in*>(&address->storage);
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&address->storage);
  if (inet_pton(AF_INET, text.c_str(), &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(port);
    address->length = sizeof *v4;
    address->wildcard = v4->sin_addr.s_addr == htonl(INADDR_ANY);
    return Ok();
  }
  if (inet_pton(AF_INET6, text.c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(port);
    address->length = sizeof *v6;
    address->wildcard = IN6_IS_ADDR_UNSPECIFIED(&v6->sin6_addr);
    return Ok();
  }
  return {"FABRIC_CONNECT", "not a numeric address: " + text};
}

Status ListenTcp(const TcpAddress& address, const TcpTuning& tuning, UniqueFd* listener,
                 uint16_t* port) {
  UniqueFd fd(socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return Failed("socket");
  if (!Set(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1) || !SizeBuffers(fd.get(), tuning))
    return Failed("setsockopt");
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address.storage), address.length) != 0)
    return Failed("bind");
  if (listen(fd.get(), 64) != 0) return Failed("listen");
  sockaddr_storage bound{};
  socklen_t length = sizeof bound;
  if (getsockname(fd.get(), reinterpret_cast<sockaddr*>(&bound), &length) != 0)
    return Failed("getsockname");
  *port = ntohs(bound.ss_family == AF_INET ? reinterpret_cast<sockaddr_in*>(&bound)->sin_port
                                           : reinterpret_cast<sockaddr_in6*>(&bound)->sin6_port);
  *listener = std::move(fd);
  return Ok();
}

Status DialTcp(const TcpAddress& address, const TcpTuning& tuning, UniqueFd* dialled) {
  UniqueFd fd(socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return Failed("socket");
  if (!SizeBuffers(fd.get(), tuning) || !Tune(fd.get(), tuning)) return Failed("setsockopt");
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address.storage), address.length) != 0 &&
      errno != EINPROGRESS)
    return Failed("connect");
  errno = TcpError(fd.get());
  if (errno != 0) return Failed("connect");
  *dialled = std::move(fd);
  return Ok();
}

int TcpError(int fd) {
  int error = 0;
  socklen_t length = sizeof error;
  return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) == 0 ? error : errno;
}

UniqueFd AcceptTcp(int listener, const TcpTuning& tuning, bool* no_room) {
  *no_room = false;
  UniqueFd fd(accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (fd.valid()) {
    if (!Tune(fd.get(), tuning)) fd.Reset();
    return fd;
  }
  *no_room = errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;
  return fd;
}

TcpMoved ReceiveTcp(int fd, std::span<std::byte> into, size_t* bytes) {
  ssize_t got = 0;
  do {
    got = recv(fd, into.data(), into.size(), MSG_DONTWAIT);
  } while (got < 0 && errno == EINTR);
  *bytes = got > 0 ? static_cast<size_t>(got) : 0;
  if (got > 0) return TcpMoved::kSome;
  return got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? TcpMoved::kLater : TcpMoved::kEnded;
}

TcpMoved SendTcp(int fd, iovec* pieces, size_t count, size_t* bytes) {
  msghdr message{};
  message.msg_iov = pieces;
  message.msg_iovlen = count;
  ssize_t sent = 0;
  do {
    sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  *bytes = sent > 0 ? static_cast<size_t>(sent) : 0;
  if (sent >= 0) return TcpMoved::kSome;
  return errno == EAGAIN || errno == EWOULDBLOCK ? TcpMoved::kLater : TcpMoved::kEnded;
}

TcpMoved SendTcp(int fd, std::span<const std::byte> bytes, size_t* sent) {
  iovec piece{const_cast<std::byte*>(bytes.data()), bytes.size()};
  return SendTcp(fd, &piece, 1, sent);
}

}  // namespace falcon
