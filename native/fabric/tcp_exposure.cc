// Memory that is lent to a peer. Every exposure has a number, and frames carry the number that
// their sender was told: what was meant for an earlier exposure of the same region does not fit.
#include "fabric/grant.h"
#include "fabric/tcp_fabric.h"

namespace falcon {

Status TcpFabric::Expose(RegionId region, PeerId id, const ExposedMemory& memory,
                         std::string* grant) {
  bool in_use = region < kMaxRegions && member_.region_bytes[region] > 0;
  for (const Peer& each : peers_)
    in_use = in_use || (region < kMaxRegions && each.reach.exposures[region] != 0);
  if (Status s = CheckExposable(region, memory, in_use); !s.ok()) return s;
  Peer& peer = At(id);
  if (peer.link != Link::kLive) return {"FABRIC_DOWN", "not connected"};
  if (++exposures_ == 0) ++exposures_;
  peer.reach.regions[region] = memory.memory;
  peer.reach.exposures[region] = exposures_;
  Grant made = {name(), member_.self, id, region, peer.connection, exposures_};
  made.bytes = memory.memory.size();
  *grant = FormatGrant(made);
  return Ok();
}

void TcpFabric::Conceal(RegionId region) {
  FALCON_CHECK(region < kMaxRegions);
  for (Peer& each : peers_) {
    if (each.reach.exposures[region] == 0) continue;
    each.reach.regions[region] = {};
    each.reach.exposures[region] = 0;
  }
}

Status TcpFabric::Attach(PeerId id, RegionId region, std::string_view grant) {
  Peer& peer = At(id);
  if (peer.link != Link::kLive) return {"FABRIC_DOWN", "not connected"};
  Grant taken;
  const Grant expected = {name(), id, member_.self, region, peer.connection};
  if (Status s = ParseGrant(grant, expected, &taken); !s.ok()) return s;
  if (taken.exposure > 0xFFFF) return {"FABRIC_GRANT", "bad grant: no such exposure"};
  if (peer.region_bytes[region] > 0 && peer.attached[region] == 0)
    return {"FABRIC_GRANT", "the peer has a region of its own there"};
  peer.region_bytes[region] = taken.bytes;
  peer.attached[region] = static_cast<uint16_t>(taken.exposure);
  return Ok();
}

void TcpFabric::Detach(PeerId id, RegionId region) {
  FALCON_CHECK(region < kMaxRegions);
  Peer& peer = At(id);
  if (std::exchange(peer.attached[region], uint16_t{0}) != 0) peer.region_bytes[region] = 0;
}

}  // namespace falcon
