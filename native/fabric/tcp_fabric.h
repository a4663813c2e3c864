// The tcp fabric's state, which three files share: tcp.cc (connections, operations, progress),
// tcp_guests.cc (those who dial us) and tcp_exposure.cc (memory lent to a peer).
#pragma once

#include <sys/mman.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "fabric/tcp.h"
#include "fabric/tcp_receiver.h"
#include "fabric/tcp_sender.h"
#include "fabric/tcp_socket.h"
#include "fabric/tcp_wire.h"
#include "os/check.h"

namespace falcon {

inline constexpr size_t kMaxTcpGuests = 32;       // streams that have not been admitted
inline constexpr size_t kRetiredTcpNumbers = 16;  // of connections, per peer

// Who an event is for. The serial tells a socket from an earlier one in the same place.
enum class TcpPlace : uint8_t { kListener, kGuest, kSender, kReceiver };
inline constexpr uint64_t kTcpSerialMask = (1ull << 48) - 1;

[[nodiscard]] inline uint64_t TcpEventKey(TcpPlace place, size_t index, uint64_t serial) {
  return static_cast<uint64_t>(place) << 56 | static_cast<uint64_t>(index) << 48 |
         (serial & kTcpSerialMask);
}

class TcpMemory {
 public:
  TcpMemory() = default;
  ~TcpMemory() {
    if (!bytes_.empty()) munmap(bytes_.data(), bytes_.size());
  }
  TcpMemory(const TcpMemory&) = delete;
  TcpMemory& operator=(const TcpMemory&) = delete;
  Status Make(size_t bytes) {
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (at == MAP_FAILED) return {"FABRIC_REGION", ErrnoText("mmap", errno)};
    bytes_ = {static_cast<std::byte*>(at), bytes};
    return Ok();
  }
  [[nodiscard]] std::span<std::byte> bytes() const { return bytes_; }

 private:
  std::span<std::byte> bytes_;
};

class TcpFabric final : public Fabric {
 public:
  TcpFabric(TcpFabricOptions options, PeerId self) : options_(std::move(options)) {
    member_.self = self;
  }
  Status Start();

  [[nodiscard]] const char* name() const override { return "tcp"; }
  Status AddRegion(RegionId region, size_t bytes) override;
  [[nodiscard]] std::span<std::byte> region(RegionId region) override {
    FALCON_CHECK(region < kMaxRegions);
    return regions_[region].bytes();
  }
  [[nodiscard]] std::string Descriptor() const override { return member_.Descriptor(); }
  Status Connect(PeerId peer, uint64_t connection, std::string_view descriptor) override;
  void Disconnect(PeerId peer) override;
  [[nodiscard]] PeerState State(PeerId peer) const override;
  Status Write(PeerId peer, RemoteAddress to,
               std::span<const std::span<const std::byte>> pieces) override;
  Status Read(PeerId peer, RemoteAddress from, std::span<std::byte> into) override;
  Status Expose(RegionId region, PeerId peer, const ExposedMemory& memory,
                std::string* grant) override;
  void Conceal(RegionId region) override;
  Status Attach(PeerId peer, RegionId region, std::string_view grant) override;
  void Detach(PeerId peer, RegionId region) override;
  [[nodiscard]] uint64_t Posted(PeerId peer) const override { return At(peer).sender.posted(); }
  [[nodiscard]] uint64_t Completed(PeerId peer) const override {
    return At(peer).sender.completed();
  }
  void Ring(PeerId peer) override { FlushPeer(peer); }
  int Poll() override;
  [[nodiscard]] int wake_fd() const override { return wake_.get(); }
  void ArmWake() override;
  void DisarmWake() override;
  [[nodiscard]] FabricCounters counters() const override { return counters_; }

 private:
  enum class Link : uint8_t { kNone, kLive, kBroken };
  struct Peer {
    Link link = Link::kNone;
    uint64_t connection = 0;  // while kLive
    std::array<uint64_t, kRetiredTcpNumbers> retired{};
    size_t retired_count = 0;
    std::array<uint64_t, kMaxRegions> region_bytes{};  // the peer's, and what it exposes to us
    std::array<uint16_t, kMaxRegions> attached{};      // exposures of the peer's; 0: none
    TcpReach reach;                                    // of the peer, into our memory
    Nanoseconds answer_by = 0;                         // while the sender is not up
    TcpSender sender;
    uint64_t sender_serial = 0;
    uint32_t sender_watch = 0;
    TcpReceiver receiver;
    uint64_t receiver_serial = 0;
    uint32_t receiver_watch = 0;
  };
  // Somebody who dialled: not greeted yet, or greeted with a number that is not ours yet.
  struct Guest {
    UniqueFd fd;
    uint64_t serial = 0;
    Nanoseconds leave_by = 0;
    std::array<std::byte, sizeof(TcpHello)> bytes;
    size_t count = 0;
    [[nodiscard]] TcpHello hello() const {
      TcpHello hello;
      std::memcpy(&hello, bytes.data(), sizeof hello);
      return hello;
    }
    [[nodiscard]] bool greeted() const { return count == sizeof(TcpHello); }
  };

  const Peer& At(PeerId peer) const {
    FALCON_CHECK(peer < kMaxMembers);
    return peers_[peer];
  }
  Peer& At(PeerId peer) {
    FALCON_CHECK(peer < kMaxMembers);
    return peers_[peer];
  }
  [[nodiscard]] TcpTuning Tuning() const {
    return {options_.socket_buffer_bytes, options_.dead_after};
  }
  Status Dial(PeerId peer, uint64_t connection, std::string_view descriptor);
  void Drop(PeerId peer, Link after);
  void Break(PeerId peer);
  static bool WasRetired(const Peer& peer, uint64_t connection);
  Status Admissible(PeerId peer, RemoteAddress address, size_t bytes);

  bool Watch(int fd, uint32_t events, uint64_t key, bool is_new);
  void WatchPeer(PeerId peer);
  void FlushPeer(PeerId peer);
  void ServeReceiver(PeerId peer);
  [[nodiscard]] bool MayReadDirectly() const;
  void Ask();
  void Dispatch(uint64_t key);

  void Accept();
  void TakeGuest(UniqueFd fd);
  void HearGuest(size_t index);
  void Receive(size_t index);
  void Refuse(size_t index);
  void WatchTheClock();

  TcpFabricOptions options_;
  TcpMember member_;
  TcpReach own_;  // what every peer may reach
  std::array<TcpMemory, kMaxRegions> regions_;
  bool connected_once_ = false;
  FabricCounters counters_;
  int done_ = 0;        // things that happened since the last Poll returned
  uint64_t turns_ = 0;  // of Poll
  uint64_t serials_ = 0;
  uint16_t exposures_ = 0;
  size_t guest_count_ = 0;
  Nanoseconds listen_again_ = 0;  // 0: the listener is watched
  bool armed_ = false;
  UniqueFd events_;  // of all sockets
  UniqueFd wake_;    // readable when events_ is, while armed
  UniqueFd listener_;
  std::array<Guest, kMaxTcpGuests> guests_;
  std::array<Peer, kMaxMembers> peers_;
};

}  // namespace falcon
