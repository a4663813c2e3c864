// Frames of the log on their way to this replica's guest.
#include "vm/flow_engine.h"

namespace falcon {

void FlowEngine::Deliver(Frame frame, Nanoseconds now) {
  ++counters_.frames_delivered;
  const Packet packet = ParseFrame(frame);
  neighbours_.Learn(frame, packet);
  if (packet.kind == PacketKind::kTcp && IsForVm(frame)) {
    Flow* flow = index_.Find(KeyOfClient(packet));
    if ((packet.flags & (kTcpSyn | kTcpAck | kTcpRst | kTcpFin)) == kTcpSyn) {
      return DeliverSyn(frame, packet, flow, now);
    }
    if (flow != nullptr) return DeliverSegment(frame, packet, flow, now);
  }
  if (!ToGuest(frame)) ++counters_.dropped_to_guest;
}

void FlowEngine::TakeCheck(uint64_t op, std::span<const std::byte> payload, Nanoseconds now) {
  book_.Take(op, payload, now, [this](const FlowKey& key) { return index_.Find(key); });
}

void FlowEngine::DeliverSyn(Frame frame, const Packet& packet, Flow* flow, Nanoseconds now) {
  const FlowKey key = KeyOfClient(packet);
  pending_.Delivered(index_.Hash(key), packet.seq);
  if (flow != nullptr && flow->client_iss == packet.seq) {
    if (flow->diverged()) return void(++counters_.dropped_to_guest);
    if (!flow->defined) {
      ReopenFlow(flow);
      flow->client_reset = false;
      flow->guest_reset_at = 0;
      flow->last_heard = now;
    }
    if (!ToGuest(frame)) ++counters_.dropped_to_guest;
    return;
  }
  if (flow != nullptr) {
    const bool lost_input =
        !flow->diverged() && flow->defined && flow->input.acked() != flow->input.next();
    if (lost_input && !flow->client_reset && role_ == FlowRole::kBackup) ++counters_.diverged;
    RetireGuestSide(flow);
    Remove(flow);
  }
  flow = Open(key);
  if (flow == nullptr) {
    ++counters_.refused_full;
    ++counters_.diverged;
    if (!ToGuest(frame)) ++counters_.dropped_to_guest;
    return;
  }
  flow->client_iss = packet.seq;
  flow->client_window = packet.window;
  flow->client_options = ReadSynOptions(frame.subspan(packet.OptionsAt(), packet.OptionBytes()));
  flow->opened_here = serving_;
  flow->last_heard = now;
  flow->to_guest.Set(frame, packet);
  flow->handshake.Set(frame);
  flow->input.Open(packet.seq + 1);
  if (flow->handshake.length == 0) {  // too long to keep: the client must repeat it
    if (!ToGuest(frame)) ++counters_.dropped_to_guest;
  } else {
    OfferSyn(flow, now);
  }
  Reschedule(flow, now);
}

void FlowEngine::DeliverSegment(Frame frame, const Packet& packet, Flow* flow, Nanoseconds now) {
  flow->last_heard = now;
  flow->probe_answers = 0;
  if (!flow->defined || InPlace(*flow, packet.seq)) flow->to_guest.Set(frame, packet);
  if (flow->guest_reset_at != 0 && !flow->diverged() && role_ == FlowRole::kBackup &&
      flow->ready() && !packet.Has(kTcpRst) && !flow->client_reset &&
      now - flow->guest_reset_at > kResetGrace) {
    Diverge(flow, FlowDivergence::kReset);  // the primary's guest has not reset: its client goes on
  }
  if (flow->diverged()) {
    ++counters_.dropped_to_guest;
    if (role_ == FlowRole::kPrimary && packet.Has(kTcpAck) && !packet.Has(kTcpRst)) {
      flow->client_ack = packet.ack;
      AbortToClient(flow);
    }
    return;
  }
  if (packet.Has(kTcpSyn)) {
    if (!ToGuest(frame)) ++counters_.dropped_to_guest;
  } else if (packet.Has(kTcpRst)) {
    DeliverReset(frame, packet, flow, now);
  } else if (!flow->defined) {
    DeliverUndefined(frame, packet, flow, now);
  } else {
    DeliverData(frame, packet, flow, now);
  }
}

bool FlowEngine::BelongsToHandshake(const Packet& packet, const Flow& flow) const {
  const int32_t distance = SeqDistance(flow.client_iss + 1, packet.seq);
  return packet.Has(kTcpAck) && distance >= 0 && distance < kFirstWindowBytes;
}

void FlowEngine::DeliverUndefined(Frame frame, const Packet& packet, Flow* flow, Nanoseconds now) {
  if (!BelongsToHandshake(packet, *flow)) {
    // Of an earlier connection on these ports: the guest may tell its sender so.
    if (!ToGuest(frame)) ++counters_.dropped_to_guest;
    return;
  }
  Define(packet, flow, now);
  DeliverData(frame, packet, flow, now);
}

// The first segment that the client sends after its SYN tells every replica alike what the client
// took for the server's initial sequence number.
void FlowEngine::Define(const Packet& packet, Flow* flow, Nanoseconds now) {
  flow->defined = true;
  flow->wire_iss = packet.ack - 1;
  flow->client_ack = packet.ack;
  flow->client_edge = packet.ack + flow->client_window;  // the SYN's, which is never scaled
  flow->window_seq = packet.seq;
  flow->output.Open(packet.ack);
  book_.Open(*flow, packet.ack);
  index_.MoveTo(flow, flow->closed ? FlowIndex::kClosed : FlowIndex::kNoList);
  if (flow->guest_iss_known) return;
  // A guest whose service was late and refused the SYN gets another chance.
  if (!flow->client_reset) ReopenFlow(flow);
  flow->guest_reset_at = 0;
  if (!flow->closed) index_.MoveTo(flow, FlowIndex::kNoList);
  flow->hold_until = now + options_.handshake_hold;
  if (flow->syn_offer_at == 0) flow->syn_offer_at = now;
  Reschedule(flow, now);
}

bool FlowEngine::PlausibleAck(const Flow& flow, Seq ack) const {
  return SeqDistance(flow.client_edge + kWindowSlackBytes, ack) <= 0;
}

// Near what the client has sent so far. A host believes no acknowledgement of a segment that lies
// elsewhere (RFC 9293, 3.10.7.4); whoever forges one has to guess both numbers. Judged by the log
// alone.
bool FlowEngine::InPlace(const Flow& flow, Seq seq) const {
  const auto reach = static_cast<int32_t>(options_.hold_bytes_per_flow);
  const int32_t distance = SeqDistance(flow.input.next(), seq);
  return distance >= -reach - kWindowSlackBytes && distance <= reach;
}

void FlowEngine::LearnClientAck(const Packet& packet, Flow* flow) {
  if (!PlausibleAck(*flow, packet.ack) || !InPlace(*flow, packet.seq)) return;
  const bool newer = SeqBefore(flow->client_ack, packet.ack);
  if (newer) {
    flow->client_ack = packet.ack;
    flow->output.ClientAcknowledged(retained_, packet.ack);
  }
  if (packet.ack != flow->client_ack || (!newer && SeqBefore(packet.seq, flow->window_seq))) return;
  flow->client_window = packet.window;
  flow->window_seq = packet.seq;
  // Judged by what the client offered alone, so that every replica finds the same edge.
  const uint8_t scale =
      flow->client_options.scale == kNoScale ? uint8_t{0} : flow->client_options.scale;
  flow->client_edge =
      SeqMax(flow->client_edge, packet.ack + (static_cast<Seq>(packet.window) << scale));
}

void FlowEngine::DeliverReset(Frame frame, const Packet& packet, Flow* flow, Nanoseconds now) {
  // Guests accept a reset only at exactly the next position; one that lags must get what comes
  // before it first.
  const Seq next = flow->input.next();
  const bool at_fin = flow->input.finished() && packet.seq + 1 == next;  // as macOS sends it
  const bool exact = packet.seq == next || at_fin;
  if (!exact && flow->defined && !ClientRepeats(*flow) && SeqBefore(packet.seq, next)) {
    // Too late for the primary's guest; for this one it may be where it stands.
    ++counters_.dropped_to_guest;
    return;
  }
  const bool straight = !flow->defined || ClientRepeats(*flow) ||
                        (flow->guest_iss_known && flow->input.offered() == next);
  if (exact) {
    flow->client_reset = true;
    book_.Cut(*flow);
    if (!flow->defined) flow->syn_offer_at = 0;
    CloseFlow(flow);
  }
  if (straight) {
    flow->reset_offered = flow->defined && exact;
    if (PassToGuest(frame, packet, flow, false)) return;
    flow->reset_offered = false;
    Block(flow);
  }
  Reschedule(flow, now);
}

void FlowEngine::DeliverData(Frame frame, const Packet& packet, Flow* flow, Nanoseconds now) {
  if (!packet.Has(kTcpAck)) {  // which every stack ignores
    if (!ToGuest(frame)) ++counters_.dropped_to_guest;
    return;
  }
  LearnClientAck(packet, flow);
  InputStream& input = flow->input;
  const bool level = input.offered() == input.next();
  const bool plain = packet.seq == input.next() && !input.has_islands();  // repeats nothing
  const bool fin = packet.Has(kTcpFin);
  const auto payload = frame.subspan(packet.payload_at, packet.PayloadBytes());
  const Seq end = packet.seq + static_cast<Seq>(payload.size());
  auto accepted = InputStream::Accepted::kOld;
  if (!payload.empty() || fin) {
    accepted = input.Accept(held_, packet.seq, payload, fin, options_.hold_bytes_per_flow);
  }
  if (accepted == InputStream::Accepted::kNoRoom && !ClientRepeats(*flow)) {
    return Diverge(flow, FlowDivergence::kHoldBound);
  }
  if (!flow->guest_iss_known) return void(++counters_.held);
  if (accepted == InputStream::Accepted::kRefused) {
    // No guest sees the data; the guest still answers, which tells the client where to go on.
    ++counters_.held;
    if (!SendAckToGuest(flow, input.acked() - 1)) OweAck(flow);
    return;
  }
  const Seq end_with_fin = end + (fin ? 1 : 0);
  const bool pure_ack = payload.empty() && !fin;
  const bool fits = level && !SeqBefore(input.edge(), end);
  const bool repeated = !pure_ack && !SeqBefore(input.offered(), end_with_fin);
  if (ClientRepeats(*flow) || repeated || (level && pure_ack) || (!pure_ack && fits)) {
    if (!PassToGuest(frame, packet, flow, !plain)) {
      OweAck(flow);
    } else if (!pure_ack) {
      input.MarkOffered(packet.seq, end_with_fin);
    }
  } else {
    ++counters_.held;
    const bool sent = Pump(flow, now);
    // A client that probes a closed window wants an answer, which the guest gives to what is out of
    // place. A bare acknowledgement wants none: answered, it would go round for ever.
    const bool probe = role_ == FlowRole::kPrimary && input.edge() == input.acked() &&
                       (!pure_ack || SeqBefore(packet.seq, input.next()));
    const Seq seq = probe ? input.acked() - 1 : PlaceForAck(*flow);
    if (!sent && !SendAckToGuest(flow, seq)) OweAck(flow);
  }
  ArmReoffer(flow, now);
  CheckFinished(flow);
}

// Translates a segment of a flow and gives it to the guest as the client sent it.
bool FlowEngine::PassToGuest(Frame frame, const Packet& packet, Flow* flow, bool overlay) {
  if (!flow->ready() || !packet.Has(kTcpAck)) return ToGuest(frame);
  const Seq delta = flow->Delta();
  const Seq ack = packet.ack + delta;
  const bool clamp = PlausibleAck(*flow, packet.ack) && SeqBefore(flow->guest_next, ack);
  overlay = overlay && packet.PayloadBytes() > 0;
  if (delta == 0 && !clamp && !overlay && packet.OptionBytes() == 0) return ToGuest(frame);
  const auto copy = scratch().first(frame.size());
  std::memcpy(copy.data(), frame.data(), frame.size());
  if (clamp) {
    const Seq ahead = ack - flow->guest_next;
    const uint8_t scale = flow->ClientScale();
    const uint64_t window =
        packet.window + ((static_cast<uint64_t>(ahead) + (1u << scale) - 1) >> scale);
    ReplaceSeq(copy, packet, kAckOffset, flow->guest_next);
    ReplaceWindow(copy, packet, static_cast<uint16_t>(std::min<uint64_t>(window, UINT16_MAX)));
    ++counters_.clamped_acks;
  } else if (delta != 0) {
    ReplaceSeq(copy, packet, kAckOffset, ack);
  }
  if (packet.OptionBytes() > 0) {
    std::array<std::byte, kMaxTcpOptionBytes> bytes;
    const auto options = std::span(bytes).first(packet.OptionBytes());
    std::memcpy(options.data(), frame.data() + packet.OptionsAt(), options.size());
    if (MoveSackBlocks(options, delta, flow->guest_next)) {
      ReplaceInSegment(copy, packet, packet.OptionsAt(), options);
    }
  }
  if (overlay && flow->input.Overlay(held_, packet.seq,
                                     copy.subspan(packet.payload_at, packet.PayloadBytes()))) {
    FillTcpChecksums(copy, packet);
  }
  return ToGuest(copy);
}

}  // namespace falcon
