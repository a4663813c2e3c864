// Between JavaScript values and the data plane's types. Views and ops are JavaScript numbers
// (integers below 2^53, checked in TypeScript before they come here); times are nanoseconds, also
// as numbers.
#pragma once

#include <napi.h>

#include <array>
#include <span>
#include <string>

#include "plane/data_plane.h"
#include "plane/load.h"

namespace falcon::addon {

[[nodiscard]] double Number(const Napi::Object& from, const char* key);
[[nodiscard]] bool Flag(const Napi::Object& from, const char* key);
[[nodiscard]] std::string Text(const Napi::Object& from, const char* key);

// A status that is not ok becomes a thrown Error with `code` and `message`; true: thrown.
bool Throw(Napi::Env env, const Status& status);

[[nodiscard]] PlaneOptions ReadPlaneOptions(const Napi::Object& from);
// `value`: an object, or anything else where the fabric is another one.
[[nodiscard]] VerbsOptions ReadVerbsOptions(const Napi::Value& value);
[[nodiscard]] Napi::Object LinkObject(Napi::Env env, const VerbsLink& link);
[[nodiscard]] Napi::Object EventObject(Napi::Env env, const PlaneEvent& event);
// What the event loop looks at on every tick, as plain numbers: making objects of it cost a quarter
// of a processor. The fields in their order, then the acknowledged op of each member (-1: none),
// then when its words came last (0: never).
// src/adapters/native-plane.ts has the same names and compares.
inline constexpr std::array kProgressFields = {"role",
                                               "promisedView",
                                               "lastOp",
                                               "durableOp",
                                               "commitOp",
                                               "deliveredOp",
                                               "leaseEndNs",
                                               "gate",
                                               "heardView",
                                               "heardFrom",
                                               "heardAtNs",
                                               "guest",
                                               "baseOp",
                                               "baseView",
                                               "baseChecksum",
                                               "committedView",
                                               "committedChecksum"};
void FillProgress(const PlaneSnapshot& snapshot, std::span<double> out);
[[nodiscard]] Napi::Object CountersObject(Napi::Env env, const PlaneSnapshot& snapshot);
// One object per application, with what the guest has said and how comparing it went.
[[nodiscard]] Napi::Array OutputsArray(Napi::Env env, const PlaneSnapshot& snapshot);
[[nodiscard]] std::span<double> NumbersOf(const Napi::Value& value);
[[nodiscard]] Napi::Object LoadObject(Napi::Env env, const LoadResult& load);
[[nodiscard]] Napi::Object RecoveredObject(Napi::Env env, const RecoveredLog& recovered);
[[nodiscard]] std::span<const std::byte> BytesOf(const Napi::Value& value);

}  // namespace falcon::addon
