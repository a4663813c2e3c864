// The bridge to a real replica's data plane. It decides nothing: options in, commands in, events
// out.
#pragma once

#include <napi.h>

#include <atomic>
#include <memory>

#include "plane/reactor.h"

namespace falcon::addon {

class Replica : public Napi::ObjectWrap<Replica> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit Replica(const Napi::CallbackInfo& info);
  ~Replica() override;

 private:
  Napi::Value Start(const Napi::CallbackInfo& info);
  Napi::Value Command(const Napi::CallbackInfo& info);
  Napi::Value Connect(const Napi::CallbackInfo& info);
  Napi::Value Tick(const Napi::CallbackInfo& info);
  Napi::Value Progress(const Napi::CallbackInfo& info);
  Napi::Value Counters(const Napi::CallbackInfo& info);
  Napi::Value Outputs(const Napi::CallbackInfo& info);
  Napi::Value LoadResults(const Napi::CallbackInfo& info);
  Napi::Value Recovered(const Napi::CallbackInfo& info);
  Napi::Value Descriptor(const Napi::CallbackInfo& info);
  Napi::Value Link(const Napi::CallbackInfo& info);
  Napi::Value TapFd(const Napi::CallbackInfo& info);
  Napi::Value ExpectVm(const Napi::CallbackInfo& info);
  Napi::Value StartLoad(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);
  void Deliver(Napi::Env env, Napi::Function callback);
  void Stop();

  size_t members_ = 0;
  // One call to JavaScript is under way for all that has happened: it takes everything when it
  // runs.
  std::atomic<bool> calling_{false};
  Napi::ThreadSafeFunction to_javascript_;
  bool started_ = false;
  // Last: it is destroyed first, and its thread with it, while what it notifies still exists.
  std::unique_ptr<Reactor> reactor_;
};

}  // namespace falcon::addon
