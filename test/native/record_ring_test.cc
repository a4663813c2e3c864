// The record ring: a writer and a reader over the sim fabric, where every write can be torn, and
// over shm.
#include "log/record_ring.h"

#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "fabric/shared_copy.h"
#include "fabric/shm.h"
#include "fabric/sim.h"
#include "os/clock.h"
#include "os/crc32c.h"

namespace {

using falcon::RecordBytes;
using falcon::RecordHeader;
using falcon::RecordRingReader;
using falcon::RecordRingWriter;
using falcon::RecordStart;
using falcon::Status;
using falcon::Tear;
using Bytes = std::vector<std::byte>;
using Span = std::span<const std::byte>;

constexpr uint64_t kConnection = 77;
constexpr uint64_t kStream = 5;
constexpr uint64_t kRingAt = 64;  // the ring is not at the start of its region
constexpr size_t kHeader = falcon::kRecordHeaderBytes;

// xorshift64*: the same numbers for the same seed everywhere.
struct Random {
  uint64_t state;
  uint64_t Next() {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545F4914F6CDD1Dull;
  }
  size_t Below(size_t bound) { return static_cast<size_t>(Next() % bound); }
};

Bytes Payload(uint64_t seed, size_t length) {
  Random random{seed * 0x9E3779B97F4A7C15ull + 1};
  Bytes bytes(length);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random.Next() >> 56);
  return bytes;
}

bool CopyNext(RecordRingReader* reader, Bytes* payload, uint32_t* tag) {
  static Bytes room(1 << 20);
  const Span copy = reader->CopyNext(room, tag);
  payload->assign(copy.begin(), copy.end());
  return !copy.empty();
}

// Node 0 writes into a ring in node 1's region 0.
struct SimBed {
  explicit SimBed(size_t ring, falcon::SimOptions options = {})
      : ring_bytes(ring), network(options), a(network.MakeFabric(0)), b(network.MakeFabric(1)) {
    CHECK(b->AddRegion(0, kRingAt + ring).ok());
    CHECK(a->Connect(1, kConnection, b->Descriptor()).ok());
    writer.Reset(kConnection, kStream, ring, {0, kRingAt});
    reader.Reset(kConnection, kStream, Ring());
  }
  std::span<std::byte> Ring() { return b->region(0).subspan(kRingAt); }
  Status Post(Span payload) { return writer.Post(*a, 1, payload); }
  bool Send(Span payload) {
    if (!Post(payload).ok()) return false;
    network.DeliverAll(0, 1);
    return true;
  }
  // The next record in both ways of reading, which must agree; empty if there is none.
  Bytes Take() {
    Bytes copied;
    uint32_t tag = 0;
    const bool there = CopyNext(&reader, &copied, &tag) && falcon::Crc32c(copied) == tag;
    Bytes taken;
    CHECK(reader.NextInto(&taken) == there);
    if (!there) return {};
    CHECK(taken == copied);
    return taken;
  }
  bool Empty() {
    RecordRingReader again = reader;
    Bytes copied;
    return !again.NextInto(&copied);
  }
  void Credit() { CHECK(writer.SetConsumed(reader.consumed())); }
  // Brings an empty ring to `offset`, a multiple of 8 at which a header still fits.
  bool MoveTo(size_t offset) {
    Random random{offset + 1};
    for (int rounds = 0; rounds < 100000; ++rounds) {
      if (RecordStart(writer.position(), ring_bytes) % ring_bytes == offset) return true;
      if (!Send(Payload(3, 8 + 8 * random.Below(5))) || Take().empty()) return false;
      Credit();
    }
    return false;
  }

  size_t ring_bytes;
  falcon::SimNetwork network;
  std::unique_ptr<falcon::Fabric> a, b;
  RecordRingWriter writer;
  RecordRingReader reader;
};

TEST(record_sizes_and_starts) {
  CHECK(RecordBytes(1) == 32 && RecordBytes(8) == 32 && RecordBytes(9) == 40);
  CHECK(RecordStart(0, 128) == 0);
  CHECK(RecordStart(128, 128) == 128);  // nothing left is the same as all left
  CHECK(RecordStart(104, 128) == 104);  // exactly one header left
  CHECK(RecordStart(112, 128) == 128);  // one word less: skipped
  CHECK(RecordStart(128 + 120, 128) == 256);
}

TEST(wraps_at_each_offset_with_each_length) {
  constexpr size_t kRing = 160;
  for (size_t offset = 0; offset + kHeader <= kRing; offset += 8) {
    SimBed bed(kRing);
    for (size_t length = 1; length <= kRing - kHeader; ++length) {
      REQUIRE(bed.MoveTo(offset));
      const Bytes payload = Payload(length, length);
      REQUIRE(bed.Send(payload));
      CHECK(bed.Take() == payload);
      CHECK(bed.Empty());
      bed.Credit();
    }
  }
}

TEST(one_record_from_two_places) {
  constexpr size_t kRing = 160;
  const Bytes payload = Payload(9, 100);
  for (size_t cut = 0; cut <= payload.size(); ++cut) {
    SimBed bed(kRing);
    REQUIRE(bed.MoveTo(96));  // wraps after 40 bytes of payload
    REQUIRE(
        bed.writer.PostMany(*bed.a, 1, Span(payload).first(cut), Span(payload).subspan(cut)).ok());
    bed.network.DeliverAll(0, 1);
    CHECK(bed.Take() == payload);
  }
}

TEST(full_is_not_empty) {
  constexpr size_t kRing = 128;  // exactly four records of 32
  SimBed bed(kRing);
  CHECK(bed.writer.Space() == kRing - kHeader);
  for (uint64_t i = 0; i < 4; ++i) REQUIRE(bed.Send(Payload(i, 8)));
  CHECK(bed.writer.Space() == 0);
  CHECK(bed.writer.Unconsumed() == kRing);
  CHECK(std::string(bed.Post(Payload(4, 1)).code()) == "RECORD_RING_FULL");
  CHECK(bed.network.Pending(0, 1) == 0);
  for (uint64_t i = 0; i < 4; ++i) CHECK(bed.Take() == Payload(i, 8));
  CHECK(bed.Empty());
  CHECK(bed.writer.Space() == 0);  // nothing is free before the credit came
  bed.Credit();
  CHECK(bed.writer.Space() == kRing - kHeader);
  REQUIRE(bed.Send(Payload(5, kRing - kHeader)));  // one record fills it
  CHECK(bed.writer.Space() == 0);
  CHECK(bed.Take() == Payload(5, kRing - kHeader));
}

TEST(what_is_skipped_at_the_end_is_free_again) {
  SimBed bed(128);
  REQUIRE(bed.Send(Payload(1, 88)));  // 112 bytes: 16 left, less than a header
  CHECK(bed.Take() == Payload(1, 88));
  CHECK(bed.writer.Space() == 0);
  bed.Credit();
  CHECK(bed.writer.Space() == 104);
  REQUIRE(bed.Send(Payload(2, 104)));
  CHECK(bed.Take() == Payload(2, 104));
}

TEST(credit_is_checked) {
  SimBed bed(256);
  REQUIRE(bed.Send(Payload(1, 8)));
  REQUIRE(bed.Send(Payload(2, 8)));
  CHECK(!bed.writer.SetConsumed(65));
  CHECK(!bed.writer.SetConsumed(~uint64_t{0}));
  CHECK(bed.writer.SetConsumed(32));
  CHECK(bed.writer.SetConsumed(32));
  CHECK(!bed.writer.SetConsumed(0));
  CHECK(bed.writer.consumed() == 32);
}

// Delivers one record byte by byte: before its last byte it is not there.
void CheckTornPrefixes(SimBed& bed, Bytes payload) {
  // What wraps goes first, so the last byte is the last before the ring's end. It must not lie
  // there already.
  const size_t start = RecordStart(bed.writer.position(), bed.ring_bytes) % bed.ring_bytes;
  const size_t before_wrap = std::min(payload.size(), bed.ring_bytes - start - kHeader);
  if (before_wrap > 0) payload[before_wrap - 1] = ~bed.Ring()[start + kHeader + before_wrap - 1];
  REQUIRE(bed.Post(payload).ok());
  while (bed.network.Pending(0, 1) > 0) {
    CHECK(bed.Empty());
    CHECK(bed.network.DeliverPart(0, 1, 1, Tear::kBytes) == 1);
  }
  CHECK(bed.Take() == payload);
  CHECK(bed.Empty());
  bed.Credit();
}

TEST(every_torn_prefix_is_not_there) {
  SimBed bed(256);
  // Several laps, so that the bytes of an earlier record stand where the new one comes.
  for (uint64_t i = 0; i < 60; ++i) CheckTornPrefixes(bed, Payload(i, 1 + (i * 37) % 200));
  // The same payload length again and again: each header overwrites one that differs in few bytes.
  SimBed same(96);
  for (uint64_t i = 0; i < 20; ++i) CheckTornPrefixes(same, Payload(i, 96 - kHeader));
}

TEST(every_hole_is_not_there) {
  SimBed bed(256);
  const Bytes payload = Payload(4, 120);
  REQUIRE(bed.Send(payload));
  const std::span<std::byte> ring = bed.Ring();
  const Bytes good(ring.begin(), ring.end());
  for (size_t hole = 0; hole < RecordBytes(payload.size()); hole += 8) {
    std::fill_n(ring.begin() + static_cast<ptrdiff_t>(hole), 8, std::byte{0});
    const bool changed = !std::equal(good.begin(), good.end(), ring.begin());
    if (changed) CHECK(bed.Empty());
    std::copy(good.begin(), good.end(), ring.begin());
  }
  CHECK(bed.Take() == payload);
}

TEST(every_flipped_bit_is_found) {
  SimBed bed(256);
  const Bytes payload = Payload(6, 63);
  REQUIRE(bed.Send(payload));
  const std::span<std::byte> ring = bed.Ring();
  for (size_t bit = 0; bit < (kHeader + payload.size()) * 8; ++bit) {
    const std::byte mask{static_cast<unsigned char>(1u << (bit % 8))};
    ring[bit / 8] ^= mask;
    CHECK(bed.Empty());
    ring[bit / 8] ^= mask;
  }
  CHECK(bed.Take() == payload);
}

TEST(a_tagged_payload_is_the_readers_business) {
  SimBed bed(256);
  const Bytes payload = Payload(6, 64);
  for (uint32_t tag = 70; tag < 90; ++tag) {  // some of them wrap
    REQUIRE(bed.writer.PostTagged(*bed.a, 1, payload, tag).ok());
    bed.network.DeliverAll(0, 1);
    const size_t at = RecordStart(bed.reader.consumed(), 256) % 256;
    Bytes copied;
    uint32_t seen = 0;
    REQUIRE(CopyNext(&bed.reader, &copied, &seen));
    CHECK(copied == payload && seen == tag);
    const size_t first = at + kHeader < 256 ? at + kHeader : 0;
    bed.Ring()[first] ^= std::byte{1};
    REQUIRE(CopyNext(&bed.reader, &copied, &seen));
    CHECK(copied[0] != payload[0]);
    bed.Ring()[at] ^= std::byte{1};
    CHECK(!CopyNext(&bed.reader, &copied, &seen));  // the header is checked all the same
    bed.Ring()[at] ^= std::byte{1};
    bed.Ring()[first] ^= std::byte{1};
    REQUIRE(CopyNext(&bed.reader, &copied, &seen));
    bed.reader.Consume();
    bed.Credit();
  }
}

TEST(records_of_other_connections_streams_and_positions_are_not_there) {
  SimBed bed(256);
  REQUIRE(bed.Send(Payload(1, 20)));
  RecordRingReader other;
  Bytes copied;
  other.Reset(kConnection + 1, kStream, bed.Ring());
  CHECK(!other.NextInto(&copied));
  other.Reset(kConnection, kStream + 1, bed.Ring());
  CHECK(!other.NextInto(&copied));
  other.Reset(kConnection, kStream, bed.Ring());
  CHECK(other.NextInto(&copied));
  // A whole record of the lap before, at the very place where the next one is expected.
  SimBed laps(96);
  REQUIRE(laps.Send(Payload(1, 96 - kHeader)));
  CHECK(laps.Take() == Payload(1, 96 - kHeader));
  CHECK(laps.Empty());
  // A new stream begins at 0 over the old bytes, on the same connection.
  laps.writer.Reset(kConnection, kStream + 1, 96, {0, kRingAt});
  laps.reader.Reset(kConnection, kStream + 1, laps.Ring());
  CHECK(laps.Empty());
  REQUIRE(laps.Send(Payload(2, 96 - kHeader)));
  CHECK(laps.Take() == Payload(2, 96 - kHeader));
}

TEST(lengths_that_cannot_be_are_refused) {
  SimBed bed(256);
  Bytes copied;
  uint32_t tag = 0;
  // 232 is the largest that fits: it shows that the mark made here is the one that a reader wants.
  for (const uint32_t length : {0u, 232u, 233u, 256u, 0x7FFFFFFFu, 0xFFFFFFFFu}) {
    RecordHeader header{0, length, 1, 0};
    header.mark = falcon::RecordMark(kConnection, kStream, header);
    const Span raw = std::as_bytes(std::span(&header, 1));
    std::copy(raw.begin(), raw.end(), bed.Ring().begin());
    RecordRingReader reader;
    reader.Reset(kConnection, kStream, bed.Ring());
    CHECK(CopyNext(&reader, &copied, &tag) == (length == 232));
  }
}

TEST(headers_are_not_reused_before_they_are_sent) {
  SimBed bed(1 << 20, {.queue_bound = 4096, .capture_at_post = false});
  const Bytes payload = Payload(1, 8);
  int posted = 0;
  while (bed.Post(payload).ok()) ++posted;
  CHECK(posted == 512);
  CHECK(std::string(bed.Post(payload).code()) == "FABRIC_BUSY");
  REQUIRE(bed.network.DeliverNext(0, 1));
  CHECK(bed.Post(payload).ok());
  CHECK(!bed.Post(payload).ok());
  bed.network.DeliverAll(0, 1);
  for (int i = 0; i < posted + 1; ++i) CHECK(bed.Take() == payload);
  CHECK(bed.Empty());
}

TEST(a_queue_that_fills_inside_a_wrapped_record_loses_nothing) {
  SimBed bed(160, {.queue_bound = 1, .capture_at_post = false});
  REQUIRE(bed.Send(Payload(3, 40)) && !bed.Take().empty());
  bed.Credit();
  const uint64_t before = bed.writer.position();
  const Bytes payload = Payload(7, 100);
  CHECK(std::string(bed.Post(payload).code()) == "FABRIC_BUSY");
  CHECK(bed.writer.position() == before);
  bed.network.DeliverAll(0, 1);
  CHECK(bed.Empty());
  CHECK(std::string(bed.Post(payload).code()) == "FABRIC_BUSY");  // a queue of one never takes both
  SimBed two(160, {.queue_bound = 2, .capture_at_post = false});
  REQUIRE(two.MoveTo(96));
  REQUIRE(two.Post(payload).ok());
  CHECK(two.Empty());
  two.network.DeliverAll(0, 1);
  CHECK(two.Take() == payload);
}

TEST(a_broken_connection_is_said) {
  SimBed bed(256);
  REQUIRE(bed.Post(Payload(1, 8)).ok());
  bed.network.Break(0, 1);
  CHECK(std::string(bed.Post(Payload(2, 8)).code()) == "FABRIC_DOWN");
  // A new connection starts from the beginning, and what the old one left behind is not believed.
  REQUIRE(bed.a->Connect(1, kConnection + 1, bed.b->Descriptor()).ok());
  bed.writer.Reset(kConnection + 1, kStream, 256, {0, kRingAt});
  bed.reader.Reset(kConnection + 1, kStream, bed.Ring());
  CHECK(bed.Empty());
  REQUIRE(bed.Send(Payload(3, 8)));
  CHECK(bed.Take() == Payload(3, 8));
}

TEST(late_writes_of_an_old_connection_never_make_a_record) {
  for (size_t late_bytes = 0; late_bytes <= RecordBytes(8); ++late_bytes) {
    SimBed bed(256);
    const Bytes old_payload = Payload(1, 8);
    REQUIRE(bed.Post(old_payload).ok());
    REQUIRE(bed.network.KeepStale(0, 1) == 1);
    bed.network.Break(0, 1);
    REQUIRE(bed.a->Connect(1, kConnection + 1, bed.b->Descriptor()).ok());
    bed.writer.Reset(kConnection + 1, kStream, 256, {0, kRingAt});
    bed.reader.Reset(kConnection + 1, kStream, bed.Ring());
    const Bytes fresh = Payload(2, 8);
    REQUIRE(bed.Send(fresh));
    const Bytes before(bed.Ring().begin(), bed.Ring().end());
    bed.network.DeliverStalePart(0, 1, late_bytes, Tear::kBytes);
    const bool same = std::equal(before.begin(), before.end(), bed.Ring().begin());
    CHECK(same || late_bytes > 8);  // both begin with the same position
    // Either the new record is still whole, or nothing is there.
    Bytes got;
    if (bed.reader.NextInto(&got)) CHECK(got == fresh);
    CHECK(same == (got == fresh));
  }
}

// Posts, deliveries in pieces, reads and credits in random order against a queue of what was
// posted.
void CheckAgainstModel(uint64_t seed, size_t ring_bytes, int steps) {
  Random random{seed};
  SimBed bed(ring_bytes, {.queue_bound = 1 + random.Below(8), .capture_at_post = false});
  std::deque<Bytes> posted;   // not read yet, oldest first
  std::deque<Bytes> sources;  // memory of what may still be in flight
  uint64_t number = 0;
  uint64_t read = 0;
  for (int step = 0; step < steps; ++step) {
    switch (random.Below(4)) {
      case 0: {
        sources.push_back(Payload(++number, 1 + random.Below(ring_bytes - kHeader)));
        const size_t space = bed.writer.Space();
        const Status status = bed.Post(sources.back());
        if (sources.back().size() > space) CHECK(std::string(status.code()) == "RECORD_RING_FULL");
        if (status.ok()) posted.push_back(sources.back());
        break;
      }
      case 1:
        bed.network.DeliverPart(0, 1, random.Below(ring_bytes), Tear::kBytes);
        break;
      case 2: {
        const Bytes got = bed.Take();
        if (got.empty()) break;
        REQUIRE(!posted.empty());
        REQUIRE(got == posted.front());
        posted.pop_front();
        ++read;
        break;
      }
      default:
        if (random.Below(2) == 0) bed.Credit();
    }
    if (bed.network.Pending(0, 1) == 0) sources.clear();
  }
  bed.network.DeliverAll(0, 1);
  for (; !posted.empty(); posted.pop_front(), ++read) REQUIRE(bed.Take() == posted.front());
  CHECK(bed.Empty());
  CHECK(read > 0);
}

TEST(random_work_equals_a_queue) {
  for (uint64_t seed = 1; seed <= 40; ++seed)
    CheckAgainstModel(seed, 80 + 8 * (seed * 13 % 60), 3000);
}

TEST(a_writer_thread_over_shared_memory) {
  const std::string directory = "/dev/shm/falcon-record-ring-test-" + std::to_string(getpid());
  constexpr size_t kRing = 4096;
  constexpr uint64_t kRecords = 5000;
  {
    std::unique_ptr<falcon::Fabric> a, b;
    REQUIRE(falcon::MakeShmFabric({directory, "a", 0}, &a).ok());
    REQUIRE(falcon::MakeShmFabric({directory, "b", 1}, &b).ok());
    REQUIRE(a->AddRegion(0, 64).ok() && b->AddRegion(0, kRing).ok());
    REQUIRE(a->Connect(1, kConnection, b->Descriptor()).ok());
    REQUIRE(b->Connect(0, kConnection, a->Descriptor()).ok());
    const falcon::Nanoseconds deadline = falcon::MonotonicNow() + 60 * falcon::kSecond;
    std::atomic<bool> failed{false};
    std::thread sender([&] {
      RecordRingWriter writer;
      writer.Reset(kConnection, kStream, kRing, {0, 0});
      for (uint64_t i = 0; i < kRecords && !failed;) {
        const Bytes payload = Payload(i, 1 + i * 31 % 700);
        if (writer.Post(*a, 1, payload).ok()) {
          ++i;
          continue;
        }
        if (!writer.SetConsumed(falcon::LoadSharedWord(a->region(0).data()))) failed = true;
        if (falcon::MonotonicNow() > deadline) failed = true;
        std::this_thread::yield();
      }
    });
    RecordRingReader reader;
    reader.Reset(kConnection, kStream, b->region(0));
    Bytes got;
    uint64_t next = 0;
    while (next < kRecords && !failed) {
      if (!reader.NextInto(&got)) {
        if (falcon::MonotonicNow() > deadline) failed = true;
        std::this_thread::yield();
        continue;
      }
      if (got != Payload(next, 1 + next * 31 % 700)) failed = true;
      ++next;
      const uint64_t consumed = reader.consumed();
      const Span words[] = {std::as_bytes(std::span(&consumed, 1))};
      if (!b->Write(0, {0, 0}, words).ok()) failed = true;
    }
    sender.join();
    CHECK(!failed);
    CHECK(next == kRecords);
  }
  CHECK(rmdir(directory.c_str()) == 0);
}

}  // namespace

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
