// Digests of guest pages and of the blocks in them, by which two replicas find what differs.
//
// A page's digest is a keyed 128-bit hash: Poly1305 under a one-time key that is drawn from the
// session's key (ChaCha20). What it has to do is tell two contents apart when a guest chose both
// without knowing the key. Poly1305 is a universal hash: two different pages of 4096 bytes are
// polynomials of degree at most 256 that agree, up to a given difference, in at most 8 * 256 of the
// 2^106 possible points, so a pair of different pages has equal digests with a probability of at
// most 2^-95, whatever the guest does. That bound holds for keys that the guest cannot know: a
// session's key is fresh and random, is told to the other replica only, and digests are never shown
// to the guest. All pages of a session have one key, so that a page is recognized at whatever place
// it lies; of guests of 2^24 pages (64 GiB), each compared with each, any two are mistaken for each
// other with a probability of at most 2^-47. A page that is all zero has the digest zero, which
// another page has with probability 2^-128.
//
// A block's digest is SipHash-2-4, 64 bits. Blocks are looked at only in pages that are known to
// differ and are compared only with the block at the same place: 2^20 of them, which is many for a
// heal, let one pass unseen with a probability of at most 2^-44.
//
// Why not a keyed BLAKE2b: it would do more than is needed, at 0.4 of the speed (DECISIONS.md).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "os/status.h"
#include "pages/page_set.h"

namespace falcon {

using DigestKey = std::array<uint8_t, 32>;
using Digest = std::array<std::byte, 16>;

// Errors: START_FAILED. Done once, before anything else here; again is harmless.
Status StartDigests();

// Random, for one session.
[[nodiscard]] DigestKey MakeDigestKey();

// A block is what a differing page is sent in: 64 of them, so that a set of blocks is one word.
inline constexpr size_t kBlockBytes = 64;
inline constexpr size_t kPageBlocks = kPageBytes / kBlockBytes;
using BlockMask = uint64_t;
using BlockDigests = std::array<uint64_t, kPageBlocks>;

// What is drawn from a session's key, once for all pages.
class PageHasher {
 public:
  PageHasher() : PageHasher(DigestKey{}) {}
  explicit PageHasher(const DigestKey& key);
  // Of kPageBytes.
  [[nodiscard]] Digest Page(const std::byte* page) const;
  [[nodiscard]] BlockDigests Blocks(const std::byte* page) const;

 private:
  std::array<uint8_t, 32> page_key_{};
  std::array<uint8_t, 16> block_key_{};
};

[[nodiscard]] BlockMask DifferingBlocks(const BlockDigests& ours, const BlockDigests& theirs);
// By which similar pages know each other: of the digests of its blocks the smallest, in several
// orders. Two pages have a feature in common with the probability that a block of one of them is
// one of the other's, too. A page that is all zero has none.
using PageFeatures = std::array<uint64_t, 4>;
inline constexpr uint64_t kNoFeature = ~uint64_t{0};
[[nodiscard]] PageFeatures FeaturesOf(const BlockDigests& digests, BlockMask filled);

// The blocks of a page that are not all zero.
[[nodiscard]] BlockMask FilledBlocks(const std::byte* page);

// The pages whose contents differ between two guests of the same size: those that are in both sets
// with different digests, and those that are in one set only. Digests stand in the order of their
// set. Errors: PAGE_SET (an array does not fit its set, or the guests have different sizes).
Status DifferingPages(const PageSet& ours, std::span<const Digest> our_digests,
                      const PageSet& theirs, std::span<const Digest> their_digests,
                      PageSet* differing);

}  // namespace falcon
