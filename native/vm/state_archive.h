// Writing and reading the state of a flow table, as it goes from one replica to another.
//
// What is saved is listed once, in functions that take either archive, so that writer and reader
// cannot drift apart. Numbers are little-endian; times are distances from now, because no two hosts
// count from the same moment. The reader trusts nothing: it never reads behind the end, and after
// the first thing that cannot be, it yields zeros and says so.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include "os/clock.h"

namespace falcon {

static_assert(std::endian::native == std::endian::little, "numbers are copied as they are");

class StateWriter {
 public:
  StateWriter(std::vector<std::byte>* out, Nanoseconds now) : out_(out), now_(now) {}

  template <std::unsigned_integral T>
  void Number(const T& value) {
    Bytes(std::as_bytes(std::span(&value, 1)));
  }
  // `most` is checked by the reader.
  template <std::unsigned_integral T>
  void Limited(const T& value, std::type_identity_t<T>) {
    Number(value);
  }
  template <typename T>
  requires std::is_enum_v<T>
  void Choice(const T& value, T) { Number(static_cast<uint8_t>(value)); }
  void Time(const Nanoseconds& time) { Number(static_cast<uint64_t>(time - now_)); }
  // A time, or 0 for none.
  void Due(const Nanoseconds& time) {
    Number(time != 0);
    if (time != 0) Time(time);
  }
  void Bytes(std::span<const std::byte> bytes) {
    out_->insert(out_->end(), bytes.begin(), bytes.end());
  }
  [[nodiscard]] bool ok() const { return true; }

 private:
  std::vector<std::byte>* out_;
  Nanoseconds now_;
};

class StateReader {
 public:
  // Further from now than any timer of a table is set, in either direction.
  static constexpr Nanoseconds kFarthest = 400LL * 24 * 3600 * kSecond;

  StateReader(std::span<const std::byte> in, Nanoseconds now) : in_(in), now_(now) {}

  template <std::unsigned_integral T>
  void Number(T& value) {
    std::byte raw[sizeof(T)] = {};
    Bytes(raw);
    if constexpr (std::same_as<T, bool>) {
      if (static_cast<uint8_t>(raw[0]) > 1) Fail();
      value = !failed_ && raw[0] != std::byte{0};
    } else {
      std::memcpy(&value, raw, sizeof value);
    }
  }
  template <std::unsigned_integral T>
  void Limited(T& value, std::type_identity_t<T> most) {
    Number(value);
    if (value > most) {
      Fail();
      value = 0;
    }
  }
  template <typename T>
  requires std::is_enum_v<T>
  void Choice(T& value, T last) {
    uint8_t number = 0;
    Limited(number, static_cast<uint8_t>(last));
    value = static_cast<T>(number);
  }
  void Time(Nanoseconds& time) {
    uint64_t raw = 0;
    Number(raw);
    const auto distance = static_cast<Nanoseconds>(raw);
    if (distance < -kFarthest || distance > kFarthest) Fail();
    time = failed_ ? now_ : now_ + distance;
  }
  void Due(Nanoseconds& time) {
    bool set = false;
    Number(set);
    time = 0;
    if (!set) return;
    Time(time);
    if (time == 0) time = 1;  // 0 says that there is none
  }
  void Bytes(std::span<std::byte> into) {
    const auto from = Skip(into.size());
    if (!from.empty()) std::memcpy(into.data(), from.data(), from.size());
  }
  // The next `count` bytes; nothing if there are fewer.
  std::span<const std::byte> Skip(size_t count) {
    if (failed_ || in_.size() < count) {
      Fail();
      return {};
    }
    const auto taken = in_.first(count);
    in_ = in_.subspan(count);
    return taken;
  }
  void Fail() { failed_ = true; }
  [[nodiscard]] bool ok() const { return !failed_; }
  [[nodiscard]] bool at_end() const { return in_.empty(); }

 private:
  std::span<const std::byte> in_;
  Nanoseconds now_;
  bool failed_ = false;
};

}  // namespace falcon
