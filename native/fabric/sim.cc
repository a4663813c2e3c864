#include "fabric/sim.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "fabric/grant.h"
#include "fabric/sim_channel.h"
#include "os/check.h"

namespace falcon {

// One node's end of a network.
class SimFabric final : public Fabric {
 public:
  SimFabric(SimNetwork* network, std::shared_ptr<SimNetwork::Memory> memory)
      : network_(network), memory_(std::move(memory)) {}
  ~SimFabric() override {
    if (memory_->alive) network_->Forget(memory_->node, false);
  }
  SimFabric(const SimFabric&) = delete;
  SimFabric& operator=(const SimFabric&) = delete;

  [[nodiscard]] const char* name() const override { return "sim"; }
  Status AddRegion(RegionId region, size_t bytes) override;
  [[nodiscard]] std::span<std::byte> region(RegionId region) override {
    FALCON_CHECK(region < kMaxRegions);
    return memory_->regions[region];
  }
  [[nodiscard]] std::string Descriptor() const override { return memory_->Descriptor(); }
  Status Connect(PeerId peer, uint64_t connection, std::string_view descriptor) override;
  void Disconnect(PeerId peer) override;
  [[nodiscard]] PeerState State(PeerId peer) const override {
    return memory_->alive ? To(peer).state : PeerState::kDown;
  }
  Status Write(PeerId peer, RemoteAddress to,
               std::span<const std::span<const std::byte>> pieces) override;
  Status Read(PeerId peer, RemoteAddress from, std::span<std::byte> into) override;
  Status Expose(RegionId region, PeerId peer, const ExposedMemory& memory,
                std::string* grant) override;
  Status LockMemory(ExposedMemory* memory) const override {
    const auto& told = network_->options_.on_lock;
    if (told == nullptr) return Ok();
    told(true);
    memory->locked = {network_, [told](void*) { told(false); }};
    return Ok();
  }
  void Conceal(RegionId region) override {
    FALCON_CHECK(region < kMaxRegions);
    memory_->exposed[region] = {};
  }
  Status Attach(PeerId peer, RegionId region, std::string_view grant) override;
  void Detach(PeerId peer, RegionId region) override {
    FALCON_CHECK(region < kMaxRegions);
    if (memory_->alive) To(peer).attached[region] = {};
  }
  [[nodiscard]] uint64_t Posted(PeerId peer) const override {
    return memory_->alive ? To(peer).posted : 0;
  }
  [[nodiscard]] uint64_t Completed(PeerId peer) const override {
    if (!memory_->alive) return 0;
    return network_->options_.lazy_completions ? To(peer).told : To(peer).completed;
  }
  void RequestCompletion(PeerId peer) override {
    if (!memory_->alive) return;
    To(peer).wanted = To(peer).posted;
    To(peer).Tell();
  }
  void Ring(PeerId /*peer*/) override {}
  int Poll() override;
  [[nodiscard]] bool IsQuiet() const override { return network_->options_.quiet; }
  [[nodiscard]] int wake_fd() const override { return -1; }
  void ArmWake() override {}
  void DisarmWake() override {}
  [[nodiscard]] FabricCounters counters() const override { return counters_; }

 private:
  [[nodiscard]] SimNetwork::Channel& To(PeerId peer) const {
    return network_->At(memory_->node, peer);
  }
  Status Post(PeerId peer, SimNetwork::Operation&& operation);

  SimNetwork* network_;
  std::shared_ptr<SimNetwork::Memory> memory_;
  bool connected_once_ = false;
  FabricCounters counters_;
};

Status SimFabric::AddRegion(RegionId region, size_t bytes) {
  const std::string number = "region " + std::to_string(region);
  if (region >= kMaxRegions || bytes == 0)
    return {"FABRIC_REGION", number + " of " + std::to_string(bytes) + " bytes is out of range"};
  if (!memory_->regions[region].empty()) return {"FABRIC_REGION", number + " was made before"};
  if (connected_once_) return {"FABRIC_REGION", number + " comes after the first connection"};
  memory_->regions[region].resize(bytes);
  return Ok();
}

Status SimFabric::Connect(PeerId peer, uint64_t connection, std::string_view descriptor) {
  if (!memory_->alive) return {"FABRIC_CONNECT", "this process has crashed"};
  Disconnect(peer);
  const std::shared_ptr<SimNetwork::Memory>& target = network_->memories_[peer];
  if (target == nullptr || !target->alive || descriptor != target->Descriptor())
    return {"FABRIC_CONNECT", "bad sim descriptor: no such incarnation"};
  SimNetwork::Channel& channel = To(peer);
  channel.target = target;
  channel.state = PeerState::kUp;
  channel.connection = connection;
  channel.lost = false;
  connected_once_ = true;
  return Ok();
}

void SimFabric::Disconnect(PeerId peer) {
  if (!memory_->alive) return;
  SimNetwork::Channel& channel = To(peer);
  channel.Drop();
  channel.state = PeerState::kDown;
  channel.target = nullptr;
  channel.attached = {};
  memory_->ConcealFrom(peer);
  channel.posted = 0;
  channel.completed = channel.told = channel.wanted = 0;
  channel.unpolled = 0;
}

Status SimFabric::Expose(RegionId region, PeerId peer, const ExposedMemory& memory,
                         std::string* grant) {
  const bool in_use = region < kMaxRegions &&
                      (!memory_->regions[region].empty() || memory_->exposed[region].number != 0);
  if (Status status = CheckExposable(region, memory, in_use); !status.ok()) return status;
  if (State(peer) != PeerState::kUp) return {"FABRIC_DOWN", "not connected"};
  const uint64_t number = ++memory_->exposures;
  memory_->exposed[region] = {number, peer, memory.memory};
  Grant made = {name(), memory_->node, peer, region, To(peer).connection, number};
  made.bytes = memory.memory.size();
  *grant = FormatGrant(made);
  return Ok();
}

Status SimFabric::Attach(PeerId peer, RegionId region, std::string_view grant) {
  if (State(peer) != PeerState::kUp) return {"FABRIC_DOWN", "not connected"};
  SimNetwork::Channel& channel = To(peer);
  Grant taken;
  Status status =
      ParseGrant(grant, {name(), peer, memory_->node, region, channel.connection}, &taken);
  if (!status.ok()) return status;
  if (!channel.target->regions[region].empty())
    return {"FABRIC_GRANT", "the peer has a region of its own there"};
  channel.attached[region] = {taken.exposure, taken.bytes};
  return status;
}

Status SimFabric::Post(PeerId peer, SimNetwork::Operation&& operation) {
  const auto refuse = [this](const char* code, const char* why) {
    ++counters_.errors;
    return Status(code, why);
  };
  if (State(peer) != PeerState::kUp) return refuse("FABRIC_DOWN", "not connected");
  SimNetwork::Channel& channel = To(peer);
  const RemoteAddress address = operation.address;
  const bool known = address.region < kMaxRegions;
  const bool own = known && !channel.target->regions[address.region].empty();
  if (!own && (!known || channel.attached[address.region].exposure == 0))
    return refuse("FABRIC_BOUNDS", "the peer has no such region");
  const size_t limit =
      own ? channel.target->regions[address.region].size() : channel.attached[address.region].bytes;
  operation.exposure = own ? 0 : channel.attached[address.region].exposure;
  if (address.offset > limit || operation.bytes > limit - address.offset)
    return refuse("FABRIC_BOUNDS", "beyond the end of the peer's region");
  if (channel.operations.size() >= network_->options_.queue_bound)
    return {"FABRIC_BUSY", "the send queue is full"};
  channel.operations.push_back(std::move(operation));
  ++channel.posted;
  return Ok();
}

Status SimFabric::Write(PeerId peer, RemoteAddress to,
                        std::span<const std::span<const std::byte>> pieces) {
  FALCON_CHECK(pieces.size() <= kMaxPieces);
  SimNetwork::Operation operation;
  operation.address = to;
  std::copy(pieces.begin(), pieces.end(), operation.pieces.begin());
  for (const std::span<const std::byte> piece : pieces) operation.bytes += piece.size();
  if (network_->options_.capture_at_post) {
    operation.capture.resize(operation.bytes);
    operation.CopyOut(operation.capture.data(), operation.bytes);
    operation.captured = true;
  }
  const size_t bytes = operation.bytes;
  Status status = Post(peer, std::move(operation));
  if (!status.ok()) return status;
  ++counters_.writes;
  counters_.written_bytes += bytes;
  return status;
}

Status SimFabric::Read(PeerId peer, RemoteAddress from, std::span<std::byte> into) {
  SimNetwork::Operation operation;
  operation.address = from;
  operation.bytes = into.size();
  operation.into = into;
  operation.is_read = true;
  Status status = Post(peer, std::move(operation));
  if (status.ok()) ++counters_.reads;
  return status;
}

int SimFabric::Poll() {
  if (!memory_->alive) return 0;
  uint64_t happened = 0;
  for (PeerId peer = 0; peer < kMaxMembers; ++peer) happened += std::exchange(To(peer).unpolled, 0);
  return static_cast<int>(happened);
}

SimNetwork::SimNetwork(const SimOptions& options) : options_(options) {
  FALCON_CHECK(options.queue_bound > 0);
  channels_.resize(kMaxMembers * kMaxMembers);
  for (std::unique_ptr<Channel>& channel : channels_) channel = std::make_unique<Channel>();
}

SimNetwork::~SimNetwork() {
  for (const SimFabric* fabric : fabrics_) FALCON_CHECK(fabric == nullptr);
}

SimNetwork::Channel& SimNetwork::At(PeerId from, PeerId to) const {
  FALCON_CHECK(from < kMaxMembers && to < kMaxMembers);
  return *channels_[from * kMaxMembers + to];
}

std::unique_ptr<Fabric> SimNetwork::MakeFabric(PeerId node) {
  FALCON_CHECK(node < kMaxMembers && fabrics_[node] == nullptr);
  auto memory = std::make_shared<Memory>();
  memory->node = node;
  memory->incarnation = ++incarnations_;
  memories_[node] = memory;
  auto fabric = std::make_unique<SimFabric>(this, std::move(memory));
  fabrics_[node] = fabric.get();
  return fabric;
}

size_t SimNetwork::Pending(PeerId from, PeerId to) const {
  const Channel& channel = At(from, to);
  if (channel.lost) return 0;
  return static_cast<size_t>(std::count_if(channel.operations.begin(), channel.operations.end(),
                                           [](const Operation& each) { return !each.done; }));
}

size_t SimNetwork::PendingOfRegion(PeerId from, PeerId to, RegionId region) const {
  const Channel& channel = At(from, to);
  if (channel.lost) return 0;
  return static_cast<size_t>(std::count_if(
      channel.operations.begin(), channel.operations.end(),
      [region](const Operation& each) { return !each.done && each.address.region == region; }));
}

size_t SimNetwork::NextBytes(PeerId from, PeerId to) const {
  const Operation* operation = At(from, to).Oldest();
  return operation == nullptr ? 0 : operation->bytes - operation->delivered;
}

// Moves up to `bytes` more of `operation` between the pieces and the target's memory. If that is
// concealed by now the sender learns of it, and everything behind the operation is lost with it.
size_t SimNetwork::Deliver(Channel& channel, Operation& operation, size_t bytes, Tear tear) {
  std::byte* at = channel.target->Base(operation.address.region, operation.exposure);
  if (at == nullptr) {
    channel.Drop();
    if (channel.state == PeerState::kUp) channel.state = PeerState::kBroken;
    return 0;
  }
  at += operation.address.offset;
  const size_t left = operation.bytes - operation.delivered;
  if (operation.is_read) {
    std::copy_n(at, operation.bytes, operation.into.begin());
    operation.delivered = operation.bytes;
    operation.done = true;
    Retire(channel);  // the operation may be gone now
    return left;
  }
  size_t count = std::min(bytes, left);
  if (tear == Tear::kWords && count < left) {
    const size_t excess = (operation.address.offset + operation.delivered + count) % 8;
    count -= std::min(excess, count);
  }
  operation.CopyOut(at + operation.delivered, count);
  operation.delivered += count;
  if (operation.delivered == operation.bytes) {
    operation.done = true;
    Retire(channel);
  }
  return count;
}

// Completes what is done, in posting order.
void SimNetwork::Retire(Channel& channel) {
  while (!channel.operations.empty() && channel.operations.front().done) {
    channel.operations.pop_front();
    ++channel.completed;
    ++channel.unpolled;
  }
  channel.Tell();
}

bool SimNetwork::DeliverNext(PeerId from, PeerId to) {
  Channel& channel = At(from, to);
  Operation* operation = channel.cut ? nullptr : channel.Oldest();
  if (operation == nullptr) return false;
  Deliver(channel, *operation, operation->bytes, Tear::kWords);
  return true;
}

size_t SimNetwork::DeliverPart(PeerId from, PeerId to, size_t bytes, Tear tear) {
  Channel& channel = At(from, to);
  Operation* operation = channel.cut ? nullptr : channel.Oldest();
  return operation == nullptr ? 0 : Deliver(channel, *operation, bytes, tear);
}

bool SimNetwork::DeliverNextOfRegion(PeerId from, PeerId to, RegionId region) {
  Channel& channel = At(from, to);
  Operation* operation = channel.cut ? nullptr : channel.Oldest(region);
  if (operation == nullptr) return false;
  Deliver(channel, *operation, operation->bytes, Tear::kWords);
  return true;
}

size_t SimNetwork::DeliverAll(PeerId from, PeerId to) {
  size_t delivered = 0;
  while (DeliverNext(from, to)) ++delivered;
  return delivered;
}

size_t SimNetwork::DeliverEverything() {
  size_t delivered = 0;
  for (PeerId from = 0; from < kMaxMembers; ++from) {
    for (PeerId to = 0; to < kMaxMembers; ++to) delivered += DeliverAll(from, to);
  }
  return delivered;
}

void SimNetwork::Cut(PeerId from, PeerId to, bool cut) { At(from, to).cut = cut; }

bool SimNetwork::IsCut(PeerId from, PeerId to) const { return At(from, to).cut; }

// The operations stay posted: the sender's queue is as full as it was.
void SimNetwork::DropAll(PeerId from, PeerId to) { At(from, to).lost = true; }

void SimNetwork::Break(PeerId from, PeerId to) {
  Channel& channel = At(from, to);
  channel.Drop();
  if (channel.state == PeerState::kUp) channel.state = PeerState::kBroken;
  if (memories_[from] != nullptr) memories_[from]->ConcealFrom(to);
}

size_t SimNetwork::KeepStale(PeerId from, PeerId to) {
  Channel& channel = At(from, to);
  size_t kept = 0;
  if (channel.lost) return kept;
  for (const Operation& operation : channel.operations) {
    if (operation.done || operation.is_read) continue;
    Stale stale;
    stale.target = channel.target;
    stale.operation.address = {operation.address.region,
                               operation.address.offset + operation.delivered};
    stale.operation.exposure = operation.exposure;
    stale.operation.bytes = operation.bytes - operation.delivered;
    stale.operation.capture.resize(stale.operation.bytes);
    operation.CopyOut(stale.operation.capture.data(), stale.operation.bytes);
    stale.operation.captured = true;
    channel.stale.push_back(std::move(stale));
    ++kept;
  }
  return kept;
}

size_t SimNetwork::StalePending(PeerId from, PeerId to) const { return At(from, to).stale.size(); }

bool SimNetwork::DeliverStale(PeerId from, PeerId to) {
  const Channel& channel = At(from, to);
  if (channel.cut || channel.stale.empty()) return false;
  const size_t left =
      channel.stale.front().operation.bytes - channel.stale.front().operation.delivered;
  return DeliverStalePart(from, to, left) == left;
}

size_t SimNetwork::DeliverStalePart(PeerId from, PeerId to, size_t bytes, Tear tear) {
  Channel& channel = At(from, to);
  if (channel.cut || channel.stale.empty()) return 0;
  Stale& stale = channel.stale.front();
  const Operation& packet = stale.operation;
  if (!stale.target->alive ||
      stale.target->Base(packet.address.region, packet.exposure) == nullptr) {
    channel.stale.pop_front();
    return 0;
  }
  // A late packet belongs to no queue any more, so it travels through a channel of its own.
  Channel late;
  late.target = stale.target;
  const size_t count = Deliver(late, stale.operation, bytes, tear);
  if (stale.operation.done) channel.stale.pop_front();
  return count;
}

void SimNetwork::Crash(PeerId node, bool keep_wire) {
  FALCON_CHECK(node < kMaxMembers);
  if (fabrics_[node] != nullptr) Forget(node, keep_wire);
}

void SimNetwork::Forget(PeerId node, bool keep_wire) {
  for (PeerId peer = 0; peer < kMaxMembers; ++peer) {
    Channel& out = At(node, peer);
    if (keep_wire) KeepStale(node, peer);
    out.Drop();
    out.state = PeerState::kDown;
    out.target = nullptr;
    out.attached = {};
    out.posted = out.completed = out.wanted = out.told = out.unpolled = 0;
    At(peer, node).lost = true;
  }
  memories_[node]->alive = false;
  memories_[node]->exposed = {};
  memories_[node] = nullptr;
  fabrics_[node] = nullptr;
}

}  // namespace falcon
