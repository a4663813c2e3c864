// What a client on the LAN sends to the built-in service, and who says what there.
//
//   lan_probe INTERFACE...
//
// Every line of hexadecimal digits on standard input is sent as a frame on the first interface.
// Every frame of the service's ethertype that comes in on one of them is a line on standard output:
// CLOCK_MONOTONIC in nanoseconds, the interface, the frame in hexadecimal digits.
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "os/clock.h"
#include "vm/builtin_service.h"

namespace {

constexpr size_t kFrameBytes = 2048;

[[noreturn]] void Die(const char* what) {
  std::perror(what);
  std::exit(1);
}

int OpenPacketSocket(const char* interface) {
  // All protocols: a bridge takes the frames of its ports before those of one protocol are told.
  const int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL));
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(ETH_P_ALL);
  address.sll_ifindex = static_cast<int>(if_nametoindex(interface));
  if (fd < 0 || address.sll_ifindex == 0 ||
      bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    Die(interface);
  return fd;
}

void Report(int fd, const char* interface) {
  unsigned char frame[kFrameBytes];
  sockaddr_ll from{};
  socklen_t from_bytes = sizeof from;
  const ssize_t got = recvfrom(fd, frame, sizeof frame, MSG_DONTWAIT,
                               reinterpret_cast<sockaddr*>(&from), &from_bytes);
  if (got < ETH_HLEN || from.sll_pkttype == PACKET_OUTGOING ||
      (frame[12] << 8 | frame[13]) != falcon::kBuiltinEthertype)
    return;
  std::printf("%lld %s ", static_cast<long long>(falcon::MonotonicNow()), interface);
  for (ssize_t i = 0; i < got; ++i) std::printf("%02x", frame[i]);
  std::printf("\n");
  std::fflush(stdout);
}

void SendLine(int fd, const std::string& line) {
  std::vector<unsigned char> frame(line.size() / 2);
  for (size_t i = 0; i < frame.size(); ++i)
    frame[i] = static_cast<unsigned char>(std::stoul(line.substr(2 * i, 2), nullptr, 16));
  // A busy wire loses frames; whoever sent it asks again.
  static_cast<void>(send(fd, frame.data(), frame.size(), 0) >= 0);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) Die("usage: lan_probe INTERFACE...");
  std::vector<pollfd> waiting{{STDIN_FILENO, POLLIN, 0}};
  for (int i = 1; i < argc; ++i) waiting.push_back({OpenPacketSocket(argv[i]), POLLIN, 0});
  std::string input;
  std::printf("ready\n");
  std::fflush(stdout);
  for (;;) {
    if (poll(waiting.data(), waiting.size(), -1) < 0) Die("poll");
    for (size_t i = 1; i < waiting.size(); ++i) {
      if ((waiting[i].revents & POLLIN) != 0) Report(waiting[i].fd, argv[i]);
    }
    if (waiting[0].revents == 0) continue;
    char chunk[4096];
    const ssize_t got = read(STDIN_FILENO, chunk, sizeof chunk);
    if (got <= 0) return 0;
    input.append(chunk, static_cast<size_t>(got));
    for (size_t end = input.find('\n'); end != std::string::npos; end = input.find('\n')) {
      SendLine(waiting[1].fd, input.substr(0, end));
      input.erase(0, end + 1);
    }
  }
}
