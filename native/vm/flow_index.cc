#include "vm/flow_index.h"

#include <algorithm>
#include <bit>

#include "os/check.h"
#include "os/hash.h"

namespace falcon {

DeadlineHeap::DeadlineHeap(size_t slots) : place_(slots, kNowhere), when_(slots, 0) {
  heap_.reserve(slots);
}

void DeadlineHeap::Place(size_t at, uint32_t slot) {
  heap_[at] = slot;
  place_[slot] = static_cast<uint32_t>(at);
}

void DeadlineHeap::Up(size_t at) {
  const uint32_t slot = heap_[at];
  while (at > 0) {
    const size_t parent = (at - 1) / 2;
    if (when_[heap_[parent]] <= when_[slot]) break;
    Place(at, heap_[parent]);
    at = parent;
  }
  Place(at, slot);
}

void DeadlineHeap::Down(size_t at) {
  const uint32_t slot = heap_[at];
  while (true) {
    size_t child = 2 * at + 1;
    if (child >= heap_.size()) break;
    if (child + 1 < heap_.size() && when_[heap_[child + 1]] < when_[heap_[child]]) ++child;
    if (when_[slot] <= when_[heap_[child]]) break;
    Place(at, heap_[child]);
    at = child;
  }
  Place(at, slot);
}

void DeadlineHeap::Set(uint32_t slot, Nanoseconds when) {
  const Nanoseconds before = when_[slot];
  when_[slot] = when;
  if (place_[slot] == kNowhere) {
    heap_.push_back(slot);
    place_[slot] = static_cast<uint32_t>(heap_.size() - 1);
    Up(heap_.size() - 1);
  } else if (when < before) {
    Up(place_[slot]);
  } else {
    Down(place_[slot]);
  }
}

void DeadlineHeap::Remove(uint32_t slot) {
  const size_t at = place_[slot];
  if (at == kNowhere) return;
  place_[slot] = kNowhere;
  const uint32_t last = heap_.back();
  heap_.pop_back();
  if (last == slot) return;
  Place(at, last);
  Up(at);
  Down(place_[last]);
}

void DeadlineHeap::Clear() {
  heap_.clear();
  std::ranges::fill(place_, kNowhere);
}

FlowIndex::FlowIndex(size_t slots, uint64_t hash_seed)
    : deadlines(slots),
      hash_seed_(hash_seed),
      flows_(slots),
      buckets_(std::bit_ceil(slots * 2 + 2), kNone) {
  free_.reserve(slots);
  for (size_t i = slots; i-- > 0;) {
    flows_[i].index = static_cast<uint32_t>(i);
    free_.push_back(static_cast<uint32_t>(i));
  }
  std::ranges::fill(first_, kNone);
  std::ranges::fill(last_, kNone);
}

uint64_t FlowIndex::Hash(const FlowKey& key) const {
  std::array<std::byte, 36> bytes;
  std::memcpy(bytes.data(), key.client.data(), 16);
  std::memcpy(bytes.data() + 16, key.vm.data(), 16);
  std::memcpy(bytes.data() + 32, &key.client_port, 2);
  std::memcpy(bytes.data() + 34, &key.vm_port, 2);
  return HashBytes(bytes, hash_seed_);
}

Flow* FlowIndex::Find(const FlowKey& key) {
  const size_t mask = buckets_.size() - 1;
  for (size_t at = Home(key); buckets_[at] != kNone; at = (at + 1) & mask) {
    Flow& flow = flows_[buckets_[at]];
    if (flow.key == key) return &flow;
  }
  return nullptr;
}

Flow* FlowIndex::Add(const FlowKey& key) {
  if (free_.empty()) return nullptr;
  Flow& flow = flows_[free_.back()];
  free_.pop_back();
  const uint32_t index = flow.index;
  flow = Flow();
  flow.index = index;
  flow.key = key;
  flow.used = true;
  Insert(flow);
  return &flow;
}

void FlowIndex::Insert(const Flow& flow) {
  ++size_;
  const size_t mask = buckets_.size() - 1;
  size_t at = Home(flow.key);
  while (buckets_[at] != kNone) at = (at + 1) & mask;
  buckets_[at] = flow.index;
}

Flow* FlowIndex::Restore(uint32_t slot, const Flow& flow) {
  FALCON_CHECK(!flows_[slot].used);
  Flow& restored = flows_[slot];
  restored = flow;
  restored.index = slot;
  restored.used = true;
  restored.list = kNoList;
  restored.list_previous = restored.list_next = kNone;
  Insert(restored);
  return &restored;
}

void FlowIndex::Remove(Flow* flow) {
  FALCON_CHECK(flow->used);
  Unlink(flow);
  deadlines.Remove(flow->index);
  const size_t mask = buckets_.size() - 1;
  size_t hole = Home(flow->key);
  while (buckets_[hole] != flow->index) hole = (hole + 1) & mask;
  // Entries behind the hole that belong at or before it move up, so that no search stops too early.
  for (size_t at = (hole + 1) & mask; buckets_[at] != kNone; at = (at + 1) & mask) {
    const size_t home = Home(flows_[buckets_[at]].key);
    if (((at - home) & mask) < ((at - hole) & mask)) continue;
    buckets_[hole] = buckets_[at];
    hole = at;
  }
  buckets_[hole] = kNone;
  flow->used = false;
  free_.push_back(flow->index);
  --size_;
}

void FlowIndex::Unlink(Flow* flow) {
  if (flow->list == kNoList) return;
  uint32_t& before =
      flow->list_previous == kNone ? first_[flow->list] : flows_[flow->list_previous].list_next;
  uint32_t& behind =
      flow->list_next == kNone ? last_[flow->list] : flows_[flow->list_next].list_previous;
  before = flow->list_next;
  behind = flow->list_previous;
  --counts_[flow->list];
  flow->list = kNoList;
  flow->list_previous = flow->list_next = kNone;
}

void FlowIndex::MoveTo(Flow* flow, List list) {
  Unlink(flow);
  if (list == kNoList) return;
  flow->list = list;
  flow->list_previous = last_[list];
  (last_[list] == kNone ? first_[list] : flows_[last_[list]].list_next) = flow->index;
  last_[list] = flow->index;
  ++counts_[list];
}

Flow* FlowIndex::Oldest(List list) {
  return first_[list] == kNone ? nullptr : &flows_[first_[list]];
}

}  // namespace falcon
