#include "addon/convert.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "os/check.h"

namespace falcon::addon {
namespace {

Napi::Value Bytes(Napi::Env env, const std::vector<std::byte>& bytes) {
  return Napi::Buffer<uint8_t>::Copy(env, reinterpret_cast<const uint8_t*>(bytes.data()),
                                     bytes.size());
}

Napi::Array TableArray(Napi::Env env, const std::vector<ViewTableRow>& table) {
  Napi::Array rows = Napi::Array::New(env, table.size());
  for (uint32_t i = 0; i < table.size(); ++i) {
    Napi::Object row = Napi::Object::New(env);
    row.Set("view", static_cast<double>(table[i].view));
    row.Set("firstOp", static_cast<double>(table[i].first_op));
    rows.Set(i, row);
  }
  return rows;
}

constexpr const char* kEventNames[] = {"promised",
                                       "following",
                                       "leading",
                                       "mail",
                                       "control",
                                       "caught-up",
                                       "gate-opened",
                                       "input-held",
                                       "surrendered",
                                       "stream-broken",
                                       "feed-lost",
                                       "failed",
                                       "check-due",
                                       "verdicts",
                                       "transfer-opened",
                                       "transfer-round",
                                       "transfer-held",
                                       "transfer-sent",
                                       "transfer-progress",
                                       "transfer-arrived",
                                       "transfer-installed",
                                       "transfer-failed",
                                       "transfer-taken",
                                       "transfer-verified",
                                       "transfer-settled"};

template <typename T>
void Put(Napi::Object& into, const char* key, T value) {
  into.Set(key, static_cast<double>(value));
}

Napi::Object FlowObject(Napi::Env env, const FlowCounters& f) {
  Napi::Object o = Napi::Object::New(env);
  Put(o, "framesAdmitted", f.frames_admitted);
  Put(o, "framesRefused", f.frames_refused);
  Put(o, "framesDelivered", f.frames_delivered);
  Put(o, "framesToGuest", f.frames_to_guest);
  Put(o, "framesFromGuest", f.frames_from_guest);
  Put(o, "framesToWire", f.frames_to_wire);
  Put(o, "reoffered", f.reoffered);
  Put(o, "localAcks", f.local_acks);
  Put(o, "clampedAcks", f.clamped_acks);
  Put(o, "held", f.held);
  Put(o, "neighbourAnswers", f.neighbour_answers);
  Put(o, "retainedResent", f.retained_resent);
  Put(o, "retainDropped", f.retain_dropped);
  Put(o, "flows", f.flows);
  Put(o, "halfOpen", f.half_open);
  Put(o, "flowsOpened", f.flows_opened);
  Put(o, "flowsClosed", f.flows_closed);
  Put(o, "evictedHalfOpen", f.evicted_half_open);
  Put(o, "refusedFull", f.refused_full);
  Put(o, "diverged", f.diverged);
  Put(o, "malformed", f.malformed);
  Put(o, "droppedToGuest", f.dropped_to_guest);
  Put(o, "retainedBytes", f.retained_bytes);
  Put(o, "heldBytes", f.held_bytes);
  Put(o, "outputGaps", f.output_gaps);
  return o;
}

// [{port, start: Uint8Array, bytes}]
std::vector<OutputMask> ReadMasks(const Napi::Value& value) {
  std::vector<OutputMask> masks;
  if (!value.IsArray()) return masks;
  const auto list = value.As<Napi::Array>();
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const auto one = list.Get(i).As<Napi::Object>();
    const auto start = BytesOf(one.Get("start"));
    masks.push_back({static_cast<uint16_t>(Number(one, "port")),
                     {start.begin(), start.end()},
                     static_cast<uint32_t>(Number(one, "bytes"))});
  }
  return masks;
}

std::vector<PlaneOptions::Fault> ReadFaults(const Napi::Value& value) {
  std::vector<PlaneOptions::Fault> faults;
  if (!value.IsArray()) return faults;
  const auto list = value.As<Napi::Array>();
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const auto one = list.Get(i).As<Napi::Object>();
    const auto from = BytesOf(one.Get("from")), to = BytesOf(one.Get("to"));
    if (from.empty() || from.size() != to.size()) continue;
    faults.push_back({{from.begin(), from.end()}, {to.begin(), to.end()}});
  }
  return faults;
}

}  // namespace

double Number(const Napi::Object& from, const char* key) {
  return from.Get(key).ToNumber().DoubleValue();
}
bool Flag(const Napi::Object& from, const char* key) { return from.Get(key).ToBoolean().Value(); }

std::string Text(const Napi::Object& from, const char* key) {
  const Napi::Value value = from.Get(key);
  return value.IsString() ? value.As<Napi::String>().Utf8Value() : std::string();
}

bool Throw(Napi::Env env, const Status& status) {
  if (status.ok()) return false;
  Napi::Error error = Napi::Error::New(env, status.detail());
  error.Value().Set("code", Napi::String::New(env, status.code()));
  error.ThrowAsJavaScriptException();
  return true;
}

PlaneOptions ReadPlaneOptions(const Napi::Object& from) {
  PlaneOptions o;
  o.self = static_cast<PeerId>(Number(from, "self"));
  o.promised_view = static_cast<View>(Number(from, "promisedView"));
  o.members = static_cast<size_t>(Number(from, "members"));
  o.force = Flag(from, "force");
  o.log_bytes = static_cast<size_t>(Number(from, "logBytes"));
  o.log_entries = static_cast<size_t>(Number(from, "logEntries"));
  o.ring_bytes = static_cast<size_t>(Number(from, "ringBytes"));
  o.inflight_entries = static_cast<size_t>(Number(from, "inflightEntries"));
  o.heartbeat_interval = static_cast<Nanoseconds>(Number(from, "heartbeatNs"));
  if (from.Has("releaseNs"))
    o.release_interval = static_cast<Nanoseconds>(Number(from, "releaseNs"));
  o.lease = static_cast<Nanoseconds>(Number(from, "leaseNs"));
  o.decider_stall = static_cast<Nanoseconds>(Number(from, "deciderStallNs"));
  o.keep_unproposed = Flag(from, "keepUnproposed");
  o.flows.hash_seed = static_cast<uint64_t>(Number(from, "hashSeed"));
  o.pool.hash_seed = o.flows.hash_seed;
  OutputOptions& output = o.flows.output;
  output.queue_bytes = static_cast<size_t>(Number(from, "outputQueueBytes"));
  output.compare_every = static_cast<uint32_t>(Number(from, "outputCompareEvery"));
  output.check_after = static_cast<Nanoseconds>(Number(from, "outputCheckNs"));
  output.wait = static_cast<Nanoseconds>(Number(from, "outputWaitNs"));
  output.masks = ReadMasks(from.Get("outputMasks"));
  o.faults = ReadFaults(from.Get("faults"));
  const auto mac = BytesOf(from.Get("vmMac"));
  if (mac.size() == sizeof o.flows.vm_mac) std::memcpy(o.flows.vm_mac, mac.data(), mac.size());
  const auto address = BytesOf(from.Get("vmAddress"));
  if (address.size() == sizeof o.vm_address)
    std::memcpy(&o.vm_address, address.data(), address.size());
  return o;
}

VerbsOptions ReadVerbsOptions(const Napi::Value& value) {
  VerbsOptions o;
  if (!value.IsObject()) return o;
  const auto from = value.As<Napi::Object>();
  o.device = Text(from, "device");
  o.port = static_cast<uint8_t>(Number(from, "port"));
  o.gid_index = static_cast<int>(Number(from, "gidIndex"));
  o.timeout = static_cast<uint8_t>(Number(from, "timeout"));
  o.retry = static_cast<uint8_t>(Number(from, "retry"));
  o.rnr_retry = static_cast<uint8_t>(Number(from, "rnrRetry"));
  o.min_rnr_timer = static_cast<uint8_t>(Number(from, "minRnrTimer"));
  o.send_queue = static_cast<uint32_t>(Number(from, "sendQueue"));
  o.inline_bytes = static_cast<uint32_t>(Number(from, "inlineBytes"));
  return o;
}

Napi::Object LinkObject(Napi::Env env, const VerbsLink& link) {
  Napi::Object o = Napi::Object::New(env);
  o.Set("device", link.device);
  o.Set("gid", link.gid);
  o.Set("linkLayer", link.link_layer);
  Put(o, "port", link.port);
  Put(o, "gidIndex", link.gid_index);
  Put(o, "mtuBytes", link.mtu_bytes);
  Put(o, "inlineBytes", link.inline_bytes);
  return o;
}

std::span<const std::byte> BytesOf(const Napi::Value& value) {
  if (!value.IsTypedArray()) return {};
  const auto array = value.As<Napi::Uint8Array>();
  return {reinterpret_cast<const std::byte*>(array.Data()), array.ByteLength()};
}

std::span<double> NumbersOf(const Napi::Value& value) {
  auto array = value.As<Napi::Float64Array>();
  return {array.Data(), array.ElementLength()};
}

Napi::Object EventObject(Napi::Env env, const PlaneEvent& event) {
  Napi::Object o = Napi::Object::New(env);
  o.Set("type", kEventNames[static_cast<size_t>(event.kind)]);
  Put(o, "peer", event.peer);
  Put(o, "view", event.view);
  Put(o, "op", event.op);
  Put(o, "atNs", event.at);
  switch (event.kind) {
    case PlaneEvent::Kind::kPromised:
      Put(o, "lastView", event.last_view);
      Put(o, "commitOp", event.commit_op);
      o.Set("table", TableArray(env, event.table));
      break;
    case PlaneEvent::Kind::kControl:
      Put(o, "entryKind", event.entry_kind);
      o.Set("bytes", Bytes(env, event.bytes));
      break;
    case PlaneEvent::Kind::kMail:
    case PlaneEvent::Kind::kStreamBroken:
    case PlaneEvent::Kind::kFeedLost:
    case PlaneEvent::Kind::kFailed:
    case PlaneEvent::Kind::kTransferOpened:
    case PlaneEvent::Kind::kTransferFailed:
    case PlaneEvent::Kind::kTransferVerified:
    case PlaneEvent::Kind::kCheckDue:
    case PlaneEvent::Kind::kVerdicts:
      o.Set("bytes", Bytes(env, event.bytes));
      break;
    case PlaneEvent::Kind::kTransferRound:
    case PlaneEvent::Kind::kTransferHeld:
    case PlaneEvent::Kind::kTransferSent:
    case PlaneEvent::Kind::kTransferArrived: {
      Napi::Array numbers = Napi::Array::New(env, event.numbers.size());
      for (uint32_t i = 0; i < event.numbers.size(); ++i)
        numbers.Set(i, static_cast<double>(event.numbers[i]));
      o.Set("numbers", numbers);
      break;
    }
    default:
      break;
  }
  return o;
}

void FillProgress(const PlaneSnapshot& s, std::span<double> out) {
  FALCON_CHECK(out.size() == kProgressFields.size() + 2 * kMaxMembers);
  const auto number = [](auto value) { return static_cast<double>(value); };
  const double values[] = {number(s.role),
                           number(s.promised_view),
                           number(s.last_op),
                           number(s.durable_op),
                           number(s.commit_op),
                           number(s.delivered_op),
                           number(s.lease_end),
                           s.gate_open    ? 2.0
                           : s.gate_armed ? 1.0
                                          : 0.0,
                           number(s.heard_view),
                           number(s.heard_from),
                           number(s.heard_at),
                           number(s.guest),
                           number(s.base.op),
                           number(s.base.view),
                           number(s.base.checksum),
                           number(s.committed.view),
                           number(s.committed.checksum)};
  static_assert(std::size(values) == kProgressFields.size());
  double* at = std::copy(std::begin(values), std::end(values), out.data());
  for (size_t i = 0; i < kMaxMembers; ++i) *at++ = s.acks[i] ? number(s.acked[i]) : -1.0;
  for (const Nanoseconds words : s.words_at) *at++ = number(words);
}

Napi::Object CountersObject(Napi::Env env, const PlaneSnapshot& s) {
  Napi::Object o = Napi::Object::New(env);
  Put(o, "poolFrames", s.pool_frames);
  o.Set("flows", FlowObject(env, s.flows));
  Napi::Object fabric = Napi::Object::New(env);
  Put(fabric, "writes", s.fabric.writes);
  Put(fabric, "writtenBytes", s.fabric.written_bytes);
  Put(fabric, "reads", s.fabric.reads);
  Put(fabric, "wakesSent", s.fabric.wakes_sent);
  Put(fabric, "wakesReceived", s.fabric.wakes_received);
  Put(fabric, "errors", s.fabric.errors);
  Put(fabric, "posted", s.verbs.posted);
  Put(fabric, "signaled", s.verbs.signaled);
  Put(fabric, "inlined", s.verbs.inlined);
  Put(fabric, "staged", s.verbs.staged);
  Put(fabric, "probes", s.verbs.probes);
  o.Set("fabric", fabric);
  Napi::Object wal = Napi::Object::New(env);
  Put(wal, "batches", s.wal.batches);
  Put(wal, "entries", s.wal.entries);
  Put(wal, "bytes", s.wal.bytes);
  Put(wal, "forces", s.wal.forces);
  Put(wal, "segments", s.wal.segments);
  Put(wal, "diskBytes", s.wal.disk_bytes);
  o.Set("wal", wal);
  Put(o, "serviceFrames", s.service_frames);
  Put(o, "serviceDigest", s.service_digest);
  Put(o, "entriesProposed", s.entries_proposed);
  Put(o, "framesIn", s.frames_in);
  Put(o, "framesOut", s.frames_out);
  Put(o, "framesGated", s.frames_gated);
  Put(o, "wireErrors", s.wire_errors);
  Put(o, "polls", s.polls);
  Put(o, "busyPolls", s.busy_polls);
  Put(o, "sleptNs", s.slept);
  Put(o, "stallMaxNs", s.stall_max);
  Put(o, "stalls", s.stalls);
  Put(o, "doorbells", s.doorbells);
  Put(o, "recordsPosted", s.records_posted);
  Put(o, "mailDropped", s.mail_dropped);
  Put(o, "poolProposed", s.pool_proposed);
  return o;
}

Napi::Array OutputsArray(Napi::Env env, const PlaneSnapshot& s) {
  constexpr char kDigits[] = "0123456789abcdef";
  Napi::Array list = Napi::Array::New(env, s.outputs.size());
  for (uint32_t i = 0; i < s.outputs.size(); ++i) {
    const OutputApplication& a = s.outputs[i];
    Napi::Object o = Napi::Object::New(env);
    Put(o, "port", a.port);
    Put(o, "flowsEnded", a.flows_ended);
    Put(o, "flowsCut", a.flows_cut);
    Put(o, "bytes", a.bytes);
    Put(o, "datagrams", a.datagrams);
    Put(o, "datagramBytes", a.datagram_bytes);
    Put(o, "agreed", a.agreed);
    Put(o, "late", a.late);
    Put(o, "diverged", a.diverged);
    Put(o, "skipped", a.skipped);
    Put(o, "unchecked", a.unchecked);
    std::string summary;
    for (const uint8_t byte : a.summary) {
      summary += kDigits[byte >> 4];
      summary += kDigits[byte & 15];
    }
    o.Set("summary", summary);
    list.Set(i, o);
  }
  return list;
}

Napi::Object LoadObject(Napi::Env env, const LoadResult& load) {
  Napi::Object o = Napi::Object::New(env);
  Put(o, "number", load.number);
  o.Set("done", load.done);
  o.Set("leadershipLost", load.leadership_lost);
  Put(o, "entries", load.entries);
  Put(o, "elapsedNs", load.elapsed);
  Put(o, "p50Ns", load.p50);
  Put(o, "p90Ns", load.p90);
  Put(o, "p99Ns", load.p99);
  Put(o, "p999Ns", load.p999);
  Put(o, "maxNs", load.max);
  return o;
}

Napi::Object RecoveredObject(Napi::Env env, const RecoveredLog& r) {
  Napi::Object o = Napi::Object::New(env);
  Put(o, "firstOp", r.first_op);
  Put(o, "baseView", r.base.view);
  Put(o, "baseChecksum", r.base.checksum);
  Put(o, "lastOp", r.last_op);
  Put(o, "lastView", r.last_view);
  o.Set("table", TableArray(env, r.view_table));
  Put(o, "tornBytes", r.torn_bytes);
  o.Set("damaged", r.damaged);
  Put(o, "damagedAfterOp", r.damaged_after_op);
  o.Set("damageDetail", r.damage_detail);
  return o;
}

}  // namespace falcon::addon
