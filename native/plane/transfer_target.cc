// The target of a state transfer: it digests what it is asked for; the pages come by themselves.
#include <atomic>
#include <cstring>

#include "os/check.h"
#include "pages/packed_pages.h"
#include "plane/refinement.h"
#include "plane/transfer_parts.h"

namespace falcon {
namespace {

constexpr size_t kBytesPerPoll = 256 << 10;

class Target final : public TransferTarget {
 public:
  Target(TransferOptions options, Fabric* fabric, Aside* aside, const PageSet* changed)
      : TransferTarget(std::move(options)),
        fabric_(fabric),
        aside_(aside),
        pages_(options_.ram_bytes / kPageBytes),
        looked_at_(pages_),
        resident_(pages_),
        hasher_(options_.key),
        writer_(fabric, options_.peer, kInboxRegion) {
    if (changed != nullptr) changed_ = std::make_unique<PageSet>(*changed);
  }

  ~Target() override {
    if (digester_ != nullptr) digester_->Cancel();
  }

  void Leave() override {
    fabric_->Detach(options_.peer, kInboxRegion);
    fabric_->Conceal(kRamRegion);
    fabric_->Conceal(kInboxRegion);
  }

  Status MakeReady() override {
    if (Status s = inbox_.Make(options_.inbox_path, TargetInboxBytes(pages_)); !s.ok()) return s;
    if (Status s = inbox_.Lock(*fabric_); !s.ok() || pages_ == 0) return s;
    if (Status s = GuestMemory::Open(options_.ram_path, options_.ram_bytes, &memory_); !s.ok())
      return s;
    if (Status s = Digester::Make({options_.digest_threads}, &digester_); !s.ok()) return s;
    if (Status s = memory_.ResidentPages(&resident_); !s.ok()) return s;
    if (Status s = memory_.HasRoom(); !s.ok()) return {"SYNC_MEMORY", s.detail()};
    if (Status s = StillWanted(); !s.ok()) return s;
    exposed_ = {memory_.all(), memory_.path(), nullptr};
    return fabric_->LockMemory(&exposed_);
  }

  Status Open(std::string* inbox, std::string* ram) override {
    if (Status s = fabric_->Attach(options_.peer, kInboxRegion, options_.grant); !s.ok()) return s;
    if (Status s = fabric_->Expose(kInboxRegion, options_.peer, inbox_.exposed(), inbox); !s.ok())
      return s;
    if (pages_ > 0) {
      if (Status s = fabric_->Expose(kRamRegion, options_.peer, exposed_, ram); !s.ok()) return s;
    }
    step_ = Step::kWait;
    return Ok();
  }

  int Poll(Nanoseconds /*now*/, std::vector<TransferNews>* news) override {
    int done = 0;
    if (Status s = Advance(news, &done); !s.ok()) {
      step_ = Step::kDone;
      news->push_back({TransferNews::Kind::kFailed, {}, std::string(s.code()) + " " + s.detail()});
    }
    return done;
  }

  [[nodiscard]] bool busy() const override { return step_ != Step::kDone; }
  [[nodiscard]] bool patient() const override { return !still_; }
  [[nodiscard]] std::span<const std::byte> plane_state() const override { return plane_state_; }
  [[nodiscard]] Op op() const override { return op_; }
  [[nodiscard]] Op boot_op() const override { return boot_op_; }

 private:
  enum class Step : uint8_t {
    kWait,
    kMakeRoom,
    kDigest,
    kMakeAnswer,
    kRefine,
    kUnpack,
    kAnswer,
    kDone
  };

  Status Advance(std::vector<TransferNews>* news, int* done) {
    const size_t pages_per_poll = still_ ? kStillPages : kRunningPages;
    if (step_ == Step::kWait) {
      if (Status s = Wait(news, done); !s.ok()) return s;
    }
    if (step_ == Step::kMakeRoom && aside_does_.done()) {
      digester_->Start({memory_.ram(), looked_at_, &resident_, options_.key, digests_, patient()});
      // Whatever of these is written to will be there afterwards.
      resident_.Unite(looked_at_);
      step_ = Step::kDigest;
      ++*done;
    }
    if (step_ == Step::kDigest && writer_.idle() && digester_->Finished()) {
      step_ = Step::kMakeAnswer;
      aside_does_ = aside_->Do([this] { MakeAnswer(); }, digests_.size() <= kPagesHere);
    }
    if (step_ == Step::kMakeAnswer && aside_does_.done()) {
      Answer(InboxKind::kDigests, std::move(answer_));
      ++*done;
    }
    if (step_ == Step::kRefine) {
      ++*done;
      if (refinement_.Step(hasher_, memory_.ram(), pages_per_poll) && writer_.idle()) {
        Answer(InboxKind::kBlocks, std::move(refinement_.answer()));
      }
    }
    if (step_ == Step::kUnpack) {
      ++*done;
      bool unpacked = false;
      if (Status s = unpacker_.Step(memory_.ram(), pages_per_poll, &unpacked); !s.ok())
        return {"SYNC_PEER", s.detail()};
      if (unpacked) {
        Answer(InboxKind::kUnpacked, {});
      }
    }
    if (step_ == Step::kAnswer) {
      if (Status s = writer_.Step(kBytesPerPoll, done); !s.ok()) return s;
      if (writer_.posted()) step_ = Step::kWait;
    }
    return Ok();
  }

  // For what may come between the digests of a round and its pages, each once.
  Status WaitWithin(int* done) {
    std::optional<std::span<const std::byte>> record;
    if (round_ > refined_round_) {
      if (Status s = inbox_.Take(options_.session, InboxKind::kRefine, round_, &record); !s.ok())
        return s;
      if (record.has_value()) {
        ++*done;
        refined_round_ = round_;
        step_ = Step::kRefine;
        return refinement_.Take(*record, looked_at_);
      }
    }
    if (round_ > unpacked_round_ && writer_.idle()) {
      if (Status s = inbox_.Take(options_.session, InboxKind::kPacked, round_, &record); !s.ok())
        return s;
      if (record.has_value()) {
        ++*done;
        unpacked_round_ = round_;
        step_ = Step::kUnpack;
        const Status s = unpacker_.Take(*record, looked_at_);
        return s.ok() ? s : Status{"SYNC_PEER", s.detail()};
      }
    }
    return Ok();
  }

  // For the next round, or for the state that ends the session.
  Status Wait(std::vector<TransferNews>* news, int* done) {
    if (Status s = WaitWithin(done); !s.ok() || step_ != Step::kWait) return s;
    // Pages of the round before may still be on their way; a digest of what they replace would be
    // one of the past.
    if (round_ > 0 && !RoundArrived()) return Ok();
    std::optional<std::span<const std::byte>> payload;
    if (Status s = inbox_.Take(options_.session, InboxKind::kState, kStateRound, &payload); !s.ok())
      return s;
    if (payload.has_value()) {
      ++*done;
      step_ = Step::kDone;
      if (Status s = TakeState(*payload); !s.ok()) return s;
      news->push_back({TransferNews::Kind::kArrived, {op_, boot_op_}, {}});
      return Ok();
    }
    if (pages_ == 0) return Ok();
    if (Status s = inbox_.Take(options_.session, InboxKind::kPages, round_ + 1, &payload); !s.ok())
      return s;
    if (!payload.has_value()) return Ok();
    ++*done;
    news->push_back({TransferNews::Kind::kProgress, {}, {}});
    return TakePages(*payload);
  }

  Status TakePages(std::span<const std::byte> payload) {
    PagesRecord record{};
    if (payload.size() < sizeof record) return {"SYNC_PEER", "a set of pages is cut"};
    std::memcpy(&record, payload.data(), sizeof record);
    if (!looked_at_.Load(payload.subspan(sizeof record)).ok())
      return {"SYNC_PEER", "no set of pages"};
    still_ = record.still != 0;
    if (record.first != 0) {
      if (changed_ != nullptr && record.resident == 0) {
        looked_at_.Unite(*changed_);
      } else {
        looked_at_.Unite(resident_);
      }
    }
    ++round_;
    step_ = Step::kMakeRoom;
    const size_t count = looked_at_.Count();
    aside_does_ = aside_->Do([this, count] { MakeRoom(count); }, count <= kPagesHere);
    return Ok();
  }

  // For what is about to come. A few pages are not worth the look.
  void MakeRoom(size_t count) {
    digests_.resize(count);
    if (count <= kPagesHere) return;
    PageSet holes = looked_at_;
    holes.Subtract(resident_);
    memory_.FillHoles(holes, [this] { return StillWanted().ok(); });
  }

  // The largest buffer is kept: giving it back takes as long as it is large.
  void Answer(InboxKind kind, std::vector<std::byte> payload) {
    std::vector<std::byte> before = writer_.TakeBuffer();
    if (before.capacity() > answer_.capacity()) answer_.swap(before);
    writer_.Start(options_.session, kind, round_, std::move(payload));
    step_ = Step::kAnswer;
  }

  void MakeAnswer() {
    answer_.clear();
    AppendSet(&answer_, looked_at_);
    const auto digests = std::as_bytes(std::span(digests_));
    answer_.insert(answer_.end(), digests.begin(), digests.end());
  }

  [[nodiscard]] bool RoundArrived() const {
    const RoundMark wanted = MakeRoundMark(options_.session, round_);
    RoundMark mark;
    std::memcpy(&mark, memory_.trailer().data(), sizeof mark);
    std::atomic_thread_fence(std::memory_order_acquire);
    return std::memcmp(&mark, &wanted, sizeof mark) == 0;
  }

  Status TakeState(std::span<const std::byte> payload) {
    StateRecord record{};
    if (payload.size() < sizeof record) return {"SYNC_PEER", "the state is cut"};
    std::memcpy(&record, payload.data(), sizeof record);
    const auto rest = payload.subspan(sizeof record);
    if (record.op == 0 || record.rounds != round_ || record.device_bytes > rest.size() ||
        record.plane_bytes != rest.size() - record.device_bytes)
      return {"SYNC_PEER", "the state is malformed"};
    op_ = record.op;
    boot_op_ = record.boot_op;
    const auto devices = rest.first(record.device_bytes);
    const auto plane = rest.subspan(record.device_bytes);
    plane_state_.assign(plane.begin(), plane.end());
    return WriteFile(options_.state_path, devices);
  }

  Fabric* fabric_;
  Aside* aside_;
  const size_t pages_;
  GuestMemory memory_;
  ExposedMemory exposed_;
  Inbox inbox_;
  std::unique_ptr<Digester> digester_;
  std::unique_ptr<PageSet> changed_;
  Step step_ = Step::kDone;  // until it is open: there is no inbox to look into
  bool still_ = false;       // the source's guest stands still, and waits
  uint32_t round_ = 0;       // the last that was answered
  PageSet looked_at_;
  std::vector<Digest> digests_;
  std::vector<std::byte> answer_;
  AsideTicket aside_does_;  // it has these until it is done
  PageSet resident_;        // everything else is zero, and must not be read
  const PageHasher hasher_;
  RefinementAnswer refinement_;
  uint32_t refined_round_ = 0;  // the last in which it was asked for blocks
  PageUnpacker unpacker_;
  uint32_t unpacked_round_ = 0;  // the last in which pages came packed
  InboxWriter writer_;
  std::vector<std::byte> plane_state_;
  Op op_ = 0;
  Op boot_op_ = 0;
};

}  // namespace

std::unique_ptr<TransferTarget> MakeTransferTarget(TransferOptions options, Fabric* fabric,
                                                   Aside* aside, const PageSet* changed) {
  return std::make_unique<Target>(std::move(options), fabric, aside, changed);
}

}  // namespace falcon
