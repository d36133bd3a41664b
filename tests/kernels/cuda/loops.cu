// Each loop of the step in a kernel of its own, so that its accesses can be counted.
#include "cuda/chunk_loops.cuh"

using namespace sasgd;
using namespace sasgd::cuda;

using bfloat = __nv_bfloat16;
using half = __half;

#define SASGD_LOOP(name, W, G, M, momentum, HowStored)                                                                 \
  extern "C" __global__ void name(const __grid_constant__ ChunkWork work, const __grid_constant__ HowStored precision, \
                                  float* sums) {                                                                       \
    const ThreadSums own = update_chunk<W, G, M, Momentum::momentum, true, true>(work, precision);                     \
    sums[threadIdx.x] = own.read + own.written;                                                                        \
  }

#define SASGD_LOOPS(W, G)                                           \
  SASGD_LOOP(W##_##G##_none, W, G, W, kNone, PlainWork)             \
  SASGD_LOOP(W##_##G##_##W##_classic, W, G, W, kClassic, PlainWork) \
  SASGD_LOOP(W##_##G##_##W##_nesterov, W, G, W, kNesterov, PlainWork)

SASGD_LOOPS(float, float)
SASGD_LOOPS(bfloat, bfloat)
SASGD_LOOPS(bfloat, float)
SASGD_LOOPS(half, half)
SASGD_LOOPS(half, float)

// In mixed precision one loop is for both kinds of momentum.
#define SASGD_MIXED_LOOP(W, G, M) SASGD_LOOP(W##_##G##_##M##_mixed, W, G, M, kNesterov, PrecisionWork)
#define SASGD_MIXED_LOOPS(W, G)                                   \
  SASGD_LOOP(W##_##G##_none_mixed, W, G, W, kNone, PrecisionWork) \
  SASGD_MIXED_LOOP(W, G, W)

SASGD_MIXED_LOOPS(bfloat, bfloat)
SASGD_MIXED_LOOPS(bfloat, float)
SASGD_MIXED_LOOPS(half, half)
SASGD_MIXED_LOOPS(half, float)
SASGD_MIXED_LOOPS(float, float)
SASGD_MIXED_LOOPS(float, bfloat)
SASGD_MIXED_LOOPS(float, half)
SASGD_MIXED_LOOP(float, float, bfloat)
SASGD_MIXED_LOOP(float, bfloat, bfloat)
SASGD_MIXED_LOOP(float, half, bfloat)
