// SYNs that this primary has proposed and the log has not given back yet. Between the two, the
// table does not know the flow, and an old segment on the same ports must not slip into the log
// behind the SYN, where it would define the flow. A fixed number of places, one per hash: a place
// that is taken over costs its flow this protection only.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "os/clock.h"
#include "vm/flow.h"

namespace falcon {

class PendingSyns {
 public:
  static constexpr size_t kPlaces = 4096;
  static constexpr Nanoseconds kMaxAge = 60 * kSecond;  // a proposal that came to nothing

  PendingSyns() : places_(kPlaces) {}

  void Add(uint64_t hash, const FlowKey& key, Seq client_iss, Nanoseconds now) {
    Place(hash) = {hash, client_iss, true, now, key};
  }
  // True if a SYN of this key is on its way through the log.
  [[nodiscard]] bool Has(uint64_t hash, Nanoseconds now) {
    const Entry& entry = Place(hash);
    return entry.used && entry.hash == hash && now - entry.since <= kMaxAge;
  }
  void Delivered(uint64_t hash, Seq client_iss) {
    Entry& entry = Place(hash);
    if (entry.hash == hash && entry.client_iss == client_iss) entry.used = false;
  }
  void Clear() { std::ranges::fill(places_, Entry{}); }

  // A SYN that waits, for saving.
  template <typename Take>
  void ForEach(Take take) const {
    for (const Entry& entry : places_) {
      if (entry.used) take(entry.key, entry.client_iss, entry.since);
    }
  }

 private:
  struct Entry {
    uint64_t hash = 0;
    Seq client_iss = 0;
    bool used = false;
    Nanoseconds since = 0;
    FlowKey key;  // another replica hashes it otherwise
  };
  [[nodiscard]] Entry& Place(uint64_t hash) {
    return places_[static_cast<size_t>(hash >> 32) % kPlaces];
  }

  std::vector<Entry> places_;
};

}  // namespace falcon
