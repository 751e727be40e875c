// The smallest test harness: named tests, checks that say where they failed, an exit code.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

namespace rescompile::testing {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

/// Runs all tests, or those whose names contain the program's argument; a run without any test fails.
inline int run_all(int count, char** arguments) {
  const std::string_view wanted = count > 1 ? arguments[1] : "";
  int ran = 0;
  for (const Test& test : tests()) {
    if (std::string_view(test.name).find(wanted) == std::string_view::npos) continue;
    const int before = failures();
    test.run();
    std::printf("%s %s\n", failures() == before ? "ok  " : "FAIL", test.name);
    ++ran;
  }
  return failures() == 0 && ran > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace rescompile::testing

#define TEST(name)                                                                              \
  static void name();                                                                           \
  static const bool name##_added = (rescompile::testing::tests().push_back({#name, name}), true); \
  static void name()

#define CHECK(condition)                                                              \
  do {                                                                                \
    if (!(condition)) {                                                               \
      ++rescompile::testing::failures();                                              \
      std::printf("%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition);       \
    }                                                                                 \
  } while (false)
