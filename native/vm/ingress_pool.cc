#include "vm/ingress_pool.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "os/hash.h"

namespace falcon {
namespace {

constexpr uint32_t kNone = UINT32_MAX;

// A ring of entries that can be found by hash: the oldest goes first, any may be struck out.
// `Entry` carries what its user needs.
template <typename Entry>
class HashedRing {
 public:
  explicit HashedRing(size_t capacity)
      : slots_(std::max<size_t>(capacity, 1)), buckets_(std::bit_ceil(slots_.size() * 2), kNone) {}

  [[nodiscard]] bool empty() const { return count_ == 0; }
  [[nodiscard]] bool full() const { return count_ == slots_.size(); }
  [[nodiscard]] bool front_alive() const { return slots_[first_].alive; }
  [[nodiscard]] size_t alive() const { return alive_; }
  [[nodiscard]] Entry& front() { return slots_[first_].entry; }

  void Push(uint64_t hash, const Entry& entry) {
    const auto slot = static_cast<uint32_t>((first_ + count_++) % slots_.size());
    uint32_t& bucket = Bucket(hash);
    slots_[slot] = {entry, hash, bucket, true};
    bucket = slot;
    ++alive_;
  }

  void PopFront() {
    if (slots_[first_].alive) StrikeSlot(static_cast<uint32_t>(first_));
    first_ = (first_ + 1) % slots_.size();
    --count_;
  }

  // Strikes out one entry of this hash for which `same` holds, the newest, and returns it, or null.
  // (Equal frames are worth the same, and a flood of them must not make this a search.)
  template <typename Same>
  Entry* Strike(uint64_t hash, Same same) {
    for (uint32_t slot = Bucket(hash); slot != kNone; slot = slots_[slot].next) {
      if (slots_[slot].hash != hash || !same(slots_[slot].entry)) continue;
      StrikeSlot(slot);
      return &slots_[slot].entry;
    }
    return nullptr;
  }

  void Clear() {
    std::ranges::fill(buckets_, kNone);
    first_ = count_ = alive_ = 0;
  }

 private:
  struct Slot {
    Entry entry{};
    uint64_t hash = 0;
    uint32_t next = kNone;
    bool alive = false;
  };

  [[nodiscard]] uint32_t& Bucket(uint64_t hash) {
    return buckets_[static_cast<size_t>(hash) & (buckets_.size() - 1)];
  }

  void StrikeSlot(uint32_t slot) {
    uint32_t* link = &Bucket(slots_[slot].hash);
    while (*link != slot) link = &slots_[*link].next;
    *link = slots_[slot].next;
    slots_[slot].alive = false;
    --alive_;
  }

  std::vector<Slot> slots_;
  std::vector<uint32_t> buckets_;
  size_t first_ = 0, count_ = 0, alive_ = 0;
};

struct Kept {
  size_t at = 0;  // in the ring of bytes; a frame never wraps
  size_t length = 0;
  Nanoseconds since = 0;
};

struct Remembered {
  Nanoseconds since = 0;
};

class IngressPoolImpl final : public IngressPool {
 public:
  explicit IngressPoolImpl(const IngressPoolOptions& options)
      : options_(options),
        kept_(options.max_frames),
        remembered_(options.max_frames * 4),
        bytes_(options.max_bytes) {}

  void Saw(Frame normalised, Nanoseconds now) override {
    Age(now);
    if (normalised.empty() || normalised.size() > bytes_.size()) return;
    const uint64_t hash = HashBytes(normalised, options_.hash_seed);
    if (remembered_.Strike(hash, [](const Remembered&) { return true; }) != nullptr) return;
    if (kept_.full()) PopOldest();
    const size_t at = MakeRoom(normalised.size());
    std::memcpy(bytes_.data() + at, normalised.data(), normalised.size());
    tail_ = at + normalised.size();
    kept_.Push(hash, {at, normalised.size(), now});
    kept_bytes_ += normalised.size();
  }

  void Logged(Frame frame, Nanoseconds now) override {
    Age(now);
    const uint64_t hash = HashBytes(frame, options_.hash_seed);
    const Kept* twin = kept_.Strike(hash, [&](const Kept& kept) {
      return kept.length == frame.size() &&
             std::memcmp(bytes_.data() + kept.at, frame.data(), frame.size()) == 0;
    });
    if (twin != nullptr) {
      kept_bytes_ -= twin->length;
      return;
    }
    if (remembered_.full()) remembered_.PopFront();
    remembered_.Push(hash, {now});
  }

  size_t Drain(Nanoseconds now, Take take, void* context) override {
    Age(now);
    size_t taken = 0;
    while (!kept_.empty()) {
      if (kept_.front_alive()) {
        const Kept& kept = kept_.front();
        if (!take(context, Frame(bytes_).subspan(kept.at, kept.length))) return taken;
        ++taken;
      }
      PopOldest();
    }
    return taken;
  }

  void Clear() override {
    kept_.Clear();
    remembered_.Clear();
    tail_ = kept_bytes_ = 0;
  }

  [[nodiscard]] size_t frames() const override { return kept_.alive(); }
  [[nodiscard]] size_t bytes() const override { return kept_bytes_; }

 private:
  void PopOldest() {
    if (kept_.front_alive()) kept_bytes_ -= kept_.front().length;
    kept_.PopFront();
    if (kept_.empty()) tail_ = 0;
  }

  void Age(Nanoseconds now) {
    while (!kept_.empty() && (!kept_.front_alive() || now - kept_.front().since > options_.max_age))
      PopOldest();
    while (!remembered_.empty() &&
           (!remembered_.front_alive() || now - remembered_.front().since > options_.max_age)) {
      remembered_.PopFront();
    }
  }

  // Where `length` bytes can stand in one piece; the oldest frames go if they must.
  size_t MakeRoom(size_t length) {
    while (!kept_.empty()) {
      const size_t head = kept_.front().at;
      const bool wrapped = tail_ <= head;  // the used part goes round the end
      if (wrapped ? head - tail_ >= length : bytes_.size() - tail_ >= length) return tail_;
      if (!wrapped && head >= length) return 0;
      PopOldest();
    }
    return 0;
  }

  IngressPoolOptions options_;
  HashedRing<Kept> kept_;
  HashedRing<Remembered> remembered_;
  std::vector<std::byte> bytes_;
  size_t tail_ = 0;  // where the next frame would begin
  size_t kept_bytes_ = 0;
};

}  // namespace

std::unique_ptr<IngressPool> MakeIngressPool(const IngressPoolOptions& options) {
  return std::make_unique<IngressPoolImpl>(options);
}

}  // namespace falcon
