// The result of an operation that may fail for reasons a caller must handle.
//
// A broken invariant stops the process (see check.h); everything else comes back as a Status that
// carries the code of src/lib/errors.ts, so that the command line, the logs and the API speak with
// one vocabulary.
#pragma once

#include <memory>
#include <string>

namespace falcon {

// One pointer, null if all is well. Failures are made, copied and forgotten by cold functions, so
// that the way on which there are none stays short.
class [[nodiscard]] Status {
 public:
  Status() = default;
  // `code` must be a string literal that is a key of the error table.
  [[gnu::cold, gnu::noinline]] Status(const char* code, std::string detail);
  [[gnu::cold, gnu::noinline]] Status(const char* code, const char* detail);
  Status(const Status& other) : failure_(other.ok() ? nullptr : Copy(*other.failure_)) {}
  Status& operator=(const Status& other) { return *this = Status(other); }
  Status(Status&&) noexcept = default;
  Status& operator=(Status&&) noexcept = default;
  ~Status() = default;

  [[nodiscard]] bool ok() const { return failure_ == nullptr; }
  [[nodiscard]] const char* code() const { return ok() ? "OK" : failure_->code; }
  [[nodiscard]] const std::string& detail() const;

 private:
  struct Failure {
    const char* code;
    std::string detail;
  };
  struct Forget {
    [[gnu::cold, gnu::noinline]] void operator()(const Failure* failure) const noexcept;
  };

  [[gnu::cold, gnu::noinline]] static const Failure* Copy(const Failure& failure);

  std::unique_ptr<const Failure, Forget> failure_;
};

inline Status Ok() { return {}; }

// The text of `error_number` behind `what`: "open /x: No such file or directory".
[[gnu::cold, gnu::noinline]] std::string ErrnoText(const std::string& what, int error_number);

}  // namespace falcon
