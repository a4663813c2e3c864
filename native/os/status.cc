#include "os/status.h"

#include <cstring>

namespace falcon {

std::string ErrnoText(const std::string& what, int error_number) {
  char buffer[128] = {};
  const char* text = strerror_r(error_number, buffer, sizeof buffer);
  return what + ": " + text;
}

}  // namespace falcon
