// Tests of csrc/cpu without Python, so that they run under the sanitizers: `program NAME...`.
#include <cstring>

#include "../../csrc/cpu/step.h"
#include "check.h"
#include "tests.h"

int main(int count, char** arguments) {
  using namespace sasgd_test;
  struct {
    const char* name;
    void (*run)();
  } const choices[] = {
      {"conversions", test_conversions},
      {"steps", test_steps},
      {"bits", test_bits},
      {"nudged-weight", nudge_weight},
      {"overrun-tail", overrun_tail},
      {"overrun-vector", overrun_vector},
      {"bad-bool", load_bad_bool},
      {"shared-weights", share_weights},
  };
  int found = 0;
  for (int i = 1; i < count; ++i) {
    for (const auto& choice : choices) {
      if (std::strcmp(arguments[i], choice.name) != 0) continue;
      ++found;
      choice.run();
    }
  }
  if (count < 2 || found != count - 1) {
    std::printf("usage: %s NAME..., of:", arguments[0]);
    for (const auto& choice : choices) std::printf(" %s", choice.name);
    std::printf("\n");
    return 2;
  }
  std::printf("%ld failures; instruction sets:", failures);
  for (const std::string& name : sasgd::instruction_sets()) std::printf(" %s", name.c_str());
  std::printf("\n");
  return failures != 0;
}
