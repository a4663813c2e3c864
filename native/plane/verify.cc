#include "plane/verify.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "os/check.h"
#include "plane/transfer_parts.h"

namespace falcon {
namespace {

// What one poll posts at most: both guests run meanwhile.
constexpr size_t kBytesPerPoll = 256 << 10;
constexpr uint32_t kOnlyRound = 1;
constexpr size_t kFlowsMax = 1 << 20;

// At the start of the record; set, digests, flows, built-in service and devices follow.
struct Findings {
  uint64_t op;
  uint64_t stood_ns;
  uint64_t flows;
  uint64_t frames_waiting;
  uint64_t builtin_bytes;
  uint64_t device_bytes;
};

// Of one side.
struct Taken {
  PageSet pages;
  std::vector<Digest> digests;
  std::vector<FlowFacts> flows;
  uint64_t frames_waiting = 0;
  std::vector<std::byte> builtin, devices;
};

bool Before(const FlowFacts& a, const FlowFacts& b) { return std::memcmp(&a, &b, sizeof a) < 0; }

int CompareKeys(const FlowFacts& a, const FlowFacts& b) {
  return std::memcmp(&a, &b, offsetof(FlowFacts, client_iss));
}

// Both sorted, no key twice in either.
void CompareFlows(const std::vector<FlowFacts>& ours, const std::vector<FlowFacts>& theirs,
                  VerifyReport* report) {
  auto our = ours.begin();
  auto their = theirs.begin();
  while (our != ours.end() || their != theirs.end()) {
    const int order = our == ours.end()       ? 1
                      : their == theirs.end() ? -1
                                              : CompareKeys(*our, *their);
    ++report->flows;
    if (order != 0 || std::memcmp(&*our, &*their, sizeof *our) != 0) ++report->flows_differing;
    if (order <= 0) ++our;
    if (order >= 0) ++their;
  }
}

void Append(std::vector<std::byte>* to, std::span<const std::byte> bytes) {
  to->insert(to->end(), bytes.begin(), bytes.end());
}

// The record of a guest with so many pages is never longer.
size_t RecordBytes(size_t pages) {
  return sizeof(Findings) + SourceInboxBytes(pages) + kStateBytesMax;
}

// Takes bytes that anybody may have made up. Errors: SYNC_PEER.
Status Parse(std::span<const std::byte> payload, size_t pages, Findings* head, Taken* taken) {
  const Status malformed{"SYNC_PEER", "what the target has found is malformed"};
  if (payload.size() < sizeof *head) return malformed;
  std::memcpy(head, payload.data(), sizeof *head);
  auto rest = payload.subspan(sizeof *head);
  taken->pages = PageSet(pages);
  const size_t set_bytes = taken->pages.SavedBytes();
  if (rest.size() < set_bytes || !taken->pages.Load(rest.first(set_bytes)).ok()) return malformed;
  rest = rest.subspan(set_bytes);
  taken->digests.resize(taken->pages.Count());
  const size_t digest_bytes = taken->digests.size() * sizeof(Digest);
  if (rest.size() < digest_bytes || head->flows > kFlowsMax) return malformed;
  if (digest_bytes > 0) std::memcpy(taken->digests.data(), rest.data(), digest_bytes);
  rest = rest.subspan(digest_bytes);
  taken->flows.resize(head->flows);
  const size_t flow_bytes = head->flows * sizeof(FlowFacts);
  if (rest.size() < flow_bytes) return malformed;
  if (flow_bytes > 0) std::memcpy(taken->flows.data(), rest.data(), flow_bytes);
  rest = rest.subspan(flow_bytes);
  if (head->builtin_bytes > rest.size() || head->device_bytes != rest.size() - head->builtin_bytes)
    return malformed;
  taken->frames_waiting = head->frames_waiting;
  const auto builtin = rest.first(head->builtin_bytes);
  const auto devices = rest.subspan(head->builtin_bytes);
  taken->builtin.assign(builtin.begin(), builtin.end());
  taken->devices.assign(devices.begin(), devices.end());
  std::ranges::sort(taken->flows, Before);
  const auto twice = [](const auto& a, const auto& b) { return CompareKeys(a, b) == 0; };
  return std::ranges::adjacent_find(taken->flows, twice) == taken->flows.end() ? Ok() : malformed;
}

class Session final : public VerifySession {
 public:
  Session(TransferOptions options, Fabric* fabric, Aside* aside)
      : VerifySession(std::move(options)),
        fabric_(fabric),
        aside_(aside),
        page_count_(options_.ram_bytes / kPageBytes),
        looked_(page_count_),
        changed_(page_count_),
        stale_(page_count_),
        writer_(fabric, options_.peer, kInboxRegion) {}

  ~Session() override {
    if (digester_ != nullptr) digester_->Cancel();
  }

  void Leave() override {
    fabric_->Detach(options_.peer, kInboxRegion);
    fabric_->Conceal(kInboxRegion);
  }

  Status MakeReady() override {
    if (page_count_ > 0) {
      if (Status s = GuestMemory::Open(options_.ram_path, options_.ram_bytes, &memory_); !s.ok())
        return s;
      if (Status s = Digester::Make({options_.digest_threads}, &digester_); !s.ok()) return s;
    }
    if (!options_.source) return Ok();
    if (Status s = inbox_.Make(options_.inbox_path, RecordBytes(page_count_)); !s.ok()) return s;
    return inbox_.Lock(*fabric_);
  }

  Status Open(std::string* inbox, std::string* /*ram*/) override {
    if (options_.source)
      return fabric_->Expose(kInboxRegion, options_.peer, inbox_.exposed(), inbox);
    return fabric_->Attach(options_.peer, kInboxRegion, options_.grant);
  }

  void Look() override {
    FALCON_CHECK(step_ == Step::kIdle);
    step_ = page_count_ > 0 ? Step::kScan : Step::kLook;
    if (page_count_ > 0) aside_does_ = aside_->Do([this] { failure_ = Scan(); });
  }

  void Changed(const PageSet& pages) override {
    if (step_ != Step::kIdle) changed_.Unite(pages);
  }

  Status Take(Op op, const std::string& path, PlaneFacts facts) override {
    FALCON_CHECK(step_ == Step::kLooked);
    op_ = op;
    if (Status s = ReadFile(path, kStateBytesMax, &own_.devices); !s.ok()) return s;
    own_.flows = std::move(facts.flows);
    own_.builtin = std::move(facts.builtin);
    own_.frames_waiting = facts.frames_waiting;
    if (own_.flows.size() * sizeof(FlowFacts) + own_.builtin.size() + own_.devices.size() >
        kStateBytesMax)
      return {"SYNC_MEMORY", "the state is larger than a session can carry"};
    std::ranges::sort(own_.flows, Before);
    own_.pages = PageSet(page_count_);
    step_ = page_count_ > 0 ? Step::kScanAgain : Step::kDigest;
    if (page_count_ > 0) aside_does_ = aside_->Do([this] { failure_ = ScanAgain(); });
    return Ok();
  }

  void GoesOn(Nanoseconds stood) override {
    if (step_ != Step::kTaken) return;
    stood_ = stood;
    step_ = options_.source ? Step::kListen : Step::kTell;
    if (!options_.source) aside_does_ = aside_->Do([this] { record_ = Record(); });
  }

  int Poll(Nanoseconds /*now*/, std::vector<TransferNews>* news) override {
    int done = 0;
    if (Status s = Advance(news, &done); !s.ok()) {
      step_ = Step::kOver;
      news->push_back({TransferNews::Kind::kFailed, {}, std::string(s.code()) + " " + s.detail()});
    }
    return done;
  }

  [[nodiscard]] bool busy() const override {
    return step_ != Step::kIdle && step_ != Step::kLooked && step_ != Step::kTaken &&
           step_ != Step::kOver;
  }
  [[nodiscard]] bool patient() const override {
    return step_ != Step::kScanAgain && step_ != Step::kDigest && step_ != Step::kJoin;
  }
  [[nodiscard]] std::span<const std::byte> report() const override { return report_; }

 private:
  enum class Step : uint8_t {
    kIdle,
    kScan,  // for pages that are not empty; the guest runs
    kLook,
    kLooked,
    kScanAgain,  // it stands still
    kDigest,
    kJoin,
    kTaken,   // and may go on
    kTell,    // target: makes its record
    kSend,    // and sends it
    kListen,  // source: for that record
    kCompare,
    kOver,
  };

  // Others are holes: zero, and not even to be read.
  Status Scan() {
    if (Status s = memory_.ResidentPages(&looked_); !s.ok()) return s;
    looked_digests_.resize(looked_.Count());
    return Ok();
  }

  Status ScanAgain() {
    if (Status s = memory_.ResidentPages(&own_.pages); !s.ok()) return s;
    stale_ = own_.pages;
    stale_.Subtract(looked_);
    changed_.Intersect(own_.pages);
    stale_.Unite(changed_);
    stale_digests_.resize(stale_.Count());
    return Ok();
  }

  Status Advance(std::vector<TransferNews>* news, int* done) {
    if (step_ == Step::kScan || step_ == Step::kScanAgain) {
      if (!aside_does_.done()) return Ok();
      ++*done;
      if (!failure_.ok()) return std::exchange(failure_, Ok());
      const bool again = step_ == Step::kScanAgain;
      digester_->Start({memory_.ram(), again ? stale_ : looked_, nullptr, options_.key,
                        again ? stale_digests_ : looked_digests_, patient()});
      step_ = again ? Step::kDigest : Step::kLook;
    }
    if (step_ == Step::kLook && (page_count_ == 0 || digester_->Finished())) {
      step_ = Step::kLooked;
      ++*done;
      news->push_back({TransferNews::Kind::kTaken, {}, {}});
    }
    if (step_ == Step::kDigest && (page_count_ == 0 || digester_->Finished())) {
      step_ = Step::kJoin;
      aside_does_ = aside_->Do([this] { JoinDigests(); }, page_count_ <= kPagesHere);
    }
    if (step_ == Step::kJoin && aside_does_.done()) {
      step_ = Step::kTaken;
      ++*done;
      news->push_back({TransferNews::Kind::kTaken, {}, {}});
    }
    if (step_ == Step::kTell && aside_does_.done()) {
      writer_.Start(options_.session, InboxKind::kFindings, kOnlyRound, std::move(record_));
      step_ = Step::kSend;
    }
    if (step_ == Step::kSend) {
      if (Status s = writer_.Step(kBytesPerPoll, done); !s.ok()) return s;
      if (writer_.idle()) {
        step_ = Step::kOver;
        ++*done;
        news->push_back({TransferNews::Kind::kSent, {}, {}});
      }
    }
    if (step_ == Step::kListen) {
      if (!inbox_.Has(options_.session, InboxKind::kFindings, kOnlyRound).has_value()) return Ok();
      ++*done;
      step_ = Step::kCompare;
      aside_does_ = aside_->Do([this] { failure_ = TakeFindings(); });
    }
    if (step_ == Step::kCompare) {
      if (!aside_does_.done()) return Ok();
      if (!failure_.ok()) return std::exchange(failure_, Ok());
      step_ = Step::kOver;
      ++*done;
      news->push_back({TransferNews::Kind::kVerified, {}, {}});
    }
    return Ok();
  }

  // Those of pages that were looked at before and have not changed, and those taken anew. A page of
  // zeros is the same as none, which is what the other side may have.
  void JoinDigests() {
    size_t looked_rank = 0, stale_rank = 0;
    size_t looked_page = looked_.Next(0);
    PageSet pages(page_count_);
    for (size_t page = own_.pages.Next(0); page < page_count_; page = own_.pages.Next(page + 1)) {
      for (; looked_page < page; looked_page = looked_.Next(looked_page + 1)) ++looked_rank;
      const bool stale = stale_.Test(page);
      FALCON_CHECK(stale || looked_page == page);
      const Digest& digest = stale ? stale_digests_[stale_rank++] : looked_digests_[looked_rank];
      if (digest == Digest{}) continue;
      own_.digests.push_back(digest);
      pages.Set(page);
    }
    own_.pages = std::move(pages);
  }

  std::vector<std::byte> Record() const {
    const Findings head{op_,
                        static_cast<uint64_t>(stood_),
                        own_.flows.size(),
                        own_.frames_waiting,
                        own_.builtin.size(),
                        own_.devices.size()};
    std::vector<std::byte> record;
    Append(&record, std::as_bytes(std::span(&head, 1)));
    AppendSet(&record, own_.pages);
    Append(&record, std::as_bytes(std::span(own_.digests)));
    Append(&record, std::as_bytes(std::span(own_.flows)));
    Append(&record, own_.builtin);
    Append(&record, own_.devices);
    return record;
  }

  // It stays as it is: the target writes one record.
  Status TakeFindings() {
    std::optional<std::span<const std::byte>> payload;
    const Status s = inbox_.Take(options_.session, InboxKind::kFindings, kOnlyRound, &payload);
    if (!s.ok()) return s;
    if (!payload.has_value()) return {"SYNC_PEER", "the record of the target has gone"};
    return Compare(*payload);
  }

  Status Compare(std::span<const std::byte> payload) {
    Findings head{};
    Taken theirs;
    if (Status s = Parse(payload, page_count_, &head, &theirs); !s.ok()) return s;
    if (head.op != op_) return {"SYNC_PEER", "the target stood behind another entry"};
    PageSet differing(page_count_);
    if (Status s =
            DifferingPages(own_.pages, own_.digests, theirs.pages, theirs.digests, &differing);
        !s.ok())
      return s;
    PageSet all = own_.pages;
    all.Unite(theirs.pages);
    VerifyReport report{};
    report.pages = all.Count();
    report.differing = differing.Count();
    report.listed = std::min<uint64_t>(report.differing, kListedPagesMax);
    CompareFlows(own_.flows, theirs.flows, &report);
    report.frames_waiting[0] = own_.frames_waiting;
    report.frames_waiting[1] = theirs.frames_waiting;
    const bool builtin = !own_.builtin.empty() || !theirs.builtin.empty();
    report.service = !builtin ? 0 : own_.builtin == theirs.builtin ? 1 : 2;
    report.stood_ns = head.stood_ns;
    report.device_bytes[0] = own_.devices.size();
    report.device_bytes[1] = theirs.devices.size();
    Append(&report_, std::as_bytes(std::span(&report, 1)));
    uint64_t listed = 0;
    for (size_t page = differing.Next(0); listed < report.listed; page = differing.Next(page + 1)) {
      const uint64_t number = page;
      Append(&report_, std::as_bytes(std::span(&number, 1)));
      ++listed;
    }
    Append(&report_, own_.devices);
    Append(&report_, theirs.devices);
    return Ok();
  }

  Fabric* fabric_;
  Aside* aside_;
  const size_t page_count_;
  GuestMemory memory_;
  Inbox inbox_;
  std::unique_ptr<Digester> digester_;
  Step step_ = Step::kIdle;
  // What is done aside: it has these until its ticket is done.
  AsideTicket aside_does_;
  Status failure_;
  Op op_ = 0;
  Nanoseconds stood_ = 0;
  PageSet looked_;  // while the guest ran
  std::vector<Digest> looked_digests_;
  PageSet changed_;  // since
  PageSet stale_;    // digested again
  std::vector<Digest> stale_digests_;
  Taken own_;
  InboxWriter writer_;
  std::vector<std::byte> record_, report_;
};

}  // namespace

std::unique_ptr<VerifySession> MakeVerifySession(TransferOptions options, Fabric* fabric,
                                                 Aside* aside) {
  return std::make_unique<Session>(std::move(options), fabric, aside);
}

}  // namespace falcon
