#include "pages/digest.h"

#include <sodium/core.h>
#include <sodium/crypto_onetimeauth_poly1305.h>
#include <sodium/crypto_stream_chacha20.h>
#include <sodium/randombytes.h>
#include <sodium/utils.h>

#include <cstring>
#include <utility>

#include "pages/guest_memory.h"

namespace falcon {

static_assert(std::tuple_size_v<Digest> == crypto_onetimeauth_poly1305_BYTES);
static_assert(std::tuple_size_v<DigestKey> == crypto_stream_chacha20_KEYBYTES);
static_assert(sizeof(uint64_t) == crypto_stream_chacha20_NONCEBYTES);

Status StartDigests() {
  if (sodium_init() >= 0) return Ok();
  return {"START_FAILED", "libsodium does not start"};
}

DigestKey MakeDigestKey() {
  DigestKey key;
  randombytes_buf(key.data(), key.size());
  return key;
}

Digest DigestPage(const DigestKey& key, size_t page, const std::byte* bytes) {
  Digest digest{};
  if (IsZeroPage(bytes)) return digest;
  const uint64_t number = page;
  std::array<uint8_t, sizeof number> nonce;
  std::memcpy(nonce.data(), &number, sizeof number);
  std::array<uint8_t, crypto_onetimeauth_poly1305_KEYBYTES> once;
  crypto_stream_chacha20(once.data(), once.size(), nonce.data(), key.data());
  crypto_onetimeauth_poly1305(reinterpret_cast<uint8_t*>(digest.data()),
                              reinterpret_cast<const uint8_t*>(bytes), kPageBytes, once.data());
  return digest;
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
