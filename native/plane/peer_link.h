// What a replica keeps for one peer: the connection, the words that the two write into each other's
// memory, the entry ring and the mailbox in both directions.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "fabric/fabric.h"
#include "log/entry.h"
#include "log/record_ring.h"
#include "os/clock.h"
#include "os/hash.h"

namespace falcon {

// Written one-sidedly by one member into another's region. Believed only if connection and checksum
// are right; a torn one is simply read again.
struct PeerWords {
  uint64_t connection;
  uint64_t sequence;         // grows with every write
  uint64_t leading_view;     // the writer is primary of this view; 0: it is not primary
  uint64_t heartbeat_round;  // of that primary
  uint64_t commit_op;        // of that primary
  uint64_t following_view;   // stream whose entries the writer takes; 0: none
  uint64_t durable_op;       // the writer's log is durable up to here, as of following_view
  uint64_t echo_view;        // view and round of the last heartbeat that the writer acknowledged
  uint64_t echo_round;
  uint64_t entries_consumed;  // bytes of stream following_view
  uint64_t mail_consumed;     // bytes of the mailbox
  uint32_t reserved;
  uint32_t checksum;  // CRC32C of everything before
};
static_assert(sizeof(PeerWords) == 96);

// The two words that an acknowledgement is about, written behind the others by who follows: a
// commit waits for it, and what carries and checks a write does so byte by byte where no device
// does. Of another connection or view it says nothing.
struct PeerAck {
  uint64_t durable_op;
  uint64_t entries_consumed;
  uint64_t mark;  // AckMark
};
static_assert(sizeof(PeerAck) == 24);

// Tells one that is whole, and of this connection and view, from any other.
[[nodiscard]] inline uint64_t AckMark(uint64_t connection, View view, const PeerAck& ack) {
  return MarkOf(MarkKey(connection, view), ack.durable_op, ack.entries_consumed);
}

inline constexpr size_t kWordsStride = 128;
static_assert(sizeof(PeerWords) + sizeof(PeerAck) <= kWordsStride);
inline constexpr size_t kMailboxBytes = 64 << 10;
inline constexpr uint64_t kMailStream = ~uint64_t{0};

// Where in a member's region a peer finds its own places.
struct RegionLayout {
  size_t ring_bytes;
  [[nodiscard]] uint64_t WordsAt(PeerId writer) const { return writer * kWordsStride; }
  [[nodiscard]] uint64_t AckAt(PeerId writer) const { return WordsAt(writer) + sizeof(PeerWords); }
  [[nodiscard]] uint64_t MailboxAt(PeerId writer) const {
    return kMaxMembers * kWordsStride + writer * kMailboxBytes;
  }
  [[nodiscard]] uint64_t RingAt(PeerId writer) const {
    return kMaxMembers * (kWordsStride + kMailboxBytes) + writer * ring_bytes;
  }
  [[nodiscard]] size_t Bytes(size_t members) const { return RingAt(static_cast<PeerId>(members)); }
};

struct PeerLink {
  explicit PeerLink(PeerId peer) : id(peer) {
    words_slab.resize(kWordsSlab);
    ack_slab.resize(kWordsSlab);
  }

  PeerId id;
  uint64_t connection = 0;
  uint64_t generation =
      0;  // connections made so far: events of an earlier one are told apart by it
  bool up = false;

  // their words, as last believed, with what their acknowledgements have said since
  PeerWords words{};
  Nanoseconds words_at = 0;  // when they came; 0: none have, over this connection
  uint64_t seen_sequence = 0;
  uint64_t seen_ack = 0;  // its mark

  // ours to them: each write keeps its source until the fabric has sent it
  // A fabric may tell of completions only every so many writes (verbs: a quarter of its send
  // queue, 128 at most), and words must not wait for the next time it does.
  static constexpr size_t kWordsSlab = 256;
  std::vector<PeerWords> words_slab;
  std::vector<PeerAck> ack_slab;  // of each two places one is used
  std::array<uint64_t, kWordsSlab> words_ticket{};
  uint64_t words_sent = 0;  // and acknowledgements
  bool words_dirty = false;
  bool ack_dirty = false;  // nothing else of the words is

  RecordRingWriter mail_out;
  RecordRingReader mail_in;
  std::vector<std::byte> mail_buffer;  // incoming
  // outgoing mail is copied here until it is sent
  static constexpr size_t kMailSlots = 32;
  std::array<std::vector<std::byte>, kMailSlots> mail_slots;
  std::array<uint64_t, kMailSlots> mail_ticket{};
  size_t mail_next = 0;

  // entries to them
  bool feeding = false;
  bool feed_waits = false;   // for earlier posts to leave, before the stream is started
  uint64_t feed_ticket = 0;  // of the last of these
  View feed_view = 0;
  Op next_op = 0;
  RecordRingWriter entries_out;
  std::vector<std::byte> disk_chunk;  // catch-up from the WAL
  uint64_t disk_ticket = 0;
  // posts out of the log's memory that may not have left it yet: they may not be evicted
  struct Sent {
    Op first_op;
    uint64_t ticket;
  };
  static constexpr size_t kSentSlots = 512;
  std::array<Sent, kSentSlots> sent{};
  size_t sent_head = 0, sent_tail = 0;

  // entries from them
  RecordRingReader entries_in;
  // The header of a record is there and its entries are not whole: how often it was looked at, and
  // the peer's words of the second time.
  uint32_t torn_looks = 0;
  uint64_t torn_sequence = 0;
  bool wrote = false;  // something was written since the last doorbell
};

}  // namespace falcon
