// Frames of this replica's guest on their way to the network.
#include "vm/flow_engine.h"

namespace falcon {

void FlowEngine::FromGuest(Frame frame, Nanoseconds now) {
  ++counters_.frames_from_guest;
  const Packet packet = ParseFrame(frame);
  Flow* flow = packet.kind == PacketKind::kTcp ? index_.Find(KeyOfGuest(packet)) : nullptr;
  if (flow == nullptr) {
    if (role_ == FlowRole::kBackup) AnswerNeighbourQuestion(frame, packet);
    CountDatagram(frame, packet);
    return ToWire(frame);
  }
  if (!TcpChecksumsAreRight(frame, packet)) {
    // Nobody will take it. Nothing is learnt from it, above all no byte to be sent again in a frame
    // that is right.
    ++counters_.malformed;
    return flow->ready() ? SendTranslated(frame, packet, flow) : ToWire(frame);
  }
  flow->to_wire.Set(frame, packet);
  if (flow->diverged()) {
    // A primary's client has been told that this connection is over.
    if (role_ == FlowRole::kBackup) ToWire(frame);
  } else if (packet.Has(kTcpSyn) && packet.Has(kTcpAck)) {
    EmitSynAck(frame, packet, flow, now);
  } else if (packet.Has(kTcpSyn)) {
    if (flow->closed) Remove(flow);  // the guest opens a connection of its own on these ports
    ToWire(frame);
  } else {
    EmitSegment(frame, packet, flow, now);
  }
}

void FlowEngine::AnswerNeighbourQuestion(Frame frame, const Packet& packet) {
  const size_t length = neighbours_.Answer(frame, packet, scratch());
  if (length == 0) return;
  if (ToGuest(scratch().first(length))) {
    ++counters_.neighbour_answers;
  } else {
    ++counters_.dropped_to_guest;  // the guest asks again
  }
}

// UDP over IPv4 or IPv6 without extension headers; of fragments, the first alone.
void FlowEngine::CountDatagram(Frame frame, const Packet& packet) {
  constexpr uint8_t kProtocolUdp = 17;
  constexpr size_t kUdpHeaderBytes = 8;
  if (packet.kind != PacketKind::kOther || packet.version == 0) return;
  const size_t at = packet.link_bytes;
  const bool v4 = packet.version == 4;
  if (frame.size() < at + (v4 ? kIpv4HeaderBytes : kIpv6HeaderBytes)) return;
  const size_t header = v4 ? (Load8(frame, at) & 15u) * 4u : kIpv6HeaderBytes;
  if (Load8(frame, at + (v4 ? 9 : 6)) != kProtocolUdp) return;
  if (v4 && (Load16(frame, at + 6) & 0x1FFF) != 0) return;
  if (frame.size() < at + header + kUdpHeaderBytes) return;
  const size_t length = Load16(frame, at + header + 4);
  if (length >= kUdpHeaderBytes)
    book_.Datagram(Load16(frame, at + header), length - kUdpHeaderBytes);
}

void FlowEngine::EmitSynAck(Frame frame, const Packet& packet, Flow* flow, Nanoseconds now) {
  const bool established = flow->guest_iss_known && flow->guest_next != flow->guest_iss + 1;
  const bool another = !flow->guest_iss_known || packet.seq != flow->guest_iss;
  if (packet.ack != flow->client_iss + 1 || (another && established)) return ToWire(frame);
  if (another) {
    // A guest under a flood may forget a SYN and answer its repetition with another number.
    flow->earlier_guest_iss_known = flow->guest_iss_known;
    flow->earlier_guest_iss = flow->guest_iss;
    flow->guest_iss_known = true;
    flow->guest_iss = packet.seq;
    flow->guest_next = packet.seq + 1;
    flow->guest_options = ReadSynOptions(frame.subspan(packet.OptionsAt(), packet.OptionBytes()));
    flow->handshake.Set(frame);
    flow->syn_offer_at = flow->hold_until = 0;
    flow->guest_reset_at = 0;
  }
  flow->guest_window = packet.window;
  flow->input.GuestAcknowledged(held_, packet.ack, packet.window);
  if (!flow->defined) {
    ToWire(frame);
    if (flow->client_reset && !ClientRepeats(*flow) && !SendResetToGuest(flow, packet.ack))
      Block(flow);
    return;
  }
  SendTranslated(frame, packet, flow);
  flow->ack_owed = !ClientRepeats(*flow);
  Service(flow, now);
  ArmReoffer(flow, now);
}

void FlowEngine::EmitSegment(Frame frame, const Packet& packet, Flow* flow, Nanoseconds now) {
  if (packet.Has(kTcpRst)) NoteGuestReset(packet, flow, now);
  if (!flow->ready()) return ToWire(frame);
  if (!packet.Has(kTcpRst)) LearnFromGuest(packet, flow, frame, now);
  SendTranslated(frame, packet, flow);
  if (packet.Has(kTcpRst)) return;
  AnswerForClient(packet, flow, now);
  if (flow->input.offered() != flow->input.next() || flow->client_reset) Pump(flow, now);
  CheckFinished(flow);
}

// A reset ends the connection unless it answers a segment that was never part of it.
void FlowEngine::NoteGuestReset(const Packet& packet, Flow* flow, Nanoseconds now) {
  if (flow->guest_reset_at != 0) return;
  if (!flow->guest_iss_known && packet.ack != flow->client_iss + 1) return;
  if (flow->guest_iss_known && !flow->defined && packet.seq != flow->guest_iss + 1) return;
  flow->guest_reset_at = now;
  flow->syn_offer_at = flow->reoffer_at = 0;
  book_.Cut(*flow);
  CloseFlow(flow);
}

void FlowEngine::LearnFromGuest(const Packet& packet, Flow* flow, Frame frame, Nanoseconds now) {
  flow->last_heard = now;
  if (packet.Has(kTcpAck)) {
    const uint32_t window = static_cast<uint32_t>(packet.window) << flow->GuestScale();
    flow->guest_window = packet.window;
    if (flow->input.GuestAcknowledged(held_, packet.ack, window)) {
      flow->reoffers = 0;
      flow->reoffer_at = 0;
      ArmReoffer(flow, now);
    }
  }
  const Seq end = packet.seq + packet.SeqLength();
  if (!SeqBefore(flow->guest_next, packet.seq)) flow->guest_next = SeqMax(flow->guest_next, end);
  if (packet.SeqLength() == 0) return;
  const auto payload = frame.subspan(packet.payload_at, packet.PayloadBytes());
  book_.Emit(*flow, packet.seq - flow->Delta(), payload, packet.Has(kTcpFin), now);
  counters_.retain_dropped +=
      flow->output.Append(retained_, packet.seq - flow->Delta(), payload, packet.Has(kTcpFin),
                          options_.retain_bytes_per_flow);
}

// The client has acknowledged, in the log, bytes that this guest sends only now, or sends again:
// nobody else will tell it. A client that a primary serves itself speaks for itself.
void FlowEngine::AnswerForClient(const Packet& packet, Flow* flow, Nanoseconds now) {
  if (ClientRepeats(*flow)) return;
  if (flow->reset_offered) {
    if (!SendResetToGuest(flow, packet.ack)) ++counters_.dropped_to_guest;
    return;
  }
  const bool acknowledged =
      packet.SeqLength() > 0 && SeqBefore(packet.seq, flow->client_ack + flow->Delta());
  // A probe of an idle connection or of a closed window. A few are answered, in case the guest
  // missed an update; more would hide from the guest that its client is gone.
  const bool probe = packet.SeqLength() == 0 && packet.seq + 1 == flow->AckForGuest() &&
                     flow->probe_answers < kMaxProbeAnswers;
  if (!acknowledged && !probe) return;
  if (probe) ++flow->probe_answers;
  if (Pump(flow, now)) return;
  if (!SendAckToGuest(flow, PlaceForAck(*flow))) OweAck(flow);
}

void FlowEngine::SendTranslated(Frame frame, const Packet& packet, Flow* flow) {
  const Seq delta = flow->Delta();
  const uint16_t window = packet.Has(kTcpSyn) ? packet.window : WindowForWire(*flow, packet.window);
  if (delta == 0 && window == packet.window) return ToWire(frame);
  const auto copy = scratch().first(frame.size());
  std::memcpy(copy.data(), frame.data(), frame.size());
  if (delta != 0) ReplaceSeq(copy, packet, kSeqOffset, packet.seq - delta);
  if (window != packet.window) ReplaceWindow(copy, packet, window);
  ToWire(copy);
}

}  // namespace falcon
