// The tcp fabric as a bed of the conformance suite, and what its own cases need: members on the
// loopback, streams by hand, child processes.
#pragma once

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>

#include "child_process.h"
#include "fabric/tcp.h"
#include "fabric/tcp_wire.h"
#include "fabric_bed.h"
#include "os/clock.h"
#include "os/unique_fd.h"

namespace falcon::test::tcp {

inline constexpr Nanoseconds kPatience = 20 * kSecond;
inline constexpr size_t kQueue = 256;

inline TcpFabricOptions Local() {
  TcpFabricOptions options;
  options.address = "127.0.0.1";
  options.queue_operations = kQueue;
  return options;
}

inline std::unique_ptr<Fabric> MakeMember(PeerId self, const TcpFabricOptions& options = Local()) {
  std::unique_ptr<Fabric> fabric;
  const Status status = MakeTcpFabric(options, self, &fabric);
  if (status.ok() && fabric->AddRegion(0, kRegion0Bytes).ok() &&
      fabric->AddRegion(1, kRegion1Bytes).ok())
    return fabric;
  std::printf("# %s %s\n", status.code(), status.detail().c_str());
  return nullptr;
}

class TcpBed final : public FabricBed {
 public:
  [[nodiscard]] const char* name() const override { return "tcp"; }
  void Start(PeerId member) override {
    fabrics_[member].reset();
    fabrics_[member] = MakeMember(member);
    CHECK(fabrics_[member] != nullptr);
  }
  [[nodiscard]] Fabric& at(PeerId member) override { return *fabrics_[member]; }
  void Close(PeerId member) override { fabrics_[member].reset(); }
  // The kernel ends the streams of a dead process as it does those of a closed one; the case with
  // a child process below shows it.
  void Kill(PeerId member) override { Close(member); }
  // Quiet for a while, and for many a look, is as near as one can come: nobody sees what is inside
  // the kernel.
  void Drive() override {
    Nanoseconds last = MonotonicNow();
    for (int looks = 0; looks < 64 || MonotonicNow() - last < kMillisecond / 2; ++looks) {
      if (!Step()) continue;
      last = MonotonicNow();
      looks = 0;
    }
  }
  bool Step() override {
    int done = 0;
    for (const auto& fabric : fabrics_) done += fabric == nullptr ? 0 : fabric->Poll();
    return done > 0;
  }
  void KeepLate(PeerId /*from*/, PeerId /*to*/) override {}
  void DeliverLate(PeerId /*from*/, PeerId /*to*/) override {}
  // Memory changes when its owner polls, and nobody polls for a member that only looks.
  [[nodiscard]] bool concurrent() const override { return false; }
  [[nodiscard]] bool sleeps() const override { return true; }
  [[nodiscard]] bool rings() const override { return false; }
  [[nodiscard]] size_t queue_bound() const override { return kQueue; }
  [[nodiscard]] size_t Leftovers() const override { return 0; }

 private:
  std::array<std::unique_ptr<Fabric>, kMaxMembers> fabrics_;
};

inline bool PollUntil(std::initializer_list<Fabric*> fabrics, const std::function<bool()>& done,
                      Nanoseconds patience = kPatience) {
  const Nanoseconds give_up = MonotonicNow() + patience;
  while (!done()) {
    for (Fabric* fabric : fabrics) fabric->Poll();
    if (MonotonicNow() > give_up) return false;
  }
  return true;
}

inline bool ConnectBoth(Fabric& a, PeerId a_id, Fabric& b, PeerId b_id, uint64_t connection) {
  if (!a.Connect(b_id, connection, b.Descriptor()).ok()) return false;
  if (!b.Connect(a_id, connection, a.Descriptor()).ok()) return false;
  return PollUntil(
      {&a, &b}, [&] { return a.State(b_id) == PeerState::kUp && b.State(a_id) == PeerState::kUp; });
}

// A stream by hand to a member's port.
inline UniqueFd DialByHand(const Fabric& fabric) {
  TcpMember member;
  CHECK(TcpMember::Parse(fabric.Descriptor(), &member).ok());
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(member.port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  CHECK(connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  const int on = 1;
  setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return fd;
}

inline TcpHello HelloTo(const Fabric& fabric, PeerId from, uint64_t connection) {
  TcpMember member;
  CHECK(TcpMember::Parse(fabric.Descriptor(), &member).ok());
  return MakeTcpHello(from, member.self, connection, member.token);
}

template <typename Message>
void Say(int fd, const Message& message) {
  static_cast<void>(send(fd, &message, sizeof message, MSG_NOSIGNAL));
}

inline bool WasClosed(int fd) {
  char bytes[256];
  ssize_t got = 0;
  while ((got = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT)) > 0) {
  }
  return got == 0 || errno == ECONNRESET;
}

}  // namespace falcon::test::tcp
