#include "addon/simulation.h"

#include "addon/commands.h"
#include "addon/convert.h"
#include "os/check.h"

namespace falcon::addon {
namespace {

constexpr uint64_t kSimRingBytes = 512 << 10;

PeerId Peer(const Napi::CallbackInfo& info, size_t argument) {
  const uint32_t peer = info[argument].ToNumber().Uint32Value();
  FALCON_CHECK(peer < kMaxMembers);
  return static_cast<PeerId>(peer);
}

}  // namespace

Napi::Function Simulation::Define(Napi::Env env) {
  return DefineClass(env, "Simulation",
                     {InstanceMethod("start", &Simulation::Start),
                      InstanceMethod("kill", &Simulation::Kill),
                      InstanceMethod("loseDisk", &Simulation::LoseDisk),
                      InstanceMethod("poll", &Simulation::Poll),
                      InstanceMethod("stepWal", &Simulation::StepWal),
                      InstanceMethod("events", &Simulation::Events),
                      InstanceMethod("command", &Simulation::Command),
                      InstanceMethod("connect", &Simulation::Connect),
                      InstanceMethod("descriptor", &Simulation::Descriptor),
                      InstanceMethod("tick", &Simulation::Tick),
                      InstanceMethod("progress", &Simulation::Progress),
                      InstanceMethod("counters", &Simulation::Counters),
                      InstanceMethod("mayRelease", &Simulation::MayRelease),
                      InstanceMethod("expectVm", &Simulation::ExpectVm),
                      InstanceMethod("inject", &Simulation::Inject),
                      InstanceMethod("outputs", &Simulation::Outputs),
                      InstanceMethod("service", &Simulation::Service),
                      InstanceMethod("startGuest", &Simulation::StartGuest),
                      InstanceMethod("stopGuest", &Simulation::StopGuest),
                      InstanceMethod("runGuest", &Simulation::RunGuest),
                      InstanceMethod("logDirty", &Simulation::LogDirty),
                      InstanceMethod("takeDirty", &Simulation::TakeDirty),
                      InstanceMethod("entries", &Simulation::Entries),
                      InstanceMethod("pending", &Simulation::Pending),
                      InstanceMethod("deliver", &Simulation::Deliver),
                      InstanceMethod("deliverStale", &Simulation::DeliverStale),
                      InstanceMethod("cut", &Simulation::Cut),
                      InstanceMethod("break", &Simulation::Break)});
}

Simulation::Simulation(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Simulation>(info) {
  members_ = info[0].ToNumber().Uint32Value();
  const uint64_t seed = info[1].ToNumber().Uint32Value();
  FALCON_CHECK(members_ >= 1 && members_ <= kMaxMembers);
  disks_ = ~(seed * kMaxMembers);
  for (size_t i = 0; i < members_; ++i) {
    nodes_[i].storage = std::make_unique<SimStorage>(seed * kMaxMembers + i + 1);
    nodes_[i].wire.clock = &nodes_[i].clock;
  }
}

bool Simulation::Recorder::Write(Frame frame) {
  outputs.push_back({clock->Now(), {frame.begin(), frame.end()}});
  return true;
}

Simulation::Node& Simulation::At(const Napi::CallbackInfo& info, size_t argument) {
  const PeerId node = Peer(info, argument);
  FALCON_CHECK(node < members_);
  return nodes_[node];
}

Napi::Value Simulation::Start(const Napi::CallbackInfo& info) {
  Node& node = At(info);
  FALCON_CHECK(node.plane == nullptr);
  const auto from = info[1].As<Napi::Object>();
  PlaneOptions options = ReadPlaneOptions(from);
  options.digest_threads = 0;
  WalOptions wal;
  wal.directory = "/wal";
  wal.force = options.force;
  wal.segment_bytes = static_cast<uint64_t>(Number(from, "segmentBytes"));
  wal.retain_bytes = static_cast<uint64_t>(Number(from, "retainBytes"));
  wal.batch_bytes = static_cast<size_t>(Number(from, "batchBytes"));
  wal.cluster = "sim";
  wal.node = options.self;
  node.recovered = {};
  if (Throw(info.Env(), OpenWal(*node.storage, wal, &node.recovered, &node.wal)))
    return info.Env().Null();
  node.fabric = network_.MakeFabric(options.self);
  if (Throw(info.Env(), node.fabric->AddRegion(0, DataPlane::RegionBytes(options))))
    return info.Env().Null();
  if (Flag(from, "vm")) {
    node.rings = std::make_unique<VmRings>();
    if (Throw(info.Env(), node.rings->Make(kSimRingBytes))) return info.Env().Null();
    node.guest.service().Attach(node.rings.get());
    node.tap.Attach(node.rings->shm(), FALCON_RING_INGRESS, node.rings->to_falcond_fd());
  }
  node.plane = std::make_unique<DataPlane>(options, &node.clock, node.fabric.get(), node.wal.get(),
                                           node.recovered, node.rings.get(), &node.wire);
  if (node.rings != nullptr) node.plane->SetBuiltin(&node.guest.service());
  return RecoveredObject(info.Env(), node.recovered);
}

Napi::Value Simulation::Kill(const Napi::CallbackInfo& info) {
  Node& node = At(info);
  FALCON_CHECK(node.plane != nullptr);
  network_.Crash(Peer(info, 0), info[2].ToBoolean().Value());
  node.plane.reset();
  node.wal.reset();
  node.fabric.reset();
  node.rings.reset();
  node.guest.Stop();
  if (info[1].ToBoolean().Value()) {
    node.storage->LosePower();
  } else {
    node.storage->KillProcess();
  }
  return info.Env().Undefined();
}

// An empty host takes this one's place.
Napi::Value Simulation::LoseDisk(const Napi::CallbackInfo& info) {
  Node& node = At(info);
  FALCON_CHECK(node.plane == nullptr);
  node.storage = std::make_unique<SimStorage>(++disks_);
  return info.Env().Undefined();
}

Napi::Value Simulation::Poll(const Napi::CallbackInfo& info) {
  Node& node = At(info);
  if (node.plane == nullptr) return Napi::Number::New(info.Env(), 0);
  node.clock.now = static_cast<Nanoseconds>(info[1].ToNumber().DoubleValue());
  int done = node.plane->PollOnce(node.clock.now);
  if (node.rings != nullptr) done += node.guest.Poll();
  return Napi::Number::New(info.Env(), done);
}

Napi::Value Simulation::StepWal(const Napi::CallbackInfo& info) {
  Node& node = At(info);
  const size_t entries = node.wal == nullptr ? 0 : node.wal->Step();
  return Napi::Number::New(info.Env(), static_cast<double>(entries));
}

Napi::Value Simulation::Events(const Napi::CallbackInfo& info) {
  Node& node = At(info);
  Napi::Array list = Napi::Array::New(info.Env());
  if (node.plane == nullptr) return list;
  uint32_t count = 0;
  for (const PlaneEvent& event : node.plane->events())
    list.Set(count++, EventObject(info.Env(), event));
  node.plane->events().clear();
  return list;
}

Napi::Value Simulation::Command(const Napi::CallbackInfo& info) {
  Node& node = At(info);
  std::vector<Napi::Value> args;
  for (size_t i = 2; i < info.Length(); ++i) args.push_back(info[i]);
  const bool known =
      DispatchCommand(info[1].As<Napi::String>().Utf8Value(), args, [&node](auto command) {
        if (node.plane != nullptr) command(*node.plane);
      });
  return Napi::Boolean::New(info.Env(), known);
}

Napi::Value Simulation::Connect(const Napi::CallbackInfo& info) {
  Node& node = At(info);
  if (node.plane == nullptr) return info.Env().Undefined();
  uint64_t connection = 0;
  const auto id = BytesOf(info[2]);
  FALCON_CHECK(id.size() == sizeof connection);
  std::memcpy(&connection, id.data(), sizeof connection);
  const auto raw = BytesOf(info[3]);
  const std::string_view descriptor(reinterpret_cast<const char*>(raw.data()), raw.size());
  Throw(info.Env(), node.plane->Connect(Peer(info, 1), connection, descriptor));
  return info.Env().Undefined();
}

Napi::Value Simulation::Descriptor(const Napi::CallbackInfo& info) {
  const std::string descriptor = At(info).fabric->Descriptor();
  return Napi::Buffer<char>::Copy(info.Env(), descriptor.data(), descriptor.size());
}

Napi::Value Simulation::Tick(const Napi::CallbackInfo& info) {
  Node& node = At(info);
  if (node.plane != nullptr)
    node.plane->Tick(static_cast<Nanoseconds>(info[1].ToNumber().DoubleValue()));
  return info.Env().Undefined();
}

Napi::Value Simulation::Progress(const Napi::CallbackInfo& info) {
  Node& node = At(info);
  PlaneSnapshot snapshot;
  if (node.plane != nullptr) node.plane->FillSnapshot(&snapshot);
  FillProgress(snapshot, NumbersOf(info[1]));
  return info.Env().Undefined();
}

Napi::Value Simulation::Counters(const Napi::CallbackInfo& info) {
  Node& node = At(info);
  PlaneSnapshot snapshot;
  if (node.plane != nullptr) node.plane->FillSnapshot(&snapshot);
  return CountersObject(info.Env(), snapshot);
}

Napi::Value Simulation::MayRelease(const Napi::CallbackInfo& info) {
  Node& node = At(info);
  if (node.plane == nullptr) return Napi::Boolean::New(info.Env(), false);
  node.clock.now = static_cast<Nanoseconds>(info[1].ToNumber().DoubleValue());
  return Napi::Boolean::New(info.Env(), node.plane->MayRelease());
}

Napi::Value Simulation::ExpectVm(const Napi::CallbackInfo& info) {
  Node& node = At(info);
  if (node.plane == nullptr || node.rings == nullptr) return info.Env().Undefined();
  node.rings->Reset();
  node.plane->AttachRings();
  node.guest.service().Attach(node.rings.get());
  node.tap.Attach(node.rings->shm(), FALCON_RING_INGRESS, node.rings->to_falcond_fd());
  return info.Env().Undefined();
}

Napi::Value Simulation::Inject(const Napi::CallbackInfo& info) {
  Node& node = At(info);
  const bool taken =
      node.plane != nullptr && node.rings != nullptr && node.tap.Push(BytesOf(info[1]));
  return Napi::Boolean::New(info.Env(), taken);
}

Napi::Value Simulation::Outputs(const Napi::CallbackInfo& info) {
  Node& node = At(info);
  Napi::Array list = Napi::Array::New(info.Env(), node.wire.outputs.size());
  uint32_t count = 0;
  for (const auto& output : node.wire.outputs) {
    Napi::Object object = Napi::Object::New(info.Env());
    object.Set("atNs", static_cast<double>(output.at));
    object.Set("frame", Napi::Buffer<uint8_t>::Copy(
                            info.Env(), reinterpret_cast<const uint8_t*>(output.frame.data()),
                            output.frame.size()));
    list.Set(count++, object);
  }
  node.wire.outputs.clear();
  return list;
}

Napi::Value Simulation::Service(const Napi::CallbackInfo& info) {
  const Node& node = At(info);
  Napi::Object object = Napi::Object::New(info.Env());
  object.Set("frames", static_cast<double>(node.guest.service().frames()));
  object.Set("digest", static_cast<double>(node.guest.service().digest()));
  return object;
}

Napi::Value Simulation::StartGuest(const Napi::CallbackInfo& info) {
  const std::string path = info[1].As<Napi::String>().Utf8Value();
  const uint32_t pages = info[2].ToNumber().Uint32Value();
  Throw(info.Env(), At(info).guest.Start(path, pages, info[3].ToNumber().Uint32Value()));
  return info.Env().Undefined();
}

Napi::Value Simulation::StopGuest(const Napi::CallbackInfo& info) {
  At(info).guest.Stop();
  return info.Env().Undefined();
}

Napi::Value Simulation::RunGuest(const Napi::CallbackInfo& info) {
  At(info).guest.Run(info[1].ToBoolean().Value());
  return info.Env().Undefined();
}

Napi::Value Simulation::LogDirty(const Napi::CallbackInfo& info) {
  At(info).guest.LogDirty();
  return info.Env().Undefined();
}

Napi::Value Simulation::TakeDirty(const Napi::CallbackInfo& info) {
  const PageSet dirty = At(info).guest.TakeDirty();
  Napi::Buffer<std::byte> set = Napi::Buffer<std::byte>::New(info.Env(), dirty.SavedBytes());
  dirty.Save(std::span(set.Data(), set.Length()));
  Napi::Object object = Napi::Object::New(info.Env());
  object.Set("pages", static_cast<double>(dirty.Count()));
  object.Set("set", set);
  return object;
}

Napi::Value Simulation::Entries(const Napi::CallbackInfo& info) {
  Node& node = At(info);
  Napi::Array list = Napi::Array::New(info.Env());
  if (node.plane == nullptr) return list;
  const auto from = static_cast<Op>(info[1].ToNumber().DoubleValue());
  const auto until = static_cast<Op>(info[2].ToNumber().DoubleValue());
  uint32_t count = 0;
  std::vector<std::byte> buffer;
  for (Op op = from; op < until; ++op) {
    buffer.clear();
    std::span<const std::byte> entry = node.plane->EntryInMemory(op);
    if (entry.empty()) {
      if (!node.wal->Read(op, op + 1, 0, &buffer).ok() || buffer.empty()) break;
      entry = buffer;
    }
    const EntryHeader header = ReadEntryHeader(entry);
    Napi::Object object = Napi::Object::New(info.Env());
    object.Set("view", static_cast<double>(header.view));
    object.Set("op", static_cast<double>(header.op));
    object.Set("kind", static_cast<double>(header.kind));
    object.Set("checksum", static_cast<double>(header.checksum));
    list.Set(count++, object);
  }
  return list;
}

Napi::Value Simulation::Pending(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(),
                           static_cast<double>(network_.Pending(Peer(info, 0), Peer(info, 1))));
}

Napi::Value Simulation::Deliver(const Napi::CallbackInfo& info) {
  const PeerId from = Peer(info, 0), to = Peer(info, 1);
  const uint32_t bytes = info[2].ToNumber().Uint32Value();
  const bool done = bytes == 0 ? network_.DeliverNext(from, to)
                               : network_.DeliverPart(from, to, bytes, Tear::kBytes) > 0;
  return Napi::Boolean::New(info.Env(), done);
}

Napi::Value Simulation::DeliverStale(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), network_.DeliverStale(Peer(info, 0), Peer(info, 1)));
}

Napi::Value Simulation::Cut(const Napi::CallbackInfo& info) {
  network_.Cut(Peer(info, 0), Peer(info, 1), info[2].ToBoolean().Value());
  return info.Env().Undefined();
}

Napi::Value Simulation::Break(const Napi::CallbackInfo& info) {
  const PeerId from = Peer(info, 0), to = Peer(info, 1);
  if (info[3].ToBoolean().Value()) network_.KeepStale(from, to);
  if (info[2].ToBoolean().Value()) {
    network_.Break(from, to);
  } else {
    network_.DropAll(from, to);
  }
  return info.Env().Undefined();
}

}  // namespace falcon::addon
