// How sums of squares are added up: over the threads of a block, and over the chunks of a tensor.
#pragma once

#include <cstdint>

#include "chunk_loops.cuh"
#include "tables.h"
// After the headers that choose between a device and its emulation.
#include <cuda/atomic>

namespace sasgd {
namespace cuda {

constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;

// Adds to each lane's sums those of the lane so far away, in both directions.
__device__ __forceinline__ void add_up_lanes(Sums& sums, int distance, bool takes_gradient) {
  sums.read += __shfl_xor_sync(0xffffffffu, sums.read, distance);
  sums.written += __shfl_xor_sync(0xffffffffu, sums.written, distance);
  if (takes_gradient) sums.gradient += __shfl_xor_sync(0xffffffffu, sums.gradient, distance);
}

// Adds up the sums of a thread block's threads; thread 0 gets the result.
__device__ __forceinline__ Sums add_up(const ThreadSums& own, Sums* of_warps, bool takes_gradient) {
  Sums sums{own.read, own.written, takes_gradient ? own.gradient : 0.0};
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) add_up_lanes(sums, distance, takes_gradient);
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = sums;
  __syncthreads();  // the sums of all warps are there
  if (threadIdx.x < kWarp) {
    sums = of_warps[threadIdx.x % kWarps];
    // By halves, the order in which Triton can add them up too.
#pragma unroll
    for (int half = kWarps / 2; half > 0; half /= 2) add_up_lanes(sums, half, takes_gradient);
  }
  return sums;
}

// Counts one up, and says whether it is the last of so many: then what the others wrote before can be read.
__device__ __forceinline__ bool is_last(unsigned& count, unsigned all) {
  ::cuda::atomic_ref<unsigned, ::cuda::thread_scope_device> finished(count);
  return finished.fetch_add(1u, ::cuda::memory_order_acq_rel) == all - 1;
}

// Whether all other thread blocks of the launch have finished.
__device__ __forceinline__ bool is_last_thread_block(const Tables& tables) {
  SASGD_SHARED(bool, is_last_one, 1);
  if (threadIdx.x == 0) is_last_one[0] = is_last(*tables.finished_thread_blocks, gridDim.x);
  __syncthreads();  // is_last_one is known
  return is_last_one[0];
}

// One node of the tree: its children in their order.
template <bool kRelative>
__device__ __forceinline__ void add_up_children(const Tables& tables, int32_t n) {
  constexpr int kAtOnce = kRelative ? kFanIn / 4 : kFanIn / 2;  // as many as registers are left for
  const SumNode node = tables.nodes[n];
  Sums sums{};
  for (int32_t i = 0; i < node.count; i += kAtOnce) {
    Sums children[kAtOnce];  // all are on their way before the first is waited for
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      children[j] = i + j < node.count ? tables.sums[node.first + i + j] : Sums{};
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      sums.read += children[j].read;
      sums.written += children[j].written;
      if (kRelative) sums.gradient += children[j].gradient;
    }
  }
  tables.sums_of_nodes[n] = sums;
}

}  // namespace cuda
}  // namespace sasgd
