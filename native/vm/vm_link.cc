#include "vm/vm_link.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>

namespace falcon {
namespace {

// Sends the welcome; with descriptors if it is one that lets QEMU in.
bool SendWelcome(int socket, const FalconWelcome& welcome, const VmRings& rings) {
  iovec piece{const_cast<FalconWelcome*>(&welcome), sizeof welcome};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  const int fds[3] = {rings.memory_fd(), rings.to_falcond_fd(), rings.to_guest_fd()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fds)] = {};
  if (welcome.status == FALCON_STATUS_OK) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fds);
    std::memcpy(CMSG_DATA(header), fds, sizeof fds);
  }
  return sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) ==
         static_cast<ssize_t>(sizeof welcome);
}

}  // namespace

VmLink::~VmLink() {
  if (listener_.valid()) unlink(path_.c_str());
}

Status VmLink::Listen(const std::string& path, VmRings* rings) {
  sockaddr_un address{};
  if (path.size() >= sizeof address.sun_path)
    return {"VM_LINK", "socket path is too long: " + path};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  listener_.Reset(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener_.valid()) return {"VM_LINK", ErrnoText("socket", errno)};
  unlink(path.c_str());
  const mode_t mask = umask(0177);
  const int bound = bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address);
  const int error = errno;
  umask(mask);
  if (bound != 0) {
    listener_.Reset();
    return {"VM_LINK", ErrnoText("bind " + path, error)};
  }
  path_ = path;
  rings_ = rings;
  if (listen(listener_.get(), 4) != 0) return {"VM_LINK", ErrnoText("listen " + path, errno)};
  return Ok();
}

VmLink::Happened VmLink::Poll() {
  if (!listener_.valid()) return Happened::kNothing;
  if (connection_.valid()) {
    if (!attached_) return Answer();
    char byte = 0;
    const ssize_t got = recv(connection_.get(), &byte, 1, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
      // Somebody else may be knocking meanwhile: refused as busy.
      UniqueFd second(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (!second.valid()) return Happened::kNothing;
      SendWelcome(second.get(),
                  {FALCON_WELCOME_MAGIC, FALCON_LAYOUT_VERSION, FALCON_STATUS_BUSY, 0, 0}, *rings_);
      return Happened::kRefused;
    }
    connection_.Reset();
    attached_ = false;
    return Happened::kDetached;
  }
  return Accept();
}

VmLink::Happened VmLink::Accept() {
  connection_.Reset(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!connection_.valid()) return Happened::kNothing;
  return Answer();
}

VmLink::Happened VmLink::Answer() {
  FalconHello hello{};
  const ssize_t got = recv(connection_.get(), &hello, sizeof hello, MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return Happened::kNothing;
  FalconWelcome welcome{FALCON_WELCOME_MAGIC, FALCON_LAYOUT_VERSION, FALCON_STATUS_OK, 0,
                        rings_->total_bytes()};
  if (got != static_cast<ssize_t>(sizeof hello) || hello.magic != FALCON_HELLO_MAGIC) {
    connection_.Reset();
    return Happened::kRefused;
  }
  if (hello.version != FALCON_LAYOUT_VERSION) welcome.status = FALCON_STATUS_VERSION;
  if (!expected_) welcome.status = FALCON_STATUS_BUSY;
  const bool sent = SendWelcome(connection_.get(), welcome, *rings_);
  if (!sent || welcome.status != FALCON_STATUS_OK) {
    connection_.Reset();
    return Happened::kRefused;
  }
  attached_ = true;
  expected_ = false;
  return Happened::kAttached;
}

}  // namespace falcon
