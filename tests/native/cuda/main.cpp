// Tests of csrc/cuda under the emulation and without Python, so that they run under the sanitizers: `program NAME...`.
#include <cstring>

#include "../check.h"
#include "tests.h"

int main(int count, char** arguments) {
  using namespace sasgd_test;
  struct {
    const char* name;
    void (*run)();
  } const choices[] = {
      {"steps", test_cuda_steps}, {"bits", test_cuda_bits},       {"carried", test_cuda_carried},
      {"huge", test_cuda_huge},   {"threads", test_cuda_threads},
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
  std::printf("%ld failures\n", failures);
  return failures != 0;
}
