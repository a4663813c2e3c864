// How little of the pages that differ has to be sent.
//
// Two guests that did the same work hold much of the same at other places: their kernels hand out
// pages in an order that depends on interrupts. And where a page differs, often a few counters and
// pointers in it do. So between the digests of a round and its pages the source asks once more: the
// target first copies those pages to their places that it has elsewhere, or has something similar
// to, then says the digests of the blocks of those that are not yet equal, and the source sends the
// blocks that differ.
//
// The copies are made before the source writes anything: what they are made from is what the target
// digested. That the source's guest may change a page meanwhile is nothing new: it is dirty again.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "os/status.h"
#include "pages/digest.h"
#include "pages/page_mover.h"
#include "pages/page_set.h"

namespace falcon {

// Of one round; what goes beyond is sent as whole pages.
inline constexpr size_t kCopiesMax = 4096;
inline constexpr size_t kRefinedMax = 4096;
// Similar pages are looked for in rounds of so many pages at most.
inline constexpr size_t kSimilarMax = 8192;

// Page `to` of the target becomes what its page `from` is.
struct PageCopy {
  uint64_t to;
  uint64_t from;  // kZeroes: all zero
  static constexpr uint64_t kZeroes = ~uint64_t{0};
};

// The pages looked at in a round, and the digests of both sides in their order.
struct LookedAt {
  const PageSet& pages;
  std::span<const Digest> source, target;
};

// The source's side.
class Refinement {
 public:
  Refinement() = default;
  // What is to become of the pages that differ.
  Refinement(const LookedAt& looked_at, const PageSet& differing);

  // The target is asked first.
  [[nodiscard]] bool asks() const { return !copies_.empty() || refined_pages_ > 0; }
  // Works through up to `most` pages of this guest. True when the question is complete.
  bool Prepare(const PageHasher& hasher, std::span<const std::byte> ram, size_t most);
  [[nodiscard]] std::vector<std::byte> Question() const;
  // Errors: SYNC_PEER (the answer does not fit the question).
  Status TakeAnswer(std::span<const std::byte> answer);
  // Once answered: works through up to `most` pages of this guest. True when everything is decided.
  bool Step(const PageHasher& hasher, std::span<const std::byte> ram, size_t most);

  // Pages that the target has made itself.
  [[nodiscard]] size_t found() const { return copies_.size(); }
  // To be sent.
  [[nodiscard]] const PageSet& whole() const { return whole_; }
  [[nodiscard]] std::vector<PagePart>& parts() { return parts_; }

 private:
  void Decide(size_t page, BlockMask differing);

  PageSet whole_;
  std::vector<PageCopy> copies_;
  PageSet refined_;  // the target is asked for their blocks
  size_t refined_pages_ = 0;
  bool similar_ = false;  // the target looks for similar pages, by
  std::vector<PageFeatures> features_;
  size_t next_featured_ = 0;
  PageSet empty_;  // all zero over there: what is filled here is what differs
  std::vector<BlockDigests> theirs_;
  std::vector<PagePart> parts_;
  size_t next_ = 0;  // page
  size_t next_answer_ = 0;
};

// The target's side.
class RefinementAnswer {
 public:
  // `looked_at`: of this round; only those are touched. Errors: SYNC_PEER (a malformed question).
  Status Take(std::span<const std::byte> question, const PageSet& looked_at);
  // Works through up to `most` pages. True when the copies are made and the answer is there.
  bool Step(const PageHasher& hasher, std::span<std::byte> ram, size_t most);
  [[nodiscard]] std::vector<std::byte>& answer() { return answer_; }

 private:
  // All copies are read before the first is written: a page may be both.
  enum class Stage : uint8_t { kIndex, kRead, kWrite, kDigest, kDone };

  void Index(size_t page, const PageFeatures& features);
  void FindSimilar();

  Stage stage_ = Stage::kDone;
  PageSet looked_at_;
  std::vector<PageFeatures> wanted_;                 // of the refined pages
  std::unordered_map<uint64_t, uint64_t> featured_;  // pages of the target
  size_t indexed_ = 0;                               // refined pages
  PageSet near_;  // refined pages that are, or become, similar to what they are to be
  std::vector<PageCopy> copies_;
  std::vector<std::byte> staged_;
  PageSet refined_;
  size_t at_ = 0;  // copy or page that comes next
  std::vector<std::byte> answer_;
};

}  // namespace falcon
