// One connection that a client opened towards the VM, as one replica sees it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "os/clock.h"
#include "vm/flow_table.h"
#include "vm/input_stream.h"
#include "vm/output_stream.h"
#include "vm/packet.h"
#include "vm/tcp_options.h"

namespace falcon {

struct FlowKey {
  Address client{}, vm{};
  uint16_t client_port = 0, vm_port = 0;

  bool operator==(const FlowKey&) const = default;
};

// The key of a frame that the client sent, and of one that the guest sent.
[[nodiscard]] inline FlowKey KeyOfClient(const Packet& p) {
  return {p.source, p.destination, p.source_port, p.destination_port};
}
[[nodiscard]] inline FlowKey KeyOfGuest(const Packet& p) {
  return {p.destination, p.source, p.destination_port, p.source_port};
}

// An Ethernet header with its VLAN tags, as one side last sent it; segments made here start with
// it.
struct LinkHeader {
  std::array<std::byte, kMaxLinkBytes> bytes{};
  uint8_t length = 0;

  void Set(Frame frame, const Packet& packet) {
    length = static_cast<uint8_t>(packet.link_bytes);
    std::memcpy(bytes.data(), frame.data(), packet.link_bytes);
  }
  [[nodiscard]] Frame view() const { return Frame(bytes).first(length); }
};

// A short frame kept whole: the client's SYN until the guest has answered it, then the guest's
// SYN-ACK.
struct KeptFrame {
  static constexpr size_t kMaxBytes = 192;
  std::array<std::byte, kMaxBytes> bytes{};
  uint16_t length = 0;

  void Set(Frame frame) {
    length = frame.size() <= kMaxBytes ? static_cast<uint16_t>(frame.size()) : uint16_t{0};
    std::memcpy(bytes.data(), frame.data(), length);
  }
  [[nodiscard]] Frame view() const { return Frame(bytes).first(length); }
};

struct Flow {
  FlowKey key;
  uint32_t index = 0;

  // From the log; the same on every replica.
  Seq client_iss = 0;
  Seq wire_iss = 0;  // means something once `defined`
  bool defined = false;
  Seq client_ack = 0;   // the highest acknowledgement of the client, wire space
  Seq client_edge = 0;  // the highest right edge that the client ever offered, wire space
  Seq window_seq = 0;   // of the segment that client_window came from
  uint16_t client_window = 0;
  SynOptions client_options;

  // From this replica's guest.
  bool guest_iss_known = false;
  bool earlier_guest_iss_known = false;
  Seq guest_iss = 0;
  Seq earlier_guest_iss = 0;  // of a SYN-ACK that the guest replaced by another
  Seq guest_next = 0;         // behind the highest sequence number that the guest sent, guest space
  uint16_t guest_window = 0;  // the field, as the guest last sent it
  SynOptions guest_options;
  Nanoseconds guest_reset_at = 0;  // 0: it has not

  // Of this replica.
  bool opened_here = false;    // the SYN came while this replica was primary: it knows all that the
                               // client can have seen
  bool closed = false;         // both sides are through, or one has reset
  bool client_reset = false;   // the client's RST is in the log
  bool reset_offered = false;  // and the guest has been given it
  bool ack_owed = false;       // the guest is to get an acknowledgement of our making
  FlowDivergence divergence = FlowDivergence::kNone;
  uint8_t syn_offers = 0;
  uint8_t reoffers = 0;       // without progress
  uint8_t probe_answers = 0;  // since the client last said something
  Nanoseconds last_heard = 0;
  Nanoseconds syn_offer_at = 0;  // 0: none due
  Nanoseconds hold_until = 0;    // 0: nothing waits for the SYN-ACK
  Nanoseconds reoffer_at = 0;    // 0: none due
  KeptFrame handshake;
  LinkHeader to_guest, to_wire;
  InputStream input;
  OutputStream output;

  // Bookkeeping of the index.
  bool used = false;
  uint8_t list = 0;
  uint32_t list_previous = UINT32_MAX, list_next = UINT32_MAX;

  // What to add to a number in wire space to get the guest's.
  [[nodiscard]] Seq Delta() const { return guest_iss - wire_iss; }
  [[nodiscard]] bool ready() const { return defined && guest_iss_known; }
  [[nodiscard]] bool diverged() const { return divergence != FlowDivergence::kNone; }
  [[nodiscard]] bool Scaled() const {
    return client_options.scale != kNoScale &&
           (!guest_iss_known || guest_options.scale != kNoScale);
  }
  // Window scaling counts only if both sides asked for it.
  [[nodiscard]] uint8_t ClientScale() const { return Scaled() ? client_options.scale : uint8_t{0}; }
  [[nodiscard]] uint8_t GuestScale() const {
    return guest_iss_known && Scaled() ? guest_options.scale : uint8_t{0};
  }
  [[nodiscard]] bool v4() const { return IsMappedIpv4(key.vm); }
  // The client's acknowledgement as this guest may see it: no further than it has sent.
  [[nodiscard]] Seq AckForGuest() const { return SeqMin(client_ack + Delta(), guest_next); }
};

}  // namespace falcon
