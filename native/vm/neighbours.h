// Who has which address: pairs that logged frames have shown, and answers for a backup's own guest.
//
// Nobody on the wire hears what a backup's guest asks. Unanswered, its neighbour entries fail, and
// it falls silent long before a failover needs it. So the replica answers ARP requests and IPv6
// neighbour solicitations, unicast probes of an ageing entry included, from what the log has shown
// to every replica alike.
//
// The table is a fixed number of small sets. A pair shown by ARP or neighbour discovery is worth
// more than one seen as the source of an IP frame, and is neither pushed out nor changed by such a
// one: anybody can make up source addresses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "vm/packet.h"

namespace falcon {

class Neighbours {
 public:
  Neighbours(size_t max_entries, uint64_t hash_seed, const Mac& vm_mac);

  // Learns from a frame of the log.
  void Learn(Frame frame, const Packet& packet);
  // If `frame`, sent by the own guest, asks for an address that is known, writes the answer into
  // `into` (at least kMaxAnswerBytes) and returns its length; otherwise 0. Never answers for the
  // guest's own address (announcements and duplicate address detection).
  [[nodiscard]] size_t Answer(Frame frame, const Packet& packet, std::span<std::byte> into);
  void Clear();

  static constexpr size_t kMaxAnswerBytes = 128;

  struct Entry {
    Address address{};
    Mac mac{};
    bool used = false;
    bool shown = false;  // by ARP or neighbour discovery
    uint64_t heard = 0;
  };

  // ---- saving and loading (flow_state.cc)
  [[nodiscard]] std::span<const Entry> entries() const { return entries_; }
  [[nodiscard]] uint64_t clock() const { return clock_; }
  [[nodiscard]] bool MayHold(const Entry& entry) const;
  // Takes an entry of another table. Where its set is full, the better ones stay.
  void Restore(const Entry& entry);
  void SetClock(uint64_t clock) { clock_ = clock; }

 private:
  static constexpr size_t kWays = 4;

  void Put(const Address& address, const Mac& mac, bool shown);
  [[nodiscard]] const Entry* Find(const Address& address) const;
  [[nodiscard]] std::span<Entry> SetOf(const Address& address);
  void LearnArp(Frame frame, const Packet& packet);
  void LearnDiscovery(Frame frame, const Packet& packet);
  [[nodiscard]] size_t AnswerArp(Frame frame, const Packet& packet,
                                 std::span<std::byte> into) const;
  [[nodiscard]] size_t AnswerSolicitation(Frame frame, const Packet& packet,
                                          std::span<std::byte> into) const;

  std::vector<Entry> entries_;
  uint64_t hash_seed_;
  Mac vm_mac_;
  uint64_t clock_ = 0;  // counts what was learnt; the smallest `heard` is the oldest
};

}  // namespace falcon
