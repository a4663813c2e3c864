#include "vm/neighbours.h"

#include <algorithm>
#include <bit>
#include <optional>
#include <tuple>

#include "os/hash.h"

namespace falcon {
namespace {

constexpr size_t kArpBytes = 28;
constexpr size_t kSourceMacAt = 6;
constexpr uint8_t kSolicitation = 135, kAdvertisement = 136;
constexpr uint8_t kSourceOption = 1, kTargetOption = 2;
constexpr size_t kDiscoveryBytes = 24;  // ICMPv6 header, flags and target
constexpr uint8_t kDiscoveryHopLimit = 255;

Mac MacAt(Frame frame, size_t at) {
  Mac mac;
  std::memcpy(mac.data(), frame.data() + at, mac.size());
  return mac;
}

Address AddressAt(Frame frame, size_t at) {
  Address address;
  std::memcpy(address.data(), frame.data() + at, address.size());
  return address;
}

// A single host's address; not "unspecified", multicast or broadcast.
bool IsHost(const Address& address) {
  if (IsMappedIpv4(address)) return address[12] != 0 && address[12] < 224;
  return address[0] != 0xFF && address != Address{};
}

// An ARP packet for Ethernet and IPv4, whole.
bool IsArpForIpv4(Frame frame, const Packet& packet) {
  const size_t at = packet.link_bytes;
  return packet.kind == PacketKind::kArp && frame.size() - at >= kArpBytes &&
         Load16(frame, at) == 1 && Load16(frame, at + 2) == kEtherIpv4 &&
         Load8(frame, at + 4) == 6 && Load8(frame, at + 5) == 4;
}

// A neighbour solicitation or advertisement that has not crossed a router.
bool IsDiscovery(Frame frame, const Packet& packet, uint8_t type) {
  return packet.kind == PacketKind::kIcmp6 && packet.end - packet.payload_at >= kDiscoveryBytes &&
         Load8(frame, packet.payload_at) == type && Load8(frame, packet.payload_at + 1) == 0 &&
         Load8(frame, packet.link_bytes + 7) == kDiscoveryHopLimit;
}

// Where the MAC of the link-layer address option `kind` stands; 0 if there is none, nothing if the
// options are broken, and with them the message.
std::optional<size_t> FindLinkOption(Frame frame, const Packet& packet, uint8_t kind) {
  size_t at = packet.payload_at + kDiscoveryBytes, found = 0;
  while (at < packet.end) {
    if (packet.end - at < 8) return std::nullopt;
    const size_t length = static_cast<size_t>(Load8(frame, at + 1)) * 8;
    if (length == 0 || length > packet.end - at) return std::nullopt;
    if (found == 0 && Load8(frame, at) == kind) found = at + 2;
    at += length;
  }
  return found;
}

// The smallest makes room.
auto RankOf(const Neighbours::Entry& entry) {
  return std::tuple(entry.used, entry.shown, entry.heard);
}

}  // namespace

Neighbours::Neighbours(size_t max_entries, uint64_t hash_seed, const Mac& vm_mac)
    : entries_(std::bit_ceil(std::max(max_entries, kWays))),
      hash_seed_(hash_seed),
      vm_mac_(vm_mac) {}

void Neighbours::Clear() { std::ranges::fill(entries_, Entry{}); }

std::span<Neighbours::Entry> Neighbours::SetOf(const Address& address) {
  const uint64_t hash = HashBytes(std::as_bytes(std::span(address)), hash_seed_);
  const size_t set = static_cast<size_t>(hash) & (entries_.size() / kWays - 1);
  return std::span(entries_).subspan(set * kWays, kWays);
}

const Neighbours::Entry* Neighbours::Find(const Address& address) const {
  for (const Entry& entry : const_cast<Neighbours*>(this)->SetOf(address)) {
    if (entry.used && entry.address == address) return &entry;
  }
  return nullptr;
}

bool Neighbours::MayHold(const Entry& entry) const {
  return IsHost(entry.address) && (entry.mac[0] & 1) == 0 && entry.mac != Mac{} &&
         entry.mac != vm_mac_;
}

void Neighbours::Restore(const Entry& entry) {
  Entry* victim = nullptr;
  for (Entry& place : SetOf(entry.address)) {
    if (place.used && place.address == entry.address) return;
    if (victim == nullptr || RankOf(place) < RankOf(*victim)) victim = &place;
  }
  if (!victim->used || RankOf(*victim) < RankOf(entry)) *victim = entry;
}

void Neighbours::Put(const Address& address, const Mac& mac, bool shown) {
  if (!MayHold(Entry{address, mac, true, shown, 0})) return;
  Entry* victim = nullptr;
  for (Entry& entry : SetOf(address)) {
    if (entry.used && entry.address == address) {
      if (entry.shown && !shown && entry.mac != mac) return;
      entry.mac = mac;
      entry.shown = entry.shown || shown;
      entry.heard = ++clock_;
      return;
    }
    if (entry.used && entry.shown && !shown) continue;
    if (victim == nullptr || RankOf(entry) < RankOf(*victim)) victim = &entry;
  }
  if (victim != nullptr) *victim = Entry{address, mac, true, shown, ++clock_};
}

void Neighbours::LearnArp(Frame frame, const Packet& packet) {
  const size_t at = packet.link_bytes;
  Put(Ipv4Address(frame.data() + at + 14), MacAt(frame, at + 8), true);
}

void Neighbours::LearnDiscovery(Frame frame, const Packet& packet) {
  if (IsDiscovery(frame, packet, kSolicitation)) {
    const size_t option = FindLinkOption(frame, packet, kSourceOption).value_or(0);
    if (option != 0) Put(packet.source, MacAt(frame, option), true);
  } else if (IsDiscovery(frame, packet, kAdvertisement)) {
    const std::optional<size_t> option = FindLinkOption(frame, packet, kTargetOption);
    if (!option.has_value()) return;
    const size_t mac_at = *option != 0 ? *option : kSourceMacAt;
    Put(AddressAt(frame, packet.payload_at + 8), MacAt(frame, mac_at), true);
  }
}

void Neighbours::Learn(Frame frame, const Packet& packet) {
  if (packet.kind == PacketKind::kMalformed) return;
  if (IsArpForIpv4(frame, packet)) return LearnArp(frame, packet);
  if (packet.version == 0) return;
  if (packet.kind == PacketKind::kIcmp6) LearnDiscovery(frame, packet);
  if (MacAt(frame, 0) == vm_mac_) Put(packet.source, MacAt(frame, kSourceMacAt), false);
}

size_t Neighbours::AnswerArp(Frame frame, const Packet& packet, std::span<std::byte> into) const {
  const size_t at = packet.link_bytes;
  const Address sender = Ipv4Address(frame.data() + at + 14);
  const Address target = Ipv4Address(frame.data() + at + 24);
  if (Load16(frame, at + 6) != 1 || !IsHost(sender) || sender == target) return 0;
  const Entry* entry = Find(target);
  if (entry == nullptr) return 0;
  std::memcpy(into.data(), frame.data(), at + 6);
  std::memcpy(into.data(), frame.data() + kSourceMacAt, 6);
  std::memcpy(into.data() + kSourceMacAt, entry->mac.data(), 6);
  Store16(into, at + 6, 2);
  std::memcpy(into.data() + at + 8, entry->mac.data(), 6);
  std::memcpy(into.data() + at + 14, frame.data() + at + 24, 4);
  std::memcpy(into.data() + at + 18, frame.data() + at + 8, 10);
  return at + kArpBytes;
}

size_t Neighbours::AnswerSolicitation(Frame frame, const Packet& packet,
                                      std::span<std::byte> into) const {
  const Address target = AddressAt(frame, packet.payload_at + 8);
  if (!IsHost(packet.source) || packet.source == target) return 0;
  const Entry* entry = Find(target);
  if (entry == nullptr) return 0;
  const size_t at = packet.link_bytes;
  const size_t icmp = at + kIpv6HeaderBytes;
  const size_t icmp_bytes = kDiscoveryBytes + 8;
  std::memset(into.data(), 0, icmp + icmp_bytes);
  std::memcpy(into.data(), frame.data() + kSourceMacAt, 6);
  std::memcpy(into.data() + kSourceMacAt, entry->mac.data(), 6);
  std::memcpy(into.data() + 12, frame.data() + 12, at - 12);
  into[at] = std::byte{0x60};
  Store16(into, at + 4, static_cast<uint16_t>(icmp_bytes));
  into[at + 6] = std::byte{58};
  into[at + 7] = std::byte{kDiscoveryHopLimit};
  std::memcpy(into.data() + at + 8, target.data(), 16);
  std::memcpy(into.data() + at + 24, packet.source.data(), 16);
  into[icmp] = std::byte{kAdvertisement};
  into[icmp + 4] = std::byte{0x60};  // solicited, override
  std::memcpy(into.data() + icmp + 8, target.data(), 16);
  into[icmp + kDiscoveryBytes] = std::byte{kTargetOption};
  into[icmp + kDiscoveryBytes + 1] = std::byte{1};
  std::memcpy(into.data() + icmp + kDiscoveryBytes + 2, entry->mac.data(), 6);
  std::array<std::byte, 8> tail{};  // of the pseudo-header: length and protocol
  Store32(tail, 0, static_cast<uint32_t>(icmp_bytes));
  tail[7] = std::byte{58};
  const uint64_t sum = SumBytes(into.subspan(at + 8, 32)) + SumBytes(tail) +
                       SumBytes(into.subspan(icmp, icmp_bytes));
  const uint16_t checksum = static_cast<uint16_t>(~FoldSum(sum));
  std::memcpy(into.data() + icmp + 2, &checksum, 2);
  return icmp + icmp_bytes;
}

size_t Neighbours::Answer(Frame frame, const Packet& packet, std::span<std::byte> into) {
  if (IsArpForIpv4(frame, packet)) return AnswerArp(frame, packet, into);
  if (IsDiscovery(frame, packet, kSolicitation)) return AnswerSolicitation(frame, packet, into);
  return 0;
}

}  // namespace falcon
