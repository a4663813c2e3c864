// What one peer sends here: frames taken off its stream, checked, and applied to our regions in
// order; its reads are answered over the same stream.
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

using TcpRegions = std::array<std::span<std::byte>, kMaxRegions>;

class TcpReceiver {
 public:
  void Start(UniqueFd fd);
  void Close() { fd_.Reset(); }

  [[nodiscard]] bool open() const { return fd_.valid(); }
  [[nodiscard]] int fd() const { return fd_.get(); }
  // What the socket should be watched for.
  [[nodiscard]] bool wants_input() const { return answers_ < kMaxAnswers; }
  [[nodiscard]] bool wants_output() const { return output_at_ < output_bytes_ || answers_ > 0; }

  // Does a bounded amount of what there is to do; what remains keeps the socket ready. False: the
  // stream has ended, or says what no peer of ours says.
  [[nodiscard]] bool Serve(const TcpRegions& regions, int* done);

 private:
  static constexpr size_t kMaxAnswers = 64;  // then no more is taken off the stream
  bool Receive(const TcpRegions& regions, int* done);
  bool Apply(const TcpRegions& regions, int* done);
  bool TakeHeader(const TcpRegions& regions, int* done);
  size_t ApplyPayload(const TcpRegions& regions, std::span<const std::byte> bytes);
  bool Answer(const TcpRegions& regions, int* done);
  void FillOutput(const TcpRegions& regions);

  UniqueFd fd_;
  std::vector<std::byte> input_;
  size_t input_at_ = 0;     // bytes that were used
  size_t input_bytes_ = 0;  // bytes that are there
  uint64_t frames_ = 0;
  TcpFrame write_{};     // whose payload is being taken
  size_t write_at_ = 0;  // bytes of it in our memory
  bool writing_ = false;
  std::array<TcpFrame, kMaxAnswers> answer_queue_{};
  uint64_t answer_head_ = 0;  // the one that is being sent
  size_t answers_ = 0;
  size_t answer_at_ = 0;  // bytes of it in the output
  bool answer_begun_ = false;
  std::vector<std::byte> output_;
  size_t output_at_ = 0;
  size_t output_bytes_ = 0;
};

}  // namespace falcon
