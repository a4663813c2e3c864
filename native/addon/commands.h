// The data plane's commands as methods, the same for a real replica and for one in the simulator:
// Target says how a command reaches the plane.
#pragma once

#include <napi.h>

#include <vector>

#include "addon/convert.h"
#include "plane/data_plane.h"

namespace falcon::addon {

// `args` are those behind the command's name. Calls run(plane) through `deliver`.
template <typename Deliver>
bool DispatchCommand(const std::string& name, const std::vector<Napi::Value>& args,
                     Deliver deliver) {
  const auto number = [&args](size_t i) {
    return i < args.size() ? static_cast<uint64_t>(args[i].ToNumber().DoubleValue()) : 0;
  };
  const auto bytes = [&args](size_t i) {
    const auto data = i < args.size() ? BytesOf(args[i]) : std::span<const std::byte>{};
    return std::vector<std::byte>(data.begin(), data.end());
  };
  const uint64_t a = number(0), b = number(1), c = number(2);
  const auto peer_a = static_cast<PeerId>(a);
  if (name == "promise") return deliver([a](DataPlane& p) { p.Promise(a); }), true;
  if (name == "lead") return deliver([a](DataPlane& p) { p.Lead(a); }), true;
  if (name == "follow") {
    const auto primary = static_cast<PeerId>(b);
    return deliver([a, primary, c](DataPlane& p) { p.Follow(a, primary, c); }), true;
  }
  if (name == "feed") return deliver([peer_a, b, c](DataPlane& p) { p.Feed(peer_a, b, c); }), true;
  if (name == "resign") return deliver([a](DataPlane& p) { p.Resign(a); }), true;
  if (name == "holdInput") return deliver([a](DataPlane& p) { p.HoldInput(a); }), true;
  if (name == "releaseInput") return deliver([a](DataPlane& p) { p.ReleaseInput(a); }), true;
  if (name == "surrender") return deliver([a](DataPlane& p) { p.Surrender(a); }), true;
  if (name == "reclaim") return deliver([a](DataPlane& p) { p.Reclaim(a); }), true;
  if (name == "openGate") return deliver([a](DataPlane& p) { p.OpenGate(a); }), true;
  if (name == "admitInput") return deliver([a](DataPlane& p) { p.AdmitInput(a != 0); }), true;
  if (name == "setGuest")
    return deliver([a, b](DataPlane& p) { p.SetGuest(static_cast<GuestMode>(a), b); }), true;
  if (name == "disconnect") return deliver([peer_a](DataPlane& p) { p.Disconnect(peer_a); }), true;
  if (name == "sendMail") {
    return deliver([peer_a, data = bytes(1)](DataPlane& p) { p.SendMail(peer_a, data); }), true;
  }
  if (name == "propose") {
    const auto kind = static_cast<EntryKind>(a);
    return deliver([kind, data = bytes(1)](DataPlane& p) { p.Propose(kind, data); }), true;
  }
  return false;
}

}  // namespace falcon::addon
