#include "fabric/verbs_descriptor.h"

#include <cstddef>
#include <cstring>
#include <span>

#include "os/crc32c.h"

namespace falcon {
namespace {

constexpr std::string_view kPrefix = "verbs 2 ";
constexpr std::string_view kDigits = "0123456789abcdef";

uint32_t Checksum(const VerbsMember& member) {
  return Crc32c(std::as_bytes(std::span(&member, 1)).first(offsetof(VerbsMember, checksum)));
}

Status Refused(const char* why) {
  return {"FABRIC_CONNECT", std::string("bad verbs descriptor: ") + why};
}

bool IsSane(const VerbsMemory& memory) {
  constexpr uint64_t kMost = uint64_t{1} << 62;
  return memory.reserved == 0 && memory.address < kMost && memory.bytes < kMost;
}

}  // namespace

std::string FormatVerbsMember(VerbsMember member) {
  member.checksum = Checksum(member);
  std::string text(kPrefix);
  for (const std::byte byte : std::as_bytes(std::span(&member, 1))) {
    text += kDigits[std::to_integer<size_t>(byte >> 4)];
    text += kDigits[std::to_integer<size_t>(byte & std::byte{15})];
  }
  return text;
}

Status ParseVerbsMember(std::string_view text, VerbsMember* member) {
  if (!text.starts_with(kPrefix)) return Refused("not one of this version");
  text.remove_prefix(kPrefix.size());
  if (text.size() != 2 * sizeof(VerbsMember)) return Refused("wrong length");
  std::array<unsigned char, sizeof(VerbsMember)> bytes;
  for (size_t i = 0; i < bytes.size(); ++i) {
    const size_t high = kDigits.find(text[2 * i]);
    const size_t low = kDigits.find(text[2 * i + 1]);
    if (high == std::string_view::npos || low == std::string_view::npos)
      return Refused("not hexadecimal");
    bytes[i] = static_cast<unsigned char>(high << 4 | low);
  }
  VerbsMember parsed;
  std::memcpy(&parsed, bytes.data(), sizeof parsed);
  if (parsed.checksum != Checksum(parsed)) return Refused("wrong checksum");
  if (parsed.self >= kMaxMembers || parsed.ethernet > 1 || parsed.mtu < IBV_MTU_256 ||
      parsed.mtu > IBV_MTU_4096 || parsed.reserved != 0 || parsed.reserved2 != 0)
    return Refused("a field is out of range");
  if (!IsSane(parsed.control) || parsed.control.bytes == 0) return Refused("no control words");
  for (const VerbsMemory& region : parsed.regions) {
    if (!IsSane(region)) return Refused("a region is out of range");
  }
  for (const uint32_t number : parsed.queue_pairs) {
    if (number >> 24 != 0) return Refused("a queue pair number is out of range");
  }
  *member = parsed;
  return Ok();
}

}  // namespace falcon
