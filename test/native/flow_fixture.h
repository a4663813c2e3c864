// One replica's flow table for tests, spoken to frame by frame.
#pragma once

#include <algorithm>
#include <memory>

#include "frame_builder.h"

namespace falcon::test {

inline constexpr Seq kClientIss = 1000;
inline constexpr Nanoseconds kStart = 10 * kSecond;
inline const Bytes kSynOptions =
    FromHex("020405b4010303020402");  // MSS 1460, scale 2, SACK permitted

// One replica: a table, its sink, and short ways to speak for the client (through the log) and for
// the guest.
struct Replica {
  explicit Replica(Seq guest_iss, FlowRole role = FlowRole::kBackup, const FlowOptions& given = {})
      : iss(guest_iss) {
    FlowOptions options = given;
    std::memcpy(options.vm_mac, kVmMac.data(), 6);
    table = MakeFlowTable(options, &sink);
    table->SetRole(role);
    if (role == FlowRole::kPrimary) table->TakeOver(now);  // its gate is open
  }
  RecordingSink sink;
  std::unique_ptr<FlowTable> table;
  Seq iss;
  Nanoseconds now = kStart;
  bool v6 = false;
  int vlan_tags = 0;
  uint16_t port = 40000;
  Seq client_iss = kClientIss;

  Bytes Client(Seq offset, Seq ack, uint8_t flags, const std::string& text = {},
               uint16_t window = 16000, const Bytes& options = {}) {
    return Make({.v6 = v6,
                 .vlan_tags = vlan_tags,
                 .client_port = port,
                 .seq = client_iss + offset,
                 .ack = ack,
                 .flags = flags,
                 .window = window,
                 .options = options,
                 .payload = Text(text)});
  }
  Bytes Guest(Seq offset, Seq ack_offset, uint8_t flags, const std::string& text = {},
              uint16_t window = 16000, const Bytes& options = {}) {
    return Make({.from_guest = true,
                 .v6 = v6,
                 .vlan_tags = vlan_tags,
                 .client_port = port,
                 .seq = iss + offset,
                 .ack = client_iss + ack_offset,
                 .flags = flags,
                 .window = window,
                 .options = options,
                 .payload = Text(text)});
  }
  void Deliver(const Bytes& frame) { table->Deliver(frame, now); }
  void FromGuest(const Bytes& frame) { table->FromGuest(frame, now); }
  void Syn() { Deliver(Client(0, 0, kTcpSyn, {}, 64000, kSynOptions)); }
  void SynAck(uint16_t window = 64000) {
    FromGuest(Guest(0, 1, kTcpSyn | kTcpAck, {}, window, kSynOptions));
  }
  // A connection whose wire ISS is `wire`.
  void Open(Seq wire, uint16_t guest_window = 64000) {
    Syn();
    SynAck(guest_window);
    Deliver(Client(1, wire + 1, kTcpAck));
    sink.Clear();
  }
  Admission Admit(const Bytes& frame, Bytes* normalised = nullptr) {
    Bytes into(frame.size());
    size_t length = 0;
    const Admission admission = table->Admit(frame, into, &length, now);
    into.resize(length);
    if (normalised != nullptr) *normalised = into;
    return admission;
  }
  void Wait(Nanoseconds time) {
    const Nanoseconds until = now + time;
    while (now < until) now = std::min(until, std::max(now + 1, table->Tick(now)));
    table->Tick(now);
  }
};

inline Packet Last(const std::vector<Bytes>& frames) {
  return frames.empty() ? Packet() : ParseFrame(frames.back());
}

}  // namespace falcon::test
