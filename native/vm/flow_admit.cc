// What of the network's traffic may be proposed.
//
// The result for a frame that is proposed depends on its bytes alone, so that a backup's pool of
// unproposed frames and the log can be compared. Whether a segment may be proposed at all is the
// primary's judgement: it keeps out of the log what would make replicas disagree (segments of
// earlier connections on the same ports, forged acknowledgements, data beyond any window) and TCP
// repeats what was kept out wrongly.
#include "vm/flow_engine.h"

namespace falcon {

Admission FlowEngine::Refuse(bool malformed) {
  ++counters_.frames_refused;
  if (malformed) ++counters_.malformed;
  return Admission::kNotForUs;
}

Admission FlowEngine::Admit(Frame frame, std::span<std::byte> normalised, size_t* length,
                            Nanoseconds now) {
  *length = 0;
  if (frame.size() < kEthernetHeaderBytes || frame.size() > kMaxFrameBytes ||
      normalised.size() < frame.size()) {
    return Refuse(true);
  }
  const bool unicast = (Load8(frame, 0) & 1) == 0;
  if (unicast && !IsForVm(frame)) return Refuse(false);
  if (std::memcmp(frame.data() + 6, vm_mac_.data(), vm_mac_.size()) == 0) return Refuse(false);
  Packet packet = ParseFrame(frame);
  if (packet.kind == PacketKind::kMalformed) return Refuse(true);
  size_t bytes = frame.size();
  std::memcpy(normalised.data(), frame.data(), bytes);
  if (packet.kind == PacketKind::kTcp) {
    // A frame that no guest would take must not define a flow.
    if (!TcpChecksumsAreRight(frame, packet)) return Refuse(true);
    if (packet.Has(kTcpSyn) && (packet.Has(kTcpRst) || packet.Has(kTcpFin))) return Refuse(true);
    if (unicast && role_ == FlowRole::kBackup &&
        OpensOverLive(packet, index_.Find(KeyOfClient(packet)))) {
      return Refuse(false);  // a primary would challenge it first
    }
    if (unicast && role_ == FlowRole::kPrimary && !MayPropose(frame, packet, now)) {
      ++counters_.frames_refused;
      return Admission::kHold;
    }
    if (packet.Has(kTcpSyn) && !packet.Has(kTcpAck)) {
      if (CleanSynOptions(normalised.subspan(packet.OptionsAt(), packet.OptionBytes()))) {
        FillTcpChecksums(normalised, packet);
      }
      // Only Fast Open carries data here, and a guest without the cookie repeats nothing of it.
      if (packet.PayloadBytes() > 0) bytes = DropTcpPayload(normalised.first(bytes), &packet);
    }
  }
  ++counters_.frames_admitted;
  *length = bytes;
  return Admission::kPropose;
}

bool FlowEngine::MayPropose(Frame frame, const Packet& packet, Nanoseconds now) {
  const FlowKey key = KeyOfClient(packet);
  const uint64_t hash = index_.Hash(key);
  Flow* flow = index_.Find(key);
  if (packet.Has(kTcpSyn))
    return packet.Has(kTcpAck) || MayProposeSyn(frame, packet, flow, hash, now);
  if (!packet.Has(kTcpRst) && packet.Has(kTcpAck) && pending_.Has(hash, now)) return false;
  return flow == nullptr || MayProposeSegment(packet, *flow);
}

bool FlowEngine::OpensOverLive(const Packet& packet, const Flow* flow) const {
  return flow != nullptr && (packet.flags & (kTcpSyn | kTcpAck)) == kTcpSyn &&
         packet.seq != flow->client_iss && flow->defined && !flow->closed && !flow->diverged();
}

bool FlowEngine::MayProposeSyn(Frame frame, const Packet& packet, Flow* flow, uint64_t hash,
                               Nanoseconds now) {
  if (flow != nullptr && flow->client_iss == packet.seq) return true;  // repeated
  if (OpensOverLive(packet, flow)) {
    ChallengeClient(frame, packet, *flow);
    return false;
  }
  const size_t live =
      index_.size() - index_.count(FlowIndex::kHalfOpen) - index_.count(FlowIndex::kClosed);
  if (flow == nullptr && live >= options_.max_flows) {
    ++counters_.refused_full;
    return false;
  }
  pending_.Add(hash, KeyOfClient(packet), packet.seq, now);
  return true;
}

// A SYN on a live connection is forged, or its client has forgotten the connection. Asked which
// (RFC 5961, section 4), the latter answers with a reset that fits; that goes through the log and
// ends the flow everywhere, and the next SYN opens a new one. So a SYN in the log always opens a
// flow, on every replica alike.
void FlowEngine::ChallengeClient(Frame frame, const Packet& packet, const Flow& flow) {
  if (!flow.ready()) return;
  std::array<std::byte, kMaxLinkBytes> link;
  std::memcpy(link.data(), frame.data(), packet.link_bytes);
  std::memcpy(link.data(), frame.data() + 6, 6);
  std::memcpy(link.data() + 6, vm_mac_.data(), 6);
  TcpSegment segment = SegmentToWire(flow);
  segment.link = Frame(link).first(packet.link_bytes);
  segment.seq = flow.guest_next - flow.Delta();
  segment.ack = flow.input.next();
  segment.flags = kTcpAck;
  ToWire(scratch().first(FinishSegment(scratch(), segment, 0)));
}

bool FlowEngine::MayProposeSegment(const Packet& packet, const Flow& flow) const {
  if (packet.Has(kTcpRst) || !packet.Has(kTcpAck) || flow.diverged()) return true;
  if (!flow.defined) {
    // This primary has let out the SYN-ACK itself: only what acknowledges exactly that can be of
    // this connection.
    if (!flow.opened_here) return true;
    return flow.guest_iss_known &&
           (packet.ack == flow.guest_iss + 1 ||
            (flow.earlier_guest_iss_known && packet.ack == flow.earlier_guest_iss + 1));
  }
  const Seq end = packet.seq + static_cast<Seq>(packet.PayloadBytes());
  if (SeqDistance(flow.input.acked() + static_cast<Seq>(options_.hold_bytes_per_flow), end) > 0)
    return false;
  // Storage runs short only through holes that clients leave: then nothing is taken that would
  // widen one.
  const bool short_of_room = held_.free_blocks() < options_.hold_bytes / BlockPool::kBlockBytes / 4;
  if (short_of_room && packet.PayloadBytes() > 0 && SeqBefore(flow.input.next(), packet.seq))
    return false;
  if (!flow.opened_here || !flow.ready()) return PlausibleAck(flow, packet.ack);
  const Seq edge = flow.input.edge() + 1;  // a probe of a closed window, or a FIN
  return !SeqBefore(flow.guest_next - flow.Delta(), packet.ack) && !SeqBefore(edge, packet.seq) &&
         !SeqBefore(edge, end);
}

}  // namespace falcon
