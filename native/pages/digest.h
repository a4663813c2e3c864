// Digests of guest pages, by which two replicas find the pages that differ.
//
// A digest is a keyed 128-bit hash: Poly1305 over the page, under a one-time key that is drawn from
// the session's key and the page's number (ChaCha20 with the number as nonce). What it has to do is
// tell two contents of the *same* page apart, when a guest chose both without knowing the key.
// Poly1305 is a universal hash: two different pages of 4096 bytes are polynomials of degree at most
// 256 that agree, up to a given difference, in at most 8 * 256 of the 2^106 possible points, so a
// pair of different pages has equal digests with a probability of at most 2^-95, whatever the guest
// does. That bound holds for keys that the guest cannot know: a session's key is fresh and random,
// is told to the other replica only, and digests are never shown to the guest. A digest tells
// nothing of another page's key, so one of them, seen on the wire, does not help with the next
// page. A page that is all zero has the digest zero, which another page has with probability
// 2^-128.
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

// Of the kPageBytes at `bytes`, which are the contents of page `page`.
[[nodiscard]] Digest DigestPage(const DigestKey& key, size_t page, const std::byte* bytes);

// The pages whose contents differ between two guests of the same size: those that are in both sets
// with different digests, and those that are in one set only. Digests stand in the order of their
// set. Errors: PAGE_SET (an array does not fit its set, or the guests have different sizes).
Status DifferingPages(const PageSet& ours, std::span<const Digest> our_digests,
                      const PageSet& theirs, std::span<const Digest> their_digests,
                      PageSet* differing);

}  // namespace falcon
