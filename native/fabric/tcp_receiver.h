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

// What one peer may reach: our regions, and what is exposed to it.
struct TcpReach {
  std::array<std::span<std::byte>, kMaxRegions> regions;
  std::array<uint16_t, kMaxRegions> exposures{};  // 0: a region of our own

  [[nodiscard]] bool Has(const TcpFrame& frame) const {
    return frame.region < kMaxRegions && frame.exposure == exposures[frame.region];
  }
};

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
  [[nodiscard]] bool Serve(const TcpReach& reach, int* done);

 private:
  static constexpr size_t kMaxAnswers = 64;  // then no more is taken off the stream
  bool Receive(const TcpReach& reach, int* done);
  bool Apply(const TcpReach& reach, int* done);
  bool TakeHeader(const TcpReach& reach, int* done);
  size_t ApplyPayload(std::span<std::byte> region, std::span<const std::byte> bytes);
  bool Answer(const TcpReach& reach, int* done);
  bool FillOutput(const TcpReach& reach);

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
