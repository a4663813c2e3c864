#include "plane/refinement.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "os/check.h"

namespace falcon {
namespace {

// Where a page is looked for; more are found by a table that takes milliseconds to make.
constexpr size_t kSearchedMax = 65536;
// A page goes in parts if these are at most so many blocks: every part is a write of its own.
constexpr int kPartBlocksMax = 48;

// At the start of a question; the copies, the set of refined pages, and with `similar` the features
// of these follow. The answer is the set of those of them that are like something, and the digests
// of their blocks.
struct RefineRecord {
  uint64_t copies;
  uint64_t similar;
};

struct DigestHash {
  // It is one already.
  size_t operator()(const Digest& digest) const {
    size_t hash = 0;
    std::memcpy(&hash, digest.data(), sizeof hash);
    return hash;
  }
};

// A block between two that are sent goes with them: that costs less than a write.
BlockMask CloseGaps(BlockMask blocks) { return blocks | (blocks << 1 & blocks >> 1); }

}  // namespace

Refinement::Refinement(const LookedAt& looked_at, const PageSet& differing)
    : whole_(differing.pages()), refined_(differing.pages()), empty_(differing.pages()) {
  const PageSet& pages = looked_at.pages;
  std::unordered_map<Digest, uint64_t, DigestHash> places;
  if (!differing.Empty()) {
    size_t searched = 0;
    size_t rank = 0;
    for (size_t page = pages.Next(0); page < pages.pages() && searched < kSearchedMax;
         page = pages.Next(page + 1), ++rank) {
      if (looked_at.target[rank] == Digest{}) continue;
      places.emplace(looked_at.target[rank], page);
      ++searched;
    }
  }
  similar_ = looked_at.source.size() <= kSimilarMax;
  size_t asked = 0;
  size_t rank = 0;
  for (size_t page = pages.Next(0); page < pages.pages(); page = pages.Next(page + 1), ++rank) {
    if (!differing.Test(page)) continue;
    const Digest& wanted = looked_at.source[rank];
    const auto place = places.find(wanted);
    const bool zeroes = wanted == Digest{};
    if (copies_.size() < kCopiesMax && (zeroes || place != places.end())) {
      copies_.push_back({page, zeroes ? PageCopy::kZeroes : place->second});
    } else if (asked == kRefinedMax) {
      whole_.Set(page);
    } else {
      ++asked;
      const bool empty = looked_at.target[rank] == Digest{};
      if (empty) empty_.Set(page);
      if (!empty || similar_) {
        refined_.Set(page);
        ++refined_pages_;
      }
    }
  }
}

bool Refinement::Prepare(const PageHasher& hasher, std::span<const std::byte> ram, size_t most) {
  if (!similar_) return true;
  for (next_featured_ = refined_.Next(next_featured_);
       next_featured_ < refined_.pages() && most > 0; --most) {
    const std::byte* page = ram.data() + next_featured_ * kPageBytes;
    features_.push_back(FeaturesOf(hasher.Blocks(page), FilledBlocks(page)));
    next_featured_ = refined_.Next(next_featured_ + 1);
  }
  return next_featured_ == refined_.pages();
}

std::vector<std::byte> Refinement::Question() const {
  FALCON_CHECK(!similar_ || features_.size() == refined_pages_);
  const RefineRecord record{copies_.size(), similar_ ? 1U : 0U};
  const size_t copies = copies_.size() * sizeof(PageCopy);
  const size_t set = refined_.SavedBytes();
  const size_t features = features_.size() * sizeof(PageFeatures);
  std::vector<std::byte> question(sizeof record + copies + set + features);
  std::byte* at = question.data();
  std::memcpy(at, &record, sizeof record);
  at += sizeof record;
  if (copies > 0) std::memcpy(at, copies_.data(), copies);
  refined_.Save(std::span(at + copies, set));
  if (features > 0) std::memcpy(at + copies + set, features_.data(), features);
  return question;
}

Status Refinement::TakeAnswer(std::span<const std::byte> answer) {
  const Status misfit{"SYNC_PEER", "the digests of blocks do not fit what was asked"};
  const size_t set = refined_.SavedBytes();
  PageSet known(refined_.pages());
  if (answer.size() < set || !known.Load(answer.first(set)).ok()) return misfit;
  PageSet unasked = known;
  unasked.Subtract(refined_);
  const auto digests = answer.subspan(set);
  if (!unasked.Empty() || digests.size() != known.Count() * sizeof(BlockDigests)) return misfit;
  theirs_.resize(known.Count());
  if (!digests.empty()) std::memcpy(theirs_.data(), digests.data(), digests.size());
  // Nothing over there is like the others.
  PageSet unlike = refined_;
  unlike.Subtract(known);
  unlike.Subtract(empty_);
  empty_.Subtract(known);
  whole_.Unite(unlike);
  refined_ = std::move(known);
  return Ok();
}

bool Refinement::Step(const PageHasher& hasher, std::span<const std::byte> ram, size_t most) {
  PageSet open = refined_;
  open.Unite(empty_);
  for (next_ = open.Next(next_); next_ < open.pages() && most > 0; --most) {
    const std::byte* bytes = ram.data() + next_ * kPageBytes;
    if (refined_.Test(next_)) {
      Decide(next_, DifferingBlocks(hasher.Blocks(bytes), theirs_[next_answer_]));
      ++next_answer_;
    } else {
      Decide(next_, FilledBlocks(bytes));
    }
    next_ = open.Next(next_ + 1);
  }
  return next_ == open.pages();
}

// No block differs: the guest has made the page what the target has, and it is dirty again.
void Refinement::Decide(size_t page, BlockMask differing) {
  const BlockMask blocks = CloseGaps(differing);
  if (blocks == 0) return;
  if (std::popcount(blocks) > kPartBlocksMax) {
    whole_.Set(page);
  } else {
    parts_.push_back({page, blocks});
  }
}

Status RefinementAnswer::Take(std::span<const std::byte> question, const PageSet& looked_at) {
  const Status malformed{"SYNC_PEER", "the question for pages is malformed"};
  RefineRecord record{};
  if (question.size() < sizeof record) return malformed;
  std::memcpy(&record, question.data(), sizeof record);
  const auto rest = question.subspan(sizeof record);
  if (record.copies > kCopiesMax) return malformed;
  const size_t copies = record.copies * sizeof(PageCopy);
  refined_ = PageSet(looked_at.pages());
  const size_t set = refined_.SavedBytes();
  if (rest.size() < copies + set || !refined_.Load(rest.subspan(copies, set)).ok())
    return malformed;
  const auto features = rest.subspan(copies + set);
  const bool similar = record.similar != 0;
  wanted_.resize(similar ? refined_.Count() : 0);
  if (features.size() != wanted_.size() * sizeof(PageFeatures)) return malformed;
  if (!features.empty()) std::memcpy(wanted_.data(), features.data(), features.size());
  copies_.resize(record.copies);
  if (copies > 0) std::memcpy(copies_.data(), rest.data(), copies);
  const auto known = [&](uint64_t page) {
    return page < looked_at.pages() && looked_at.Test(page);
  };
  for (const PageCopy& copy : copies_) {
    if (!known(copy.to) || (copy.from != PageCopy::kZeroes && !known(copy.from))) return malformed;
  }
  PageSet unknown = refined_;
  unknown.Subtract(looked_at);
  if (!unknown.Empty() || refined_.Count() > kRefinedMax) return malformed;
  if (similar && looked_at.Count() > kSimilarMax) return malformed;
  looked_at_ = similar ? looked_at : PageSet(looked_at.pages());
  near_ = similar ? PageSet(looked_at.pages()) : refined_;
  featured_.clear();
  staged_.clear();
  indexed_ = 0;
  answer_.clear();
  at_ = 0;
  stage_ = Stage::kIndex;
  return Ok();
}

// Of the pages that are to be made here, those whose old contents are near enough stay as they are.
// The digests of those that are like nothing here would be of no use.
void RefinementAnswer::Index(size_t page, const PageFeatures& features) {
  for (const uint64_t feature : features) {
    if (feature != kNoFeature) featured_.emplace(feature, page);
  }
  if (!refined_.Test(page)) return;
  const PageFeatures& wanted = wanted_[indexed_++];
  for (size_t i = 0; i < features.size(); ++i) {
    if (features[i] == wanted[i] && features[i] != kNoFeature) near_.Set(page);
  }
}

void RefinementAnswer::FindSimilar() {
  size_t rank = 0;
  for (size_t page = refined_.Next(0); page < refined_.pages();
       page = refined_.Next(page + 1), ++rank) {
    if (near_.Test(page)) continue;
    for (const uint64_t feature : wanted_[rank]) {
      const auto place = featured_.find(feature);
      if (place == featured_.end()) continue;
      copies_.push_back({page, place->second});
      near_.Set(page);
      break;
    }
  }
  featured_.clear();
}

bool RefinementAnswer::Step(const PageHasher& hasher, std::span<std::byte> ram, size_t most) {
  const auto next_stage = [&](Stage stage) {
    stage_ = stage;
    at_ = 0;
  };
  for (; stage_ == Stage::kIndex && most > 0; --most) {
    at_ = looked_at_.Next(at_);
    if (at_ == looked_at_.pages()) {
      FindSimilar();
      answer_.resize(near_.SavedBytes());
      near_.Save(answer_);
      staged_.reserve(copies_.size() * kPageBytes);  // and filled as it is read, not all at once
      next_stage(Stage::kRead);
      break;
    }
    const std::byte* page = ram.data() + at_ * kPageBytes;
    Index(at_, FeaturesOf(hasher.Blocks(page), FilledBlocks(page)));
    ++at_;
  }
  for (; stage_ == Stage::kRead && most > 0; --most) {
    if (at_ == copies_.size()) {
      next_stage(Stage::kWrite);
      break;
    }
    const uint64_t from = copies_[at_].from;
    if (from == PageCopy::kZeroes) {
      staged_.resize(staged_.size() + kPageBytes);
    } else {
      const auto page = ram.subspan(from * kPageBytes, kPageBytes);
      staged_.insert(staged_.end(), page.begin(), page.end());
    }
    ++at_;
  }
  for (; stage_ == Stage::kWrite && most > 0; --most) {
    if (at_ == copies_.size()) {
      next_stage(Stage::kDigest);
      break;
    }
    std::memcpy(ram.data() + copies_[at_].to * kPageBytes, &staged_[at_ * kPageBytes], kPageBytes);
    ++at_;
  }
  for (; stage_ == Stage::kDigest && most > 0; --most) {
    at_ = near_.Next(at_);
    if (at_ == near_.pages()) {
      staged_.clear();
      stage_ = Stage::kDone;
      break;
    }
    const BlockDigests digests = hasher.Blocks(ram.data() + at_ * kPageBytes);
    const auto bytes = std::as_bytes(std::span(digests));
    answer_.insert(answer_.end(), bytes.begin(), bytes.end());
    ++at_;
  }
  return stage_ == Stage::kDone;
}

}  // namespace falcon
