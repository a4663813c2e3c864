// Frames between the guest, the log and the wire.
#include <algorithm>
#include <cstring>

#include "os/check.h"
#include "plane/data_plane.h"
#include "vm/packet.h"

namespace falcon {
namespace {

constexpr int kFramesPerRound = 128;
constexpr Nanoseconds kCheckInterval = 10 * kMillisecond;

}  // namespace

int DataPlane::PollIngress(Nanoseconds now) {
  int frames = 0;
  ingress_blocked_ = false;
  const bool leading = role_ == PlaneRole::kLeading;
  for (; frames < kFramesPerRound; ++frames) {
    if (leading && guest_ != GuestMode::kNone && (input_held_ || !CanPropose())) {
      ingress_blocked_ = true;
      break;
    }
    const Frame frame = ingress_.Front();
    if (frame.empty()) break;
    size_t length = 0;
    const bool wanted =
        guest_ != GuestMode::kNone &&
        (leading ? admit_input_ && guest_ == GuestMode::kRunning : options_.keep_unproposed);
    if (wanted && flows_->Admit(frame, normalised_, &length, now) == Admission::kPropose) {
      const Frame normalised(normalised_.data(), length);
      if (leading && !AppendOwn(EntryKind::kFrame, normalised)) {
        ingress_blocked_ = true;  // no room: the tap waits
        break;
      }
      if (!leading) pool_->Saw(normalised, now);
    }
    ++count_.frames_in;
    ingress_.Pop();
  }
  ingress_.Release();
  if (ingress_.corrupt()) Fail("VM_LINK", "the ingress ring is corrupt");
  return frames;
}

// The frames that the network sent to the dead primary, which this replica's tap has seen and the
// log has not.
void DataPlane::ProposeUnproposed(Nanoseconds now) {
  if (pool_ == nullptr || !options_.keep_unproposed) return;
  if (guest_ != GuestMode::kRunning || !admit_input_) {
    pool_->Clear();
    return;
  }
  struct Taker {
    DataPlane* plane;
    Nanoseconds now;
  } taker{this, now};
  pool_->Drain(
      now,
      [](void* context, Frame frame) {
        const auto& [plane, at] = *static_cast<Taker*>(context);
        return plane->ProposePooled(frame, at);
      },
      &taker);
  pool_->Clear();
}

// What a backup kept was judged by a backup; now it is judged as a primary judges. False: no room.
bool DataPlane::ProposePooled(Frame frame, Nanoseconds now) {
  size_t length = 0;
  if (flows_->Admit(frame, normalised_, &length, now) != Admission::kPropose) return true;
  if (!AppendOwn(EntryKind::kFrame, Frame(normalised_.data(), length))) return false;
  ++count_.pool_proposed;
  return true;
}

int DataPlane::PollDelivery(Nanoseconds now) {
  int taken = 0;
  deliver_blocked_ = false;
  if (held_op_ != 0) return 0;
  for (; delivered_op_ < commit_op_ && taken < kFramesPerRound; ++taken) {
    const Op op = delivered_op_ + 1;
    if (!log_.Holds(op)) {
      // Only entries from before this replica's start are not in memory: there is no guest to take
      // them.
      FALCON_CHECK(op <= recovered_op_ || guest_ == GuestMode::kNone);
      ++delivered_op_;
      continue;
    }
    const auto entry = log_.Entry(op);
    const EntryHeader header = ReadEntryHeader(entry);
    const auto payload = entry.subspan(kEntryHeaderBytes, header.payload_length);
    if (header.kind == EntryKind::kFrame) {
      if (guest_ == GuestMode::kBooting) break;
      if (guest_ == GuestMode::kRunning) {
        if (!deliver_.HasSpace(kDeliverSpace)) {
          deliver_blocked_ = true;
          break;
        }
        flows_->Deliver(options_.faults.empty() ? payload : WithFault(payload), now);
      }
    } else {
      if (header.kind == EntryKind::kOutputCheck && guest_ == GuestMode::kRunning)
        flows_->TakeCheck(op, payload, now);
      if (header.kind == EntryKind::kVmBoot && rings_ != nullptr) {
        flows_->Reset();
        // Byte 0 is how guests are booted (src/engine/boot-policy.ts): each, or only the primary's.
        const bool clone = !payload.empty() && payload[0] == std::byte{1};
        const bool here = role_ == PlaneRole::kLeading && header.view == promised_view_;
        guest_ = clone && !here ? GuestMode::kNone : GuestMode::kBooting;
        boot_op_ = op;
      }
      PlaneEvent& event = Emit(PlaneEvent::Kind::kControl);
      event.entry_kind = header.kind;
      event.view = header.view;
      event.op = op;
      event.bytes.assign(payload.begin(), payload.end());
    }
    delivered_op_ = op;
    if (header.kind == EntryKind::kVmSync) HoldBehind(op, payload);
    if (held_op_ != 0) break;
  }
  if (guest_ == GuestMode::kRunning && held_op_ == 0 && now >= next_flow_tick_)
    next_flow_tick_ = flows_->Tick(now);
  if (rings_ != nullptr) deliver_.Ring();
  return taken;
}

int DataPlane::PollEgress(Nanoseconds now) {
  int frames = 0;
  for (; frames < kFramesPerRound; ++frames) {
    const Frame frame = egress_.Front();
    if (frame.empty()) break;
    flows_->FromGuest(frame, now);
    egress_.Pop();
  }
  egress_.Release();
  if (frames > 0) {
    deliver_.Ring();
    next_flow_tick_ = std::min(next_flow_tick_, now + kMillisecond);
  }
  if (egress_.corrupt()) Fail("VM_LINK", "the egress ring is corrupt");
  return frames;
}

bool DataPlane::ToGuest(Frame frame) { return deliver_.Push(frame); }

void DataPlane::ToWire(Frame frame) {
  if (!MayRelease()) {
    ++count_.frames_gated;
    return;
  }
  if (wire_->Write(frame)) {
    ++count_.frames_out;
  } else {
    ++count_.wire_errors;
  }
}

// What of the outputs is to be compared, and what comparing has shown, for the deciding thread.
void DataPlane::PollOutputs(Nanoseconds now) {
  if (flows_->HasVerdicts()) flows_->TakeVerdicts(&Emit(PlaneEvent::Kind::kVerdicts).bytes);
  if (!gate_open_ || guest_ != GuestMode::kRunning || now < next_check_) return;
  next_check_ = now + kCheckInterval;
  check_payload_.assign(sizeof(uint32_t), std::byte{0});
  check_tails_.clear();
  const auto self = static_cast<uint16_t>(options_.self);
  if (!flows_->CollectChecks(self, now, &check_payload_, &check_tails_)) return;
  const auto length = static_cast<uint32_t>(check_payload_.size() - sizeof(uint32_t));
  std::memcpy(check_payload_.data(), &length, sizeof length);
  PlaneEvent& event = Emit(PlaneEvent::Kind::kCheckDue);
  event.view = promised_view_;
  event.bytes = check_payload_;
  event.bytes.insert(event.bytes.end(), check_tails_.begin(), check_tails_.end());
}

Frame DataPlane::WithFault(Frame frame) {
  const Packet packet = ParseFrame(frame);
  if (packet.kind != PacketKind::kTcp) return frame;
  for (const auto& [from, to] : options_.faults) {
    const auto found = std::ranges::search(frame, from);
    if (found.empty()) continue;
    const auto copy = std::span(normalised_).first(frame.size());
    std::ranges::copy(frame, copy.begin());
    std::ranges::copy(to, copy.begin() + (found.begin() - frame.begin()));
    FillTcpChecksums(copy, packet);
    return copy;
  }
  return frame;
}

void DataPlane::PollGate(Nanoseconds now) {
  const bool caught_up = commit_op_ >= view_start_op_ && delivered_op_ >= view_start_op_ &&
                         guest_ == GuestMode::kRunning && deliver_.Empty();
  if (caught_up && !caught_up_told_) {
    caught_up_told_ = true;
    PlaneEvent& event = Emit(PlaneEvent::Kind::kCaughtUp);
    event.view = promised_view_;
    event.at = now;
  }
  // By the time that the writes to the tap will go by.
  if (!gate_armed_ || gate_open_ || surrendered_ || clock_->Now() >= lease_end_) return;
  gate_open_ = true;
  Announce();
  flows_->TakeOver(now);
  PlaneEvent& event = Emit(PlaneEvent::Kind::kGateOpened);
  event.view = promised_view_;
  event.at = now;
}

// Moves the switches' entries for the guest's address to this host: RARP as QEMU's announce-self
// sends it, and a gratuitous ARP when the guest's address is known.
void DataPlane::Announce() {
  std::byte frame[60] = {};
  const auto put = [&frame](size_t at, const void* data, size_t bytes) {
    std::memcpy(frame + at, data, bytes);
  };
  const auto* mac = options_.flows.vm_mac;
  std::memset(frame, 0xFF, 6);
  put(6, mac, 6);
  const uint8_t rarp[10] = {0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3};
  put(12, rarp, sizeof rarp);
  put(22, mac, 6);
  put(32, mac, 6);
  ToWire(frame);
  if (options_.vm_address == 0) return;
  const uint8_t arp[10] = {0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1};
  put(12, arp, sizeof arp);
  put(28, &options_.vm_address, 4);
  std::memset(frame + 32, 0, 6);
  put(38, &options_.vm_address, 4);
  ToWire(frame);
}

}  // namespace falcon
