// The loops over one chunk, compiled once for each instruction set.
#pragma once

#include "../update_rule.h"

namespace sasgd {

// One chunk of one tensor in one step.
struct ChunkStep {
  void* weight;
  const void* grad;
  void* momentum_buffer;  // null: no momentum
  int64_t count;
  DType dtype;
  DType grad_dtype;
  bool nesterov;
  bool sum_squares;  // also sum the squares of the weights, as read and as written
  UpdateCoefficients coefficients;
};

struct ChunkSums {
  double read = 0;     // of the weights before the update
  double written = 0;  // of the weights as stored
};

struct Kernels {
  const char* instruction_set;
  ChunkSums (*update)(const ChunkStep& step);
  double (*sum_squares)(const void* weight, int64_t count, DType dtype);
};

namespace baseline {
extern const Kernels kKernels;
}
#if defined(SASGD_HAVE_X86_VARIANTS)
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
#endif

}  // namespace sasgd
