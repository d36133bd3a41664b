// Tests of csrc/cpu without Python, so that they run under the sanitizers: `program NAME...`.
#include "check.h"
#include "tests.h"

int main(int count, char** arguments) {
  using namespace sasgd_test;
  return run_chosen(
      {
          {"conversions", test_conversions},
          {"random", test_random},
          {"precision", test_precision},
          {"carried", test_carried},
          {"relative", test_relative},
          {"steps", test_steps},
          {"bits", test_bits},
          {"nudged-weight", nudge_weight},
          {"overrun-tail", overrun_tail},
          {"overrun-vector", overrun_vector},
          {"overrun-param", overrun_param},
          {"bad-bool", load_bad_bool},
          {"shared-weights", share_weights},
      },
      count, arguments);
}
