#include "fabric/tcp_receiver.h"

#include <algorithm>
#include <utility>

#include "fabric/shared_copy.h"
#include "fabric/tcp_socket.h"

namespace falcon {
namespace {

constexpr size_t kBufferBytes = 128 << 10;
constexpr int kReceivesPerServe = 16;
constexpr int kSendsPerServe = 16;
constexpr int kTurnsPerServe = 128;  // more than a buffer full of reads takes

}  // namespace

void TcpReceiver::Start(UniqueFd fd) {
  std::vector<std::byte> input = std::move(input_);
  std::vector<std::byte> output = std::move(output_);
  *this = TcpReceiver();
  input_ = std::move(input);
  output_ = std::move(output);
  input_.resize(kBufferBytes);
  fd_ = std::move(fd);
}

bool TcpReceiver::Serve(const TcpReach& reach, int* done) {
  // Reads that wait in the input, for earlier ones to be answered, are announced by no event.
  for (int turn = 0; turn < kTurnsPerServe; ++turn) {
    if (!Receive(reach, done)) return false;
    const bool waited = !wants_input();
    if (!Answer(reach, done)) return false;
    if (!waited || !wants_input()) break;
  }
  return true;
}

bool TcpReceiver::Receive(const TcpReach& reach, int* done) {
  for (int i = 0; i < kReceivesPerServe; ++i) {
    if (!Apply(reach, done)) return false;
    if (!wants_input()) return true;
    const std::span<std::byte> space = std::span(input_).subspan(input_bytes_);
    size_t got = 0;
    const TcpMoved moved = ReceiveTcp(fd_.get(), space, &got);
    if (moved != TcpMoved::kSome) return moved == TcpMoved::kLater;
    input_bytes_ += got;
    ++*done;
    if (got < space.size()) break;
  }
  return Apply(reach, done);
}

// Uses up the input but for a remainder that is shorter than a header or a word, and moves that to
// the front. With too many answers to give, whole frames remain.
bool TcpReceiver::Apply(const TcpReach& reach, int* done) {
  while (input_at_ < input_bytes_) {
    if (!writing_) {
      if (input_bytes_ - input_at_ < sizeof(TcpFrame) || !wants_input()) break;
      if (!TakeHeader(reach, done)) return false;
      continue;
    }
    if (!reach.Has(write_)) return false;  // concealed since it began
    const size_t used = ApplyPayload(reach.regions[write_.region],
                                     std::span(input_).first(input_bytes_).subspan(input_at_));
    if (used == 0) break;
    input_at_ += used;
  }
  std::memmove(input_.data(), input_.data() + input_at_, input_bytes_ - input_at_);
  input_bytes_ -= input_at_;
  input_at_ = 0;
  return true;
}

bool TcpReceiver::TakeHeader(const TcpReach& reach, int* done) {
  TcpFrame frame;
  std::memcpy(&frame, input_.data() + input_at_, sizeof frame);
  input_at_ += sizeof frame;
  if (!IsSound(frame, ++frames_)) return false;
  if (!reach.Has(frame)) return false;
  std::array<uint64_t, kMaxRegions> sizes{};
  for (RegionId region = 0; region < kMaxRegions; ++region)
    sizes[region] = reach.regions[region].size();
  if (!IsWithin(sizes, {frame.region, frame.offset}, frame.length)) return false;
  ++*done;
  if (frame.kind == TcpKind::kRead) {
    answer_queue_[(answer_head_ + answers_++) % kMaxAnswers] = frame;
    return true;
  }
  if (frame.kind != TcpKind::kWrite) return false;
  write_ = frame;
  write_at_ = 0;
  writing_ = frame.length > 0;
  return true;
}

// A word of which only the front has come waits for the rest. Returns bytes used.
size_t TcpReceiver::ApplyPayload(std::span<std::byte> region, std::span<const std::byte> bytes) {
  const uint64_t at = write_.offset + write_at_;
  size_t count = std::min<size_t>(bytes.size(), write_.length - write_at_);
  if (count < write_.length - write_at_) count -= std::min<size_t>(count, (at + count) % 8);
  const std::span<const std::byte> pieces[] = {bytes.first(count)};
  CopyIntoShared(region.data() + at, pieces);
  write_at_ += count;
  writing_ = write_at_ < write_.length;
  return count;
}

bool TcpReceiver::Answer(const TcpReach& reach, int* done) {
  for (int i = 0; i < kSendsPerServe; ++i) {
    if (output_at_ == output_bytes_ && !FillOutput(reach)) return false;
    if (output_at_ == output_bytes_) return true;
    size_t sent = 0;
    const auto rest = std::span(output_).first(output_bytes_).subspan(output_at_);
    const TcpMoved moved = SendTcp(fd_.get(), rest, &sent);
    if (moved != TcpMoved::kSome) return moved == TcpMoved::kLater;
    output_at_ += sent;
    ++*done;
  }
  return true;
}

// False: what is to be read was concealed meanwhile.
bool TcpReceiver::FillOutput(const TcpReach& reach) {
  output_at_ = output_bytes_ = 0;
  if (answers_ == 0) return true;
  output_.resize(kBufferBytes);
  while (answers_ > 0 && output_.size() - output_bytes_ > sizeof(TcpFrame)) {
    const TcpFrame& read = answer_queue_[answer_head_ % kMaxAnswers];
    if (!reach.Has(read)) return false;
    if (!answer_begun_) {
      const TcpFrame frame = MakeTcpFrame(TcpKind::kAnswer, {read.region, read.offset}, read.length,
                                          read.sequence, read.exposure);
      std::memcpy(output_.data() + output_bytes_, &frame, sizeof frame);
      output_bytes_ += sizeof frame;
      answer_begun_ = true;
      answer_at_ = 0;
    }
    const uint64_t at = read.offset + answer_at_;
    size_t count = std::min<size_t>(output_.size() - output_bytes_, read.length - answer_at_);
    if (count < read.length - answer_at_) count -= std::min<size_t>(count, (at + count) % 8);
    CopyFromShared(std::span(output_).subspan(output_bytes_, count),
                   reach.regions[read.region].data() + at);
    output_bytes_ += count;
    answer_at_ += count;
    if (answer_at_ < read.length) return true;
    answer_begun_ = false;
    ++answer_head_;
    --answers_;
  }
  return true;
}

}  // namespace falcon
