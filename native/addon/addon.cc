// What the addon exports. src/adapters/native.ts is its one declaration file.
#include <napi.h>

#include "addon/convert.h"
#include "addon/replica.h"
#include "addon/simulation.h"
#include "os/clock.h"
#include "os/realtime.h"

namespace falcon::addon {
namespace {

Napi::Value Now(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(MonotonicNow()));
}

// makeRealtime(): whether the calling thread, which takes the decisions, is one now.
Napi::Value Realtime(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), MakeRealtime(RealtimePriority::kDecisions));
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  exports.Set("Replica", Replica::Define(env));
  exports.Set("Simulation", Simulation::Define(env));
  Napi::Array fields = Napi::Array::New(env, kProgressFields.size());
  for (uint32_t i = 0; i < kProgressFields.size(); ++i) fields.Set(i, kProgressFields[i]);
  exports.Set("progressFields", fields);
  exports.Set("progressMembers", static_cast<double>(kMaxMembers));
  exports.Set("makeRealtime", Napi::Function::New(env, Realtime, "makeRealtime"));
  exports.Set("monotonicNs", Napi::Function::New(env, Now, "monotonicNs"));
  return exports;
}

}  // namespace

NODE_API_MODULE(falcon, Init)

}  // namespace falcon::addon
