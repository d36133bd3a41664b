// The candidate kPrefetch: a launch's tables are asked for at once, and so are in the L2 cache when they are looked at.
#pragma once

#include <cstdint>

#include "elements.cuh"
#include "tables.h"

namespace sasgd {
namespace cuda {

// The emulation has a function of this name, which reads a byte.
#if !defined(SASGD_EMULATED_CUDA)
__device__ __forceinline__ void prefetch_to_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}
#endif

// Each thread of the grid asks for every so many sectors of the memory from `begin` to `end`. Both are null for none.
__device__ __forceinline__ void prefetch_range(const void* begin, const void* end) {
  constexpr uint64_t kSector = 32;  // bytes
  const uint64_t first = reinterpret_cast<uint64_t>(begin), last = reinterpret_cast<uint64_t>(end);
  uint64_t sector = first / kSector * kSector + (blockIdx.x * kThreads + threadIdx.x) * kSector;
  for (; sector < last; sector += gridDim.x * kThreads * kSector) {
    prefetch_to_l2(reinterpret_cast<const void*>(sector < first ? first : sector));
  }
}

// What is read and not written by a step, and what it carries. The tables of these lie one after the other.
__device__ __forceinline__ void prefetch_tables(const Tables& tables, const Launch& launch) {
  prefetch_range(tables.chunks, tables.sums);
  prefetch_range(tables.flags + launch.first_tensor, tables.flags + launch.end_tensor);
  // By rounding down, the number of layers: less than one fits between the last and the next table.
  const int64_t layers = (reinterpret_cast<uint64_t>(tables.nodes) - reinterpret_cast<uint64_t>(tables.layers)) /
                         static_cast<int64_t>(sizeof(LayerTraits));
  prefetch_range(tables.row_norm_sq, tables.row_norm_sq + layers);
  prefetch_range(tables.sum_squares, tables.sum_squares + layers);
}

}  // namespace cuda
}  // namespace sasgd
