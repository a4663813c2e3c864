#include "fabric/tcp_sender.h"

#include <sys/uio.h>

#include <algorithm>
#include <utility>

#include "fabric/tcp_socket.h"
#include "os/check.h"

namespace falcon {
namespace {

constexpr size_t kIovecs = 128;       // of one system call
constexpr int kSendsPerFlush = 8;     // the rest waits for the next Poll
constexpr int kReceivesPerPoll = 64;  // likewise

}  // namespace

void TcpSender::Start(UniqueFd fd, const TcpHello& hello, size_t queue_operations) {
  FALCON_CHECK(queue_operations > 0);
  operations_.resize(queue_operations);
  fd_ = std::move(fd);
  hello_ = hello;
  phase_ = Phase::kDialling;
  blocked_ = true;
  hello_sent_ = sent_part_ = answer_left_ = header_bytes_ = 0;
  posted_ = sent_ = completed_ = answering_ = 0;
}

void TcpSender::Close() {
  fd_.Reset();
  phase_ = Phase::kClosed;
  blocked_ = false;
}

TcpSender::Operation& TcpSender::Post(TcpFrame frame) {
  FALCON_CHECK(phase_ != Phase::kClosed && !full());
  Operation& operation = At(posted_++);
  operation = {};
  operation.frame = frame;
  operation.wire_bytes = sizeof frame;
  return operation;
}

void TcpSender::PostWrite(RemoteAddress to, uint16_t exposure,
                          std::span<const std::span<const std::byte>> pieces, size_t bytes) {
  FALCON_CHECK(pieces.size() <= Fabric::kMaxPieces);
  Operation& operation = Post(MakeTcpFrame(TcpKind::kWrite, to, bytes, posted_ + 1, exposure));
  std::copy(pieces.begin(), pieces.end(), operation.pieces.begin());
  operation.wire_bytes += bytes;
}

void TcpSender::PostRead(RemoteAddress from, uint16_t exposure, std::span<std::byte> into) {
  Operation& operation =
      Post(MakeTcpFrame(TcpKind::kRead, from, into.size(), posted_ + 1, exposure));
  operation.into = into;
  operation.is_read = true;
}

bool TcpSender::Flush(int* done) {
  if (blocked_ || phase_ == Phase::kClosed) return true;
  if (phase_ == Phase::kDialling) {
    if (TcpError(fd_.get()) != 0) return false;
    phase_ = Phase::kGreeting;
    ++*done;
  }
  if (phase_ == Phase::kGreeting) return SendHello();
  return SendOperations(done);
}

bool TcpSender::SendHello() {
  while (hello_sent_ < sizeof hello_) {
    size_t sent = 0;
    const auto rest = std::as_bytes(std::span(&hello_, 1)).subspan(hello_sent_);
    const TcpMoved moved = SendTcp(fd_.get(), rest, &sent);
    if (moved == TcpMoved::kEnded) return false;
    blocked_ = moved == TcpMoved::kLater;
    if (blocked_) return true;
    hello_sent_ += sent;
  }
  return true;
}

bool TcpSender::SendOperations(int* done) {
  for (int i = 0; i < kSendsPerFlush && sent_ < posted_; ++i) {
    std::array<iovec, kIovecs> vectors;
    size_t count = 0;
    size_t skip = sent_part_;
    const auto add = [&](std::span<const std::byte> bytes) {
      const size_t skipped = std::min(skip, bytes.size());
      skip -= skipped;
      if (bytes.size() == skipped) return;
      vectors[count++] = {const_cast<std::byte*>(bytes.data()) + skipped, bytes.size() - skipped};
    };
    for (uint64_t at = sent_; at < posted_ && count + 1 + Fabric::kMaxPieces <= kIovecs; ++at) {
      const Operation& operation = At(at);
      add(std::as_bytes(std::span(&operation.frame, 1)));
      for (const auto piece : operation.pieces) add(piece);
    }
    size_t sent = 0;
    const TcpMoved moved = SendTcp(fd_.get(), vectors.data(), count, &sent);
    if (moved == TcpMoved::kEnded) return false;
    blocked_ = moved == TcpMoved::kLater;
    if (blocked_) return true;
    NoteSent(sent, done);
  }
  return true;
}

void TcpSender::NoteSent(size_t bytes, int* done) {
  sent_part_ += bytes;
  while (sent_ < posted_ && sent_part_ >= At(sent_).wire_bytes) {
    sent_part_ -= At(sent_).wire_bytes;
    ++sent_;
  }
  FALCON_CHECK(sent_ < posted_ || sent_part_ == 0);
  ++*done;
}

bool TcpSender::Receive(int* done) {
  for (int i = 0; i < kReceivesPerPoll; ++i) {
    const bool greeting = phase_ != Phase::kUp;
    std::span<std::byte> into =
        std::span(header_).first(greeting ? sizeof(TcpWelcome) : sizeof(TcpFrame));
    into = into.subspan(header_bytes_);
    if (answer_left_ > 0) into = At(answering_).into.last(answer_left_);
    size_t got = 0;
    const TcpMoved moved = ReceiveTcp(fd_.get(), into, &got);
    if (moved != TcpMoved::kSome) return moved == TcpMoved::kLater;
    if (answer_left_ > 0) {
      answer_left_ -= got;
    } else {
      header_bytes_ += got;
      if (got < into.size()) continue;
      header_bytes_ = 0;
      if (!(greeting ? TakeGreeting(done) : TakeAnswerHeader())) return false;
      if (greeting) continue;
    }
    if (answer_left_ > 0) continue;
    At(answering_++).answered = true;
    ++*done;
  }
  return true;
}

bool TcpSender::TakeGreeting(int* done) {
  TcpWelcome welcome;
  std::memcpy(&welcome, header_.data(), sizeof welcome);
  if (hello_sent_ < sizeof hello_ || !IsSound(welcome, hello_.connection)) return false;
  phase_ = Phase::kUp;
  ++*done;
  return true;
}

// Answers come in the order of the reads. False: none is waited for.
bool TcpSender::FindRead() {
  while (answering_ < sent_ && !At(answering_).is_read) ++answering_;
  return answering_ < sent_;
}

bool TcpSender::TakeAnswerHeader() {
  TcpFrame frame;
  std::memcpy(&frame, header_.data(), sizeof frame);
  if (!FindRead()) return false;
  const Operation& read = At(answering_);
  if (!IsSound(frame, answering_ + 1) || frame.kind != TcpKind::kAnswer) return false;
  if (frame.exposure != read.frame.exposure || frame.region != read.frame.region ||
      frame.offset != read.frame.offset || frame.length != read.frame.length)
    return false;
  answer_left_ = frame.length;
  return true;
}

int TcpSender::Retire() {
  const uint64_t before = completed_;
  while (completed_ < sent_ && (!At(completed_).is_read || At(completed_).answered)) ++completed_;
  answering_ = std::max(answering_, completed_);
  return static_cast<int>(completed_ - before);
}

}  // namespace falcon
