// The layout of a log entry: what is written is read back, nothing broken passes, and the bytes are
// those of test/golden/entry.hex, which TypeScript's view of the layout is checked against too.
//
// `entry_test --golden` prints the golden file.
#include "log/entry.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <ranges>
#include <string>
#include <vector>

#include "check.h"

#ifndef FALCON_GOLDEN_DIRECTORY
#define FALCON_GOLDEN_DIRECTORY "test/golden"
#endif

namespace falcon::test {
namespace {

using Bytes = std::vector<std::byte>;

struct Golden {
  const char* name;
  View view;
  Op op;
  Op commit_op;
  EntryKind kind;
  size_t payload_bytes;
};

// The payload's byte i is (i * 7 + 1) mod 256. Each entry's `previous` is the checksum of the one
// above.
constexpr Golden kGolden[] = {
    {"first", 1, 1, 0, EntryKind::kViewStart, 0},
    {"one byte", 1, 2, 1, EntryKind::kFrame, 1},
    {"padded", 1, 3, 2, EntryKind::kVmBoot, 13},
    {"aligned", 2, 4, 2, EntryKind::kOutputCheck, 64},
    {"large numbers", 9007199254740991, 9007199254740990, 4294967296, EntryKind::kMembership, 5},
    {"last kind", 9007199254740991, 9007199254740991, 4294967297, EntryKind::kNoop, 300},
};

Bytes Payload(size_t bytes) {
  Bytes payload(bytes);
  for (size_t i = 0; i < bytes; ++i) payload[i] = static_cast<std::byte>(i * 7 + 1);
  return payload;
}

Bytes Write(const Golden& golden, uint32_t previous) {
  Bytes entry(EntryBytes(golden.payload_bytes), std::byte{0xEE});
  const uint32_t checksum = WriteEntry(entry, golden.view, golden.op, golden.commit_op, golden.kind,
                                       previous, Payload(golden.payload_bytes));
  CHECK(ReadEntryHeader(entry).checksum == checksum);
  return entry;
}

std::string Hex(const Bytes& bytes) {
  std::string text;
  for (const std::byte each : bytes) {
    char digits[3];
    std::snprintf(digits, sizeof digits, "%02x", static_cast<unsigned>(each));
    text += digits;
  }
  return text;
}

std::string GoldenText() {
  std::string text =
      "# Log entries as native/log/entry.cc writes them; made by entry_test --golden.\n";
  uint32_t previous = 0;
  for (const Golden& golden : kGolden) {
    const Bytes entry = Write(golden, previous);
    previous = ReadEntryHeader(entry).checksum;
    text += std::string(golden.name) + ": " + Hex(entry) + "\n";
  }
  return text;
}

TEST(GoldenBytesHaveNotChanged) {
  const std::string path = std::string(FALCON_GOLDEN_DIRECTORY) + "/entry.hex";
  std::ifstream file(path);
  if (!file) return Fail(__FILE__, __LINE__, "cannot open " + path);
  const std::string kept((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  CHECK(kept == GoldenText());
}

TEST(WhatIsWrittenIsReadBack) {
  uint32_t previous = 0;
  for (const Golden& golden : kGolden) {
    const Bytes entry = Write(golden, previous);
    CHECK(EntryIsWhole(entry));
    const EntryHeader header = ReadEntryHeader(entry);
    CHECK(header.view == golden.view && header.op == golden.op &&
          header.commit_op == golden.commit_op);
    CHECK(header.kind == golden.kind && header.previous == previous);
    CHECK(header.payload_length == golden.payload_bytes && entry.size() % 8 == 0);
    const Bytes payload = Payload(golden.payload_bytes);
    CHECK(std::ranges::equal(std::span(entry).subspan(kEntryHeaderBytes, payload.size()), payload));
    for (size_t at = kEntryHeaderBytes + payload.size(); at < entry.size(); ++at)
      CHECK(entry[at] == std::byte{0});
    for (const uint8_t each : header.reserved) CHECK(each == 0);
    previous = header.checksum;
  }
}

TEST(NoPrefixIsWhole) {
  const Bytes entry = Write(kGolden[5], 7);
  for (size_t length = 0; length < entry.size(); ++length)
    CHECK(!EntryIsWhole(std::span(entry).first(length)));
}

TEST(NoFlippedBitPasses) {
  Bytes entry = Write(kGolden[2], 7);
  const size_t covered = kEntryHeaderBytes + kGolden[2].payload_bytes;
  for (size_t bit = 0; bit < covered * 8; ++bit) {
    entry[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    CHECK(!EntryIsWhole(entry));
    entry[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
  }
  CHECK(EntryIsWhole(entry));
}

// Written by somebody who computes right checksums, and still not an entry.
TEST(RightChecksumIsNotEnough) {
  const auto with = [](View view, Op op, uint8_t kind) {
    Bytes entry(EntryBytes(0));
    WriteEntry(entry, view, op, 0, static_cast<EntryKind>(kind), 0, {});
    return entry;
  };
  CHECK(EntryIsWhole(with(1, 1, 1)));
  CHECK(!EntryIsWhole(with(0, 1, 1)));
  CHECK(!EntryIsWhole(with(1, 0, 1)));
  CHECK(!EntryIsWhole(with(1, 1, 0)));
  CHECK(!EntryIsWhole(with(1, 1, 8)));
}

Bytes Chain(size_t entries, Op from, uint32_t* last) {
  Bytes chain;
  for (size_t i = 0; i < entries; ++i) {
    const Golden golden{"", 1, from + i, 0, EntryKind::kFrame, 3 + i};
    const Bytes entry = Write(golden, *last);
    *last = ReadEntryHeader(entry).checksum;
    chain.insert(chain.end(), entry.begin(), entry.end());
  }
  return chain;
}

TEST(EntriesBackToBackAreKnownByTheLast) {
  uint32_t before = 0;
  const Bytes older = Chain(4, 1, &before);
  uint32_t last = before;
  Bytes chain = Chain(4, 5, &last);  // in the same places
  REQUIRE(chain.size() == older.size());
  CHECK(EntriesAreWhole(older, before) && EntriesAreWhole(chain, last));
  CHECK(!EntriesAreWhole(chain, before) && !EntriesAreWhole({}, 0));
  for (size_t bit = 0; bit < chain.size() * 8; ++bit) {  // padding included
    chain[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    CHECK(!EntriesAreWhole(chain, last));
    chain[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
  }
  for (size_t length = 0; length < chain.size(); ++length)
    CHECK(!EntriesAreWhole(std::span(chain).first(length), last));
  // Half of what stood there before is still there.
  const size_t each = EntryBytes(3);
  for (unsigned stale = 1; stale < 16; ++stale) {
    Bytes mixed = chain;
    for (size_t i = 0; i < 4; ++i) {
      const auto at = static_cast<ptrdiff_t>(i * each);
      if ((stale >> i & 1) != 0) std::copy_n(older.begin() + at, each, mixed.begin() + at);
    }
    CHECK(!EntriesAreWhole(mixed, last));
  }
}

TEST(LargestPayload) {
  const Bytes payload(kMaxPayloadBytes, std::byte{5});
  Bytes entry(EntryBytes(kMaxPayloadBytes));
  WriteEntry(entry, 1, 1, 0, EntryKind::kFrame, 0, payload);
  CHECK(EntryIsWhole(entry));
  EntryHeader header = ReadEntryHeader(entry);
  header.payload_length = kMaxPayloadBytes + 1;
  std::memcpy(entry.data(), &header, sizeof header);
  CHECK(!EntryIsWhole(entry));
}

}  // namespace
}  // namespace falcon::test

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "--golden") == 0) {
    std::fputs(falcon::test::GoldenText().c_str(), stdout);
    return 0;
  }
  return falcon::test::Main(argc, argv);
}
