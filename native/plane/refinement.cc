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

// At the start of a question; the copies and the set of refined pages follow.
struct RefineRecord {
  uint64_t copies;
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
      if (looked_at.target[rank] == Digest{}) {
        empty_.Set(page);
      } else {
        refined_.Set(page);
        ++refined_pages_;
      }
    }
  }
}

std::vector<std::byte> Refinement::Question() const {
  const RefineRecord record{copies_.size()};
  const size_t copies = copies_.size() * sizeof(PageCopy);
  std::vector<std::byte> question(sizeof record + copies + refined_.SavedBytes());
  std::memcpy(question.data(), &record, sizeof record);
  if (copies > 0) std::memcpy(question.data() + sizeof record, copies_.data(), copies);
  refined_.Save(std::span(question).subspan(sizeof record + copies));
  return question;
}

Status Refinement::TakeAnswer(std::span<const std::byte> answer) {
  if (answer.size() != refined_pages_ * sizeof(BlockDigests))
    return {"SYNC_PEER", "the digests of blocks do not fit what was asked"};
  theirs_.resize(refined_pages_);
  if (!answer.empty()) std::memcpy(theirs_.data(), answer.data(), answer.size());
  return Ok();
}

bool Refinement::Step(const PageHasher& hasher, std::span<const std::byte> ram, size_t most) {
  FALCON_CHECK(theirs_.size() == refined_pages_);
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
  if (rest.size() < copies || !refined_.Load(rest.subspan(copies)).ok()) return malformed;
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
  staged_.assign(copies_.size() * kPageBytes, std::byte{0});
  answer_.clear();
  answer_.reserve(refined_.Count() * sizeof(BlockDigests));
  at_ = 0;
  stage_ = Stage::kRead;
  return Ok();
}

bool RefinementAnswer::Step(const PageHasher& hasher, std::span<std::byte> ram, size_t most) {
  const auto next_stage = [&](Stage stage) {
    stage_ = stage;
    at_ = 0;
  };
  for (; stage_ == Stage::kRead && most > 0; --most) {
    if (at_ == copies_.size()) {
      next_stage(Stage::kWrite);
      break;
    }
    const uint64_t from = copies_[at_].from;
    if (from != PageCopy::kZeroes)
      std::memcpy(&staged_[at_ * kPageBytes], ram.data() + from * kPageBytes, kPageBytes);
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
    at_ = refined_.Next(at_);
    if (at_ == refined_.pages()) {
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
