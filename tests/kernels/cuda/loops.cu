// Each loop in a kernel of its own, so that its accesses can be counted.
#include "cuda/chunk_loops.cuh"

using namespace sasgd;
using namespace sasgd::cuda;

using bfloat = __nv_bfloat16;
using half = __half;

#define SASGD_LOOP(name, kRelative, W, G, M, momentum, HowStored)                                                      \
  extern "C" __global__ void name(const __grid_constant__ ChunkWork work, const __grid_constant__ HowStored precision, \
                                  float* sums) {                                                                       \
    const ThreadSums own = update_chunk<kRelative, W, G, M, Momentum::momentum, true, true>(work, precision);          \
    sums[threadIdx.x] = own.read + own.written + own.gradient;                                                         \
  }

// With and without the relative scale.
#define SASGD_PLAIN_LOOP(name, W, G, M, momentum)       \
  SASGD_LOOP(name, false, W, G, M, momentum, PlainWork) \
  SASGD_LOOP(name##_relative, true, W, G, M, momentum, PlainWork)

#define SASGD_LOOPS(W, G)                                      \
  SASGD_PLAIN_LOOP(W##_##G##_none, W, G, W, kNone)             \
  SASGD_PLAIN_LOOP(W##_##G##_##W##_classic, W, G, W, kClassic) \
  SASGD_PLAIN_LOOP(W##_##G##_##W##_nesterov, W, G, W, kNesterov)

SASGD_LOOPS(float, float)
SASGD_LOOPS(bfloat, bfloat)
SASGD_LOOPS(bfloat, float)
SASGD_LOOPS(half, half)
SASGD_LOOPS(half, float)

// In mixed precision one loop is for both kinds of momentum.
#define SASGD_MIXED_LOOP(name, W, G, M, momentum)                   \
  SASGD_LOOP(name##_mixed, false, W, G, M, momentum, PrecisionWork) \
  SASGD_LOOP(name##_relative_mixed, true, W, G, M, momentum, PrecisionWork)
#define SASGD_MIXED_LOOPS(W, G)                    \
  SASGD_MIXED_LOOP(W##_##G##_none, W, G, W, kNone) \
  SASGD_MIXED_LOOP(W##_##G##_##W, W, G, W, kNesterov)

SASGD_MIXED_LOOPS(bfloat, bfloat)
SASGD_MIXED_LOOPS(bfloat, float)
SASGD_MIXED_LOOPS(half, half)
SASGD_MIXED_LOOPS(half, float)
SASGD_MIXED_LOOPS(float, float)
SASGD_MIXED_LOOPS(float, bfloat)
SASGD_MIXED_LOOPS(float, half)
SASGD_MIXED_LOOP(float_float_bfloat, float, float, bfloat, kNesterov)
SASGD_MIXED_LOOP(float_bfloat_bfloat, float, bfloat, bfloat, kNesterov)
SASGD_MIXED_LOOP(float_half_bfloat, float, half, bfloat, kNesterov)

// Of the norms of gradients.
#define SASGD_GRADIENT_LOOP(W, G)                                                                      \
  extern "C" __global__ void W##_##G##_gradient(const __grid_constant__ ChunkWork work, float* sums) { \
    sums[threadIdx.x] = sum_gradient_chunk<W, G, true>(work).gradient;                                 \
  }

SASGD_GRADIENT_LOOP(float, float)
SASGD_GRADIENT_LOOP(float, bfloat)
SASGD_GRADIENT_LOOP(float, half)
SASGD_GRADIENT_LOOP(bfloat, bfloat)
SASGD_GRADIENT_LOOP(bfloat, float)
SASGD_GRADIENT_LOOP(half, half)
SASGD_GRADIENT_LOOP(half, float)
