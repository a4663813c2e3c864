#include "vm/output_book.h"

#include <algorithm>

#include "os/check.h"
#include "os/hash.h"

namespace falcon {
namespace {

constexpr uint16_t kEphemeralPort = 32768;
constexpr Nanoseconds kLookInterval = 50 * kMillisecond;

template <typename T>
void AppendRaw(std::vector<std::byte>* out, const T& value) {
  const auto bytes = std::as_bytes(std::span(&value, 1));
  out->insert(out->end(), bytes.begin(), bytes.end());
}

// a += b, as little-endian numbers modulo 2^256.
void AddTo(OutputHash* a, const OutputHash& b) {
  unsigned carry = 0;
  for (size_t i = 0; i < a->size(); ++i) {
    carry += static_cast<unsigned>((*a)[i]) + b[i];
    (*a)[i] = static_cast<uint8_t>(carry);
    carry >>= 8;
  }
}

}  // namespace

OutputBook::OutputBook(const OutputOptions& options, size_t slots)
    : options_(options),
      shape_{options.queue_bytes, options.compare_every},
      tracks_(slots),
      due_(slots),
      urgent_(slots),
      ended_(kEnded),
      waiting_(kMaxWaiting) {
  verdicts_.reserve(kMaxCheckItems * sizeof(VerdictRecord));
  FALCON_CHECK(options.queue_bytes > 0 && options.compare_every > 0);
  FALCON_CHECK(sodium_init() >= 0);
  // Left uninitialised on purpose: pages are touched when a flow first uses them.
  rings_ = std::make_unique_for_overwrite<std::byte[]>(slots * shape_.RingBytes());
  for (const OutputMask& mask : options.masks) {
    auto found = std::ranges::find(masks_, mask.port, &std::pair<uint16_t, MaskSet>::first);
    if (found == masks_.end()) found = masks_.insert(found, {mask.port, MaskSet()});
    FALCON_CHECK(found->second.Add(mask));  // the configuration is checked before
  }
}

FlowKey OutputBook::KeyOf(const CheckItem& item) {
  FlowKey key;
  std::memcpy(key.client.data(), item.client, sizeof item.client);
  std::memcpy(key.vm.data(), item.vm, sizeof item.vm);
  key.client_port = item.client_port;
  key.vm_port = item.vm_port;
  return key;
}

// Many ports are one application in the end.
OutputApplication& OutputBook::Application(uint16_t port) {
  for (OutputApplication& one : std::span(applications_).first(applications_used_)) {
    if (one.port == port) return one;
  }
  if (applications_used_ == kMaxApplications) return applications_.back();
  OutputApplication& fresh = applications_[applications_used_++];
  fresh.port = applications_used_ == kMaxApplications ? uint16_t{0} : port;
  return fresh;
}

const MaskSet* OutputBook::MasksOf(uint16_t port) const {
  for (const auto& [of, masks] : masks_) {
    if (of == port) return &masks;
  }
  return nullptr;
}

// ---- flows

void OutputBook::Open(const Flow& flow, Seq first) {
  Track& track = tracks_[flow.index];
  track = Track();
  track.key = flow.key;
  track.client_iss = flow.client_iss;
  track.chain.Open(first);
}

void OutputBook::MakeDue(uint32_t slot, Nanoseconds now) {
  if (due_.in[slot] != 0) return;
  tracks_[slot].due_since = now;
  due_.Push(slot);
}

void OutputBook::Emit(const Flow& flow, Seq seq, std::span<const std::byte> payload, bool fin,
                      Nanoseconds now) {
  Track& track = tracks_[flow.index];
  if (!track.chain.open()) return;
  const uint64_t before = track.chain.position();
  const bool had_ended = track.chain.ended();
  if (!track.chain.Emit(shape_, MasksOf(flow.key.vm_port), Ring(flow.index), seq, payload, fin))
    ++gaps_;
  const uint64_t position = track.chain.position();
  const bool ends = track.chain.ended() && !had_ended;
  if (position == before && !ends) return;
  Application(flow.key.vm_port).bytes += position - before;
  const uint64_t milestone = shape_.queue_bytes * shape_.compare_every;
  if (ends || position / milestone != before / milestone) urgent_.Push(flow.index);
  MakeDue(flow.index, now);
  if (ends) NoteEnd(flow.index);
  if (track.waiting > 0 && (ends || position >= track.wake_at)) Settle(flow.index, false);
}

void OutputBook::NoteEnd(uint32_t slot) {
  Track& track = tracks_[slot];
  if (track.summed) return;
  track.summed = true;
  const uint64_t length = track.chain.position();
  CheckItem item = MakeItem(track, length, true);
  const auto hash = track.chain.HashAt(shape_, Ring(slot), length);
  std::ranges::copy(*hash, item.hash);
  OutputApplication& application = Application(track.key.vm_port);
  AddTo(&application.summary, HashOutput(std::as_bytes(std::span(&item, 1))));
  ++application.flows_ended;
}

void OutputBook::Cut(const Flow& flow) {
  Track& track = tracks_[flow.index];
  if (!track.chain.open() || track.cut) return;
  track.cut = true;
  if (!track.chain.ended()) ++Application(flow.key.vm_port).flows_cut;
  Settle(flow.index, false);
}

void OutputBook::Lose(const Flow& flow, FlowDivergence why) {
  tracks_[flow.index].lost = why;
  Settle(flow.index, false);
}

void OutputBook::Close(const Flow& flow, bool primary) {
  Track& track = tracks_[flow.index];
  if (!track.chain.open()) return;
  Settle(flow.index, true);
  const uint64_t position = track.chain.position();
  if (primary && !track.final_checked && track.chain.ended())
    ++Application(flow.key.vm_port).unchecked;
  Ended ended{track.key, track.client_iss, true, track.chain.ended(), position, {}};
  if (const auto hash = track.chain.HashAt(shape_, Ring(flow.index), position); hash.has_value())
    ended.hash = *hash;
  ended_[EndedPlace(track.key, track.client_iss)] = ended;
  track = Track();
}

void OutputBook::Datagram(uint16_t port, size_t bytes) {
  // A port that the guest chose itself is no application.
  OutputApplication& application = Application(port < kEphemeralPort ? port : uint16_t{0});
  ++application.datagrams;
  application.datagram_bytes += bytes;
}

void OutputBook::Clear() {
  std::ranges::fill(tracks_, Track());
  while (due_.count > 0) due_.Pop();
  while (urgent_.count > 0) urgent_.Pop();
  std::ranges::fill(ended_, Ended());
  std::ranges::fill(waiting_, Waiting());
  waiting_count_ = 0;
  // Counts of checks go on, whatever the guest is.
  for (OutputApplication& one : applications_) {
    one = {.port = one.port,
           .agreed = one.agreed,
           .late = one.late,
           .diverged = one.diverged,
           .skipped = one.skipped,
           .unchecked = one.unchecked};
  }
}

size_t OutputBook::EndedPlace(const FlowKey& key, Seq client_iss) const {
  std::array<std::byte, 40> bytes;
  std::memcpy(bytes.data(), key.client.data(), 16);
  std::memcpy(bytes.data() + 16, key.vm.data(), 16);
  std::memcpy(bytes.data() + 32, &key.client_port, 2);
  std::memcpy(bytes.data() + 34, &key.vm_port, 2);
  std::memcpy(bytes.data() + 36, &client_iss, 4);
  return HashBytes(bytes, 0) % kEnded;
}

// ---- the primary's checks

CheckItem OutputBook::MakeItem(const Track& track, uint64_t position, bool final) const {
  CheckItem item{};
  std::memcpy(item.client, track.key.client.data(), sizeof item.client);
  std::memcpy(item.vm, track.key.vm.data(), sizeof item.vm);
  item.client_port = track.key.client_port;
  item.vm_port = track.key.vm_port;
  item.client_iss = track.client_iss;
  item.position = position;
  item.final = final ? 1 : 0;
  return item;
}

// A flow that is busy is compared where the chain has a link, which replicas that are ahead still
// know; one that rests is compared where it rests.
size_t OutputBook::MakeItems(uint32_t slot, bool urgent, std::span<CheckItem> items) {
  Track& track = tracks_[slot];
  const OutputChain& chain = track.chain;
  if (!chain.open() || track.lost != FlowDivergence::kNone) return 0;
  const uint64_t position = chain.position();
  size_t count = 0;
  const auto add = [&](uint64_t at, bool final) {
    const auto hash = chain.HashAt(shape_, Ring(slot), at);
    if (!hash.has_value() || (at <= track.checked && !final)) return;
    items[count] = MakeItem(track, at, final);
    std::ranges::copy(*hash, items[count++].hash);
    track.checked = std::max(track.checked, at);
  };
  if (chain.ended()) {
    if (!track.final_checked) add(position, true);
    track.final_checked = true;
    return count;
  }
  const uint64_t unit = urgent ? shape_.queue_bytes * shape_.compare_every : shape_.queue_bytes;
  add(position / unit * unit, false);
  if (!urgent) add(position, false);
  return count;
}

bool OutputBook::Collect(uint16_t self, Nanoseconds now, std::vector<std::byte>* payload,
                         std::vector<std::byte>* tails) {
  const size_t start = payload->size();
  CheckHeader header{kCheckVersion, 0, self, 0};
  AppendRaw(payload, header);
  while (header.count + 2u <= kMaxCheckItems) {
    const bool urgent = urgent_.count > 0;
    if (!urgent &&
        (due_.count == 0 || now - tracks_[due_.Front()].due_since < options_.check_after))
      break;
    Line& line = urgent ? urgent_ : due_;
    const uint32_t slot = line.Front();
    line.Pop();
    std::array<CheckItem, 2> items;
    const size_t made = MakeItems(slot, urgent, items);
    for (const CheckItem& item : std::span(items).first(made)) {
      ++header.count;
      AppendRaw(payload, item);
      std::array<std::byte, kTailBytes> tail;
      const size_t bytes = tracks_[slot].chain.CopyTail(Ring(slot), item.position, tail);
      AppendRaw(tails, static_cast<uint16_t>(bytes));
      tails->insert(tails->end(), tail.begin(), tail.begin() + static_cast<ptrdiff_t>(bytes));
    }
  }
  std::memcpy(payload->data() + start, &header, sizeof header);
  if (header.count == 0) payload->resize(start);
  return header.count > 0;
}

// ---- the checks of the log

void OutputBook::TakeItem(uint64_t op, uint16_t index, const CheckItem& item, const Flow* flow,
                          Nanoseconds now) {
  const bool here =
      flow != nullptr && flow->client_iss == item.client_iss && tracks_[flow->index].chain.open();
  if (!here) return Tell(op, index, item, CompareEnded(item), kNoSlot);
  const uint32_t slot = flow->index;
  Track& track = tracks_[slot];
  track.checked = std::max(track.checked, item.position);
  track.final_checked = track.final_checked || item.final != 0;
  if (const auto verdict = Compare(slot, item, false); verdict.has_value())
    return Tell(op, index, item, *verdict, slot);
  const auto place = waiting_count_ < kMaxWaiting
                         ? std::ranges::find(waiting_, false, &Waiting::used)
                         : waiting_.end();
  if (place == waiting_.end()) return Tell(op, index, item, Verdict::kLate, slot);
  *place = Waiting{op, index, true, false, slot, item, now};
  ++waiting_count_;
  const uint64_t at = item.final != 0 ? 0 : item.position;
  track.wake_at = track.waiting == 0 ? at : std::min(track.wake_at, at);
  ++track.waiting;
}

Verdict OutputBook::SameHash(uint32_t slot, const CheckItem& item) {
  const auto hash = tracks_[slot].chain.HashAt(shape_, Ring(slot), item.position);
  if (!hash.has_value()) return Verdict::kSkipped;
  return std::ranges::equal(*hash, item.hash) ? Verdict::kAgree : Verdict::kDiverged;
}

std::optional<Verdict> OutputBook::Compare(uint32_t slot, const CheckItem& item, bool last_chance) {
  const Track& track = tracks_[slot];
  const uint64_t position = track.chain.position();
  const bool ended = track.chain.ended();
  if (position < item.position) {
    // An end is part of what is said. A reset is not: where it cuts depends on the guest's speed.
    if (ended || track.lost != FlowDivergence::kNone) return Verdict::kDiverged;
    if (track.cut) return Verdict::kSkipped;
    return last_chance ? std::optional(Verdict::kLate) : std::nullopt;
  }
  if (item.final == 0) return SameHash(slot, item);
  if (position > item.position) return Verdict::kDiverged;
  // What has been said is the same so far; is it all?
  if (ended || track.cut || last_chance || SameHash(slot, item) != Verdict::kAgree)
    return SameHash(slot, item);
  return std::nullopt;
}

Verdict OutputBook::CompareEnded(const CheckItem& item) const {
  const FlowKey key = KeyOf(item);
  const Ended& ended = ended_[EndedPlace(key, item.client_iss)];
  if (!ended.used || ended.key != key || ended.client_iss != item.client_iss)
    return Verdict::kSkipped;
  if (ended.position == item.position)
    return std::ranges::equal(ended.hash, item.hash) ? Verdict::kAgree : Verdict::kDiverged;
  if (ended.position < item.position) return ended.fin ? Verdict::kDiverged : Verdict::kSkipped;
  return item.final != 0 ? Verdict::kDiverged : Verdict::kSkipped;
}

void OutputBook::Settle(uint32_t slot, bool last_chance) {
  Track& track = tracks_[slot];
  if (track.waiting == 0) return;
  track.wake_at = UINT64_MAX;
  for (Waiting& one : waiting_) {
    if (!one.used || one.slot != slot) continue;
    const auto verdict = Compare(slot, one.item, last_chance);
    if (!verdict.has_value()) {
      track.wake_at = std::min(track.wake_at, one.item.final != 0 ? 0 : one.item.position);
      continue;
    }
    if (*verdict != Verdict::kLate || !one.told_late)
      Tell(one.op, one.index, one.item, *verdict, slot);
    Forget(&one);
  }
}

void OutputBook::Forget(Waiting* waiting) {
  --tracks_[waiting->slot].waiting;
  --waiting_count_;
  waiting->used = false;
}

void OutputBook::Tick(Nanoseconds now) {
  if (waiting_count_ == 0 || now < next_look_) return;
  next_look_ = now + kLookInterval;
  for (Waiting& one : waiting_) {
    if (!one.used || now - one.since < options_.wait) continue;
    const Verdict verdict = *Compare(one.slot, one.item, true);
    if (verdict != Verdict::kLate || !one.told_late)
      Tell(one.op, one.index, one.item, verdict, one.slot);
    one.told_late = true;
    if (verdict != Verdict::kLate || now - one.since >= kLongestWait) Forget(&one);
  }
}

void OutputBook::Tell(uint64_t op, uint16_t index, const CheckItem& item, Verdict verdict,
                      uint32_t slot) {
  OutputApplication& application = Application(item.vm_port);
  VerdictRecord record{};
  record.op = op;
  record.index = index;
  record.verdict = static_cast<uint8_t>(verdict);
  std::array<std::byte, kTailBytes> tail;
  if (slot != kNoSlot) {
    Track& track = tracks_[slot];
    record.position = track.chain.position();
    record.agreed = track.agreed;
    record.cause = static_cast<uint8_t>(track.lost);
    if (verdict == Verdict::kAgree) track.agreed = std::max(track.agreed, item.position);
    if (verdict == Verdict::kDiverged) {
      const uint64_t at = std::min(item.position, track.chain.position());
      const auto hash = track.chain.HashAt(shape_, Ring(slot), at);
      if (hash.has_value()) std::ranges::copy(*hash, record.hash);
      record.tail_bytes = static_cast<uint16_t>(track.chain.CopyTail(Ring(slot), at, tail));
    }
  }
  switch (verdict) {
    case Verdict::kAgree:
      ++application.agreed;
      break;
    case Verdict::kLate:
      ++application.late;
      break;
    case Verdict::kDiverged:
      ++application.diverged;
      break;
    case Verdict::kSkipped:
      ++application.skipped;
      break;
  }
  AppendRaw(&verdicts_, record);
  verdicts_.insert(verdicts_.end(), tail.begin(), tail.begin() + record.tail_bytes);
}

// ---- saving and loading

void OutputBook::SaveFlow(StateWriter& out, uint32_t slot) {
  Track& track = tracks_[slot];
  track.chain.VisitState(out);
  out.Number(track.cut);
  out.Number(track.summed);
  const uint64_t bytes = std::min<uint64_t>(track.chain.position(), shape_.RingBytes());
  if (track.chain.open()) out.Bytes(Ring(slot).first(static_cast<size_t>(bytes)));
}

bool OutputBook::LoadFlow(StateReader& in, const Flow& flow, uint32_t slot, bool apply) {
  Track track;
  track.chain.VisitState(in);
  in.Number(track.cut);
  in.Number(track.summed);
  const MaskSet* masks = MasksOf(flow.key.vm_port);
  if (!in.ok() || !(masks != nullptr ? *masks : MaskSet()).MayBe(track.chain.mask())) return false;
  // What was said is hashed from the moment on at which the log defines the flow.
  if (track.chain.open() != flow.defined) return false;
  track.key = flow.key;
  track.client_iss = flow.client_iss;
  track.lost = flow.divergence;
  const uint64_t position = track.chain.position();
  const auto bytes =
      track.chain.open()
          ? in.Skip(static_cast<size_t>(std::min<uint64_t>(position, shape_.RingBytes())))
          : std::span<const std::byte>{};
  if (!in.ok() || !apply) return in.ok();
  track.checked = track.agreed = 0;
  tracks_[slot] = track;
  std::ranges::copy(bytes, Ring(slot).begin());
  return true;
}

void OutputBook::SaveApplications(StateWriter& out) {
  out.Number(static_cast<uint64_t>(shape_.queue_bytes));
  out.Number(shape_.compare_every);
  out.Number(static_cast<uint32_t>(applications_used_));
  for (OutputApplication& one : std::span(applications_).first(applications_used_)) {
    out.Number(one.port);
    for (const uint64_t* number :
         {&one.flows_ended, &one.flows_cut, &one.bytes, &one.datagrams, &one.datagram_bytes})
      out.Number(*number);
    out.Bytes(std::as_bytes(std::span(one.summary)));
  }
}

// Counts of checks stay this replica's own.
bool OutputBook::LoadApplications(StateReader& in, bool apply) {
  uint64_t queue_bytes = 0;
  uint32_t compare_every = 0, count = 0;
  in.Number(queue_bytes);
  in.Number(compare_every);
  in.Limited(count, kMaxApplications);
  if (!in.ok() || queue_bytes != shape_.queue_bytes || compare_every != shape_.compare_every)
    return false;
  const auto before = applications_;
  const size_t before_used = applications_used_;
  if (apply) {
    applications_.fill(OutputApplication());
    applications_used_ = count;
  }
  for (uint32_t i = 0; i < count; ++i) {
    OutputApplication one;
    in.Number(one.port);
    for (uint64_t* number :
         {&one.flows_ended, &one.flows_cut, &one.bytes, &one.datagrams, &one.datagram_bytes})
      in.Number(*number);
    in.Bytes(std::as_writable_bytes(std::span(one.summary)));
    if (apply) applications_[i] = one;
  }
  if (!apply) return in.ok();
  for (const OutputApplication& old : std::span(before).first(before_used)) {
    OutputApplication& one = Application(old.port);
    one.agreed += old.agreed;
    one.late += old.late;
    one.diverged += old.diverged;
    one.skipped += old.skipped;
    one.unchecked += old.unchecked;
  }
  return in.ok();
}

}  // namespace falcon
