// Invariants. A replica whose invariant is broken must fall silent at once: these checks stay on in
// every build and end the process.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace falcon {

[[noreturn, gnu::cold, gnu::noinline]] inline void CheckFailed(const char* file, int line,
                                                               const char* expression) {
  std::fprintf(stderr, "INVARIANT_BROKEN %s:%d: %s\n", file, line, expression);
  std::abort();
}

}  // namespace falcon

#define FALCON_CHECK(expression)                              \
  do {                                                        \
    if (!(expression)) [[unlikely]]                           \
      ::falcon::CheckFailed(__FILE__, __LINE__, #expression); \
  } while (0)
