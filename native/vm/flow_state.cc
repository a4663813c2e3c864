// Copying a table to another replica, whose guest has become a copy of this one's.
//
//   state  = magic, version, length of the body, CRC32C of the body, body
//   body   = slots; flows in the order of the deadline heap; orders; neighbours; SYNs under way;
//            what the applications have said
//
// Slots, lists and heap keep their orders, so the copy does not only translate alike but also
// evicts, repeats and reports in the same order. A state is read twice: once to find out whether
// it is right in every part and fits this table's bounds, and only then to take it.
#include <algorithm>
#include <tuple>

#include "os/check.h"
#include "os/crc32c.h"
#include "vm/flow_engine.h"

namespace falcon {
namespace {

constexpr uint32_t kMagic = 0x46574C46;  // "FLWF"
constexpr uint32_t kVersion = 1;
constexpr size_t kHeaderBytes = 20;

template <typename Archive, typename Bytes>
void VisitBytes(Archive& archive, Bytes& bytes) {
  archive.Bytes(std::as_writable_bytes(std::span(bytes)));
}

template <typename Archive>
void VisitKey(Archive& archive, FlowKey& key) {
  VisitBytes(archive, key.client);
  VisitBytes(archive, key.vm);
  archive.Number(key.client_port);
  archive.Number(key.vm_port);
}

template <typename Archive>
void VisitOptions(Archive& archive, SynOptions& options) {
  archive.Number(options.mss);
  archive.Number(options.scale);
}

// A header or frame of at most `kept.bytes.size()` bytes.
template <typename Archive, typename Kept>
void VisitKept(Archive& archive, Kept& kept) {
  archive.Limited(kept.length, static_cast<decltype(kept.length)>(kept.bytes.size()));
  archive.Bytes(std::span(kept.bytes).first(kept.length));
}

// Everything of a flow but the bytes that its streams keep.
template <typename Archive>
void VisitFlow(Archive& archive, Flow& flow) {
  VisitKey(archive, flow.key);
  archive.Number(flow.client_iss);
  archive.Number(flow.wire_iss);
  archive.Number(flow.defined);
  archive.Number(flow.client_ack);
  archive.Number(flow.client_edge);
  archive.Number(flow.window_seq);
  archive.Number(flow.client_window);
  VisitOptions(archive, flow.client_options);
  archive.Number(flow.guest_iss_known);
  archive.Number(flow.earlier_guest_iss_known);
  archive.Number(flow.guest_iss);
  archive.Number(flow.earlier_guest_iss);
  archive.Number(flow.guest_next);
  archive.Number(flow.guest_window);
  VisitOptions(archive, flow.guest_options);
  archive.Due(flow.guest_reset_at);
  archive.Number(flow.opened_here);
  archive.Number(flow.closed);
  archive.Number(flow.client_reset);
  archive.Number(flow.reset_offered);
  archive.Number(flow.ack_owed);
  archive.Choice(flow.divergence, FlowDivergence::kReset);
  archive.Number(flow.syn_offers);
  archive.Number(flow.reoffers);
  archive.Number(flow.probe_answers);
  archive.Time(flow.last_heard);
  archive.Due(flow.syn_offer_at);
  archive.Due(flow.hold_until);
  archive.Due(flow.reoffer_at);
  VisitKept(archive, flow.handshake);
  VisitKept(archive, flow.to_guest);
  VisitKept(archive, flow.to_wire);
  flow.input.VisitState(archive);
  flow.output.VisitState(archive);
}

template <typename Archive>
void VisitNeighbour(Archive& archive, Neighbours::Entry& entry) {
  VisitBytes(archive, entry.address);
  VisitBytes(archive, entry.mac);
  archive.Number(entry.shown);
  archive.Number(entry.heard);
}

bool IsLinkLength(size_t bytes) {
  return bytes == kEthernetHeaderBytes || bytes == kEthernetHeaderBytes + kVlanTagBytes ||
         bytes == kMaxLinkBytes;
}

bool IsSound(const SynOptions& options) {
  return options.mss >= kMinMss && (options.scale <= kMaxScale || options.scale == kNoScale);
}

size_t RetainedBytes(const Flow& flow) {
  return flow.diverged() ? 0 : static_cast<size_t>(flow.output.end() - flow.output.begin());
}

bool KeyBefore(const FlowKey& a, const FlowKey& b) {
  return std::tie(a.client, a.vm, a.client_port, a.vm_port) <
         std::tie(b.client, b.vm, b.client_port, b.vm_port);
}

}  // namespace

struct FlowEngine::StateNeeds {
  explicit StateNeeds(size_t slots) : used(slots, 0), listed(slots, 0) {}
  size_t held_blocks = 0, retained_blocks = 0;
  std::vector<uint8_t> used;    // per slot: a flow has it
  std::vector<uint8_t> listed;  // per slot: the list that its flow must be in
  std::vector<FlowKey> keys;
};

void FlowEngine::Save(std::vector<std::byte>* out, Nanoseconds now) {
  const size_t start = out->size();
  StateWriter header(out, now);
  header.Number(kMagic);
  header.Number(kVersion);
  header.Number(uint64_t{0});  // length and CRC: below
  header.Number(uint32_t{0});
  StateWriter body(out, now);
  body.Number(static_cast<uint32_t>(index_.slots()));
  body.Number(static_cast<uint32_t>(index_.size()));
  // Every flow has a deadline: whatever opens or serves one ends by setting it.
  FALCON_CHECK(index_.deadlines.order().size() == index_.size());
  for (const uint32_t slot : index_.deadlines.order()) WriteFlow(body, &index_.at(slot));
  const auto slots = [&body](const auto& each, size_t count) {
    body.Number(static_cast<uint32_t>(count));
    each([&body](uint32_t slot) { body.Number(slot); });
  };
  for (const auto list : {FlowIndex::kHalfOpen, FlowIndex::kClosed})
    slots([&](auto take) { index_.ForEachOf(list, take); }, index_.count(list));
  slots([&](auto take) { std::ranges::for_each(index_.free_slots(), take); },
        index_.free_slots().size());
  slots(
      [&](auto take) {
        for (size_t i = 0; i < blocked_count_; ++i)
          take(blocked_[(blocked_first_ + i) % blocked_.size()]);
      },
      blocked_count_);
  const auto known = neighbours_.entries();
  body.Number(neighbours_.clock());
  body.Number(static_cast<uint32_t>(std::ranges::count_if(known, &Neighbours::Entry::used)));
  for (Neighbours::Entry entry : known) {
    if (entry.used) VisitNeighbour(body, entry);
  }
  uint32_t pending = 0;
  pending_.ForEach([&pending](const FlowKey&, Seq, Nanoseconds) { ++pending; });
  body.Number(pending);
  pending_.ForEach([&body](FlowKey key, Seq client_iss, Nanoseconds since) {
    VisitKey(body, key);
    body.Number(client_iss);
    body.Time(since);
  });
  book_.SaveApplications(body);
  const auto made = std::span(*out).subspan(start);
  const uint64_t length = made.size() - kHeaderBytes;
  const uint32_t crc = Crc32c(made.subspan(kHeaderBytes));
  std::memcpy(made.data() + 8, &length, sizeof length);
  std::memcpy(made.data() + 16, &crc, sizeof crc);
}

void FlowEngine::Facts(std::vector<FlowFacts>* out) const {
  for (uint32_t slot = 0; slot < index_.slots(); ++slot) {
    const Flow& flow = index_.at(slot);
    if (!flow.used || !flow.defined || flow.closed) continue;
    const Seq said = flow.ready() ? flow.guest_next - flow.Delta() : Seq{0};
    out->push_back({flow.key.client, flow.key.vm, flow.key.client_port, flow.key.vm_port,
                    flow.client_iss, flow.wire_iss, flow.client_ack, said,
                    static_cast<uint32_t>(flow.divergence)});
  }
}

void FlowEngine::WriteFlow(StateWriter& out, Flow* flow) {
  out.Number(flow->index);
  out.Time(index_.deadlines.time(flow->index));
  out.Number(flow->list);
  VisitFlow(out, *flow);
  std::array<std::byte, BlockPool::kBlockBytes> piece;
  const auto copy = [&](ByteQueue& queue, BlockPool& pool, size_t at, size_t count) {
    while (count > 0) {
      const auto part = std::span(piece).first(std::min(count, piece.size()));
      queue.Read(pool, at, part);
      out.Bytes(part);
      at += part.size();
      count -= part.size();
    }
  };
  out.Number(flow->input.kept().skip());
  flow->input.ForEachRun(
      [&](size_t at, size_t count) { copy(flow->input.kept(), held_, at, count); });
  out.Number(flow->output.kept().skip());
  copy(flow->output.kept(), retained_, 0, RetainedBytes(*flow));
  book_.SaveFlow(out, flow->index);
}

Status FlowEngine::Load(std::span<const std::byte> state, Nanoseconds now) {
  const auto refuse = [](const char* why) { return Status("FLOW_STATE", why); };
  if (state.size() < kHeaderBytes) return refuse("shorter than its header");
  StateReader header(state.first(kHeaderBytes), now);
  uint32_t magic = 0, version = 0, crc = 0;
  uint64_t length = 0;
  header.Number(magic);
  header.Number(version);
  header.Number(length);
  header.Number(crc);
  const auto body = state.subspan(kHeaderBytes);
  if (magic != kMagic) return refuse("no state of flows");
  if (version != kVersion) return refuse("of another version");
  if (length != body.size()) return refuse("not as long as it says");
  if (crc != Crc32c(body)) return refuse("checksum wrong");
  if (const char* why = ReadState(body, now, false); why != nullptr) return refuse(why);
  Reset();
  FALCON_CHECK(ReadState(body, now, true) == nullptr);
  for (const uint32_t slot : index_.deadlines.order())
    counters_.flows_opened += !index_.at(slot).closed;
  if (!serving_) {
    for (uint32_t slot = 0; slot < index_.slots(); ++slot) {
      if (index_.at(slot).used && index_.at(slot).opened_here) Adopt(&index_.at(slot));
    }
  }
  return Ok();
}

// Null if all is right, otherwise what is not.
const char* FlowEngine::ReadState(std::span<const std::byte> body, Nanoseconds now, bool apply) {
  StateReader in(body, now);
  uint32_t slots = 0, flows = 0;
  in.Number(slots);
  in.Number(flows);
  if (!in.ok() || slots != index_.slots()) return "of a table of another size";
  if (flows > slots) return "more flows than slots";
  StateNeeds needs(slots);
  needs.keys.reserve(flows);
  for (uint32_t i = 0; i < flows; ++i) {
    if (const char* why = ReadFlow(in, &needs, apply); why != nullptr) return why;
  }
  if (needs.held_blocks > held_.blocks() || needs.retained_blocks > retained_.blocks())
    return "more bytes than there is room for";
  std::ranges::sort(needs.keys, KeyBefore);
  if (std::ranges::adjacent_find(needs.keys) != needs.keys.end()) return "a flow twice";
  if (const char* why = ReadOrders(in, &needs, apply); why != nullptr) return why;
  if (const char* why = ReadNeighbours(in, apply); why != nullptr) return why;
  if (const char* why = ReadPending(in, apply); why != nullptr) return why;
  if (!book_.LoadApplications(in, apply)) return "outputs that are compared otherwise";
  return in.at_end() ? nullptr : "something behind its end";
}

const char* FlowEngine::ReadFlow(StateReader& in, StateNeeds* needs, bool apply) {
  uint32_t slot = 0;
  Nanoseconds deadline = 0;
  uint8_t list = 0;
  Flow read;
  in.Limited(slot, static_cast<uint32_t>(index_.slots() - 1));
  in.Time(deadline);
  in.Limited(list, FlowIndex::kLists - 1);
  VisitFlow(in, read);
  if (!in.ok() || !FlowIsSound(read)) return "a flow that cannot be";
  const FlowIndex::List proper = !read.defined                    ? FlowIndex::kHalfOpen
                                 : read.closed || read.diverged() ? FlowIndex::kClosed
                                                                  : FlowIndex::kNoList;
  if (list != proper) return "a flow in a wrong list";
  if (needs->used[slot] != 0) return "a slot twice";
  needs->used[slot] = 1;
  needs->listed[slot] = list;
  needs->keys.push_back(read.key);
  Flow* flow = apply ? index_.Restore(slot, read) : nullptr;

  constexpr uint32_t kMaxSkip = BlockPool::kBlockBytes - 1;
  const size_t held = read.input.KeptBytes(), retained = RetainedBytes(read);
  uint32_t skip = 0;
  in.Limited(skip, kMaxSkip);
  needs->held_blocks += ByteQueue::BlocksFor(skip, held);
  if (apply) flow->input.kept().Restore(held_, skip, held);
  read.input.ForEachRun([&](size_t at, size_t count) {
    const auto bytes = in.Skip(count);
    if (apply) flow->input.kept().Write(held_, at, bytes);
  });
  in.Limited(skip, kMaxSkip);
  needs->retained_blocks += ByteQueue::BlocksFor(skip, retained);
  const auto bytes = in.Skip(retained);
  if (apply) {
    flow->output.kept().Restore(retained_, skip, retained);
    flow->output.kept().Write(retained_, 0, bytes);
    index_.deadlines.Set(slot, deadline);
  }
  if (!book_.LoadFlow(in, read, slot, apply)) return "an output that cannot be";
  return in.ok() ? nullptr : "a flow that is cut short";
}

bool FlowEngine::FlowIsSound(const Flow& flow) const {
  if (IsMappedIpv4(flow.key.client) != IsMappedIpv4(flow.key.vm)) return false;
  if (!IsSound(flow.client_options) || !IsSound(flow.guest_options)) return false;
  if (flow.reoffers > kMaxBackOff || !IsLinkLength(flow.to_guest.length)) return false;
  const bool spoke = flow.to_wire.length != 0;
  if (spoke ? !IsLinkLength(flow.to_wire.length) : flow.guest_iss_known) return false;
  if (!flow.input.StateIsSound(options_.hold_bytes_per_flow)) return false;
  if (flow.diverged() && flow.input.KeptBytes() > 0) return false;
  const size_t retained = RetainedBytes(flow);
  return retained <= options_.retain_bytes_per_flow && (flow.defined || retained == 0);
}

// The lists, the free slots and the line of blocked flows.
const char* FlowEngine::ReadOrders(StateReader& in, StateNeeds* needs, bool apply) {
  const size_t slots = index_.slots();
  std::vector<uint32_t> order;
  const auto read = [&](auto belongs) {
    std::vector<uint8_t> seen(slots, 0);
    uint32_t count = 0;
    in.Limited(count, static_cast<uint32_t>(slots));
    order.clear();
    for (uint32_t i = 0; i < count && in.ok(); ++i) {
      uint32_t slot = 0;
      in.Limited(slot, static_cast<uint32_t>(slots - 1));
      if (!in.ok() || seen[slot] != 0 || !belongs(slot)) return false;
      seen[slot] = 1;
      order.push_back(slot);
    }
    return in.ok();
  };
  for (const auto list : {FlowIndex::kHalfOpen, FlowIndex::kClosed}) {
    const auto belongs = [&](uint32_t s) {
      return needs->used[s] != 0 && needs->listed[s] == list;
    };
    if (!read(belongs)) return "a list that cannot be";
    size_t members = 0;
    for (uint32_t s = 0; s < slots; ++s) members += belongs(s) ? 1 : 0;
    if (members != order.size()) return "a list that lacks a flow";
    if (list == FlowIndex::kHalfOpen && members > 2 * options_.max_half_open)
      return "too many half-open flows";
    for (const uint32_t slot : order) {
      if (apply) index_.MoveTo(&index_.at(slot), list);
    }
  }
  if (!read([&](uint32_t s) { return needs->used[s] == 0; })) return "free slots that cannot be";
  if (order.size() + needs->keys.size() != slots) return "slots that are neither free nor used";
  if (apply) index_.SetFree(order);
  if (!read([](uint32_t) { return true; })) return "a line of blocked flows that cannot be";
  if (!apply) return nullptr;
  for (const uint32_t slot : order) Block(&index_.at(slot));
  return nullptr;
}

const char* FlowEngine::ReadNeighbours(StateReader& in, bool apply) {
  uint64_t clock = 0;
  uint32_t count = 0;
  in.Number(clock);
  in.Limited(count, static_cast<uint32_t>(neighbours_.entries().size()));
  for (uint32_t i = 0; i < count && in.ok(); ++i) {
    Neighbours::Entry entry;
    VisitNeighbour(in, entry);
    if (!in.ok() || entry.heard > clock || !neighbours_.MayHold(entry))
      return "a neighbour that cannot be";
    entry.used = true;
    if (apply) neighbours_.Restore(entry);
  }
  if (!in.ok()) return "neighbours that are cut short";
  if (apply) neighbours_.SetClock(clock);
  return nullptr;
}

const char* FlowEngine::ReadPending(StateReader& in, bool apply) {
  uint32_t count = 0;
  in.Limited(count, PendingSyns::kPlaces);
  for (uint32_t i = 0; i < count && in.ok(); ++i) {
    FlowKey key;
    Seq client_iss = 0;
    Nanoseconds since = 0;
    VisitKey(in, key);
    in.Number(client_iss);
    in.Time(since);
    if (apply && in.ok()) pending_.Add(index_.Hash(key), key, client_iss, since);
  }
  return in.ok() ? nullptr : "waiting SYNs that are cut short";
}

}  // namespace falcon
