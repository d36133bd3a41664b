// The loops over consecutive chunks of a tensor, compiled once for each instruction set.
#pragma once

#include "../update_rule.h"

namespace sasgd {

// Sums of squares are kept for chunks of this many elements. Fixed, so that they do not depend on the machine or on how
// the work is dealt out to threads.
constexpr int64_t kChunk = 16384;
constexpr int kLanes = 16;

// The sums of squares over one chunk, in float64, for each lane. Adding up the lanes is left for later: a chain of
// additions between two chunks would keep the next chunk's loads from starting.
struct ChunkSums {
  double read[kLanes];      // of the weights before the update
  double written[kLanes];   // of the weights as stored
  double gradient[kLanes];  // of the plain gradient, in the relative scale
};

// Consecutive chunks of one tensor in one step.
struct RunStep {
  void* weight;
  const void* grad;
  void* momentum_buffer;  // null: no momentum
  int64_t count;
  DType dtype;
  DType grad_dtype;
  bool nesterov;
  UpdateCoefficients coefficients;
  ChunkSums* sums;      // one for each chunk; null: none are taken
  bool takes_gradient;  // whether they have a part of the gradient
  Precision precision;
  void* param;                // that a master is rounded to, or null
  int64_t offset;             // of the first element in its tensor
  int64_t rounding_step;      // of the tensor
  int64_t prefetch_distance;  // memory is asked for so many elements ahead
};

struct Kernels {
  const char* instruction_set;
  void (*update)(const RunStep& run);
  // A norm pass: fills in `written` alone.
  void (*sum_squares)(const void* weight, int64_t count, DType dtype, ChunkSums* sums);
  // Fills in `gradient` alone.
  void (*sum_gradients)(const RunStep& run);
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
