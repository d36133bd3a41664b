// The few lines of a test framework that the native tests need.
#pragma once

#include <cstdio>
#include <cstring>
#include <initializer_list>

namespace sasgd_test {

inline long failures = 0;

// What a program can be told to do.
struct Choice {
  const char* name;
  void (*run)();
};

// Runs what the command line names; returns the program's exit status.
inline int run_chosen(std::initializer_list<Choice> choices, int count, char** arguments) {
  int found = 0;
  for (int i = 1; i < count; ++i) {
    for (const Choice& choice : choices) {
      if (std::strcmp(arguments[i], choice.name) != 0) continue;
      ++found;
      choice.run();
    }
  }
  if (count < 2 || found != count - 1) {
    std::printf("usage: %s NAME..., of:", arguments[0]);
    for (const Choice& choice : choices) std::printf(" %s", choice.name);
    std::printf("\n");
    return 2;
  }
  std::printf("%ld failures\n", failures);
  return failures != 0;
}

}  // namespace sasgd_test

// Tells of a failure, printf-fashion, and goes on; the first ones are printed.
#define CHECK(condition, ...)                                     \
  do {                                                            \
    if (!(condition) && ++sasgd_test::failures <= 20) {           \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                   \
      std::printf("\n");                                          \
    }                                                             \
  } while (0)
