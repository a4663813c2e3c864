// A small harness for native tests: each test program prints TAP, which the test runner reads.
//
//   TEST(name) { CHECK(a == b); }    int main(int argc, char** argv) { return
//   falcon::test::Main(argc, argv); }
#pragma once

#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

namespace falcon::test {

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case>& Cases() {
  static std::vector<Case> cases;
  return cases;
}

inline int& Failures() {
  static int failures = 0;
  return failures;
}

// Why the running case could not run here; empty: it ran.
inline std::string& SkipReason() {
  static std::string reason;
  return reason;
}

struct Registrar {
  Registrar(const char* name, void (*run)()) { Cases().push_back({name, run}); }
};

inline void Fail(const char* file, int line, const std::string& text) {
  ++Failures();
  std::printf("# %s:%d: %s\n", file, line, text.c_str());
  std::fflush(stdout);
}

// Runs all cases, or those whose name contains argv[1].
inline int Main(int argc, char** argv) {
  int number = 0;
  int failed = 0;
  std::printf("TAP version 14\n");
  for (const Case& c : Cases()) {
    if (argc > 1 && std::strstr(c.name, argv[1]) == nullptr) continue;
    Failures() = 0;
    SkipReason().clear();
    c.run();
    ++number;
    const bool ok = Failures() == 0;
    if (!ok) ++failed;
    std::printf("%s %d - %s%s%s\n", ok ? "ok" : "not ok", number, c.name,
                SkipReason().empty() ? "" : " # SKIP ", SkipReason().c_str());
    std::fflush(stdout);
  }
  std::printf("1..%d\n", number);
  return failed == 0 ? 0 : 1;
}

}  // namespace falcon::test

#define TEST(name)                                                      \
  static void name();                                                   \
  static const ::falcon::test::Registrar registrar_##name(#name, name); \
  static void name()

#define CHECK(expression)                                                     \
  do {                                                                        \
    if (!(expression)) ::falcon::test::Fail(__FILE__, __LINE__, #expression); \
  } while (0)

// Ends the running case at once.
#define REQUIRE(expression)                                  \
  do {                                                       \
    if (!(expression)) {                                     \
      ::falcon::test::Fail(__FILE__, __LINE__, #expression); \
      return;                                                \
    }                                                        \
  } while (0)
