// The fabric over RDMA, as its parts see it (verbs.h says what it promises).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "fabric/verbs.h"
#include "fabric/verbs_exposure.h"
#include "fabric/verbs_objects.h"
#include "fabric/verbs_peer.h"
#include "os/check.h"
#include "os/clock.h"
#include "os/unique_fd.h"

namespace falcon {

class VerbsFabricImpl final : public VerbsFabric {
 public:
  VerbsFabricImpl(const VerbsOptions& options, PeerId self) : options_(options), self_(self) {}
  ~VerbsFabricImpl() override;
  VerbsFabricImpl(const VerbsFabricImpl&) = delete;
  VerbsFabricImpl& operator=(const VerbsFabricImpl&) = delete;

  Status Start();

  [[nodiscard]] const char* name() const override { return "verbs"; }
  Status AddRegion(RegionId region, size_t bytes) override;
  [[nodiscard]] std::span<std::byte> region(RegionId region) override;
  [[nodiscard]] std::string Descriptor() const override;
  Status Prepare(PeerId peer, std::string_view descriptor) override;
  Status Connect(PeerId peer, uint64_t connection, std::string_view descriptor) override;
  void Disconnect(PeerId peer) override;
  [[nodiscard]] PeerState State(PeerId peer) const override { return At(peer).state(); }
  Status Write(PeerId peer, RemoteAddress to,
               std::span<const std::span<const std::byte>> pieces) override;
  Status Read(PeerId peer, RemoteAddress from, std::span<std::byte> into) override;
  Status Expose(RegionId region, PeerId peer, const ExposedMemory& memory,
                std::string* grant) override;
  Status LockMemory(ExposedMemory* memory) const override {
    return VerbsExposures::Lock(device_, memory);
  }
  void Conceal(RegionId region) override;
  Status Attach(PeerId peer, RegionId region, std::string_view grant) override;
  void Detach(PeerId peer, RegionId region) override;
  [[nodiscard]] uint64_t Posted(PeerId peer) const override { return At(peer).posted(); }
  [[nodiscard]] uint64_t Completed(PeerId peer) const override { return At(peer).completed(); }
  void RequestCompletion(PeerId peer) override { At(peer).RequestCompletion(); }
  void Ring(PeerId peer) override;
  int Poll() override;
  [[nodiscard]] bool IsQuiet() const override;
  [[nodiscard]] int wake_fd() const override { return wake_.get(); }
  void ArmWake() override;
  void DisarmWake() override;
  [[nodiscard]] FabricCounters counters() const override { return counters_; }

  Status AddSource(std::span<std::byte> memory) override;
  void RemoveSource(std::span<std::byte> memory) override;
  [[nodiscard]] VerbsCounters verbs_counters() const override { return verbs_counters_; }
  [[nodiscard]] VerbsLink link() const override;
  [[nodiscard]] std::string BrokenBecause(PeerId peer) const override { return At(peer).because(); }
  [[nodiscard]] uint32_t QueuePair(PeerId peer) const override { return At(peer).pair()->qp_num; }
  Status KillQueuePair(PeerId peer) override { return FailPair(At(peer).pair()); }
  void SpoilQueuePair(PeerId peer) override { At(peer).Spoil(); }

 private:
  // Memory of the fabric's own: for each peer a cache line of three words.
  static constexpr size_t kControlStride = 64;

  const VerbsPeer& At(PeerId peer) const {
    FALCON_CHECK(peer < kMaxMembers);
    return peers_[peer];
  }
  VerbsPeer& At(PeerId peer) {
    FALCON_CHECK(peer < kMaxMembers);
    return peers_[peer];
  }
  [[nodiscard]] std::byte* ControlWord(PeerId peer, size_t word) const {
    return control_.bytes().data() + peer * kControlStride + word;
  }
  Status Watch(int fd);
  Status Refuse(Status status);
  Status Find(const VerbsPeer& peer, RemoteAddress address, size_t bytes, VerbsMemory* at) const;
  bool Tell(VerbsPeer& peer, uint64_t sleep);
  void SendWake(VerbsPeer& peer);
  void ObserveSleep(PeerId id);
  int PollPeer(PeerId id, bool tend, Nanoseconds* now);
  void TakeEvents();
  void TakeDeviceEvents();
  void Kick();

  const VerbsOptions options_;
  const PeerId self_;
  uint64_t incarnation_ = 0;
  bool connected_once_ = false;
  uint32_t connected_ = 0;  // a bit for each peer; a broken one keeps it
  uint64_t sleeps_ = 0;
  int polls_ = 0;             // since the device's events were taken
  unsigned polls_awake_ = 0;  // since this member last slept
  FabricCounters counters_;
  VerbsCounters verbs_counters_;

  // Destroyed from the bottom: queue pairs and keys before the domain, that before the context.
  VerbsDevice device_;
  UniqueFd kick_;
  UniqueFd wake_;
  VerbsChannel channel_;
  VerbsBuffer control_;
  std::array<VerbsBuffer, kMaxRegions> regions_;
  VerbsExposures exposures_;
  // By the peer's number: of the connection, and which of its regions it has exposed to us.
  std::array<uint64_t, kMaxMembers> connections_{};
  std::array<std::array<bool, kMaxRegions>, kMaxMembers> attached_{};
  std::vector<VerbsKey> source_keys_;
  std::vector<VerbsSource> sources_;
  std::array<VerbsPeer, kMaxMembers> peers_;
};

}  // namespace falcon
