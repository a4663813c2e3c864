// A plain TCP endpoint for model tests, strict where Linux is strict: a segment that acknowledges
// what was never sent is dropped with its data, a reset counts only at exactly the next position,
// data beyond the window is dropped.
#pragma once

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <string>

#include "frame_builder.h"
#include "os/clock.h"
#include "vm/tcp_options.h"

namespace falcon::test {

class SimTcp {
 public:
  enum class State { kListen, kSynSent, kSynReceived, kOpen, kReset };

  SimTcp(bool is_guest, Seq iss, size_t buffer_bytes, uint16_t mss, uint8_t scale)
      : is_guest_(is_guest), iss_(iss), capacity_(buffer_bytes), mss_(mss), scale_(scale) {}

  // Where this endpoint's frames go.
  std::function<void(const Bytes&)> send;

  void Connect(Nanoseconds now) {
    state_ = State::kSynSent;
    Emit(kTcpSyn, 0, 0, now);
    ArmTimer(now);
  }
  void Write(const std::string& bytes, Nanoseconds now) {
    out_ += bytes;
    Push(now);
  }
  void Finish(Nanoseconds now) {
    fin_ = true;
    Push(now);
  }
  // Takes up to `most` bytes that have arrived.
  std::string Read(size_t most, Nanoseconds now) {
    const size_t before = Window();
    const size_t count = std::min(most, in_.size() - read_);
    const std::string taken = in_.substr(read_, count);
    read_ += count;
    if (before < mss_ && Window() >= mss_ && state_ == State::kOpen) Emit(kTcpAck, sent_, 0, now);
    return taken;
  }
  [[nodiscard]] bool open() const { return state_ == State::kOpen; }
  [[nodiscard]] bool reset() const { return state_ == State::kReset; }
  [[nodiscard]] bool peer_finished() const { return peer_fin_ && read_ == in_.size(); }
  [[nodiscard]] bool all_acknowledged() const { return fin_ && acked_ == Total(); }
  [[nodiscard]] const std::string& received() const { return in_; }
  [[nodiscard]] size_t acknowledged() const { return acked_; }
  [[nodiscard]] size_t sent() const { return sent_; }

  void Take(const Bytes& frame, Nanoseconds now) {
    const Packet p = ParseFrame(frame);
    if (p.kind != PacketKind::kTcp || !TcpChecksumsAreRight(frame, p)) return;
    if (state_ == State::kListen ||
        (state_ == State::kSynReceived && p.Has(kTcpSyn) && !p.Has(kTcpAck))) {
      return TakeSyn(frame, p, now);
    }
    if (state_ == State::kSynSent) return TakeSynAck(frame, p, now);
    if (state_ != State::kReset) TakeSegment(frame, p, now);
  }

  void Tick(Nanoseconds now) {
    if (timer_ == 0 || now < timer_) return;
    timer_ = 0;
    if (state_ == State::kSynSent) {
      Emit(kTcpSyn, 0, 0, now);
    } else if (state_ == State::kSynReceived) {
      Emit(kTcpSyn | kTcpAck, 0, 0, now);
    } else if (state_ == State::kOpen) {
      if (acked_ < sent_) {
        SendFrom(acked_, now);  // the first segment not acknowledged, as it was or larger
      } else if (acked_ < Total()) {
        EmitProbe(now);
      }
    }
    back_off_ = std::min(back_off_ + 1, 5);
    ArmTimer(now);
  }

 private:
  // Positions count payload bytes from 0; the FIN is one more.
  [[nodiscard]] size_t Total() const { return out_.size() + (fin_ ? 1 : 0); }
  [[nodiscard]] size_t Window() const {
    const size_t used = in_.size() - read_;
    return used >= capacity_ ? 0 : capacity_ - used;
  }
  void ArmTimer(Nanoseconds now) { timer_ = now + (200 * kMillisecond << back_off_); }

  void Emit(uint8_t flags, size_t at, size_t count, Nanoseconds) {
    Say say;
    say.from_guest = is_guest_;
    say.seq = (flags & kTcpSyn) != 0 ? iss_ : iss_ + 1 + static_cast<Seq>(at);
    say.flags = flags;
    if ((flags & kTcpAck) != 0)
      say.ack = irs_ + 1 + static_cast<Seq>(in_.size()) + (peer_fin_ ? 1 : 0);
    if ((flags & kTcpSyn) != 0) {
      say.options = {std::byte{2}, std::byte{4}, std::byte(mss_ >> 8), std::byte(mss_ & 0xFF),
                     std::byte{3}, std::byte{3}, std::byte{scale_},    std::byte{1},
                     std::byte{4}, std::byte{2}};
      if ((flags & kTcpAck) == 0)
        say.options.insert(say.options.end(),
                           {std::byte{8}, std::byte{10}, std::byte{1}, std::byte{2}, std::byte{3},
                            std::byte{4}, std::byte{0}, std::byte{0}, std::byte{0}, std::byte{0}});
      say.window = static_cast<uint16_t>(std::min<size_t>(Window(), 65535));
    } else {
      say.window = static_cast<uint16_t>(std::min<size_t>(Window() >> scale_, 65535));
      if (!is_guest_ && !early_.empty()) AddSack(&say.options);
    }
    say.payload = count == 0 ? Bytes{} : Text(out_.substr(at, count));
    send(Make(say));
  }

  void AddSack(Bytes* options) const {
    *options = {std::byte{1}, std::byte{1}, std::byte{5}, std::byte{10}};
    options->resize(12);
    const Seq start = irs_ + 1 + static_cast<Seq>(early_.begin()->first);
    Store32(*options, 4, start);
    Store32(*options, 8, start + static_cast<Seq>(early_.begin()->second.size()));
  }

  // An acknowledgement where nobody expects it: the peer answers with its own.
  void EmitProbe(Nanoseconds) {
    Say say;
    say.from_guest = is_guest_;
    say.seq = iss_ + static_cast<Seq>(acked_);
    say.ack = irs_ + 1 + static_cast<Seq>(in_.size()) + (peer_fin_ ? 1 : 0);
    say.flags = kTcpAck;
    say.window = static_cast<uint16_t>(std::min<size_t>(Window() >> scale_, 65535));
    send(Make(say));
  }

  size_t SendFrom(size_t at, Nanoseconds now) {
    const size_t room = edge_ > at ? edge_ - at : 0;
    const size_t count =
        at >= out_.size() ? 0 : std::min({static_cast<size_t>(peer_mss_), room, out_.size() - at});
    const bool fin = fin_ && at + count == out_.size();
    if (count == 0 && !fin) return at;
    Emit(static_cast<uint8_t>(kTcpAck | (fin ? kTcpFin : 0)), at, count, now);
    const size_t end = at + count + (fin ? 1 : 0);
    sent_ = std::max(sent_, end);
    return end;
  }

  void Push(Nanoseconds now) {
    if (state_ != State::kOpen) return;
    while (sent_ < Total()) {
      if (SendFrom(sent_, now) == sent_ && sent_ < Total() && edge_ <= sent_) break;
      if (sent_ >= Total()) break;
    }
    if (timer_ == 0 && acked_ < Total()) ArmTimer(now);
  }

  void LearnSyn(const Bytes& frame, const Packet& p) {
    irs_ = p.seq;
    const SynOptions options = ReadSynOptions(Frame(frame).subspan(p.OptionsAt(), p.OptionBytes()));
    peer_mss_ = std::min(options.mss, mss_);
    peer_scale_ = options.scale == kNoScale ? uint8_t{0} : options.scale;
    edge_ = p.window;
  }

  void TakeSyn(const Bytes& frame, const Packet& p, Nanoseconds now) {
    if (p.Has(kTcpRst) || p.Has(kTcpAck) || !p.Has(kTcpSyn)) return;
    CHECK(Frame(frame).subspan(p.OptionsAt(), p.OptionBytes())[0] == std::byte{2});
    LearnSyn(frame, p);
    state_ = State::kSynReceived;
    Emit(kTcpSyn | kTcpAck, 0, 0, now);
    ArmTimer(now);
  }

  void TakeSynAck(const Bytes& frame, const Packet& p, Nanoseconds now) {
    if (!p.Has(kTcpSyn) || !p.Has(kTcpAck) || p.ack != iss_ + 1) return;
    LearnSyn(frame, p);
    state_ = State::kOpen;
    timer_ = 0;
    back_off_ = 0;
    Emit(kTcpAck, 0, 0, now);
    Push(now);
  }

  void TakeSegment(const Bytes& frame, const Packet& p, Nanoseconds now) {
    const Seq next = irs_ + 1 + static_cast<Seq>(in_.size()) + (peer_fin_ ? 1 : 0);
    const Seq end = p.seq + p.SeqLength();
    const auto window = static_cast<int32_t>(Window());
    if (p.Has(kTcpSyn)) {
      if (!p.Has(kTcpAck) || state_ == State::kOpen) Emit(kTcpAck, sent_, 0, now);
      return;
    }
    // Acceptable: ends not before the next position and begins not behind the window.
    if (SeqBefore(end, next) || SeqDistance(next, p.seq) > window) {
      if (!p.Has(kTcpRst) && state_ == State::kOpen) Emit(kTcpAck, sent_, 0, now);
      return;
    }
    if (p.Has(kTcpRst)) {
      if (p.seq == next) state_ = State::kReset;
      return;
    }
    if (!p.Has(kTcpAck)) return;
    const int32_t ack = SeqDistance(iss_ + 1, p.ack);  // tests stay below 2^31 bytes
    if (state_ == State::kSynReceived) {
      if (ack != 0) return;
      state_ = State::kOpen;
      timer_ = 0;
      back_off_ = 0;
    }
    if (ack >
        static_cast<int32_t>(sent_)) {  // acknowledges what was never sent: dropped with its data
      Emit(kTcpAck, sent_, 0, now);
      return;
    }
    if (ack >= static_cast<int32_t>(acked_)) {
      if (ack > static_cast<int32_t>(acked_)) {
        acked_ = static_cast<size_t>(ack);
        back_off_ = 0;
        timer_ = 0;
      }
      edge_ = std::max(edge_, acked_ + (static_cast<size_t>(p.window) << peer_scale_));
    }
    TakePayload(frame, p, now);
    Push(now);
  }

  void TakePayload(const Bytes& frame, const Packet& p, Nanoseconds now) {
    if (p.SeqLength() == 0) return;
    const int32_t at = SeqDistance(irs_ + 1, p.seq);
    std::string bytes = PayloadText(frame);
    if (peer_fin_ || at < 0) {
      Emit(kTcpAck, sent_, 0, now);
      return;
    }
    const size_t place = static_cast<size_t>(at);
    if (p.Has(kTcpFin)) fin_place_ = place + bytes.size();
    const size_t room_end = in_.size() + Window();
    if (place + bytes.size() > room_end) bytes.resize(room_end > place ? room_end - place : 0);
    if (!bytes.empty()) {
      auto& kept = early_[place];
      if (kept.size() < bytes.size()) kept = bytes;
    }
    while (!early_.empty() && early_.begin()->first <= in_.size()) {
      const auto& [from, data] = *early_.begin();
      if (from + data.size() > in_.size()) in_ += data.substr(in_.size() - from);
      early_.erase(early_.begin());
    }
    if (fin_place_ == in_.size()) peer_fin_ = true;
    Emit(kTcpAck, sent_, 0, now);
  }

  bool is_guest_;
  State state_ = State::kListen;
  Seq iss_, irs_ = 0;
  size_t capacity_;
  uint16_t mss_, peer_mss_ = 536;
  uint8_t scale_, peer_scale_ = 0;
  std::string out_, in_;
  bool fin_ = false, peer_fin_ = false;
  size_t acked_ = 0, sent_ = 0, edge_ = 0, read_ = 0;
  size_t fin_place_ = SIZE_MAX;
  std::map<size_t, std::string> early_;
  Nanoseconds timer_ = 0;
  int back_off_ = 0;
};

}  // namespace falcon::test
