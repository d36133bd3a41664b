// Each loop of the step in a kernel of its own, so that its accesses can be counted.
#include "cuda/chunk_loops.cuh"

using namespace sasgd;
using namespace sasgd::cuda;

#define SASGD_LOOP(name, W, G, momentum)                                                 \
  extern "C" __global__ void name(const __grid_constant__ ChunkWork work, float* sums) { \
    const ThreadSums own = update_chunk<W, G, Momentum::momentum, true, true>(work);     \
    sums[threadIdx.x] = own.read + own.written;                                          \
  }
#define SASGD_LOOPS(name, W, G)              \
  SASGD_LOOP(name##_none, W, G, kNone)       \
  SASGD_LOOP(name##_classic, W, G, kClassic) \
  SASGD_LOOP(name##_nesterov, W, G, kNesterov)

SASGD_LOOPS(float_float, float, float)
SASGD_LOOPS(bfloat_bfloat, __nv_bfloat16, __nv_bfloat16)
SASGD_LOOPS(bfloat_float, __nv_bfloat16, float)
SASGD_LOOPS(half_half, __half, __half)
SASGD_LOOPS(half_float, __half, float)
