// The few lines of a test framework that the native tests need.
#pragma once

#include <cstdio>

namespace sasgd_test {

inline long failures = 0;

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
