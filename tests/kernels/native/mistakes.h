// Included before all else in copies of csrc that have mistakes in them: which one the program shall make, if any.
#pragma once

#include <cstdlib>

namespace sasgd_test {

inline const int chosen_mistake = [] {
  const char* number = std::getenv("SASGD_MISTAKE");
  return number ? std::atoi(number) : -1;
}();

inline bool makes_mistake(int number) { return number == chosen_mistake; }

}  // namespace sasgd_test
