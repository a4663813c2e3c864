#include "os/status.h"

#include <cstring>
#include <utility>

namespace falcon {

Status::Status(const char* code, std::string detail)
    : failure_(new Failure{code, std::move(detail)}) {}

Status::Status(const char* code, const char* detail) : failure_(new Failure{code, detail}) {}

const Status::Failure* Status::Copy(const Failure& failure) { return new Failure(failure); }

void Status::Forget::operator()(const Failure* failure) const noexcept { delete failure; }

const std::string& Status::detail() const {
  static const std::string kNone;
  return ok() ? kNone : failure_->detail;
}

std::string ErrnoText(const std::string& what, int error_number) {
  char buffer[128] = {};
  const char* text = strerror_r(error_number, buffer, sizeof buffer);
  return what + ": " + text;
}

}  // namespace falcon
