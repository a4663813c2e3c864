#include "fabric/shm.h"

#include <sys/random.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <memory>
#include <mutex>
#include <utility>

#include "fabric/grant.h"
#include "fabric/shared_copy.h"
#include "fabric/shm_files.h"
#include "os/aside.h"
#include "os/check.h"

namespace falcon {
namespace {

class ShmFabric final : public Fabric {
 public:
  // `member` names files that do not exist yet; `lock` is the member's lock, held.
  ShmFabric(ShmMember member, UniqueFd lock) : member_(std::move(member)), lock_(std::move(lock)) {}
  ~ShmFabric() override;
  ShmFabric(const ShmFabric&) = delete;
  ShmFabric& operator=(const ShmFabric&) = delete;

  Status Start();

  [[nodiscard]] const char* name() const override { return "shm"; }
  Status AddRegion(RegionId region, size_t bytes) override;
  [[nodiscard]] std::span<std::byte> region(RegionId region) override;
  [[nodiscard]] std::string Descriptor() const override { return member_.Descriptor(); }
  Status Prepare(PeerId peer, std::string_view descriptor) override;
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
  [[nodiscard]] uint64_t Posted(PeerId peer) const override { return At(peer).posted; }
  [[nodiscard]] uint64_t Completed(PeerId peer) const override { return At(peer).posted; }
  void Ring(PeerId peer) override;
  int Poll() override { return 0; }
  [[nodiscard]] bool IsQuiet() const override { return true; }
  [[nodiscard]] int wake_fd() const override { return bell_.get(); }
  void ArmWake() override;
  void DisarmWake() override;
  [[nodiscard]] FabricCounters counters() const override { return counters_; }

 private:
  struct Attachment {
    uint64_t exposure = 0;  // 0: nothing is attached
    std::unique_ptr<ShmLentFile> file;
  };
  // A peer's files.
  struct Files {
    std::array<ShmMapping, kMaxRegions> regions;
    ShmMapping page;
    UniqueFd bell;
  };
  struct Peer {
    std::unique_ptr<Files> files;  // null: not connected
    std::array<Attachment, kMaxRegions> attached;
    std::array<uint64_t, kMaxRegions> exposed{};  // ours to this peer; 0: none
    uint64_t connection = 0;
    uint64_t posted = 0;
    PeerState state = PeerState::kDown;
    bool written = false;  // since the last Ring
  };

  const Peer& At(PeerId peer) const {
    FALCON_CHECK(peer < kMaxMembers);
    return peers_[peer];
  }
  Peer& At(PeerId peer) {
    FALCON_CHECK(peer < kMaxMembers);
    return peers_[peer];
  }
  Status Find(Peer& peer, RemoteAddress address, size_t bytes, std::byte** at);
  Status FindLent(Peer& peer, RegionId region, std::span<std::byte>* body);
  Status Refuse(const char* code, const char* why) {
    ++counters_.errors;
    return {code, why};
  }
  Status Map(PeerId peer, std::string_view descriptor, std::unique_ptr<Files>* files) const;
  std::unique_ptr<Files> TakePrepared(PeerId peer, std::string_view descriptor);

  struct Prepared {
    std::string descriptor;
    std::unique_ptr<Files> files;
  };

  ShmMember member_;
  UniqueFd lock_;
  UniqueFd bell_;
  ShmMapping page_;
  std::array<ShmMapping, kMaxRegions> regions_;
  std::array<Peer, kMaxMembers> peers_;
  bool connected_once_ = false;
  uint64_t sleeps_ = 0;
  uint64_t exposures_ = 0;
  FabricCounters counters_;
  std::mutex prepared_mutex_;
  std::array<Prepared, kMaxMembers> prepared_;  // for the next Connect
  Aside aside_{true};  // unmaps: that takes as long as what was mapped is large
};

// The lock goes last: as long as it is held, nobody else takes these files for leftovers.
ShmFabric::~ShmFabric() {
  for (Peer& peer : peers_) peer = Peer{};
  for (RegionId region = 0; region < kMaxRegions; ++region) {
    if (regions_[region].ok()) unlink(member_.RegionPath(region).c_str());
  }
  if (page_.ok()) unlink(member_.PagePath().c_str());
  if (bell_.valid()) unlink(member_.BellPath().c_str());
  unlink(ShmLockPath(member_.directory, member_.name).c_str());
}

Status ShmFabric::Start() {
  RemoveShmLeftovers(member_.directory, member_.name);
  Status status = ShmMapping::Create(member_.PagePath(), member_.PageHeader(), &page_);
  if (!status.ok()) return status;
  return MakeShmBell(member_.BellPath(), &bell_);
}

Status ShmFabric::AddRegion(RegionId region, size_t bytes) {
  const std::string number = "region " + std::to_string(region);
  if (region >= kMaxRegions || bytes == 0 || bytes > kMaxShmRegionBytes)
    return {"FABRIC_REGION", number + " of " + std::to_string(bytes) + " bytes is out of range"};
  if (regions_[region].ok()) return {"FABRIC_REGION", number + " was made before"};
  if (connected_once_) return {"FABRIC_REGION", number + " comes after the first connection"};
  member_.region_bytes[region] = bytes;
  const Status status = ShmMapping::Create(member_.RegionPath(region), member_.RegionHeader(region),
                                           &regions_[region]);
  if (status.ok()) return Ok();
  member_.region_bytes[region] = 0;
  return {"FABRIC_REGION", status.detail()};
}

std::span<std::byte> ShmFabric::region(RegionId region) {
  FALCON_CHECK(region < kMaxRegions);
  return regions_[region].ok() ? regions_[region].body() : std::span<std::byte>{};
}

// Any thread.
Status ShmFabric::Map(PeerId peer, std::string_view descriptor,
                      std::unique_ptr<Files>* files) const {
  ShmMember member;
  Status status = ShmMember::Parse(descriptor, member_.directory, &member);
  if (!status.ok()) return status;
  if (member.self != peer) return {"FABRIC_CONNECT", "the descriptor is of another member"};
  auto made = std::make_unique<Files>();
  status = ShmMapping::Open(member.PagePath(), member.PageHeader(), &made->page);
  for (RegionId region = 0; status.ok() && region < kMaxRegions; ++region) {
    if (member.region_bytes[region] == 0) continue;
    status = ShmMapping::Open(member.RegionPath(region), member.RegionHeader(region),
                              &made->regions[region]);
  }
  if (status.ok()) status = OpenShmBell(member.BellPath(), &made->bell);
  if (!status.ok()) return {"FABRIC_CONNECT", status.detail()};
  *files = std::move(made);
  return Ok();
}

Status ShmFabric::Prepare(PeerId peer, std::string_view descriptor) {
  FALCON_CHECK(peer < kMaxMembers);
  Prepared made{std::string(descriptor), nullptr};
  if (Status status = Map(peer, descriptor, &made.files); !status.ok()) return status;
  const std::lock_guard lock(prepared_mutex_);
  std::swap(prepared_[peer], made);
  return Ok();
}

// Null: nothing, or not that.
std::unique_ptr<ShmFabric::Files> ShmFabric::TakePrepared(PeerId peer,
                                                          std::string_view descriptor) {
  Prepared taken;
  {
    const std::lock_guard lock(prepared_mutex_);
    std::swap(prepared_[peer], taken);
  }
  if (taken.descriptor == descriptor) return std::move(taken.files);
  aside_.Destroy(std::move(taken.files));
  return nullptr;
}

Status ShmFabric::Connect(PeerId id, uint64_t connection, std::string_view descriptor) {
  Disconnect(id);
  std::unique_ptr<Files> files = TakePrepared(id, descriptor);
  if (files == nullptr) {
    if (Status status = Map(id, descriptor, &files); !status.ok()) return status;
  }
  Peer& peer = At(id);
  peer.files = std::move(files);
  peer.state = PeerState::kUp;
  peer.connection = connection;
  connected_once_ = true;
  return Ok();
}

void ShmFabric::Disconnect(PeerId peer) {
  for (RegionId region = 0; region < kMaxRegions; ++region) {
    if (At(peer).exposed[region] != 0) Conceal(region);
    Detach(peer, region);
  }
  aside_.Destroy(std::move(At(peer).files));
  At(peer) = Peer{};
}

PeerState ShmFabric::State(PeerId peer) const { return At(peer).state; }

// ---- exposed memory

Status ShmFabric::Expose(RegionId region, PeerId id, const ExposedMemory& memory,
                         std::string* grant) {
  bool in_use = region < kMaxRegions && regions_[region].ok();
  for (const Peer& each : peers_)
    in_use = in_use || (region < kMaxRegions && each.exposed[region] != 0);
  Status status = CheckExposable(region, memory, in_use);
  if (!status.ok()) return status;
  Peer& peer = At(id);
  if (peer.state != PeerState::kUp) return {"FABRIC_DOWN", "not connected"};
  const std::string prefix = member_.directory + "/";
  Grant made = {name(), member_.self, id, region, peer.connection, exposures_ + 1};
  made.bytes = memory.memory.size();
  if (memory.path.starts_with(prefix)) made.file = memory.path.substr(prefix.size());
  if (!IsGrantFile(made.file))
    return {"FABRIC_REGION", "exposed memory must be a file in " + member_.directory};
  status = ShmLentFile::Check(memory.path, made.bytes);
  if (!status.ok()) return {"FABRIC_REGION", status.detail()};
  *grant = FormatGrant(made);
  peer.exposed[region] = ++exposures_;
  page_.opened(region).store(exposures_, std::memory_order_seq_cst);
  return status;
}

void ShmFabric::Conceal(RegionId region) {
  FALCON_CHECK(region < kMaxRegions);
  page_.opened(region).store(0, std::memory_order_seq_cst);
  for (Peer& each : peers_) each.exposed[region] = 0;
}

Status ShmFabric::Attach(PeerId id, RegionId region, std::string_view grant) {
  Peer& peer = At(id);
  if (peer.state != PeerState::kUp) return {"FABRIC_DOWN", "not connected"};
  Grant taken;
  Status status = ParseGrant(grant, {name(), id, member_.self, region, peer.connection}, &taken);
  if (!status.ok()) return status;
  if (peer.files->regions[region].ok())
    return {"FABRIC_GRANT", "the peer has a region of its own there"};
  if (taken.file.empty() ||
      peer.files->page.opened(region).load(std::memory_order_acquire) != taken.exposure)
    return {"FABRIC_GRANT", "the memory is not open any more"};
  Attachment made;
  made.exposure = taken.exposure;
  made.file = std::make_unique<ShmLentFile>();
  status = ShmLentFile::Open(member_.directory + "/" + taken.file, taken.bytes, made.file.get());
  if (!status.ok()) return {"FABRIC_GRANT", status.detail()};
  Detach(id, region);
  peer.attached[region] = std::move(made);
  return status;
}

void ShmFabric::Detach(PeerId peer, RegionId region) {
  FALCON_CHECK(region < kMaxRegions);
  Attachment ended = std::exchange(At(peer).attached[region], {});
  aside_.Destroy(std::move(ended.file));
}

// The look before each copy.
Status ShmFabric::FindLent(Peer& peer, RegionId region, std::span<std::byte>* body) {
  const Attachment& attached = peer.attached[region];
  if (attached.exposure == 0) return Refuse("FABRIC_BOUNDS", "the peer has no such region");
  if (peer.files->page.opened(region).load(std::memory_order_acquire) != attached.exposure) {
    peer.state = PeerState::kBroken;
    return Refuse("FABRIC_DOWN", "the peer has concealed the region");
  }
  *body = attached.file->bytes();
  return Ok();
}

// Where `address` of the peer is mapped, if `bytes` from there on are within its region.
Status ShmFabric::Find(Peer& peer, RemoteAddress address, size_t bytes, std::byte** at) {
  if (peer.state != PeerState::kUp) return Refuse("FABRIC_DOWN", "not connected");
  if (address.region >= kMaxRegions) return Refuse("FABRIC_BOUNDS", "the peer has no such region");
  std::span<std::byte> body;
  if (const ShmMapping& own = peer.files->regions[address.region]; own.ok()) {
    body = own.body();
  } else if (Status status = FindLent(peer, address.region, &body); !status.ok()) {
    return status;
  }
  if (address.offset > body.size() || bytes > body.size() - address.offset)
    return Refuse("FABRIC_BOUNDS", "beyond the end of the peer's region");
  *at = body.data() + address.offset;
  return Ok();
}

Status ShmFabric::Write(PeerId to_peer, RemoteAddress to,
                        std::span<const std::span<const std::byte>> pieces) {
  FALCON_CHECK(pieces.size() <= kMaxPieces);
  Peer& peer = At(to_peer);
  size_t bytes = 0;
  for (const std::span<const std::byte> piece : pieces) bytes += piece.size();
  std::byte* at = nullptr;
  Status status = Find(peer, to, bytes, &at);
  if (!status.ok()) return status;
  CopyIntoShared(at, pieces);
  ++peer.posted;
  peer.written = true;
  ++counters_.writes;
  counters_.written_bytes += bytes;
  return status;
}

Status ShmFabric::Read(PeerId from_peer, RemoteAddress from, std::span<std::byte> into) {
  Peer& peer = At(from_peer);
  std::byte* at = nullptr;
  Status status = Find(peer, from, into.size(), &at);
  if (!status.ok()) return status;
  CopyFromShared(into, at);
  ++peer.posted;
  ++counters_.reads;
  return status;
}

// Either the sleeper's last look comes after our writes, or we see its word: both sides put a full
// fence between their own store and the look at the other's.
void ShmFabric::Ring(PeerId to_peer) {
  Peer& peer = At(to_peer);
  if (peer.state != PeerState::kUp || !peer.written) return;
  peer.written = false;
  FullFence();
  std::atomic<uint64_t>& sleeping = peer.files->page.sleeping();
  uint64_t sleep = sleeping.load(std::memory_order_relaxed);
  if (sleep == 0) return;  // awake, or another peer has rung
  const char byte = 1;
  // A full FIFO is as good as another byte in it, and nothing can be done about other errors.
  if (write(peer.files->bell.get(), &byte, 1) == 1) ++counters_.wakes_sent;
  // Only now: a process that dies before its ring must not keep others from ringing. By now the
  // peer may sleep again, and that sleep is not ours to end.
  sleeping.compare_exchange_strong(sleep, 0, std::memory_order_seq_cst);
}

void ShmFabric::ArmWake() {
  page_.sleeping().store(++sleeps_, std::memory_order_seq_cst);
  FullFence();
}

void ShmFabric::DisarmWake() {
  page_.sleeping().store(0, std::memory_order_relaxed);
  char bytes[256];
  ssize_t got = 0;
  do {
    got = read(bell_.get(), bytes, sizeof bytes);
    if (got > 0) counters_.wakes_received += static_cast<uint64_t>(got);
  } while (got == static_cast<ssize_t>(sizeof bytes) || (got < 0 && errno == EINTR));
}

}  // namespace

Status MakeShmFabric(const ShmOptions& options, std::unique_ptr<Fabric>* fabric) {
  FALCON_CHECK(options.self < kMaxMembers);
  if (!ShmNameIsRight(options.name))
    return {"SHM_OPEN", "a member name is 1 to 64 of A-Z a-z 0-9 _ -"};
  ShmMember member;
  member.directory = options.directory;
  member.name = options.name;
  member.self = options.self;
  Status status = PrepareShmDirectory(options.directory);
  if (!status.ok()) return status;
  UniqueFd lock;
  status = LockShmMember(options.directory, options.name, &lock);
  if (!status.ok()) return status;
  if (getrandom(&member.incarnation, sizeof member.incarnation, 0) != sizeof member.incarnation)
    return {"SHM_OPEN", ErrnoText("getrandom", errno)};
  auto made = std::make_unique<ShmFabric>(std::move(member), std::move(lock));
  status = made->Start();
  if (status.ok()) *fabric = std::move(made);
  return status;
}

}  // namespace falcon
