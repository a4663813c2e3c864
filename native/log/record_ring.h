// A ring of records that one replica writes into a region of another: log entries, and control
// messages.
//
// Positions are absolute bytes since the stream began and only grow; a record lies at position
// modulo ring size, so full and empty cannot be confused and bytes of an earlier lap never look
// like new ones. A record is believed only if its header carries the expected position and the mark
// of the expected connection and stream, and its payload's checksum is right: one that is torn,
// late, repeated or damaged is simply not there (yet). The writer overwrites nothing that the
// reader has not consumed; it learns of that through SetConsumed.
//
// The payload may wrap around the end of the ring (that record takes two writes, so a send queue
// must hold at least two); the header never does: with less than a header left, both sides go on at
// the ring's start.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "fabric/fabric.h"
#include "os/hash.h"
#include "os/status.h"

namespace falcon {

struct RecordHeader {
  uint64_t position;     // of this header's first byte
  uint32_t length;       // payload bytes, at least 1
  uint32_t payload_tag;  // CRC32C of the payload, or what its users know it by
  uint64_t mark;         // RecordMark: of this stream, and whole
};

inline constexpr size_t kRecordHeaderBytes = 24;
static_assert(sizeof(RecordHeader) == kRecordHeaderBytes);
static_assert(offsetof(RecordHeader, position) == 0);
static_assert(offsetof(RecordHeader, length) == 8);
static_assert(offsetof(RecordHeader, payload_tag) == 12);
static_assert(offsetof(RecordHeader, mark) == 16);

// `connection`: the incarnation of the connection that carries the record; `stream`: chosen by the
// users of the ring, for example the view. Neither travels: who does not know them does not find
// this number.
[[nodiscard]] inline uint64_t RecordMark(uint64_t connection, uint64_t stream,
                                         const RecordHeader& header) {
  const uint64_t length_and_tag = uint64_t{header.payload_tag} << 32 | header.length;
  return MarkOf(MarkKey(connection, stream), header.position, length_and_tag);
}

// Bytes that a record with this payload takes in the ring.
[[nodiscard]] constexpr size_t RecordBytes(size_t payload_bytes) {
  return (kRecordHeaderBytes + payload_bytes + 7) & ~size_t{7};
}

// Where the next record begins if the one before ended at `position`.
[[nodiscard]] constexpr uint64_t RecordStart(uint64_t position, size_t ring_bytes) {
  const uint64_t left = ring_bytes - position % ring_bytes;
  return left < kRecordHeaderBytes ? position + left : position;
}

// The smallest ring; ring sizes are multiples of 8.
inline constexpr size_t kMinRecordRingBytes = 2 * kRecordHeaderBytes;

class RecordRingWriter {
 public:
  // Starts a stream at position 0. `remote` is where the ring begins in the peer's region. No
  // (connection, stream) is ever used twice. A new stream may follow on a connection whose writes
  // are still in flight; a new connection may only follow after Connect.
  void Reset(uint64_t connection, uint64_t stream, size_t ring_bytes, RemoteAddress remote);

  // Takes the reader's consumed() as the peer published it. A value that goes back or beyond what
  // was written is ignored, and false returned.
  bool SetConsumed(uint64_t position);

  // Largest payload that can be posted now; 0: none.
  [[nodiscard]] size_t Space() const;

  // Bytes between what the reader has consumed and what was written.
  [[nodiscard]] uint64_t Unconsumed() const { return position_ - consumed_; }
  [[nodiscard]] uint64_t position() const { return position_; }
  [[nodiscard]] uint64_t consumed() const { return consumed_; }

  // Posts one record (at least 1 byte). The payload must stay unchanged until
  // fabric.Completed(peer) reaches fabric.Posted(peer) as it is after the call, also if the call
  // said FABRIC_BUSY. Errors: RECORD_RING_FULL (Space() is too small, wait for the reader),
  // FABRIC_BUSY (try again after Poll), FABRIC_DOWN. On every error the record was not posted and
  // the stream stands where it stood.
  Status Post(Fabric& fabric, PeerId peer, std::span<const std::byte> payload);

  // Posts one record whose payload is several whole items back to back, in at most two places of
  // the sender's memory (so that a source that is itself a ring needs no copy).
  Status PostMany(Fabric& fabric, PeerId peer, std::span<const std::byte> first,
                  std::span<const std::byte> second = {});

  // Posts one record whose payload carries its own checksums: the reader's CopyNext takes it as it
  // is. `tag` must tell it from whatever else may lie there, whole, from an earlier lap.
  Status PostTagged(Fabric& fabric, PeerId peer, std::span<const std::byte> payload, uint32_t tag);

 private:
  Status Place(Fabric& fabric, PeerId peer, std::span<const std::byte> first,
               std::span<const std::byte> second, uint32_t tag);

  struct Slot {
    RecordHeader header;
    uint64_t sent_at;  // free once Completed() has reached this
  };
  static constexpr size_t kSlots = 512;

  uint64_t connection_ = 0;
  uint64_t stream_ = 0;
  size_t ring_bytes_ = 0;
  RemoteAddress remote_;
  uint64_t position_ = 0;
  uint64_t consumed_ = 0;
  size_t next_slot_ = 0;
  std::unique_ptr<std::array<Slot, kSlots>> slots_;  // allocated by the first Reset, never moved
};

class RecordRingReader {
 public:
  // `ring` is 8-byte aligned memory that only the expected writer writes.
  void Reset(uint64_t connection, uint64_t stream, std::span<const std::byte> ring);

  // Copies the next payload out, verifies the copy, and consumes it. False: it is not there (yet).
  bool NextInto(std::vector<std::byte>* payload);

  // The same for a record with a tag, but the copy is only as whole as the caller finds it, who
  // then consumes it or tries again. `into`: room for a record as large as the ring. Returns the
  // part of it that was filled; empty: not even the record's header is there.
  std::span<const std::byte> CopyNext(std::span<std::byte> into, uint32_t* tag);
  // Goes behind the record that the last CopyNext copied.
  void Consume();

  // Nearly always there is nothing new, and two words tell: false then. True: a look is worth it.
  [[nodiscard]] bool MayHaveNext() const;

  // Position behind the last consumed record: what the writer's SetConsumed takes.
  [[nodiscard]] uint64_t consumed() const { return position_; }

 private:
  bool ReadHeader(RecordHeader* header) const;
  void CopyPayload(const RecordHeader& header, std::span<std::byte> into) const;

  uint64_t connection_ = 0;
  uint64_t stream_ = 0;
  std::span<const std::byte> ring_;
  uint64_t position_ = 0;
  size_t found_bytes_ = 0;  // of the record that CopyNext copied, header included; 0: none
};

}  // namespace falcon
