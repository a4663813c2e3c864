// Opening and ending flows, and what the ways through the table share.
#include "vm/flow_table.h"

#include <algorithm>

#include "os/check.h"
#include "vm/flow_engine.h"

namespace falcon {

FlowEngine::FlowEngine(const FlowOptions& options, FlowSink* sink)
    : options_(options),
      sink_(sink),
      vm_mac_(std::to_array(options.vm_mac)),
      index_(options.max_flows + options.max_half_open, options.hash_seed),
      neighbours_(options.max_neighbours, options.hash_seed, vm_mac_),
      held_(options.hold_bytes),
      retained_(options.retain_bytes),
      book_(options.output, index_.slots()),
      blocked_(index_.slots()),
      is_blocked_(index_.slots(), 0),
      scratch_(std::make_unique<std::byte[]>(kMaxFrameBytes)) {
  FALCON_CHECK(sink != nullptr && options.max_flows > 0 && options.max_half_open > 0);
  FALCON_CHECK(options.hold_bytes_per_flow < (size_t{1} << 28) &&
               options.retain_bytes_per_flow < (size_t{1} << 28));
}

std::unique_ptr<FlowTable> MakeFlowTable(const FlowOptions& options, FlowSink* sink) {
  return std::make_unique<FlowEngine>(options, sink);
}

bool FlowEngine::IsForVm(Frame frame) const {
  return std::memcmp(frame.data(), vm_mac_.data(), vm_mac_.size()) == 0;
}

bool FlowEngine::ToGuest(Frame frame) {
  if (!sink_->ToGuest(frame)) return false;
  ++counters_.frames_to_guest;
  return true;
}

void FlowEngine::ToWire(Frame frame) {
  ++counters_.frames_to_wire;
  sink_->ToWire(frame);
}

// ---- opening and ending

bool FlowEngine::EvictOne() {
  Flow* flow = index_.Oldest(FlowIndex::kClosed);
  if (flow == nullptr) {
    flow = index_.Oldest(FlowIndex::kHalfOpen);
    if (flow == nullptr) return false;
    ++counters_.evicted_half_open;
    RetireGuestSide(flow);
  } else if (flow->diverged()) {
    RetireGuestSide(flow);
  }
  Remove(flow);
  return true;
}

// A backup keeps more than a primary: what the primary still knows, every backup must still know.
Flow* FlowEngine::Open(const FlowKey& key) {
  const bool backup = role_ == FlowRole::kBackup;
  if (index_.count(FlowIndex::kHalfOpen) >= options_.max_half_open * (backup ? 2 : 1)) {
    ++counters_.evicted_half_open;
    Flow* oldest = index_.Oldest(FlowIndex::kHalfOpen);
    RetireGuestSide(oldest);
    Remove(oldest);
  }
  if (index_.size() >= (backup ? index_.slots() : options_.max_flows)) (void)EvictOne();
  Flow* flow = index_.Add(key);
  if (flow == nullptr) return nullptr;
  index_.MoveTo(flow, FlowIndex::kHalfOpen);
  ++counters_.flows_opened;
  return flow;
}

// Tells the guest that a connection which the table forgets is over, so that it neither completes
// it untranslated nor takes the next one on these ports for it.
void FlowEngine::RetireGuestSide(Flow* flow) {
  const bool through = flow->input.finished() && flow->output.finished();
  if (through || flow->guest_reset_at != 0 || flow->reset_offered) return;
  const Seq seq = flow->input.acked();
  if (!SendResetToGuest(flow, seq)) ++counters_.dropped_to_guest;
  if (flow->input.offered() != seq && !SendResetToGuest(flow, flow->input.offered()))
    ++counters_.dropped_to_guest;
}

void FlowEngine::Remove(Flow* flow) {
  if (!flow->closed) ++counters_.flows_closed;
  book_.Close(*flow, role_ == FlowRole::kPrimary);
  flow->input.Close(held_);
  flow->output.Close(retained_);
  index_.Remove(flow);
}

void FlowEngine::CloseFlow(Flow* flow) {
  if (flow->closed) return;
  flow->closed = true;
  ++counters_.flows_closed;
  if (flow->defined) index_.MoveTo(flow, FlowIndex::kClosed);
  Schedule(flow, ExpiryOf(*flow));
}

// A connection that was over before it began (refused, or reset by its client) is tried again.
void FlowEngine::ReopenFlow(Flow* flow) {
  if (!flow->closed) return;
  flow->closed = false;
  ++counters_.flows_opened;
}

void FlowEngine::CheckFinished(Flow* flow) {
  if (flow->closed || !flow->input.finished() || flow->input.acked() != flow->input.next()) return;
  if (flow->output.finished()) CloseFlow(flow);
}

void FlowEngine::Diverge(Flow* flow, FlowDivergence why) {
  flow->divergence = why;
  ++counters_.diverged;
  book_.Lose(*flow, why);
  index_.MoveTo(flow, FlowIndex::kClosed);  // it must not keep others out of the table
  flow->input.Close(held_);
  flow->output.Close(retained_);
  flow->syn_offer_at = flow->hold_until = flow->reoffer_at = 0;
  flow->ack_owed = false;
  if (role_ == FlowRole::kPrimary) AbortToClient(flow);
}

void FlowEngine::Reset() {
  for (uint32_t i = 0; i < index_.slots(); ++i) {
    if (index_.at(i).used) Remove(&index_.at(i));
  }
  pending_.Clear();
  neighbours_.Clear();
  book_.Clear();
  std::ranges::fill(is_blocked_, uint8_t{0});
  blocked_first_ = blocked_count_ = 0;
}

FlowCounters FlowEngine::counters() const {
  FlowCounters counters = counters_;
  counters.flows = index_.size();
  counters.half_open = index_.count(FlowIndex::kHalfOpen);
  counters.retained_bytes = retained_.stored_bytes();
  counters.held_bytes = held_.stored_bytes();
  counters.output_gaps = book_.gaps();
  return counters;
}

// ---- time

void FlowEngine::Schedule(Flow* flow, Nanoseconds when) {
  DeadlineHeap& deadlines = index_.deadlines;
  if (!deadlines.Holds(flow->index) || when < deadlines.time(flow->index))
    deadlines.Set(flow->index, when);
}

void FlowEngine::Reschedule(Flow* flow, Nanoseconds now) {
  Nanoseconds when = std::max(ExpiryOf(*flow), now);
  for (const Nanoseconds due : {flow->syn_offer_at, flow->hold_until, flow->reoffer_at}) {
    if (due != 0) when = std::min(when, due);
  }
  index_.deadlines.Set(flow->index, when);
}

void FlowEngine::ArmReoffer(Flow* flow, Nanoseconds now) {
  if (flow->reoffer_at != 0 || ClientRepeats(*flow) || flow->input.acked() == flow->input.next())
    return;
  if (flow->diverged() || flow->guest_reset_at != 0) return;
  flow->reoffer_at = now + (options_.reoffer_after << flow->reoffers);
  Schedule(flow, flow->reoffer_at);
}

// ---- the line of flows that have something for a guest whose ring was full

void FlowEngine::Block(Flow* flow) {
  if (is_blocked_[flow->index] != 0) return;
  is_blocked_[flow->index] = 1;
  blocked_[(blocked_first_ + blocked_count_) % blocked_.size()] = flow->index;
  ++blocked_count_;
}

void FlowEngine::Unblock(Nanoseconds now) {
  for (size_t left = blocked_count_; left > 0; --left) {
    const uint32_t slot = blocked_[blocked_first_];
    blocked_first_ = (blocked_first_ + 1) % blocked_.size();
    --blocked_count_;
    is_blocked_[slot] = 0;
    if (!index_.at(slot).used) continue;
    Service(&index_.at(slot), now);
    if (is_blocked_[slot] != 0) return;  // full again
  }
}

void FlowEngine::OweAck(Flow* flow) {
  flow->ack_owed = true;
  Block(flow);
}

void FlowEngine::Service(Flow* flow, Nanoseconds now) {
  if (flow->diverged()) return;
  if (!flow->guest_iss_known) {
    if (!flow->closed && flow->syn_offer_at != 0) OfferSyn(flow, now);
    Reschedule(flow, now);
    return;
  }
  if (!flow->defined) return;
  const bool sent = Pump(flow, now);
  if (flow->ack_owed && !sent && !SendAckToGuest(flow, PlaceForAck(*flow))) OweAck(flow);
}

// ---- segments for the guest

void FlowEngine::OfferSyn(Flow* flow, Nanoseconds now) {
  if (flow->handshake.length == 0) {
    flow->syn_offer_at = 0;
    return;
  }
  if (!ToGuest(flow->handshake.view())) {
    flow->syn_offer_at = now + options_.reoffer_after;
    return Block(flow);
  }
  flow->syn_offers = static_cast<uint8_t>(std::min<int>(flow->syn_offers + 1, UINT8_MAX));
  const int back_off = std::min<int>(flow->syn_offers, kMaxBackOff);
  const bool again =
      flow->defined || (role_ == FlowRole::kBackup && flow->syn_offers < kMaxSynOffersUndefined);
  flow->syn_offer_at = again ? now + (options_.reoffer_after << (back_off - 1)) : 0;
}

bool FlowEngine::Pump(Flow* flow, Nanoseconds now) {
  if (!flow->ready() || flow->diverged() || flow->guest_reset_at != 0) return false;
  InputStream& input = flow->input;
  InputStream::Piece piece;
  bool sent = false;
  while (input.NextPiece(input.offered(), input.next(), SegmentBytesForGuest(*flow), &piece)) {
    if (!OfferPiece(flow, piece)) break;
    sent = true;
  }
  if (flow->client_reset && !flow->reset_offered && input.offered() == input.next()) {
    flow->reset_offered = SendResetToGuest(flow, input.next());
    if (!flow->reset_offered) Block(flow);
  }
  if (sent) ArmReoffer(flow, now);
  return sent;
}

bool FlowEngine::OfferPiece(Flow* flow, const InputStream::Piece& piece) {
  TcpSegment segment = SegmentToGuest(*flow);
  segment.seq = piece.seq;
  segment.flags =
      static_cast<uint8_t>(kTcpAck | (piece.bytes > 0 ? kTcpPsh : 0) | (piece.fin ? kTcpFin : 0));
  const size_t header = SegmentHeaderBytes(segment);
  flow->input.Read(held_, piece, scratch().subspan(header, piece.bytes));
  if (!ToGuest(scratch().first(FinishSegment(scratch(), segment, piece.bytes)))) {
    Block(flow);
    return false;
  }
  flow->ack_owed = false;
  flow->input.MarkOffered(piece.seq,
                          piece.seq + static_cast<Seq>(piece.bytes) + (piece.fin ? 1 : 0));
  return true;
}

bool FlowEngine::SendAckToGuest(Flow* flow, Seq seq) {
  TcpSegment segment = SegmentToGuest(*flow);
  segment.seq = seq;
  segment.flags = kTcpAck;
  if (!ToGuest(scratch().first(FinishSegment(scratch(), segment, 0)))) return false;
  ++counters_.local_acks;
  flow->ack_owed = false;
  return true;
}

bool FlowEngine::SendResetToGuest(Flow* flow, Seq seq) {
  TcpSegment segment = SegmentToGuest(*flow);
  segment.seq = seq;
  segment.ack = 0;
  segment.window = 0;
  segment.flags = kTcpRst;
  return ToGuest(scratch().first(FinishSegment(scratch(), segment, 0)));
}

TcpSegment FlowEngine::SegmentToGuest(const Flow& flow) const {
  TcpSegment segment;
  segment.link = flow.to_guest.view();
  segment.source = flow.key.client;
  segment.destination = flow.key.vm;
  segment.source_port = flow.key.client_port;
  segment.destination_port = flow.key.vm_port;
  if (flow.ready()) {
    segment.ack = flow.AckForGuest();
    segment.window = WindowForGuest(flow, segment.ack);
  }
  return segment;
}

TcpSegment FlowEngine::SegmentToWire(const Flow& flow) const {
  TcpSegment segment;
  segment.link = flow.to_wire.view();
  segment.source = flow.key.vm;
  segment.destination = flow.key.client;
  segment.source_port = flow.key.vm_port;
  segment.destination_port = flow.key.client_port;
  segment.ack = flow.input.acked();
  segment.window = WindowForWire(flow, flow.guest_window);
  return segment;
}

size_t FlowEngine::SegmentBytesForGuest(const Flow& flow) const {
  return std::min<size_t>(flow.guest_options.mss, flow.v4() ? 1460 : 1440);
}

// If the acknowledgement is clamped, the window grows by as much: its right edge is the client's,
// and a guest that lags behind a full client can still send what that client has long received.
uint16_t FlowEngine::WindowForGuest(const Flow& flow, Seq ack) const {
  const Seq ahead = flow.client_ack + flow.Delta() - ack;
  const uint8_t scale = flow.ClientScale();
  const uint64_t window =
      flow.client_window + ((static_cast<uint64_t>(ahead) + (1u << scale) - 1) >> scale);
  return static_cast<uint16_t>(std::min<uint64_t>(window, UINT16_MAX));
}

// The client may not have more on its way than every replica can hold for its guest.
uint16_t FlowEngine::WindowForWire(const Flow& flow, uint16_t window) const {
  // Until the guest has answered, its scale is not known.
  const uint8_t scale = flow.GuestScale();
  const size_t most = std::max<size_t>(1, (options_.hold_bytes_per_flow / 2) >> scale);
  return static_cast<uint16_t>(std::min<size_t>(window, most));
}

}  // namespace falcon
