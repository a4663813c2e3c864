#include "fabric/grant.h"

#include <cstdio>
#include <span>

#include "os/check.h"
#include "os/crc32c.h"

namespace falcon {
namespace {

constexpr unsigned kGrantVersion = 1;
constexpr const char* kNoFile = "-";

bool IsNameCharacter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '-';
}

Status Refused(const char* why) { return {"FABRIC_GRANT", std::string("bad grant: ") + why}; }

}  // namespace

bool IsGrantFile(std::string_view name) {
  if (name.empty() || name.size() > kMaxGrantFileBytes || !IsNameCharacter(name.front()) ||
      name == kNoFile)
    return false;
  for (const char c : name) {
    if (!IsNameCharacter(c) && c != '.') return false;
  }
  return true;
}

std::string FormatGrant(const Grant& grant) {
  std::string text = "falcon-grant " + std::to_string(kGrantVersion) + " " + grant.fabric;
  text += " owner " + std::to_string(grant.owner) + " writer " + std::to_string(grant.writer);
  text += " connection " + std::to_string(grant.connection);
  text += " region " + std::to_string(grant.region);
  text += " exposure " + std::to_string(grant.exposure) + " bytes " + std::to_string(grant.bytes);
  text += " address " + std::to_string(grant.address) + " key " + std::to_string(grant.key);
  text += " file " + (grant.file.empty() ? std::string(kNoFile) : grant.file);
  char sum[32];
  std::snprintf(sum, sizeof sum, " sum %08x\n", Crc32c(std::as_bytes(std::span(text))));
  text += sum;
  FALCON_CHECK(text.size() <= kMaxGrantBytes);
  return text;
}

// Reads what it can and then writes it again: only what FormatGrant would have said is right.
Status ParseGrant(std::string_view text, const Grant& expected, Grant* grant) {
  if (text.size() > kMaxGrantBytes || text.find('\0') != std::string_view::npos)
    return Refused("too long, or not text");
  unsigned version = 0;
  unsigned owner = 0;
  unsigned writer = 0;
  unsigned region = 0;
  unsigned long long connection = 0;
  unsigned long long exposure = 0;
  unsigned long long bytes = 0;
  unsigned long long address = 0;
  unsigned key = 0;
  char fabric[16];
  char file[kMaxGrantFileBytes + 1];
  static_assert(kMaxGrantFileBytes == 128);
  if (std::sscanf(std::string(text).c_str(),
                  "falcon-grant %9u %15s owner %3u writer %3u connection %20llu region %3u "
                  "exposure %20llu bytes %20llu address %20llu key %10u file %128s",
                  &version, fabric, &owner, &writer, &connection, &region, &exposure, &bytes,
                  &address, &key, file) != 11)
    return Refused("not one");
  if (version != kGrantVersion) return Refused("another version");
  if (owner >= kMaxMembers || writer >= kMaxMembers || region >= kMaxRegions || exposure == 0 ||
      bytes == 0 || bytes > kMaxExposedBytes)
    return Refused("a field is out of range");
  Grant parsed;
  parsed.fabric = fabric;
  parsed.owner = static_cast<PeerId>(owner);
  parsed.writer = static_cast<PeerId>(writer);
  parsed.region = static_cast<RegionId>(region);
  parsed.connection = connection;
  parsed.exposure = exposure;
  parsed.bytes = bytes;
  parsed.address = address;
  parsed.key = key;
  if (std::string_view(file) != kNoFile) parsed.file = file;
  if (!parsed.file.empty() && !IsGrantFile(parsed.file)) return Refused("a file elsewhere");
  if (FormatGrant(parsed) != text) return Refused("not as an owner writes it");
  if (parsed.fabric != expected.fabric) return Refused("of another fabric");
  if (parsed.owner != expected.owner || parsed.writer != expected.writer)
    return Refused("between other members");
  if (parsed.region != expected.region) return Refused("of another region");
  if (parsed.connection != expected.connection) return Refused("of another connection");
  *grant = std::move(parsed);
  return Ok();
}

Status CheckExposable(RegionId region, const ExposedMemory& memory, bool in_use) {
  const std::string number = "region " + std::to_string(region);
  if (region >= kMaxRegions || in_use)
    return {"FABRIC_REGION", number + (in_use ? " is in use" : " is out of range")};
  if (memory.memory.empty() || memory.memory.size() > kMaxExposedBytes ||
      reinterpret_cast<uintptr_t>(memory.memory.data()) % 8 != 0)
    return {"FABRIC_REGION", number + " cannot be that memory"};
  return Ok();
}

}  // namespace falcon
