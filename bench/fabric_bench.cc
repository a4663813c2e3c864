// One fabric, or the plainest thing that moves the same bytes (its floor), between two processes
// that both spin; prints one JSON object.
//
//   lat    one-sided writes there and back; half of it, as perftest's ib_write_lat counts
//   rate   as many writes as go, until the other side has seen the last one
//
// Usage: fabric_bench shm|tcp|verbs|floor-shm|floor-tcp lat|rate BYTES COUNT
// [FOLDER|DEVICE[,DEVICE]]
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fabric/shared_copy.h"
#include "fabric/shm.h"
#include "fabric/tcp.h"
#include "fabric/verbs.h"
#include "os/clock.h"
#include "program.h"

namespace {

using falcon::Fabric;
using falcon::MonotonicNow;
using falcon::Nanoseconds;
using falcon::PeerId;
using falcon::Status;
using falcon::bench::Fail;
using falcon::bench::Must;
using falcon::bench::PrintTimes;

constexpr size_t kRegionBytes = 1 << 20;
constexpr size_t kLastWord = kRegionBytes - 64;  // where the end of a rate run is told
constexpr size_t kPlaces = 64;                   // that a rate run writes to in turn
constexpr size_t kSources = 1024;  // that verbs sends from in turn: more than a send queue holds
constexpr uint64_t kWarmUp = 200;

struct Task {
  std::string fabric;
  bool rate = false;
  size_t bytes = 0;
  uint64_t count = 0;
  std::string where;  // shm: a folder; verbs: a device, or one for each side: a,b
};

// Two ends that move `bytes` at a time; the last eight say which time it is.
class End {
 public:
  virtual ~End() = default;
  virtual void Send(uint64_t number) = 0;  // to where Await looks
  virtual void Await(uint64_t number) = 0;
  virtual void Stream(uint64_t number) = 0;  // a write of a rate run
  virtual void StreamsUntil(uint64_t number) = 0;
  virtual void Report() {}
};

class FabricEnd final : public End {
 public:
  FabricEnd(const Task& task, PeerId self, int from, int to)
      : peer_(self == 0 ? 1 : 0),
        bytes_(task.bytes),
        sources_(task.fabric == "verbs" ? kSources : 1),
        data_(sources_ * task.bytes) {
    if (task.fabric == "shm") {
      Must(MakeShmFabric({task.where, "m" + std::to_string(self), self}, &fabric_));
    } else if (task.fabric == "tcp") {
      falcon::TcpFabricOptions options;
      options.address = "127.0.0.1";
      Must(MakeTcpFabric(options, self, &fabric_));
    } else {
      falcon::VerbsOptions options;
      const size_t comma = task.where.find(',');
      options.device = self == 0 || comma == std::string::npos ? task.where.substr(0, comma)
                                                               : task.where.substr(comma + 1);
      Must(MakeVerbsFabric(options, self, &fabric_));
      verbs_ = static_cast<falcon::VerbsFabric*>(fabric_.get());
    }
    Must(fabric_->AddRegion(0, kRegionBytes));
    // As a log is: sent from where it lies.
    Must(fabric_->AddSource(data_));
    std::string own = fabric_->Descriptor();
    own.resize(4096, ' ');  // what is read after it belongs to something else
    std::string other(4096, 0);
    if (write(to, own.data(), own.size()) != static_cast<ssize_t>(own.size())) Fail("pipe");
    if (read(from, other.data(), other.size()) != static_cast<ssize_t>(other.size()))
      Fail("the other side is gone");
    Must(fabric_->Connect(peer_, 1, other.substr(0, other.find_last_not_of(' ') + 1)));
    char byte = 0;
    if (write(to, &byte, 1) != 1 || read(from, &byte, 1) != 1) Fail("pipe");
    while (fabric_->State(peer_) == falcon::PeerState::kDown) fabric_->Poll();
  }
  void Send(uint64_t number) override { Post(number, 0); }
  void Await(uint64_t number) override { AwaitAt(bytes_ - 8, number); }
  void Stream(uint64_t number) override { Post(number, number % kPlaces * bytes_); }
  void StreamsUntil(uint64_t number) override {
    // The last place's word; earlier laps left smaller numbers there.
    AwaitAt(number % kPlaces * bytes_ + bytes_ - 8, number);
  }
  void Report() override {
    if (verbs_ == nullptr) return;
    const falcon::VerbsCounters counters = verbs_->verbs_counters();
    std::printf(",\"posted\":%llu,\"signaled\":%llu,\"inlined\":%llu,\"probes\":%llu",
                static_cast<unsigned long long>(counters.posted),
                static_cast<unsigned long long>(counters.signaled),
                static_cast<unsigned long long>(counters.inlined),
                static_cast<unsigned long long>(counters.probes));
  }

 private:
  void Post(uint64_t number, size_t offset) {
    const std::span<std::byte> source =
        std::span(data_).subspan(number % sources_ * bytes_, bytes_);
    std::memcpy(source.data() + source.size() - 8, &number, 8);
    const std::span<const std::byte> pieces[] = {source};
    while (true) {
      const Status status = fabric_->Write(peer_, {0, offset}, pieces);
      if (status.ok()) break;
      if (std::strcmp(status.code(), "FABRIC_BUSY") != 0) Must(status);
      fabric_->Poll();
    }
    fabric_->Ring(peer_);
    fabric_->Poll();
  }
  void AwaitAt(size_t offset, uint64_t number) {
    const std::byte* word = fabric_->region(0).data() + offset;
    while (falcon::LoadSharedWord(word) != number) {
      fabric_->Poll();
      if (fabric_->State(peer_) == falcon::PeerState::kBroken) Fail("the connection broke");
    }
  }

  const PeerId peer_;
  const size_t bytes_;
  const size_t sources_;
  std::vector<std::byte> data_;
  std::unique_ptr<Fabric> fabric_;
  falcon::VerbsFabric* verbs_ = nullptr;
};

// Shared memory, a copy and a release store.
class SharedEnd final : public End {
 public:
  SharedEnd(const Task& task, std::byte* out, std::byte* in)
      : out_(out), in_(in), data_(task.bytes) {}
  void Send(uint64_t number) override { Copy(number, 0); }
  void Await(uint64_t number) override { AwaitAt(data_.size() - 8, number); }
  void Stream(uint64_t number) override { Copy(number, number % kPlaces * data_.size()); }
  void StreamsUntil(uint64_t number) override {
    AwaitAt(number % kPlaces * data_.size() + data_.size() - 8, number);
  }

 private:
  void Copy(uint64_t number, size_t offset) {
    std::memcpy(out_ + offset, data_.data(), data_.size() - 8);
    falcon::StoreSharedWord(out_ + offset + data_.size() - 8, number);
  }
  void AwaitAt(size_t offset, uint64_t number) {
    while (falcon::LoadSharedWord(in_ + offset) != number) continue;
  }
  std::byte* const out_;
  const std::byte* const in_;
  std::vector<std::byte> data_;
};

// One stream of the loopback device.
class SocketEnd final : public End {
 public:
  SocketEnd(const Task& task, int socket) : socket_(socket), data_(task.bytes) {}
  void Send(uint64_t /*number*/) override {
    size_t sent = 0;
    while (sent < data_.size()) {
      const ssize_t some = send(socket_, data_.data() + sent, data_.size() - sent, 0);
      if (some <= 0) Fail("send");
      sent += static_cast<size_t>(some);
    }
  }
  void Await(uint64_t /*number*/) override { Take(data_.size()); }
  void Stream(uint64_t number) override { Send(number); }
  void StreamsUntil(uint64_t number) override {
    for (uint64_t i = 1; i <= number; ++i) Take(data_.size());
  }

 private:
  void Take(size_t bytes) {
    while (bytes > 0) {
      const ssize_t some = recv(socket_, data_.data(), bytes, MSG_DONTWAIT);
      if (some == 0) Fail("the other side is gone");
      if (some > 0) bytes -= static_cast<size_t>(some);
    }
  }
  const int socket_;
  std::vector<std::byte> data_;
};

// ---- the two processes

struct Meeting {
  int down[2];
  int up[2];
  std::byte* memory = nullptr;
  int sockets[2] = {-1, -1};

  explicit Meeting(const Task& task) {
    if (pipe(down) != 0 || pipe(up) != 0) Fail("pipe");
    if (task.fabric == "floor-shm") {
      void* base = mmap(nullptr, 2 * kRegionBytes, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
      if (base == MAP_FAILED) Fail("mmap");
      memory = static_cast<std::byte*>(base);
    }
    if (task.fabric == "floor-tcp") Sockets();
  }

  void Sockets() {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    auto* const generic = reinterpret_cast<sockaddr*>(&address);
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    sockets[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, generic, size) != 0 || listen(listener, 1) != 0 ||
        getsockname(listener, generic, &size) != 0 || connect(sockets[0], generic, size) != 0)
      Fail("loopback");
    sockets[1] = accept(listener, nullptr, nullptr);
    const int one = 1;
    for (const int each : sockets) setsockopt(each, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    close(listener);
  }

  [[nodiscard]] std::unique_ptr<End> Make(const Task& task, PeerId self) const {
    if (memory != nullptr) {
      std::byte* const other = memory + kRegionBytes;
      return std::make_unique<SharedEnd>(task, self == 0 ? other : memory,
                                         self == 0 ? memory : other);
    }
    if (sockets[0] >= 0) return std::make_unique<SocketEnd>(task, sockets[self]);
    return std::make_unique<FabricEnd>(task, self, self == 0 ? up[0] : down[0],
                                       self == 0 ? down[1] : up[1]);
  }
};

void Answer(End& end, const Task& task) {
  if (task.rate) {
    end.StreamsUntil(task.count);
    end.Send(~uint64_t{0});
    return;
  }
  for (uint64_t i = 1; i <= kWarmUp + task.count; ++i) {
    end.Await(i);
    end.Send(i);
  }
}

void Measure(End& end, const Task& task) {
  const Nanoseconds start = MonotonicNow();
  if (task.rate) {
    for (uint64_t i = 1; i <= task.count; ++i) end.Stream(i);
    end.Await(~uint64_t{0});
    const double seconds = static_cast<double>(MonotonicNow() - start) / 1e9;
    std::printf("{\"perSecond\":%.0f", static_cast<double>(task.count) / seconds);
    return;
  }
  std::vector<Nanoseconds> times;
  times.reserve(task.count);
  for (uint64_t i = 1; i <= kWarmUp + task.count; ++i) {
    const Nanoseconds from = MonotonicNow();
    end.Send(i);
    end.Await(i);
    if (i > kWarmUp) times.push_back((MonotonicNow() - from) / 2);
  }
  PrintTimes(std::move(times));
}

int Run(const Task& task) {
  const Meeting meeting(task);
  const pid_t child = fork();
  if (child < 0) Fail("fork");
  if (child == 0) {
    alarm(300);
    const std::unique_ptr<End> end = meeting.Make(task, 1);
    Answer(*end, task);
    char byte = 0;  // it stays until the other side has seen the answer
    return read(meeting.down[0], &byte, 1) == 1 ? 0 : 1;
  }
  int ended = 1;
  {
    const std::unique_ptr<End> end = meeting.Make(task, 0);
    Measure(*end, task);
    end->Report();
    std::printf("}\n");
    if (write(meeting.down[1], "", 1) != 1) Fail("pipe");
    waitpid(child, &ended, 0);
  }
  return ended == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Task task;
  if (argc >= 5) {
    task.fabric = argv[1];
    task.rate = std::string(argv[2]) == "rate";
    task.bytes = std::strtoull(argv[3], nullptr, 10);
    task.count = std::strtoull(argv[4], nullptr, 10);
    task.where = argc > 5 ? argv[5] : "";
  }
  if (task.bytes < 16 || task.bytes % 8 != 0 || task.bytes * kPlaces > kLastWord ||
      task.count == 0) {
    std::fprintf(stderr,
                 "usage: fabric_bench shm|tcp|verbs|floor-shm|floor-tcp lat|rate BYTES COUNT "
                 "[FOLDER|DEVICE[,DEVICE]]\n");
    return 2;
  }
  alarm(300);
  return Run(task);
}
