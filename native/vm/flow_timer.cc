// What time and changes of role bring.
#include <algorithm>

#include "vm/flow_engine.h"

namespace falcon {

Nanoseconds FlowEngine::Tick(Nanoseconds now) {
  Unblock(now);
  book_.Tick(now);
  for (int i = 0; i < kTickFlows; ++i) {
    if (index_.deadlines.empty() || index_.deadlines.first_time() > now) break;
    OnDeadline(&index_.at(index_.deadlines.first()), now);
  }
  if (index_.deadlines.empty()) return now + kTickBound;
  return std::clamp(index_.deadlines.first_time(), now, now + kTickBound);
}

void FlowEngine::GuestWritable(Nanoseconds now) { Unblock(now); }

// A backup lets a flow live longer than a primary: what the primary still proposes, every backup
// must still know.
Nanoseconds FlowEngine::ExpiryOf(const Flow& flow) const {
  const bool backup = role_ == FlowRole::kBackup;
  if (flow.closed) return flow.last_heard + options_.closed_linger;
  if (!flow.defined) return flow.last_heard + kHalfOpenTimeout * (backup ? 2 : 1);
  return flow.last_heard + options_.idle_timeout + (backup ? options_.idle_timeout / 8 : 0);
}

void FlowEngine::OnDeadline(Flow* flow, Nanoseconds now) {
  if (now >= ExpiryOf(*flow)) {
    if (!flow->defined) RetireGuestSide(flow);
    return Remove(flow);
  }
  if (flow->hold_until != 0 && now >= flow->hold_until) {
    flow->hold_until = 0;
    if (!flow->diverged()) Diverge(flow, FlowDivergence::kNoSynAck);
  }
  if (flow->syn_offer_at != 0 && now >= flow->syn_offer_at) {
    ++counters_.reoffered;
    OfferSyn(flow, now);
  }
  if (flow->reoffer_at != 0 && now >= flow->reoffer_at) Reoffer(flow, now);
  Reschedule(flow, now);
}

// The guest has not acknowledged what it was given (it dropped it, or is slow), or says that it has
// no window (an update may have got lost): again, less and less often.
void FlowEngine::Reoffer(Flow* flow, Nanoseconds now) {
  flow->reoffer_at = 0;
  const InputStream& input = flow->input;
  if (ClientRepeats(*flow) || flow->diverged() || !flow->ready() || flow->guest_reset_at != 0 ||
      flow->reset_offered || input.acked() == input.next()) {
    return;
  }
  Seq from = input.acked();
  InputStream::Piece piece;
  int sent = 0;
  const size_t most = SegmentBytesForGuest(*flow);
  while (sent < kReofferSegments && input.NextPiece(from, input.offered(), most, &piece)) {
    if (!OfferPiece(flow, piece)) break;
    ++counters_.reoffered;
    ++sent;
    from = piece.seq + static_cast<Seq>(piece.bytes) + (piece.fin ? 1 : 0);
  }
  if (sent == 0 && !SendAckToGuest(flow, input.acked() - 1)) OweAck(flow);
  Pump(flow, now);
  flow->reoffers = static_cast<uint8_t>(std::min<int>(flow->reoffers + 1, kMaxBackOff));
  flow->reoffer_at = now + (options_.reoffer_after << flow->reoffers);
}

void FlowEngine::SetRole(FlowRole role) {
  if (role == role_) return;
  role_ = role;
  serving_ = false;
  pending_.Clear();
  for (uint32_t i = 0; i < index_.slots(); ++i) {
    Flow& flow = index_.at(i);
    if (!flow.used) continue;
    Adopt(&flow);
  }
}

// From now on nobody repeats what this guest lacks but this table.
void FlowEngine::Adopt(Flow* flow) {
  flow->opened_here = false;
  if (role_ != FlowRole::kBackup || flow->diverged()) return;
  if (!flow->input.keeping()) Diverge(flow, FlowDivergence::kHoldBound);
  ArmReoffer(flow, flow->last_heard);
}

void FlowEngine::TakeOver(Nanoseconds now) {
  const bool served = serving_;
  role_ = FlowRole::kPrimary;
  serving_ = true;
  for (uint32_t i = 0; i < index_.slots(); ++i) {
    Flow& flow = index_.at(i);
    if (!flow.used) continue;
    // Another primary's SYN-ACK may be what the client of a half-open flow has seen.
    if (!served) flow.opened_here = false;
    if (flow.diverged()) {
      AbortToClient(&flow);
    } else if (!flow.defined && flow.guest_iss_known && !flow.closed) {
      ++counters_.retained_resent;
      ToWire(flow.handshake.view());
    } else if (flow.ready() && !flow.client_reset) {
      ResendRetained(&flow);
    }
    Reschedule(&flow, now);
  }
}

void FlowEngine::ResendRetained(Flow* flow) {
  const OutputStream& output = flow->output;
  const Seq end = output.end();
  const bool fin_left =
      output.fin_known() && end == output.fin();  // else beyond what was kept, or acknowledged
  const size_t most = std::min<size_t>(flow->client_options.mss, flow->v4() ? 1460 : 1440);
  TcpSegment segment = SegmentToWire(*flow);
  Seq at = output.begin();
  while (SeqBefore(at, end) || (fin_left && at == end)) {
    const size_t bytes = std::min<size_t>(most, end - at);
    const bool last = at + static_cast<Seq>(bytes) == end;
    const size_t header = SegmentHeaderBytes(segment);
    output.Read(retained_, at, scratch().subspan(header, bytes));
    segment.seq = at;
    segment.flags = static_cast<uint8_t>(kTcpAck | (bytes > 0 ? kTcpPsh : 0) |
                                         (last && fin_left ? kTcpFin : 0));
    ++counters_.retained_resent;
    ToWire(scratch().first(FinishSegment(scratch(), segment, bytes)));
    at += static_cast<Seq>(bytes);
    if (last) break;
  }
}

// A connection that this replica's guest does not have as its client knows it cannot be continued:
// better a reset now than a client that waits for ever.
void FlowEngine::AbortToClient(Flow* flow) {
  if (!flow->defined || flow->client_reset) return;
  if (flow->to_wire.length ==
      0) {  // the guest never spoke: back where the client's frames come from
    flow->to_wire = flow->to_guest;
    std::memcpy(flow->to_wire.bytes.data(), flow->to_guest.bytes.data() + 6, 6);
    std::memcpy(flow->to_wire.bytes.data() + 6, vm_mac_.data(), 6);
  }
  TcpSegment segment = SegmentToWire(*flow);
  segment.seq = flow->client_ack;
  segment.ack = flow->input.next();
  segment.flags = kTcpRst | kTcpAck;
  ToWire(scratch().first(FinishSegment(scratch(), segment, 0)));
}

}  // namespace falcon
