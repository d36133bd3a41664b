// Loads and stores of a few consecutive elements: 16 bytes at a time where memory allows it.
#pragma once

#if defined(SASGD_EMULATED_CUDA)
#include "emulation.h"
#else
#include <cuda_runtime.h>
#define SASGD_SHARED(Type, name, count) __shared__ Type name[count]
#endif
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <type_traits>

#include "../update_rule.h"

namespace sasgd {
namespace cuda {

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }

// Rounds to nearest, ties to even.
template <class T>
__device__ __forceinline__ T narrow(float x) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return x;
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else {
    return __float2bfloat16_rn(x);
  }
}

// Rounds to bfloat16 by chance, with 16 random bits.
__device__ __forceinline__ __nv_bfloat16 narrow_stochastically(float x, uint32_t random) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  __nv_bfloat16_raw raw;
  raw.x = static_cast<unsigned short>(x != x ? (bits >> 16) | 0x40u : stochastic_upper_half(bits, random));
  return raw;
}

// An address that came out of a table. Without the hint the compiler takes it for a generic one, which costs an
// instruction with a slower path.
template <class T>
__device__ __forceinline__ T* global_memory(T* address) {
  __builtin_assume(__isGlobal(address));
  return address;
}

template <class T, int kCount>
struct alignas(16) Elements {
  T value[kCount];
};

// 16 bytes, or 8: four elements of 16 bits that go with four of float32.
template <class T, int kCount>
using Vector = std::conditional_t<sizeof(T) * kCount % 16 == 0, uint4, uint2>;

// The first `left` elements, and zeros for the others. kVectors: the address is aligned to a vector. kEvictFirst: what
// is loaded is the first to leave the cache.
template <bool kVectors, bool kEvictFirst = false, class T, int kCount>
__device__ __forceinline__ void load(Elements<T, kCount>& to, const T* from, int left) {
  using V = Vector<T, kCount>;
  constexpr int kPerVector = sizeof(V) / sizeof(T);
  if (kVectors && left >= kCount) {
#pragma unroll
    for (int i = 0; i < kCount; i += kPerVector) {
      const V* const place = reinterpret_cast<const V*>(from + i);
      const V vector = kEvictFirst ? __ldcs(place) : *place;
      memcpy(static_cast<void*>(to.value + i), &vector, sizeof vector);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) to.value[i] = i < left ? from[i] : narrow<T>(0.0f);
  }
}

template <bool kVectors, bool kEvictFirst = false, class T, int kCount>
__device__ __forceinline__ void store(T* to, const Elements<T, kCount>& from, int left) {
  using V = Vector<T, kCount>;
  constexpr int kPerVector = sizeof(V) / sizeof(T);
  if (kVectors && left >= kCount) {
#pragma unroll
    for (int i = 0; i < kCount; i += kPerVector) {
      V vector;
      memcpy(&vector, from.value + i, sizeof vector);
      V* const place = reinterpret_cast<V*>(to + i);
      if constexpr (kEvictFirst) {
        __stcs(place, vector);
      } else {
        *place = vector;
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < left) to[i] = from.value[i];
    }
  }
}

}  // namespace cuda
}  // namespace sasgd
