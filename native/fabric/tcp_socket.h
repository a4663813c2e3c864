// Sockets of the tcp fabric, none of which ever blocks.
#pragma once

#include <sys/socket.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "os/clock.h"
#include "os/status.h"
#include "os/unique_fd.h"

namespace falcon {

struct TcpAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;
  bool wildcard = false;
};

struct TcpTuning {
  size_t buffer_bytes = 0;  // 0: the kernel decides
  Nanoseconds dead_after = 0;
};

// A numeric address. Errors: FABRIC_CONNECT, as those of the others.
Status ParseTcpAddress(const std::string& text, uint16_t port, TcpAddress* address);
Status ListenTcp(const TcpAddress& address, const TcpTuning& tuning, UniqueFd* listener,
                 uint16_t* port);
// Begins to connect; a refusal that is known at once is an error.
Status DialTcp(const TcpAddress& address, const TcpTuning& tuning, UniqueFd* fd);
// What is pending on a dialled socket that has become writable: 0 or an errno.
[[nodiscard]] int TcpError(int fd);
// The next one who dialled us. Invalid: nobody, or `*no_room` for another descriptor.
UniqueFd AcceptTcp(int listener, const TcpTuning& tuning, bool* no_room);

enum class TcpMoved : uint8_t { kSome, kLater, kEnded };
// Up to into.size() bytes, at least one; kEnded: the stream is over, or it failed.
TcpMoved ReceiveTcp(int fd, std::span<std::byte> into, size_t* bytes);
TcpMoved SendTcp(int fd, iovec* pieces, size_t count, size_t* bytes);
TcpMoved SendTcp(int fd, std::span<const std::byte> bytes, size_t* sent);

}  // namespace falcon
