// Tests of csrc/cuda under the emulation and without Python, so that they run under the sanitizers: `program NAME...`.
#include "../check.h"
#include "tests.h"

int main(int count, char** arguments) {
  using namespace sasgd_test;
  return run_chosen(
      {
          {"steps", test_cuda_steps},
          {"bits", test_cuda_bits},
          {"carried", test_cuda_carried},
          {"relative", test_cuda_relative},
          {"precision", test_cuda_precision},
          {"huge", test_cuda_huge},
          {"threads", test_cuda_threads},
      },
      count, arguments);
}
