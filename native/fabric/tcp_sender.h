// One side's writes and reads to one peer: the queue of operations and the stream that carries it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "fabric/fabric.h"
#include "fabric/tcp_wire.h"
#include "os/unique_fd.h"

namespace falcon {

class TcpSender {
 public:
  enum class Phase : uint8_t { kClosed, kDialling, kGreeting, kUp };

  // Begins a connection on a dialled socket; both counts start at 0.
  void Start(UniqueFd fd, const TcpHello& hello, size_t queue_operations);
  // The stream ends, the counts stay. Sources may be touched by nobody afterwards.
  void Close();

  [[nodiscard]] Phase phase() const { return phase_; }
  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] uint64_t posted() const { return posted_; }
  [[nodiscard]] uint64_t completed() const { return completed_; }
  [[nodiscard]] bool full() const { return posted_ - completed_ == operations_.size(); }
  // Worth another try when the socket is writable: the kernel took no more, has not connected yet,
  // or was not offered everything.
  [[nodiscard]] bool wants_output() const {
    return blocked_ || (phase_ == Phase::kUp && sent_ < posted_);
  }
  // For the peer: its greeting, room, or the answer of a read.
  [[nodiscard]] bool waits() const {
    return phase_ != Phase::kUp || wants_output() || completed_ < sent_;
  }

  // `exposure`: that the region was attached by, or 0.
  void PostWrite(RemoteAddress to, uint16_t exposure,
                 std::span<const std::span<const std::byte>> pieces, size_t bytes);
  void PostRead(RemoteAddress from, uint16_t exposure, std::span<std::byte> into);

  // Both return false when the stream is broken. Flush does nothing while blocked.
  [[nodiscard]] bool Flush(int* done);
  [[nodiscard]] bool Receive(int* done);
  void OnWritable() { blocked_ = false; }
  // Moves completed() over what is done, in the order of posting. Returns operations.
  int Retire();

 private:
  struct Operation {
    TcpFrame frame;
    std::array<std::span<const std::byte>, Fabric::kMaxPieces> pieces;
    std::span<std::byte> into;  // of a read
    size_t wire_bytes;          // with the header
    bool is_read;
    bool answered;
  };
  Operation& At(uint64_t index) { return operations_[index % operations_.size()]; }
  Operation& Post(TcpFrame frame);
  bool SendHello();
  bool SendOperations(int* done);
  void NoteSent(size_t bytes, int* done);
  bool TakeGreeting(int* done);
  bool TakeAnswerHeader();
  bool FindRead();

  std::vector<Operation> operations_;
  UniqueFd fd_;
  TcpHello hello_{};
  Phase phase_ = Phase::kClosed;
  bool blocked_ = false;
  size_t hello_sent_ = 0;
  uint64_t posted_ = 0;
  uint64_t sent_ = 0;     // operations that the kernel has whole
  size_t sent_part_ = 0;  // bytes of the next one that it has
  uint64_t completed_ = 0;
  uint64_t answering_ = 0;  // the operation that the next answer may belong to, or a later one
  size_t answer_left_ = 0;  // bytes of its payload to come
  std::array<std::byte, sizeof(TcpWelcome)> header_{};
  size_t header_bytes_ = 0;
};

}  // namespace falcon
