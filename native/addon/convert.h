// Between JavaScript values and the data plane's types. Views and ops are JavaScript numbers
// (integers below 2^53, checked in TypeScript before they come here); times are nanoseconds, also
// as numbers.
#pragma once

#include <napi.h>

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
[[nodiscard]] Napi::Object EventObject(Napi::Env env, const PlaneEvent& event);
[[nodiscard]] Napi::Object SnapshotObject(Napi::Env env, const PlaneSnapshot& snapshot,
                                          size_t members);
[[nodiscard]] Napi::Object LoadObject(Napi::Env env, const LoadResult& load);
[[nodiscard]] Napi::Object RecoveredObject(Napi::Env env, const RecoveredLog& recovered);
[[nodiscard]] std::span<const std::byte> BytesOf(const Napi::Value& value);

}  // namespace falcon::addon
