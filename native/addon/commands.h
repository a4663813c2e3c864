// The data plane's commands as methods, the same for a real replica and for one in the simulator:
// Target says how a command reaches the plane.
#pragma once

#include <napi.h>

#include <algorithm>
#include <cstring>
#include <string>
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
    const LogPosition base{number(3), number(4), static_cast<uint32_t>(number(5))};
    return deliver([a, primary, c, base](DataPlane& p) { p.Follow(a, primary, c, base); }), true;
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
  const auto text = [&args](size_t i) {
    const auto data = i < args.size() ? BytesOf(args[i]) : std::span<const std::byte>{};
    return std::string(reinterpret_cast<const char*>(data.data()), data.size());
  };
  if (name == "transferOpen") {
    TransferOptions o;
    o.session = a;
    o.peer = static_cast<PeerId>(b);
    o.source = c != 0;
    o.based = number(3) != 0;
    o.ram_bytes = number(4);
    const auto key = bytes(5);
    std::memcpy(o.key.data(), key.data(), std::min(key.size(), o.key.size()));
    o.ram_path = text(6);
    o.inbox_path = text(7);
    o.state_path = text(8);
    o.grant = text(9);
    o.verify = number(10) != 0;
    return deliver([o](DataPlane& p) { p.TransferOpen(o); }), true;
  }
  if (name == "transferAttach") {
    return deliver([a, inbox = text(1), ram = text(2)](DataPlane& p) {
             p.TransferAttach(a, inbox, ram);
           }),
           true;
  }
  if (name == "transferCollected")
    return deliver([a, file = text(1)](DataPlane& p) { p.TransferCollected(a, file); }), true;
  if (name == "transferRound") {
    const auto round = static_cast<uint32_t>(b);
    const auto pages = static_cast<RoundPages>(c);
    const bool final = number(3) != 0;
    return deliver([=](DataPlane& p) { p.TransferRound(a, round, pages, final); }), true;
  }
  if (name == "transferSync") return deliver([a](DataPlane& p) { p.TransferSync(a); }), true;
  if (name == "transferSend")
    return deliver([a, file = text(1)](DataPlane& p) { p.TransferSend(a, file); }), true;
  if (name == "transferLook") return deliver([a](DataPlane& p) { p.TransferLook(a); }), true;
  if (name == "transferTake")
    return deliver([a, file = text(1)](DataPlane& p) { p.TransferTake(a, file); }), true;
  if (name == "transferSettle") return deliver([a](DataPlane& p) { p.TransferSettle(a); }), true;
  if (name == "transferRelease") return deliver([a](DataPlane& p) { p.TransferRelease(a); }), true;
  if (name == "transferRings") return deliver([a](DataPlane& p) { p.TransferRings(a); }), true;
  if (name == "transferInstall") return deliver([a](DataPlane& p) { p.TransferInstall(a); }), true;
  if (name == "transferClose") return deliver([a](DataPlane& p) { p.TransferClose(a); }), true;
  if (name == "transferForget") return deliver([a](DataPlane& p) { p.TransferForget(a); }), true;
  return false;
}

}  // namespace falcon::addon
