// The outputs of all flows of one replica: their chains, the checks that are due, and the checks of
// the log that wait until this guest has come as far.
//
// On the primary, a flow that has said something new is due when a milestone of its chain is
// passed, when it ends, and in any case `check_after` later. On every replica a check is compared
// at its place in the log, so the flow that it names is known there. All storage is made at the
// start; what does not fit is counted.
#pragma once

#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "os/clock.h"
#include "vm/output_chain.h"
#include "vm/output_check.h"
#include "vm/output_mask.h"
#include "vm/state_archive.h"

namespace falcon {

class OutputBook {
 public:
  OutputBook(const OutputOptions& options, size_t slots);

  // ---- flows, by their slot
  void Open(const Flow& flow, Seq first);
  void Emit(const Flow& flow, Seq seq, std::span<const std::byte> payload, bool fin,
            Nanoseconds now);
  // Either side has reset the connection: what the guest has not said by now it will not say.
  void Cut(const Flow& flow);
  // This replica has lost the flow: its guest does not have the connection as the client knows it.
  void Lose(const Flow& flow, FlowDivergence why);
  // The table forgets the flow.
  void Close(const Flow& flow, bool primary);
  void Datagram(uint16_t port, size_t bytes);
  void Clear();

  // ---- checks
  // The primary's: appends the payload of a check of what is due, and for each of its items the
  // length of the raw output before its position (2 bytes) and that output. False: nothing is due.
  bool Collect(uint16_t self, Nanoseconds now, std::vector<std::byte>* payload,
               std::vector<std::byte>* tails);
  // Of the log. `find(key)` returns the flow of a key, or null.
  template <typename Find>
  void Take(uint64_t op, std::span<const std::byte> payload, Nanoseconds now, Find find) {
    CheckHeader header;
    if (payload.size() < sizeof header) return;
    std::memcpy(&header, payload.data(), sizeof header);
    if (header.version != kCheckVersion || header.count > kMaxCheckItems ||
        payload.size() != sizeof header + header.count * sizeof(CheckItem))
      return;
    for (uint16_t i = 0; i < header.count; ++i) {
      CheckItem item;
      std::memcpy(&item, payload.data() + sizeof header + i * sizeof item, sizeof item);
      TakeItem(op, i, item, find(KeyOf(item)), now);
    }
  }
  void Tick(Nanoseconds now);
  [[nodiscard]] bool HasVerdicts() const { return !verdicts_.empty(); }
  // VerdictRecords with their tails; forgotten here.
  void TakeVerdicts(std::vector<std::byte>* out) {
    out->swap(verdicts_);
    verdicts_.clear();
  }

  [[nodiscard]] std::span<const OutputApplication> applications() const {
    return std::span(applications_).first(applications_used_);
  }
  [[nodiscard]] uint64_t gaps() const { return gaps_; }
  [[nodiscard]] static FlowKey KeyOf(const CheckItem& item);

  // ---- saving and loading: a flow's chain with its bytes, and the applications
  void SaveFlow(StateWriter& out, uint32_t slot);
  void SaveApplications(StateWriter& out);
  // With `apply` into this book, otherwise only to check. False: it cannot be.
  [[nodiscard]] bool LoadFlow(StateReader& in, const Flow& flow, uint32_t slot, bool apply);
  [[nodiscard]] bool LoadApplications(StateReader& in, bool apply);

 private:
  static constexpr size_t kMaxApplications = 64;
  static constexpr size_t kMaxWaiting = 2048;
  static constexpr size_t kEnded = 4096;
  static constexpr Nanoseconds kLongestWait = 60 * kSecond;

  struct Track {
    FlowKey key;
    Seq client_iss = 0;
    OutputChain chain;
    bool cut = false;
    bool summed = false;
    bool final_checked = false;
    FlowDivergence lost = FlowDivergence::kNone;
    uint32_t waiting = 0;  // checks that wait for this flow
    uint64_t wake_at = 0;  // the lowest position that one of them waits for
    uint64_t checked = 0;  // the highest position that a check was made of
    uint64_t agreed = 0;
    Nanoseconds due_since = 0;
  };
  // A flow that the table has forgotten.
  struct Ended {
    FlowKey key;
    Seq client_iss = 0;
    bool used = false, fin = false;
    uint64_t position = 0;
    OutputHash hash{};
  };
  struct Waiting {
    uint64_t op = 0;
    uint16_t index = 0;
    bool used = false, told_late = false;
    uint32_t slot = 0;
    CheckItem item{};
    Nanoseconds since = 0;
  };
  // Flow slots, oldest first; each at most once.
  struct Line {
    explicit Line(size_t size) : slots(size), in(size, 0) {}
    void Push(uint32_t slot) {
      if (in[slot] != 0) return;
      in[slot] = 1;
      slots[(first + count++) % slots.size()] = slot;
    }
    [[nodiscard]] uint32_t Front() const { return slots[first]; }
    void Pop() {
      in[slots[first]] = 0;
      first = (first + 1) % slots.size();
      --count;
    }
    std::vector<uint32_t> slots;
    std::vector<uint8_t> in;
    size_t first = 0, count = 0;
  };

  [[nodiscard]] std::span<std::byte> Ring(uint32_t slot) {
    return {rings_.get() + slot * shape_.RingBytes(), shape_.RingBytes()};
  }
  [[nodiscard]] OutputApplication& Application(uint16_t port);
  [[nodiscard]] const MaskSet* MasksOf(uint16_t port) const;
  void MakeDue(uint32_t slot, Nanoseconds now);
  // The items of one flow that is due: two at most. Returns how many.
  size_t MakeItems(uint32_t slot, bool urgent, std::span<CheckItem> items);
  [[nodiscard]] CheckItem MakeItem(const Track& track, uint64_t position, bool final) const;
  void TakeItem(uint64_t op, uint16_t index, const CheckItem& item, const Flow* flow,
                Nanoseconds now);
  // Nothing: this guest has not come so far.
  [[nodiscard]] std::optional<Verdict> Compare(uint32_t slot, const CheckItem& item,
                                               bool last_chance);
  [[nodiscard]] Verdict CompareEnded(const CheckItem& item) const;
  [[nodiscard]] Verdict SameHash(uint32_t slot, const CheckItem& item);
  // Looks at the checks that wait for a flow again.
  void Settle(uint32_t slot, bool last_chance);
  void Forget(Waiting* waiting);
  // `slot` is kNoSlot for a flow that the table has forgotten.
  void Tell(uint64_t op, uint16_t index, const CheckItem& item, Verdict verdict, uint32_t slot);
  [[nodiscard]] size_t EndedPlace(const FlowKey& key, Seq client_iss) const;
  void NoteEnd(uint32_t slot);
  static constexpr uint32_t kNoSlot = UINT32_MAX;

  OutputOptions options_;
  OutputChain::Shape shape_;
  std::vector<Track> tracks_;  // by slot
  std::unique_ptr<std::byte[]> rings_;
  Line due_, urgent_;
  std::vector<Ended> ended_;
  std::vector<Waiting> waiting_;
  size_t waiting_count_ = 0;
  Nanoseconds next_look_ = 0;
  std::array<OutputApplication, kMaxApplications> applications_{};
  size_t applications_used_ = 0;
  std::vector<std::pair<uint16_t, MaskSet>> masks_;
  std::vector<std::byte> verdicts_;
  uint64_t gaps_ = 0;
};

}  // namespace falcon
