// The source of a state transfer: which pages differ, and the writes that make them equal.
#include <algorithm>
#include <cstring>
#include <utility>

#include "os/check.h"
#include "pages/packed_pages.h"
#include "pages/page_mover.h"
#include "plane/refinement.h"
#include "plane/transfer_parts.h"

namespace falcon {
namespace {

// What one step posts at most while the guest runs, and while it stands still.
constexpr size_t kRunningBytes = 128 << 10;
constexpr size_t kStillBytes = 2 << 20;
// So many pages go packed; fewer are not worth the turn, and more are sooner sent as they are.
constexpr size_t kPackedMin = 16;
constexpr size_t kPackedMax = 4096;

class Source final : public TransferSource {
 public:
  Source(TransferOptions options, Fabric* fabric, Aside* aside)
      : TransferSource(std::move(options)),
        fabric_(fabric),
        aside_(aside),
        pages_(options_.ram_bytes / kPageBytes),
        pending_(pages_),
        looked_at_(pages_),
        resident_(pages_),
        hasher_(options_.key),
        writer_(fabric, options_.peer, kInboxRegion) {}

  ~Source() override {
    if (digester_ != nullptr) digester_->Cancel();
  }

  void Leave() override {
    fabric_->Detach(options_.peer, kInboxRegion);
    fabric_->Detach(options_.peer, kRamRegion);
    fabric_->Conceal(kInboxRegion);
  }

  Status MakeReady() override {
    if (pages_ > 0) {
      if (Status s = GuestMemory::Open(options_.ram_path, options_.ram_bytes, &memory_); !s.ok())
        return s;
      if (Status s = Digester::Make({options_.digest_threads}, &digester_); !s.ok()) return s;
    }
    if (Status s = inbox_.Make(options_.inbox_path, SourceInboxBytes(pages_)); !s.ok()) return s;
    return inbox_.Lock(*fabric_);
  }

  Status Open(std::string* inbox, std::string* /*ram*/) override {
    return fabric_->Expose(kInboxRegion, options_.peer, inbox_.exposed(), inbox);
  }

  Status Attach(std::string_view inbox, std::string_view ram) override {
    if (Status s = fabric_->Attach(options_.peer, kInboxRegion, inbox); !s.ok()) return s;
    if (pages_ == 0) return Ok();
    return fabric_->Attach(options_.peer, kRamRegion, ram);
  }

  void Changed(const PageSet& pages) override {
    pending_.Unite(pages);
    resident_.Unite(pages);
  }

  void Round(uint32_t round, RoundPages which, bool final, TransferBases* bases) override {
    FALCON_CHECK(step_ == Step::kIdle);
    round_ = round;
    final_ = final;
    figures_ = {};
    const bool first = rounds_ == 0;
    const PageSet* since = bases->Since(options_.peer);
    const bool all =
        which == RoundPages::kResident || (which == RoundPages::kSinceBase && since == nullptr);
    if (which == RoundPages::kPending) {
      looked_at_ = pending_;
    } else if (!all) {
      looked_at_ = *since;
    }
    ++rounds_;
    pending_ = PageSet(pages_);
    if (final) bases->Begin(options_.peer, pages_);
    began_ = 0;
    if (pages_ == 0) {
      step_ = Step::kTell;
      return;
    }
    record_ = {first ? 1U : 0U, all ? 1U : 0U, final ? 1U : 0U};
    if (!first && !all) return Begin();
    // Only now are changes noted. A page that the guest has touched for the first time before is
    // known from nowhere else.
    step_ = Step::kScan;
    aside_does_ = aside_->Do([this] { failure_ = Scan(); });
  }

  Status Send(Op op, Op boot_op, const std::string& path,
              std::span<const std::byte> plane) override {
    FALCON_CHECK(step_ == Step::kIdle);
    std::vector<std::byte> devices;
    if (Status s = ReadFile(path, kStateBytesMax, &devices); !s.ok()) return s;
    const StateRecord record{op, boot_op, pages_ == 0 ? 0 : round_, devices.size(), plane.size()};
    if (sizeof record + devices.size() + plane.size() > kStateBytesMax)
      return {"SYNC_MEMORY", "the state is larger than a session can carry"};
    std::vector<std::byte> payload(sizeof record);
    std::memcpy(payload.data(), &record, sizeof record);
    payload.insert(payload.end(), devices.begin(), devices.end());
    payload.insert(payload.end(), plane.begin(), plane.end());
    state_bytes_ = payload.size();
    outgoing_ = std::move(payload);
    outgoing_kind_ = InboxKind::kState;
    step_ = Step::kState;
    pages_ticket_ = fabric_->Posted(options_.peer);
    pages_left_ = false;
    fabric_->RequestCompletion(options_.peer);
    return Ok();
  }

  int Poll(Nanoseconds now, std::vector<TransferNews>* news) override {
    int done = 0;
    if (Status s = Advance(now, news, &done); !s.ok()) {
      step_ = Step::kIdle;
      news->push_back({TransferNews::Kind::kFailed, {}, std::string(s.code()) + " " + s.detail()});
    }
    return done;
  }

  [[nodiscard]] bool busy() const override { return step_ != Step::kIdle; }
  [[nodiscard]] bool patient() const override { return !final_; }

 private:
  enum class Step : uint8_t {
    kIdle,
    kScan,     // for the pages that are not empty
    kAsk,      // the set goes out; both digest
    kAnswer,   // the target's set and digests are here, and are read
    kCompare,  // what it adds is digested
    kCompared,
    kPrepare,  // features of the pages to ask for
    kRefine,   // copies and the question for blocks go out
    kBlocks,   // the answer is here
    kPack,
    kUnpack,  // packed pages go out, and the target unpacks them
    kMove,
    kMark,
    kTell,
    kState,
  };

  // Aside. What the guest touches meanwhile is noted by then (Changed).
  Status Scan() {
    if (Status s = memory_.ResidentPages(&found_); !s.ok()) return s;
    if (record_.resident != 0) looked_at_ = found_;
    own_.resize(looked_at_.Count());
    return Ok();
  }

  void Begin() {
    StartDigests();
    std::vector<std::byte> payload(sizeof record_);
    std::memcpy(payload.data(), &record_, sizeof record_);
    AppendSet(&payload, looked_at_);
    outgoing_ = std::move(payload);
    outgoing_kind_ = InboxKind::kPages;
    figures_.overhead = outgoing_.size();
    step_ = Step::kAsk;
  }

  void StartDigests() {
    own_.resize(looked_at_.Count());
    digester_->Start({memory_.ram(), looked_at_, &resident_, options_.key, own_, patient()});
    digested_ = false;
  }

  bool Digested() {
    if (!digested_) digested_ = digester_->Finished();
    return digested_;
  }

  // A record is started only when the buffers of the one before are free.
  bool StartOutgoing() {
    if (outgoing_.empty()) return true;
    if (!writer_.idle()) return false;
    const uint32_t round = outgoing_kind_ == InboxKind::kState ? kStateRound : round_;
    writer_.Start(options_.session, outgoing_kind_, round, std::move(outgoing_));
    outgoing_.clear();
    return true;
  }

  Status Advance(Nanoseconds now, std::vector<TransferNews>* news, int* done) {
    const size_t most = final_ ? kStillBytes : kRunningBytes;
    const size_t pages_per_poll = final_ ? kStillPages : kRunningPages;
    if (step_ == Step::kIdle) return Ok();
    if (began_ == 0) began_ = now;
    if (Status s = TakeWhatWasAside(done); !s.ok()) return s;
    // The guest goes on when this is told: by then whatever was posted from its pages has left. The
    // state is a copy, and leaves meanwhile.
    if (step_ == Step::kState && !pages_left_ &&
        fabric_->Completed(options_.peer) >= pages_ticket_) {
      pages_left_ = true;
      ++*done;
      news->push_back({TransferNews::Kind::kSent, {state_bytes_}, {}});
    }
    if (!StartOutgoing()) return Ok();
    if (!writer_.posted()) {
      if (Status s = writer_.Step(most, done); !s.ok()) return s;
    }
    if (step_ == Step::kAsk) {
      ReadAnswer(now);
      if (Status s = TakeWhatWasAside(done); !s.ok()) return s;
    }
    if (step_ == Step::kCompare && Digested()) {
      StartComparison(now);
      if (Status s = TakeWhatWasAside(done); !s.ok()) return s;
    }
    if (step_ == Step::kPrepare) {
      ++*done;
      if (refinement_.Prepare(hasher_, memory_.ram(), pages_per_poll)) Ask();
    }
    if (step_ == Step::kRefine) {
      if (Status s = TakeBlocks(); !s.ok()) return s;
    }
    if (step_ == Step::kBlocks) {
      ++*done;
      if (refinement_.Step(hasher_, memory_.ram(), pages_per_poll)) PackOrMove(now);
    }
    if (step_ == Step::kPack) {
      ++*done;
      if (packer_.Step(memory_.ram(), pages_per_poll)) SendPacked(now);
    }
    if (step_ == Step::kUnpack) {
      if (Status s = TakeUnpacked(now); !s.ok()) return s;
    }
    if (step_ == Step::kMove) {
      size_t posted = 0;
      if (Status s = mover_->Step(most, &posted); !s.ok()) return s;
      if (posted > 0) ++*done;
      figures_.bytes = packed_bytes_ + mover_->progress().bytes;
      if (mover_->progress().posted == mover_->progress().pages) step_ = Step::kMark;
    }
    if (step_ == Step::kMark) {
      if (Status s = PostMark(); !s.ok()) return s;
      if (step_ == Step::kTell) figures_.move = now - moving_since_;
    }
    if (step_ == Step::kTell) {
      ++*done;
      step_ = Step::kIdle;
      news->push_back({TransferNews::Kind::kRound, Numbers(), {}});
    }
    if (step_ == Step::kState && pages_left_ && writer_.idle()) {
      ++*done;
      step_ = Step::kIdle;
    }
    return Ok();
  }

  Status TakeWhatWasAside(int* done) {
    const bool aside = step_ == Step::kScan || step_ == Step::kAnswer || step_ == Step::kCompared;
    if (!aside || !aside_does_.done()) return Ok();
    ++*done;
    if (!failure_.ok()) return std::exchange(failure_, Ok());
    if (step_ == Step::kScan) {
      resident_.Unite(found_);
      Begin();
    } else if (step_ == Step::kAnswer) {
      TakeDigests();
    } else {
      TakeComparison();
    }
    return Ok();
  }

  // The digests of this side and the answer of the other: whichever comes last.
  void ReadAnswer(Nanoseconds now) {
    if (!Digested()) return;
    if (figures_.digest == 0) figures_.digest = std::max<Nanoseconds>(now - began_, 1);
    const auto bytes = inbox_.Has(options_.session, InboxKind::kDigests, round_);
    if (!bytes.has_value()) return;
    // The target adds what it has changed itself.
    const bool here = *bytes <= PageSet::SavedBytes(pages_) + kPagesHere * sizeof(Digest);
    figures_.wait = now - began_ - figures_.digest;
    step_ = Step::kAnswer;
    aside_does_ = aside_->Do([this] { failure_ = ParseAnswer(); }, here);
  }

  Status ParseAnswer() {
    std::optional<std::span<const std::byte>> answer;
    if (Status s = inbox_.Take(options_.session, InboxKind::kDigests, round_, &answer); !s.ok())
      return s;
    PageSet theirs(pages_);
    const size_t set_bytes = theirs.SavedBytes();
    if (!answer.has_value() || answer->size() < set_bytes ||
        !theirs.Load(answer->first(set_bytes)).ok())
      return {"SYNC_PEER", "the answer holds no set of pages"};
    const auto digests = answer->subspan(set_bytes);
    found_ = looked_at_;
    found_.Subtract(theirs);
    if (digests.size() != theirs.Count() * sizeof(Digest) || !found_.Empty())
      return {"SYNC_PEER", "the answer does not fit what was asked"};
    theirs_.resize(theirs.Count());
    std::memcpy(theirs_.data(), digests.data(), digests.size());
    answer_bytes_ = answer->size();
    added_ = theirs.Count() != looked_at_.Count();
    // Changed over there only. All in one set again keeps the two lists in one order.
    if (!added_) return Ok();
    looked_at_ = std::move(theirs);
    own_.resize(looked_at_.Count());
    return Ok();
  }

  void TakeDigests() {
    figures_.overhead += answer_bytes_;
    if (added_) StartDigests();
    step_ = Step::kCompare;
  }

  void StartComparison(Nanoseconds now) {
    figures_.pages = looked_at_.Count();
    figures_.digest = now - began_ - figures_.wait;
    refining_since_ = now;
    step_ = Step::kCompared;
    aside_does_ = aside_->Do([this] { failure_ = Compare(); }, figures_.pages <= kPagesHere);
  }

  Status Compare() {
    found_ = PageSet(pages_);
    if (Status s = DifferingPages(looked_at_, own_, looked_at_, theirs_, &found_); !s.ok())
      return s;
    refinement_ = Refinement({looked_at_, own_, theirs_}, found_);
    return Ok();
  }

  void TakeComparison() {
    figures_.equal = figures_.pages - found_.Count();
    step_ = refinement_.asks() ? Step::kPrepare : Step::kBlocks;
  }

  void Ask() {
    outgoing_ = refinement_.Question();
    outgoing_kind_ = InboxKind::kRefine;
    figures_.overhead += outgoing_.size();
    step_ = Step::kRefine;
  }

  Status TakeBlocks() {
    std::optional<std::span<const std::byte>> answer;
    if (Status s = inbox_.Take(options_.session, InboxKind::kBlocks, round_, &answer); !s.ok())
      return s;
    if (!answer.has_value()) return Ok();
    figures_.overhead += answer->size();
    step_ = Step::kBlocks;
    return refinement_.TakeAnswer(*answer);
  }

  void PackOrMove(Nanoseconds now) {
    const size_t pages = refinement_.whole().Count();
    if (pages < kPackedMin || pages > kPackedMax) return Move(now, refinement_.whole());
    packer_ = PagePacker(refinement_.whole());
    step_ = Step::kPack;
  }

  void SendPacked(Nanoseconds now) {
    outgoing_ = std::move(packer_.packed());
    if (outgoing_.size() > refinement_.whole().Count() * kPageBytes) {
      outgoing_.clear();
      return Move(now, refinement_.whole());
    }
    figures_.bytes = outgoing_.size();
    outgoing_kind_ = InboxKind::kPacked;
    step_ = Step::kUnpack;
  }

  Status TakeUnpacked(Nanoseconds now) {
    std::optional<std::span<const std::byte>> answer;
    if (Status s = inbox_.Take(options_.session, InboxKind::kUnpacked, round_, &answer); !s.ok())
      return s;
    if (answer.has_value()) Move(now, PageSet(pages_));
    return Ok();
  }

  void Move(Nanoseconds now, const PageSet& whole) {
    figures_.refine = now - refining_since_;
    figures_.found = refinement_.found();
    figures_.sent = figures_.pages - figures_.equal - figures_.found;
    figures_.partial = refinement_.parts().size();
    moving_since_ = now;
    packed_bytes_ = figures_.bytes;
    mover_ = std::make_unique<PageMover>(fabric_, options_.peer, kRamRegion, memory_.ram(), whole);
    mover_->AddParts(std::move(refinement_.parts()));
    step_ = Step::kMove;
  }

  [[nodiscard]] std::array<uint64_t, kTransferNumbers> Numbers() const {
    const RoundFigures& f = figures_;
    const auto ns = [](Nanoseconds span) { return static_cast<uint64_t>(span); };
    return {f.pages,    f.equal,      f.sent,     f.found,      f.partial, f.bytes,
            f.overhead, ns(f.digest), ns(f.wait), ns(f.refine), ns(f.move)};
  }

  // Takes note of the pages whose source the fabric needs no more.
  Status PostMark() {
    mark_ = MakeRoundMark(options_.session, round_);
    const auto piece = std::as_bytes(std::span(&mark_, 1));
    const std::span<const std::byte> pieces[] = {piece};
    const Status s = fabric_->Write(options_.peer, {kRamRegion, options_.ram_bytes}, pieces);
    if (s.ok()) step_ = Step::kTell;
    return s.ok() || std::strcmp(s.code(), "FABRIC_BUSY") == 0 ? Ok() : s;
  }

  Fabric* fabric_;
  Aside* aside_;
  const size_t pages_;
  GuestMemory memory_;
  Inbox inbox_;
  std::unique_ptr<Digester> digester_;
  std::unique_ptr<PageMover> mover_;
  Step step_ = Step::kIdle;
  uint32_t round_ = 0;
  uint32_t rounds_ = 0;
  bool final_ = false;
  PageSet pending_;
  PageSet looked_at_;
  PageSet resident_;  // everything else is zero, and must not be read
  PagesRecord record_{};
  // What is done aside: it has these until its ticket is done.
  AsideTicket aside_does_;
  PageSet found_;  // not empty; that differ
  Status failure_;
  size_t answer_bytes_ = 0;
  bool added_ = false;  // the target has changed pages that are not among those asked for
  std::vector<Digest> own_, theirs_;
  bool digested_ = false;
  const PageHasher hasher_;
  Refinement refinement_;
  PagePacker packer_;
  uint64_t packed_bytes_ = 0;
  InboxWriter writer_;
  std::vector<std::byte> outgoing_;
  InboxKind outgoing_kind_ = InboxKind::kPages;
  RoundMark mark_{};
  RoundFigures figures_;
  Nanoseconds began_ = 0;
  Nanoseconds refining_since_ = 0;
  Nanoseconds moving_since_ = 0;
  size_t state_bytes_ = 0;
  uint64_t pages_ticket_ = 0;  // of the last write from the guest's pages
  bool pages_left_ = false;
};

}  // namespace

std::unique_ptr<TransferSource> MakeTransferSource(TransferOptions options, Fabric* fabric,
                                                   Aside* aside) {
  return std::make_unique<Source>(std::move(options), fabric, aside);
}

}  // namespace falcon
