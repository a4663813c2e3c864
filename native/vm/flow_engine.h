// The flow table's insides. The class is one, its functions stand in files by where a frame comes
// from:
//   flow_admit.cc    from the network, before it is proposed
//   flow_deliver.cc  from the log, to this replica's guest
//   flow_emit.cc     from this replica's guest, to the network
//   flow_timer.cc    what time and changes of role bring: re-offers, holds that end, expiry
//   flow_table.cc    opening and ending flows; what the others share
//   flow_state.cc    copying a table to another replica
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "vm/byte_store.h"
#include "vm/flow.h"
#include "vm/flow_index.h"
#include "vm/flow_table.h"
#include "vm/neighbours.h"
#include "vm/output_book.h"
#include "vm/pending_syns.h"
#include "vm/state_archive.h"

namespace falcon {

class FlowEngine final : public FlowTable {
 public:
  FlowEngine(const FlowOptions& options, FlowSink* sink);

  Admission Admit(Frame frame, std::span<std::byte> normalised, size_t* length,
                  Nanoseconds now) override;
  void Deliver(Frame frame, Nanoseconds now) override;
  void FromGuest(Frame frame, Nanoseconds now) override;
  Nanoseconds Tick(Nanoseconds now) override;
  void GuestWritable(Nanoseconds now) override;
  void SetRole(FlowRole role) override;
  void TakeOver(Nanoseconds now) override;
  void Reset() override;
  bool CollectChecks(uint16_t self, Nanoseconds now, std::vector<std::byte>* payload,
                     std::vector<std::byte>* tails) override {
    return book_.Collect(self, now, payload, tails);
  }
  void TakeCheck(uint64_t op, std::span<const std::byte> payload, Nanoseconds now) override;
  [[nodiscard]] bool HasVerdicts() const override { return book_.HasVerdicts(); }
  void TakeVerdicts(std::vector<std::byte>* out) override { book_.TakeVerdicts(out); }
  [[nodiscard]] std::span<const OutputApplication> Applications() const override {
    return book_.applications();
  }
  void Save(std::vector<std::byte>* out, Nanoseconds now) override;
  void Facts(std::vector<FlowFacts>* out) const override;
  Status Load(std::span<const std::byte> state, Nanoseconds now) override;
  [[nodiscard]] FlowCounters counters() const override;

 private:
  // What a client may exceed its window by before it is taken for a liar: probes of a closed
  // window, and windows that were updated by a segment that the log never saw.
  static constexpr int32_t kWindowSlackBytes = 65536;
  // Furthest from the SYN that the first segment of a connection can be: SYN-ACK windows are not
  // scaled.
  static constexpr int32_t kFirstWindowBytes = 65536;
  static constexpr int kMaxBackOff = 7;
  static constexpr uint8_t kMaxSynOffersUndefined = 6;
  static constexpr uint8_t kMaxProbeAnswers = 3;
  static constexpr int kReofferSegments = 4;
  static constexpr int kTickFlows = 256;  // looked at in one Tick
  static constexpr Nanoseconds kTickBound = kSecond;
  static constexpr Nanoseconds kResetGrace =
      kSecond;  // for what a client sent before the RST reached it
  static constexpr Nanoseconds kHalfOpenTimeout = 60 * kSecond;

  // ---- flow_admit.cc
  [[nodiscard]] Admission Refuse(bool malformed);
  // A SYN of another connection than the live one on its ports.
  [[nodiscard]] bool OpensOverLive(const Packet& packet, const Flow* flow) const;
  [[nodiscard]] bool MayPropose(Frame frame, const Packet& packet, Nanoseconds now);
  [[nodiscard]] bool MayProposeSyn(Frame frame, const Packet& packet, Flow* flow, uint64_t hash,
                                   Nanoseconds now);
  [[nodiscard]] bool MayProposeSegment(const Packet& packet, const Flow& flow) const;
  void ChallengeClient(Frame frame, const Packet& packet, const Flow& flow);

  // ---- flow_deliver.cc
  void DeliverSyn(Frame frame, const Packet& packet, Flow* flow, Nanoseconds now);
  void DeliverSegment(Frame frame, const Packet& packet, Flow* flow, Nanoseconds now);
  void DeliverUndefined(Frame frame, const Packet& packet, Flow* flow, Nanoseconds now);
  void DeliverReset(Frame frame, const Packet& packet, Flow* flow, Nanoseconds now);
  void DeliverData(Frame frame, const Packet& packet, Flow* flow, Nanoseconds now);
  [[nodiscard]] bool BelongsToHandshake(const Packet& packet, const Flow& flow) const;
  void Define(const Packet& packet, Flow* flow, Nanoseconds now);
  void LearnClientAck(const Packet& packet, Flow* flow);
  [[nodiscard]] bool PassToGuest(Frame frame, const Packet& packet, Flow* flow, bool overlay);

  // ---- flow_emit.cc
  void EmitSynAck(Frame frame, const Packet& packet, Flow* flow, Nanoseconds now);
  void EmitSegment(Frame frame, const Packet& packet, Flow* flow, Nanoseconds now);
  void NoteGuestReset(const Packet& packet, Flow* flow, Nanoseconds now);
  void LearnFromGuest(const Packet& packet, Flow* flow, Frame frame, Nanoseconds now);
  void AnswerForClient(const Packet& packet, Flow* flow, Nanoseconds now);
  void SendTranslated(Frame frame, const Packet& packet, Flow* flow);
  void AnswerNeighbourQuestion(Frame frame, const Packet& packet);
  void CountDatagram(Frame frame, const Packet& packet);

  // ---- flow_timer.cc
  // A flow of a table that served its client itself, in one that does not.
  void Adopt(Flow* flow);
  void OnDeadline(Flow* flow, Nanoseconds now);
  void Reoffer(Flow* flow, Nanoseconds now);
  [[nodiscard]] Nanoseconds ExpiryOf(const Flow& flow) const;
  void ResendRetained(Flow* flow);
  void AbortToClient(Flow* flow);

  // ---- flow_state.cc
  // What a state needs of this table's bounds; collected while it is checked.
  struct StateNeeds;
  // Reads a state's body; with `apply` into this table, which is empty, otherwise only to check it.
  [[nodiscard]] const char* ReadState(std::span<const std::byte> body, Nanoseconds now, bool apply);
  [[nodiscard]] const char* ReadFlow(StateReader& in, StateNeeds* needs, bool apply);
  [[nodiscard]] bool FlowIsSound(const Flow& flow) const;
  [[nodiscard]] const char* ReadOrders(StateReader& in, StateNeeds* needs, bool apply);
  [[nodiscard]] const char* ReadNeighbours(StateReader& in, bool apply);
  [[nodiscard]] const char* ReadPending(StateReader& in, bool apply);
  void WriteFlow(StateWriter& out, Flow* flow);

  // ---- flow_table.cc
  [[nodiscard]] Flow* Open(const FlowKey& key);
  [[nodiscard]] bool EvictOne();
  void RetireGuestSide(Flow* flow);
  void Remove(Flow* flow);
  void CloseFlow(Flow* flow);
  void ReopenFlow(Flow* flow);
  void CheckFinished(Flow* flow);
  void Diverge(Flow* flow, FlowDivergence why);
  // The client, and nobody else, can be relied on to repeat what this guest lacks.
  [[nodiscard]] bool ClientRepeats(const Flow& flow) const {
    return role_ == FlowRole::kPrimary && flow.opened_here;
  }
  void Schedule(Flow* flow, Nanoseconds when);
  void Reschedule(Flow* flow, Nanoseconds now);
  void ArmReoffer(Flow* flow, Nanoseconds now);
  [[nodiscard]] bool ToGuest(Frame frame);
  void ToWire(Frame frame);
  void Block(Flow* flow);
  void Unblock(Nanoseconds now);
  void Service(Flow* flow, Nanoseconds now);
  void OfferSyn(Flow* flow, Nanoseconds now);
  // Offers what is held back as far as the guest's window goes. Returns true if anything was sent.
  bool Pump(Flow* flow, Nanoseconds now);
  [[nodiscard]] bool OfferPiece(Flow* flow, const InputStream::Piece& piece);
  [[nodiscard]] bool SendAckToGuest(Flow* flow, Seq seq);
  [[nodiscard]] bool SendResetToGuest(Flow* flow, Seq seq);
  void OweAck(Flow* flow);
  [[nodiscard]] TcpSegment SegmentToGuest(const Flow& flow) const;
  [[nodiscard]] TcpSegment SegmentToWire(const Flow& flow) const;
  // Where a bare acknowledgement is in place: behind all that was offered, inside the window.
  [[nodiscard]] static Seq PlaceForAck(const Flow& flow) {
    return SeqMin(flow.input.offered(), flow.input.edge());
  }
  [[nodiscard]] size_t SegmentBytesForGuest(const Flow& flow) const;
  [[nodiscard]] uint16_t WindowForGuest(const Flow& flow, Seq ack) const;
  [[nodiscard]] uint16_t WindowForWire(const Flow& flow, uint16_t window) const;
  [[nodiscard]] bool PlausibleAck(const Flow& flow, Seq ack) const;
  [[nodiscard]] bool InPlace(const Flow& flow, Seq seq) const;
  [[nodiscard]] bool IsForVm(Frame frame) const;

  FlowOptions options_;
  FlowSink* sink_;
  FlowRole role_ = FlowRole::kBackup;
  bool serving_ = false;  // primary, and its gate has opened: what the client of a new flow hears
                          // is this replica's guest
  Mac vm_mac_;
  FlowIndex index_;
  PendingSyns pending_;
  Neighbours neighbours_;
  BlockPool held_, retained_;
  OutputBook book_;
  FlowCounters counters_;
  std::vector<uint32_t> blocked_;    // slots that wait for GuestWritable, a ring
  std::vector<uint8_t> is_blocked_;  // per slot: it is in that ring
  size_t blocked_first_ = 0, blocked_count_ = 0;
  std::unique_ptr<std::byte[]> scratch_;
  [[nodiscard]] std::span<std::byte> scratch() { return {scratch_.get(), kMaxFrameBytes}; }
};

}  // namespace falcon
