#include "plane/inbox.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "os/check.h"
#include "os/crc32c.h"
#include "os/unique_fd.h"

namespace falcon {
namespace {

constexpr uint64_t kInboxMagic = 0x31584F424E494C46;  // "FLINBOX1"
constexpr size_t kWriteBytes = 64 << 10;

uint32_t HeaderChecksum(const InboxHeader& header) {
  return Crc32c(std::as_bytes(std::span(&header, 1)).first(offsetof(InboxHeader, header_checksum)));
}

}  // namespace

Inbox::~Inbox() {
  if (exposed_.memory.data() == nullptr) return;
  exposed_.locked.reset();
  munmap(exposed_.memory.data(), exposed_.memory.size());
  unlink(exposed_.path.c_str());
}

Status Inbox::Make(const std::string& path, size_t payload_bytes) {
  FALCON_CHECK(exposed_.memory.data() == nullptr);
  unlink(path.c_str());
  const UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd.valid()) return {"SYNC_MEMORY", ErrnoText("open " + path, errno)};
  const size_t bytes = kInboxPayloadAt + ((payload_bytes + 4095) & ~size_t{4095});
  // All of it now: where a peer writes later, a file system that is full would end this process.
  int error = posix_fallocate(fd.get(), 0, static_cast<off_t>(bytes));
  void* at = MAP_FAILED;
  if (error == 0) {
    at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    if (at == MAP_FAILED) error = errno;
  }
  if (error != 0) {
    unlink(path.c_str());
    return {"SYNC_MEMORY", ErrnoText("make room for " + path, error)};
  }
  exposed_.memory = {static_cast<std::byte*>(at), bytes};
  exposed_.path = path;
  return Ok();
}

Status Inbox::Lock(const Fabric& fabric) { return fabric.LockMemory(&exposed_); }

bool Inbox::Find(uint64_t session, InboxKind kind, uint32_t round, InboxHeader* header) const {
  std::memcpy(header, exposed_.memory.data(), sizeof *header);
  return header->session == session && header->kind == static_cast<uint32_t>(kind) &&
         header->round == round && header->magic == kInboxMagic &&
         header->header_checksum == HeaderChecksum(*header);
}

std::optional<uint64_t> Inbox::Has(uint64_t session, InboxKind kind, uint32_t round) const {
  InboxHeader header;
  if (!Find(session, kind, round, &header)) return std::nullopt;
  return header.bytes;
}

Status Inbox::Take(uint64_t session, InboxKind kind, uint32_t round,
                   std::optional<std::span<const std::byte>>* payload) const {
  *payload = std::nullopt;
  InboxHeader header;
  if (!Find(session, kind, round, &header)) return Ok();
  std::atomic_thread_fence(std::memory_order_acquire);
  const auto room = exposed_.memory.subspan(kInboxPayloadAt);
  if (header.bytes > room.size() || Crc32c(room.first(header.bytes)) != header.checksum)
    return {"SYNC_PEER", "a record in the inbox is broken"};
  *payload = room.first(header.bytes);
  return Ok();
}

void InboxWriter::Start(uint64_t session, InboxKind kind, uint32_t round,
                        std::vector<std::byte> payload) {
  FALCON_CHECK(idle());
  payload_ = std::move(payload);
  header_ = {kInboxMagic, session, static_cast<uint32_t>(kind), round, payload_.size(), 0, 0};
  at_ = 0;
  header_posted_ = false;
}

Status InboxWriter::Step(size_t max_bytes, int* done) {
  size_t posted = 0;
  while (at_ < payload_.size() && posted < max_bytes) {
    const auto piece = std::span<const std::byte>(payload_).subspan(
        at_, std::min(kWriteBytes, payload_.size() - at_));
    const Status s = fabric_->Write(peer_, {region_, kInboxPayloadAt + at_}, std::span(&piece, 1));
    if (!s.ok()) return std::strcmp(s.code(), "FABRIC_BUSY") == 0 ? Ok() : s;
    header_.checksum = Crc32c(piece, header_.checksum);
    at_ += piece.size();
    posted += piece.size();
    ++*done;
  }
  if (at_ < payload_.size() || header_posted_) return Ok();
  header_.header_checksum = HeaderChecksum(header_);
  const std::span<const std::byte> piece = std::as_bytes(std::span(&header_, 1));
  const Status s = fabric_->Write(peer_, {region_, 0}, std::span(&piece, 1));
  if (!s.ok()) return std::strcmp(s.code(), "FABRIC_BUSY") == 0 ? Ok() : s;
  header_posted_ = true;
  ticket_ = fabric_->Posted(peer_);
  fabric_->RequestCompletion(peer_);
  ++*done;
  return Ok();
}

}  // namespace falcon
