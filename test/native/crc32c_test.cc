// CRC32C: the published check values, and the instruction against the table on the same bytes.
#include "os/crc32c.h"

#include <vector>

#include "check.h"
#include "os/random.h"

namespace falcon::test {
namespace {

std::vector<std::byte> RandomBytes(Random* random, size_t count) {
  std::vector<std::byte> bytes(count);
  for (std::byte& each : bytes) each = static_cast<std::byte>(random->Next());
  return bytes;
}

// RFC 3720, appendix B.4, and the check value of the CRC catalogues.
TEST(PublishedValues) {
  const std::vector<std::byte> zeros(32, std::byte{0});
  const std::vector<std::byte> ones(32, std::byte{0xFF});
  std::vector<std::byte> rising;
  std::vector<std::byte> falling;
  for (int i = 0; i < 32; ++i) {
    rising.push_back(static_cast<std::byte>(i));
    falling.push_back(static_cast<std::byte>(31 - i));
  }
  const char digits[] = "123456789";
  const auto text = std::as_bytes(std::span(digits, 9));
  for (const auto crc : {&Crc32c, &Crc32cPortable}) {
    CHECK(crc(zeros, 0) == 0x8A9136AA);
    CHECK(crc(ones, 0) == 0x62A8AB43);
    CHECK(crc(rising, 0) == 0x46DD794E);
    CHECK(crc(falling, 0) == 0x113FDB5C);
    CHECK(crc(text, 0) == 0xE3069283);
    CHECK(crc({}, 0) == 0);
  }
}

TEST(FastAgreesWithPortableAtEveryLengthAndAlignment) {
  Random random(11);
  const auto bytes = RandomBytes(&random, 4096 + 64);
  for (size_t offset = 0; offset < 16; ++offset) {
    for (size_t length = 0; length < 300; ++length) {
      const auto part = std::span(bytes).subspan(offset, length);
      const auto seed = static_cast<uint32_t>(random.Next());
      CHECK(Crc32c(part, seed) == Crc32cPortable(part, seed));
    }
  }
  CHECK(Crc32c(bytes) == Crc32cPortable(bytes));
}

TEST(PiecesChainThroughTheSeed) {
  Random random(12);
  const auto bytes = RandomBytes(&random, 1000);
  const uint32_t whole = Crc32c(bytes);
  for (size_t cut = 0; cut <= bytes.size(); ++cut) {
    const auto all = std::span(bytes);
    CHECK(Crc32c(all.subspan(cut), Crc32c(all.first(cut))) == whole);
  }
}

TEST(EverySingleBitCounts) {
  Random random(13);
  auto bytes = RandomBytes(&random, 200);
  const uint32_t right = Crc32c(bytes);
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    bytes[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    CHECK(Crc32c(bytes) != right);
    bytes[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
  }
}

}  // namespace
}  // namespace falcon::test

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
