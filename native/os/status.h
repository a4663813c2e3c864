// The result of an operation that may fail for reasons a caller must handle.
//
// A broken invariant stops the process (see check.h); everything else comes back as a Status that
// carries the code of src/lib/errors.ts, so that the command line, the logs and the API speak with
// one vocabulary.
#pragma once

#include <string>
#include <utility>

namespace falcon {

class [[nodiscard]] Status {
 public:
  Status() = default;
  // `code` must be a string literal that is a key of the error table.
  Status(const char* code, std::string detail) : code_(code), detail_(std::move(detail)) {}

  [[nodiscard]] bool ok() const { return code_ == nullptr; }
  [[nodiscard]] const char* code() const { return code_ == nullptr ? "OK" : code_; }
  [[nodiscard]] const std::string& detail() const { return detail_; }

 private:
  const char* code_ = nullptr;
  std::string detail_;
};

inline Status Ok() { return {}; }

// The text of `error_number` behind `what`: "open /x: No such file or directory".
std::string ErrnoText(const std::string& what, int error_number);

}  // namespace falcon
