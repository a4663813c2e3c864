// What this replica's guest has sent on one flow and the client has not acknowledged, in wire
// space. At take-over it goes to the client at once, so that the client does not wait for the
// guest's retransmission timer.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "vm/byte_store.h"
#include "vm/packet.h"

namespace falcon {

class OutputStream {
 public:
  void Open(Seq first) {
    begin_ = end_ = first;
    fin_known_ = false;
  }
  void Close(BlockPool& pool) { bytes_.Clear(pool); }

  // Keeps what is new in a segment that the guest sent. Returns how many bytes found no room (the
  // newest are left out: the guest's own retransmission stands in for them).
  size_t Append(BlockPool& pool, Seq seq, std::span<const std::byte> payload, bool fin,
                size_t max_bytes) {
    const Seq payload_end = seq + static_cast<Seq>(payload.size());
    if (fin && !fin_known_) {
      fin_known_ = true;
      fin_ = payload_end;
    }
    if (!SeqBefore(end_, payload_end)) return 0;
    if (SeqBefore(end_, seq)) return payload.size();  // behind bytes that found no room
    const auto fresh = payload.subspan(end_ - seq);
    const size_t before = bytes_.length();
    const size_t room = max_bytes > before ? std::min(max_bytes - before, fresh.size()) : 0;
    if (room == 0 || !bytes_.Extend(pool, before + room)) return fresh.size();
    bytes_.Write(pool, before, fresh.first(room));
    end_ += static_cast<Seq>(room);
    return fresh.size() - room;
  }

  // The client has everything below `ack`, which may be ahead of what this guest has sent.
  void ClientAcknowledged(BlockPool& pool, Seq ack) {
    if (!SeqBefore(begin_, ack)) return;
    bytes_.Drop(pool, ack - begin_);
    begin_ = ack;
    end_ = SeqMax(end_, ack);
  }

  void Read(BlockPool& pool, Seq seq, std::span<std::byte> into) const {
    bytes_.Read(pool, seq - begin_, into);
  }

  // Kept are the bytes [begin, end).
  [[nodiscard]] Seq begin() const { return begin_; }
  [[nodiscard]] Seq end() const { return end_; }
  [[nodiscard]] bool fin_known() const { return fin_known_; }
  [[nodiscard]] Seq fin() const { return fin_; }
  // All that the guest ever sent, its FIN included, is acknowledged.
  [[nodiscard]] bool finished() const { return fin_known_ && SeqBefore(fin_, begin_); }

  // ---- saving and loading (flow_state.cc): everything but the bytes
  template <typename Archive>
  void VisitState(Archive& archive) {
    archive.Number(begin_);
    archive.Number(end_);
    archive.Number(fin_);
    archive.Number(fin_known_);
  }
  [[nodiscard]] ByteQueue& kept() { return bytes_; }

 private:
  ByteQueue bytes_;
  Seq begin_ = 0, end_ = 0;
  Seq fin_ = 0;
  bool fin_known_ = false;
};

}  // namespace falcon
