#include "log/record_ring.h"

#include <algorithm>
#include <cstring>

#include "fabric/shared_copy.h"
#include "os/check.h"
#include "os/crc32c.h"

namespace falcon {
namespace {

bool RingBytesAreRight(size_t ring_bytes) {
  return ring_bytes >= kMinRecordRingBytes && ring_bytes % 8 == 0;
}

// The payload bytes that lie between the header at `offset` and the end of the ring.
size_t BytesBeforeWrap(size_t ring_bytes, uint64_t offset, size_t length) {
  return std::min(length, static_cast<size_t>(ring_bytes - offset - kRecordHeaderBytes));
}

}  // namespace

void RecordRingWriter::Reset(uint64_t connection, uint64_t stream, size_t ring_bytes,
                             RemoteAddress remote) {
  FALCON_CHECK(RingBytesAreRight(ring_bytes));
  FALCON_CHECK(remote.offset % 8 == 0);
  if (slots_ == nullptr) slots_ = std::make_unique<std::array<Slot, kSlots>>();
  // Completions are counted from 0 on each connection; on the same one, headers may still be in
  // flight.
  if (connection != connection_) {
    for (Slot& slot : *slots_) slot.sent_at = 0;
  }
  connection_ = connection;
  stream_ = stream;
  ring_bytes_ = ring_bytes;
  remote_ = remote;
  position_ = 0;
  consumed_ = 0;
}

bool RecordRingWriter::SetConsumed(uint64_t position) {
  if (position < consumed_ || position > position_) return false;
  consumed_ = position;
  return true;
}

size_t RecordRingWriter::Space() const {
  if (ring_bytes_ == 0) return 0;
  // What is skipped at the end of the ring holds nothing, so a reader that stands before it is
  // beyond it.
  const uint64_t used = RecordStart(position_, ring_bytes_) - RecordStart(consumed_, ring_bytes_);
  FALCON_CHECK(used <= ring_bytes_);
  const size_t free = ring_bytes_ - static_cast<size_t>(used);
  const size_t payload = free <= kRecordHeaderBytes ? 0 : free - kRecordHeaderBytes;
  return std::min(payload, size_t{UINT32_MAX} & ~size_t{7});
}

Status RecordRingWriter::Post(Fabric& fabric, PeerId peer, std::span<const std::byte> payload) {
  return PostMany(fabric, peer, payload);
}

Status RecordRingWriter::PostMany(Fabric& fabric, PeerId peer, std::span<const std::byte> first,
                                  std::span<const std::byte> second) {
  return Place(fabric, peer, first, second, Crc32c(second, Crc32c(first)));
}

Status RecordRingWriter::PostTagged(Fabric& fabric, PeerId peer, std::span<const std::byte> payload,
                                    uint32_t tag) {
  return Place(fabric, peer, payload, {}, tag);
}

Status RecordRingWriter::Place(Fabric& fabric, PeerId peer, std::span<const std::byte> first,
                               std::span<const std::byte> second, uint32_t tag) {
  const size_t length = first.size() + second.size();
  FALCON_CHECK(length > 0 && ring_bytes_ > 0);
  if (length > Space()) return {"RECORD_RING_FULL", "the peer has not consumed enough"};
  Slot& slot = (*slots_)[next_slot_];
  if (slot.sent_at > fabric.Completed(peer)) {
    if (fabric.State(peer) != PeerState::kUp) return {"FABRIC_DOWN", "not connected"};
    fabric.RequestCompletion(peer);
    return {"FABRIC_BUSY", "every record header is in flight"};
  }

  const uint64_t start = RecordStart(position_, ring_bytes_);
  const uint64_t offset = start % ring_bytes_;
  RecordHeader& header = slot.header;
  header = {start, static_cast<uint32_t>(length), tag, 0};
  header.mark = RecordMark(connection_, stream_, header);

  const size_t before_wrap = BytesBeforeWrap(ring_bytes_, offset, length);
  const size_t first_before = std::min(first.size(), before_wrap);
  const size_t second_before = before_wrap - first_before;
  // What wraps goes first: if the queue has no room for the second write, only free bytes were
  // touched.
  if (before_wrap < length) {
    const std::span<const std::byte> wrapped[] = {first.subspan(first_before),
                                                  second.subspan(second_before)};
    Status status = fabric.Write(peer, remote_, wrapped);
    if (!status.ok()) return status;
  }
  const std::span<const std::byte> pieces[] = {
      std::as_bytes(std::span(&header, 1)), first.first(first_before), second.first(second_before)};
  const size_t used_pieces = second_before > 0 ? 3 : 2;
  const RemoteAddress to = {remote_.region, remote_.offset + offset};
  Status status = fabric.Write(peer, to, std::span(pieces).first(used_pieces));
  if (!status.ok()) return status;

  slot.sent_at = fabric.Posted(peer);
  next_slot_ = (next_slot_ + 1) % kSlots;
  position_ = start + RecordBytes(length);
  return Ok();
}

void RecordRingReader::Reset(uint64_t connection, uint64_t stream,
                             std::span<const std::byte> ring) {
  FALCON_CHECK(RingBytesAreRight(ring.size()) && IsWordAligned(ring.data()));
  connection_ = connection;
  stream_ = stream;
  ring_ = ring;
  position_ = 0;
  found_bytes_ = 0;
}

bool RecordRingReader::MayHaveNext() const {
  if (ring_.empty()) return false;
  const uint64_t start = RecordStart(position_, ring_.size());
  const std::byte* at = ring_.data() + start % ring_.size();
  return LoadSharedWord(at + offsetof(RecordHeader, position)) == start &&
         LoadSharedWord(at + offsetof(RecordHeader, length)) != 0;
}

// Copies the header out before looking at it: its writer may be busy with it.
bool RecordRingReader::ReadHeader(RecordHeader* header) const {
  if (!MayHaveNext()) return false;
  const uint64_t start = RecordStart(position_, ring_.size());
  const std::byte* at = ring_.data() + start % ring_.size();
  CopyFromShared(std::as_writable_bytes(std::span(header, 1)), at);
  if (header->position != start || header->length == 0 ||
      header->length > ring_.size() - kRecordHeaderBytes)
    return false;
  return header->mark == RecordMark(connection_, stream_, *header);
}

void RecordRingReader::CopyPayload(const RecordHeader& header, std::span<std::byte> into) const {
  const uint64_t offset = header.position % ring_.size();
  const size_t before_wrap = BytesBeforeWrap(ring_.size(), offset, header.length);
  const std::byte* at = ring_.data() + offset + kRecordHeaderBytes;
  // A payload of which all bytes wrap begins one past the ring's last byte: nothing is read there.
  if (before_wrap > 0) CopyFromShared(into.first(before_wrap), at);
  if (before_wrap < header.length) CopyFromShared(into.subspan(before_wrap), ring_.data());
}

std::span<const std::byte> RecordRingReader::CopyNext(std::span<std::byte> into, uint32_t* tag) {
  found_bytes_ = 0;
  RecordHeader header;
  if (!ReadHeader(&header)) return {};
  FALCON_CHECK(header.length <= into.size());
  CopyPayload(header, into.first(header.length));
  *tag = header.payload_tag;
  found_bytes_ = RecordBytes(header.length);
  return into.first(header.length);
}

void RecordRingReader::Consume() {
  FALCON_CHECK(found_bytes_ > 0);
  position_ = RecordStart(position_, ring_.size()) + found_bytes_;
  found_bytes_ = 0;
}

bool RecordRingReader::NextInto(std::vector<std::byte>* payload) {
  RecordHeader header;
  if (!ReadHeader(&header)) return false;
  payload->resize(header.length);
  CopyPayload(header, *payload);
  if (Crc32c(*payload) != header.payload_tag) return false;
  found_bytes_ = RecordBytes(header.length);
  Consume();
  return true;
}

}  // namespace falcon
