// Where flows are found: by key, by age among the half-open or closed ones, by deadline. A fixed
// number of slots, allocated once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "vm/flow.h"

namespace falcon {

// Which flow wants attention first. A flow's deadline may be moved at any time; a heap of slot
// numbers.
class DeadlineHeap {
 public:
  explicit DeadlineHeap(size_t slots);
  void Set(uint32_t slot, Nanoseconds when);
  void Remove(uint32_t slot);
  [[nodiscard]] bool empty() const { return heap_.empty(); }
  [[nodiscard]] uint32_t first() const { return heap_.front(); }
  [[nodiscard]] Nanoseconds first_time() const { return when_[heap_.front()]; }
  [[nodiscard]] bool Holds(uint32_t slot) const { return place_[slot] != kNowhere; }
  [[nodiscard]] Nanoseconds time(uint32_t slot) const { return when_[slot]; }
  // Slots in the order of the heap: set again in this order, they stand as they did.
  [[nodiscard]] std::span<const uint32_t> order() const { return heap_; }
  void Clear();

 private:
  static constexpr uint32_t kNowhere = UINT32_MAX;
  void Place(size_t at, uint32_t slot);
  void Up(size_t at);
  void Down(size_t at);

  std::vector<uint32_t> heap_, place_;
  std::vector<Nanoseconds> when_;
};

class FlowIndex {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;
  // Oldest first. A flow is half-open until the log defines it; a defined one is open, then closed
  // or diverged.
  enum List : uint8_t { kNoList = 0, kHalfOpen = 1, kClosed = 2, kLists = 3 };

  FlowIndex(size_t slots, uint64_t hash_seed);

  [[nodiscard]] uint64_t Hash(const FlowKey& key) const;
  [[nodiscard]] Flow* Find(const FlowKey& key);
  // Null if all slots are taken. The key must not be there yet. The flow is fresh and in no list.
  [[nodiscard]] Flow* Add(const FlowKey& key);
  void Remove(Flow* flow);
  void MoveTo(Flow* flow, List list);
  [[nodiscard]] Flow* Oldest(List list);
  [[nodiscard]] size_t count(List list) const { return counts_[list]; }
  [[nodiscard]] size_t size() const { return size_; }
  [[nodiscard]] size_t slots() const { return flows_.size(); }
  [[nodiscard]] Flow& at(uint32_t slot) { return flows_[slot]; }
  [[nodiscard]] const Flow& at(uint32_t slot) const { return flows_[slot]; }

  // ---- saving and loading (flow_state.cc)
  [[nodiscard]] std::span<const uint32_t> free_slots() const { return free_; }
  template <typename Take>
  void ForEachOf(List list, Take take) const {
    for (uint32_t slot = first_[list]; slot != kNone; slot = flows_[slot].list_next) take(slot);
  }
  // Puts a flow into a slot, which must be free; it is in no list, and its streams keep nothing.
  Flow* Restore(uint32_t slot, const Flow& flow);
  // Which slots are free, and in which order they are taken. Exactly those that no flow has.
  void SetFree(std::span<const uint32_t> slots) { free_.assign(slots.begin(), slots.end()); }

  DeadlineHeap deadlines;

 private:
  void Insert(const Flow& flow);
  void Unlink(Flow* flow);
  [[nodiscard]] size_t Home(const FlowKey& key) const {
    return static_cast<size_t>(Hash(key)) & (buckets_.size() - 1);
  }

  uint64_t hash_seed_;
  std::vector<Flow> flows_;
  std::vector<uint32_t> free_;
  std::vector<uint32_t> buckets_;  // open addressing, at most half full
  size_t size_ = 0;
  uint32_t first_[kLists], last_[kLists];
  size_t counts_[kLists] = {};
};

}  // namespace falcon
