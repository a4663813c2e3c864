#include "pages/digest.h"

#include <sodium/core.h>
#include <sodium/crypto_onetimeauth_poly1305.h>
#include <sodium/crypto_shorthash_siphash24.h>
#include <sodium/crypto_stream_chacha20.h>
#include <sodium/randombytes.h>
#include <sodium/utils.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "pages/guest_memory.h"

namespace falcon {

static_assert(std::tuple_size_v<Digest> == crypto_onetimeauth_poly1305_BYTES);
static_assert(std::tuple_size_v<DigestKey> == crypto_stream_chacha20_KEYBYTES);
static_assert(kPageBlocks == 8 * sizeof(BlockMask));
static_assert(sizeof(uint64_t) == crypto_shorthash_siphash24_BYTES);

Status StartDigests() {
  if (sodium_init() >= 0) return Ok();
  return {"START_FAILED", "libsodium does not start"};
}

DigestKey MakeDigestKey() {
  DigestKey key;
  randombytes_buf(key.data(), key.size());
  return key;
}

PageHasher::PageHasher(const DigestKey& key) {
  static_assert(sizeof page_key_ == crypto_onetimeauth_poly1305_KEYBYTES);
  static_assert(sizeof block_key_ == crypto_shorthash_siphash24_KEYBYTES);
  std::array<uint8_t, sizeof page_key_ + sizeof block_key_> stream;
  const std::array<uint8_t, crypto_stream_chacha20_NONCEBYTES> nonce{};
  crypto_stream_chacha20(stream.data(), stream.size(), nonce.data(), key.data());
  std::memcpy(page_key_.data(), stream.data(), page_key_.size());
  std::memcpy(block_key_.data(), stream.data() + page_key_.size(), block_key_.size());
}

Digest PageHasher::Page(const std::byte* page) const {
  Digest digest{};
  if (IsZeroPage(page)) return digest;
  crypto_onetimeauth_poly1305(reinterpret_cast<uint8_t*>(digest.data()),
                              reinterpret_cast<const uint8_t*>(page), kPageBytes, page_key_.data());
  return digest;
}

BlockDigests PageHasher::Blocks(const std::byte* page) const {
  BlockDigests digests;
  for (size_t i = 0; i < kPageBlocks; ++i) {
    crypto_shorthash_siphash24(reinterpret_cast<uint8_t*>(&digests[i]),
                               reinterpret_cast<const uint8_t*>(page + i * kBlockBytes),
                               kBlockBytes, block_key_.data());
  }
  return digests;
}

BlockMask DifferingBlocks(const BlockDigests& ours, const BlockDigests& theirs) {
  BlockMask mask = 0;
  for (size_t i = 0; i < kPageBlocks; ++i) mask |= BlockMask{ours[i] != theirs[i]} << i;
  return mask;
}

// Blocks of zeroes are everywhere, and say nothing.
PageFeatures FeaturesOf(const BlockDigests& digests, BlockMask filled) {
  // Odd, so that each makes an order of all numbers.
  constexpr PageFeatures kOrders{1, 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93};
  PageFeatures features;
  features.fill(kNoFeature);
  for (; filled != 0; filled &= filled - 1) {
    const uint64_t digest = digests[static_cast<size_t>(std::countr_zero(filled))];
    for (size_t i = 0; i < features.size(); ++i)
      features[i] = std::min(features[i], digest * kOrders[i]);
  }
  return features;
}

BlockMask FilledBlocks(const std::byte* page) {
  static constexpr std::array<std::byte, kBlockBytes> kZeroes{};
  BlockMask mask = 0;
  for (size_t i = 0; i < kPageBlocks; ++i) {
    const bool filled = std::memcmp(page + i * kBlockBytes, kZeroes.data(), kBlockBytes) != 0;
    mask |= BlockMask{filled} << i;
  }
  return mask;
}

Status DifferingPages(const PageSet& ours, std::span<const Digest> our_digests,
                      const PageSet& theirs, std::span<const Digest> their_digests,
                      PageSet* differing) {
  if (ours.pages() != theirs.pages()) return {"PAGE_SET", "the guests have different sizes"};
  if (ours.Count() != our_digests.size() || theirs.Count() != their_digests.size())
    return {"PAGE_SET", "there are not as many digests as pages"};
  PageSet found(ours.pages());
  size_t our_rank = 0;
  size_t their_rank = 0;
  size_t our_page = ours.Next(0);
  size_t their_page = theirs.Next(0);
  while (our_page < ours.pages() || their_page < theirs.pages()) {
    const size_t page = our_page < their_page ? our_page : their_page;
    const bool in_ours = page == our_page;
    const bool in_theirs = page == their_page;
    if (!in_ours || !in_theirs || our_digests[our_rank] != their_digests[their_rank])
      found.Set(page);
    if (in_ours) {
      ++our_rank;
      our_page = ours.Next(page + 1);
    }
    if (in_theirs) {
      ++their_rank;
      their_page = theirs.Next(page + 1);
    }
  }
  *differing = std::move(found);
  return Ok();
}

}  // namespace falcon
