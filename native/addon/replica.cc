#include "addon/replica.h"

#include "addon/commands.h"
#include "addon/convert.h"

namespace falcon::addon {
namespace {

ReactorOptions ReadOptions(const Napi::Object& from) {
  ReactorOptions o;
  o.plane = ReadPlaneOptions(from);
  o.wal.directory = Text(from, "walDirectory");
  o.wal.salt = static_cast<decltype(o.wal.salt)>(Number(from, "walSalt"));
  o.wal.cluster = Text(from, "cluster");
  o.wal.node = o.plane.self;
  o.wal.force = o.plane.force;
  o.wal.segment_bytes = static_cast<uint64_t>(Number(from, "segmentBytes"));
  o.wal.retain_bytes = static_cast<uint64_t>(Number(from, "retainBytes"));
  o.fabric = Text(from, "fabric");
  o.fabric_address = Text(from, "fabricAddress");
  o.verbs = ReadVerbsOptions(from.Get("verbs"));
  o.shm_directory = Text(from, "shmDirectory");
  o.shm_name = Text(from, "shmName");
  o.vm = Flag(from, "vm");
  o.builtin = Flag(from, "builtin");
  o.vm_socket = Text(from, "vmSocket");
  o.tap = Text(from, "tap");
  o.busy = Flag(from, "busy");
  o.spin = static_cast<Nanoseconds>(Number(from, "spinNs"));
  o.realtime = Flag(from, "realtime");
  o.wal.realtime = o.realtime;
  return o;
}

}  // namespace

Napi::Function Replica::Define(Napi::Env env) {
  return DefineClass(
      env, "Replica",
      {InstanceMethod("start", &Replica::Start), InstanceMethod("command", &Replica::Command),
       InstanceMethod("connect", &Replica::Connect), InstanceMethod("tick", &Replica::Tick),
       InstanceMethod("progress", &Replica::Progress),
       InstanceMethod("counters", &Replica::Counters), InstanceMethod("outputs", &Replica::Outputs),
       InstanceMethod("load", &Replica::LoadResults),
       InstanceMethod("recovered", &Replica::Recovered),
       InstanceMethod("descriptor", &Replica::Descriptor), InstanceMethod("link", &Replica::Link),
       InstanceMethod("tapFd", &Replica::TapFd), InstanceMethod("expectVm", &Replica::ExpectVm),
       InstanceMethod("startLoad", &Replica::StartLoad), InstanceMethod("close", &Replica::Close)});
}

Replica::Replica(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Replica>(info) {
  const ReactorOptions options = ReadOptions(info[0].As<Napi::Object>());
  members_ = options.plane.members;
  reactor_ = std::make_unique<Reactor>();
  if (Throw(info.Env(), reactor_->Open(options))) reactor_.reset();
}

Replica::~Replica() { Stop(); }

void Replica::Stop() {
  if (reactor_ == nullptr) return;
  reactor_->Stop();
  reactor_.reset();
  if (started_) to_javascript_.Release();
  started_ = false;
}

Napi::Value Replica::Start(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (reactor_ == nullptr || started_) return env.Undefined();
  to_javascript_ =
      Napi::ThreadSafeFunction::New(env, info[0].As<Napi::Function>(), "falcon events", 0, 1);
  started_ = true;
  const Status status = reactor_->Start([this] {
    if (calling_.exchange(true, std::memory_order_acq_rel)) return;
    to_javascript_.NonBlockingCall(
        [this](Napi::Env e, Napi::Function callback) { Deliver(e, callback); });
  });
  Throw(env, status);
  return env.Undefined();
}

void Replica::Deliver(Napi::Env env, Napi::Function callback) {
  calling_.store(false, std::memory_order_release);
  if (reactor_ == nullptr) return;
  std::vector<PlaneEvent> events;
  std::vector<VmHappened> vm;
  reactor_->TakeEvents(&events, &vm);
  Napi::Array list = Napi::Array::New(env);
  uint32_t count = 0;
  for (const PlaneEvent& event : events) list.Set(count++, EventObject(env, event));
  constexpr const char* kNames[] = {"vm-attached", "vm-detached", "vm-refused"};
  for (const VmHappened happened : vm) {
    Napi::Object event = Napi::Object::New(env);
    event.Set("type", kNames[static_cast<size_t>(happened)]);
    list.Set(count++, event);
  }
  if (count > 0) callback.Call({list});
}

Napi::Value Replica::Command(const Napi::CallbackInfo& info) {
  if (reactor_ == nullptr) return Napi::Boolean::New(info.Env(), false);
  std::vector<Napi::Value> args;
  for (size_t i = 1; i < info.Length(); ++i) args.push_back(info[i]);
  const bool known = DispatchCommand(info[0].As<Napi::String>().Utf8Value(), args,
                                     [this](auto command) { reactor_->Post(std::move(command)); });
  return Napi::Boolean::New(info.Env(), known);
}

// connect(peer, connection: Uint8Array of 8 bytes, descriptor: Uint8Array)
Napi::Value Replica::Connect(const Napi::CallbackInfo& info) {
  if (reactor_ == nullptr) return info.Env().Undefined();
  const auto peer = static_cast<PeerId>(info[0].ToNumber().Uint32Value());
  uint64_t connection = 0;
  const auto id = BytesOf(info[1]);
  if (id.size() == sizeof connection) std::memcpy(&connection, id.data(), sizeof connection);
  const auto raw = BytesOf(info[2]);
  std::string descriptor(reinterpret_cast<const char*>(raw.data()), raw.size());
  reactor_->Connect(peer, connection, std::move(descriptor));
  return info.Env().Undefined();
}

Napi::Value Replica::Tick(const Napi::CallbackInfo& info) {
  if (reactor_ != nullptr) reactor_->Tick();
  return info.Env().Undefined();
}

Napi::Value Replica::Progress(const Napi::CallbackInfo& info) {
  PlaneSnapshot snapshot;
  LoadResult load;
  if (reactor_ != nullptr) reactor_->TakeSnapshot(&snapshot, &load);
  FillProgress(snapshot, NumbersOf(info[0]));
  return info.Env().Undefined();
}

Napi::Value Replica::Counters(const Napi::CallbackInfo& info) {
  if (reactor_ == nullptr) return info.Env().Null();
  PlaneSnapshot snapshot;
  LoadResult load;
  reactor_->TakeSnapshot(&snapshot, &load);
  return CountersObject(info.Env(), snapshot);
}

Napi::Value Replica::Outputs(const Napi::CallbackInfo& info) {
  PlaneSnapshot snapshot;
  LoadResult load;
  if (reactor_ != nullptr) reactor_->TakeSnapshot(&snapshot, &load);
  return OutputsArray(info.Env(), snapshot);
}

Napi::Value Replica::LoadResults(const Napi::CallbackInfo& info) {
  if (reactor_ == nullptr) return info.Env().Null();
  PlaneSnapshot snapshot;
  LoadResult load;
  reactor_->TakeSnapshot(&snapshot, &load);
  return LoadObject(info.Env(), load);
}

Napi::Value Replica::Recovered(const Napi::CallbackInfo& info) {
  if (reactor_ == nullptr) return info.Env().Null();
  return RecoveredObject(info.Env(), reactor_->recovered());
}

Napi::Value Replica::Descriptor(const Napi::CallbackInfo& info) {
  if (reactor_ == nullptr) return info.Env().Null();
  const std::string descriptor = reactor_->descriptor();
  return Napi::Buffer<char>::Copy(info.Env(), descriptor.data(), descriptor.size());
}

Napi::Value Replica::Link(const Napi::CallbackInfo& info) {
  if (reactor_ == nullptr || !reactor_->link().has_value()) return info.Env().Null();
  return LinkObject(info.Env(), *reactor_->link());
}

Napi::Value Replica::TapFd(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), reactor_ == nullptr ? -1 : reactor_->tap_fd());
}

Napi::Value Replica::ExpectVm(const Napi::CallbackInfo& info) {
  if (reactor_ != nullptr) reactor_->ExpectVm();
  return info.Env().Undefined();
}

Napi::Value Replica::StartLoad(const Napi::CallbackInfo& info) {
  const auto from = info[0].As<Napi::Object>();
  LoadOptions load;
  load.number = static_cast<uint64_t>(Number(from, "number"));
  load.entry_bytes = static_cast<size_t>(Number(from, "entryBytes"));
  load.depth = static_cast<size_t>(Number(from, "depth"));
  load.entries = static_cast<uint64_t>(Number(from, "entries"));
  load.warm_up = static_cast<uint64_t>(Number(from, "warmUp"));
  if (reactor_ != nullptr) reactor_->StartLoad(load);
  return info.Env().Undefined();
}

Napi::Value Replica::Close(const Napi::CallbackInfo& info) {
  Stop();
  return info.Env().Undefined();
}

}  // namespace falcon::addon
