// What a thread block does with one chunk: the loops of the step and of the norm pass.
//
// A thread takes elements by their place in the chunk alone, whether memory is aligned or not and in tails too, and all
// sums have a fixed order: so a sum has the same bits in a step and in a norm pass, on every grid and every device.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../dispatch.h"
#include "candidates.h"
#include "elements.cuh"
#include "tables.h"

namespace sasgd {
namespace cuda {

// One chunk of one tensor.
struct ChunkWork {
  void* weight;
  const void* grad;
  void* momentum_buffer;
  int32_t count;  // 0: nothing to do
  DType dtype;
  bool wide_grad;
  bool takes_sums;
  bool takes_gradient;  // these have a part of the gradient
  bool is_left;         // a step takes the sums alone
  Momentum momentum;
  UpdateCoefficients coefficients;
};

// What a plan of mixed precision needs besides; others have PlainWork.
struct PrecisionWork {
  static constexpr bool kMixedPrecision = true;
  void* param;  // null: the weights are no master
  DType param_dtype;
  bool small_momentum;
  bool stochastic;
  uint32_t place;  // of the chunk's first element, its low 32 bits
  RandomKey key;
};

struct PlainWork {
  static constexpr bool kMixedPrecision = false;
};

// A thread's sums of squares over a chunk, in float32: at most kChunk / kThreads elements each.
struct ThreadSums {
  float read = 0.0f;
  float written = 0.0f;
  float gradient = 0.0f;
};

// Eight elements of each array are on their way before the first is waited for: two vectors of float32, one of 16 bits.
template <class W>
struct Pattern {
  static constexpr int kElements = 16 / sizeof(W);
  static constexpr int kBatch = 8 / kElements;
  static constexpr int kStride = kThreads * kElements;  // of one batch to the next
};

// The random bits of an element, if its tensor is rounded by chance.
template <class HowStored>
__device__ __forceinline__ uint32_t random_of(const HowStored& precision, int at) {
  if constexpr (HowStored::kMixedPrecision) {
    if (precision.stochastic) return random_bits(precision.place + static_cast<uint32_t>(at), precision.key);
  }
  return 0;
}

template <class T, class HowStored>
__device__ __forceinline__ T round_for(const HowStored& precision, float x, uint32_t random) {
  if constexpr (HowStored::kMixedPrecision && std::is_same_v<T, __nv_bfloat16>) {
    if (precision.stochastic) return narrow_stochastically(x, random);
  }
  return narrow<T>(x);
}

// Rounds masters to their parameter.
template <class T, bool kVectors, int kCount>
__device__ __forceinline__ void store_param(void* param, int at, const Elements<float, kCount>& masters, int left) {
  Elements<T, kCount> rounded;
#pragma unroll
  for (int e = 0; e < kCount; ++e) rounded.value[e] = narrow<T>(masters.value[e]);
  store<kVectors>(global_memory(static_cast<T*>(param)) + at, rounded, left);
}

// In mixed precision kNesterov stands for both kinds of momentum, which halves what has to be compiled.
template <Momentum kMomentum, class HowStored>
__device__ __forceinline__ float along_of(float amended, float buffer, const ChunkWork& work, const HowStored&) {
  if (HowStored::kMixedPrecision && work.momentum == Momentum::kClassic) return buffer;
  return direction<kMomentum>(amended, buffer, work.coefficients);
}

// kRelative: also sums the squares of the plain gradient.
template <bool kRelative, class W, class G, class M, Momentum kMomentum, bool kVectors, bool kGradVectors,
          class HowStored>
__device__ __forceinline__ ThreadSums update_chunk(const ChunkWork& work, const HowStored& precision) {
  using P = Pattern<W>;
  W* weight = global_memory(static_cast<W*>(work.weight));
  const G* grad = global_memory(static_cast<const G*>(work.grad));
  M* momentum_buffer = kMomentum == Momentum::kNone ? nullptr : global_memory(static_cast<M*>(work.momentum_buffer));
  const UpdateCoefficients c = work.coefficients;
  ThreadSums sums;
  for (int i = threadIdx.x * P::kElements; i < work.count; i += P::kBatch * P::kStride) {
    Elements<W, P::kElements> w[P::kBatch];
    Elements<G, P::kElements> g[P::kBatch];
    Elements<M, P::kElements> m[P::kBatch];
#pragma unroll
    for (int b = 0; b < P::kBatch; ++b) {
      const int at = i + b * P::kStride, left = work.count - at;
      load<kVectors>(w[b], weight + at, left);
      load<kGradVectors, has<kEvictGradients>>(g[b], grad + at, left);
      if constexpr (kMomentum != Momentum::kNone) {
        load<kVectors, has<kEvictMomentum>>(m[b], momentum_buffer + at, left);
      }
    }
#pragma unroll
    for (int b = 0; b < P::kBatch; ++b) {
      const int at = i + b * P::kStride, left = work.count - at;
#pragma unroll
      for (int e = 0; e < P::kElements; ++e) {
        const float before = widen(w[b].value[e]);
        const float grad_value = widen(g[b].value[e]);
        if constexpr (kRelative) {
          const float plain = plain_gradient(grad_value, before, c);
          sums.gradient += plain * plain;
        }
        const float amended = amended_gradient(grad_value, before, c);
        const uint32_t random = random_of(precision, at + e);
        float buffer = 0.0f;
        if constexpr (kMomentum != Momentum::kNone) {
          buffer = next_momentum(amended, widen(m[b].value[e]), c);
          m[b].value[e] = round_for<M>(precision, buffer, random >> 16);
        }
        w[b].value[e] = round_for<W>(
            precision, next_weight(before, along_of<kMomentum>(amended, buffer, work, precision), c), random);
        const float after = widen(w[b].value[e]);
        sums.read += before * before;
        sums.written += after * after;
      }
      store<kVectors>(weight + at, w[b], left);
      if constexpr (kMomentum != Momentum::kNone) {
        store<kVectors, has<kEvictMomentum>>(momentum_buffer + at, m[b], left);
      }
      if constexpr (HowStored::kMixedPrecision && std::is_same_v<W, float>) {
        if (precision.param && precision.param_dtype == DType::kBFloat16) {
          store_param<__nv_bfloat16, kVectors>(precision.param, at, w[b], left);
        } else if (precision.param) {
          store_param<__half, kVectors>(precision.param, at, w[b], left);
        }
      }
    }
  }
  return sums;
}

// The same elements in the same order as update_chunk has them.
template <class W, bool kVectors>
__device__ __forceinline__ ThreadSums sum_chunk(const void* from, int32_t count) {
  using P = Pattern<W>;
  const W* weight = global_memory(static_cast<const W*>(from));
  ThreadSums sums;
  for (int i = threadIdx.x * P::kElements; i < count; i += P::kBatch * P::kStride) {
    Elements<W, P::kElements> w[P::kBatch];
#pragma unroll
    for (int b = 0; b < P::kBatch; ++b) {
      const int at = i + b * P::kStride;
      load<kVectors>(w[b], weight + at, count - at);
    }
#pragma unroll
    for (int b = 0; b < P::kBatch; ++b) {
#pragma unroll
      for (int e = 0; e < P::kElements; ++e) {
        const float value = widen(w[b].value[e]);
        sums.written += value * value;
      }
    }
  }
  return sums;
}

// The same for the plain gradient.
template <class W, class G, bool kVectors>
__device__ __forceinline__ ThreadSums sum_gradient_chunk(const ChunkWork& work) {
  using P = Pattern<W>;
  const W* weight = global_memory(static_cast<const W*>(work.weight));
  const G* grad = global_memory(static_cast<const G*>(work.grad));
  const UpdateCoefficients c = work.coefficients;
  ThreadSums sums;
  for (int i = threadIdx.x * P::kElements; i < work.count; i += P::kBatch * P::kStride) {
    Elements<W, P::kElements> w[P::kBatch];
    Elements<G, P::kElements> g[P::kBatch];
#pragma unroll
    for (int b = 0; b < P::kBatch; ++b) {
      const int at = i + b * P::kStride, left = work.count - at;
      load<kVectors>(w[b], weight + at, left);
      load<kVectors>(g[b], grad + at, left);
    }
#pragma unroll
    for (int b = 0; b < P::kBatch; ++b) {
#pragma unroll
      for (int e = 0; e < P::kElements; ++e) {
        const float plain = plain_gradient(widen(g[b].value[e]), widen(w[b].value[e]), c);
        sums.gradient += plain * plain;
      }
    }
  }
  return sums;
}

__device__ __forceinline__ bool allows_vectors(const void* address) {
  return reinterpret_cast<uint64_t>(address) % 16 == 0;
}

template <bool kRelative, class W, class G, class M, Momentum kMomentum, class HowStored>
__device__ __forceinline__ ThreadSums update_aligned(const ChunkWork& work, const HowStored& precision) {
  bool vectors = allows_vectors(work.weight) && allows_vectors(work.momentum_buffer);
  if constexpr (HowStored::kMixedPrecision) vectors = vectors && allows_vectors(precision.param);
  if (vectors && allows_vectors(work.grad))
    return update_chunk<kRelative, W, G, M, kMomentum, true, true>(work, precision);
  // The other loops have no registers left for a third sum: it is taken first, by the threads that write the elements.
  float gradient = 0.0f;
  if (kRelative && work.takes_gradient) gradient = sum_gradient_chunk<W, G, false>(work).gradient;
  // Gradients are often views of one flat buffer (DDP): weights and momentum need not suffer for it.
  ThreadSums sums = vectors ? update_chunk<false, W, G, M, kMomentum, true, false>(work, precision)
                            : update_chunk<false, W, G, M, kMomentum, false, false>(work, precision);
  sums.gradient = gradient;
  return sums;
}

template <bool kRelative, class W, class G, class M, class HowStored>
__device__ __forceinline__ ThreadSums update_with_momentum(const ChunkWork& work, const HowStored& precision) {
  if (work.momentum == Momentum::kNone) return update_aligned<kRelative, W, G, W, Momentum::kNone>(work, precision);
  if constexpr (!HowStored::kMixedPrecision) {
    if (work.momentum == Momentum::kClassic)
      return update_aligned<kRelative, W, G, M, Momentum::kClassic>(work, precision);
  }
  return update_aligned<kRelative, W, G, M, Momentum::kNesterov>(work, precision);
}

// For lambdas. Where one is left a function, what it captures is kept in local memory.
#define SASGD_INLINED __attribute__((always_inline))

struct Types {
  using Float32 = float;
  using BFloat16 = __nv_bfloat16;
  using Float16 = __half;
};

template <bool kRelative, class HowStored>
__device__ __forceinline__ ThreadSums update_any(const ChunkWork& work, const HowStored& precision) {
  return visit<Types>(work.dtype, [&](auto weight) SASGD_INLINED {
    using W = typename decltype(weight)::Type;
    if constexpr (!std::is_same_v<W, float>) {
      return work.wide_grad ? update_with_momentum<kRelative, W, float, W>(work, precision)
                            : update_with_momentum<kRelative, W, W, W>(work, precision);
    } else if constexpr (!HowStored::kMixedPrecision) {
      return update_with_momentum<kRelative, W, W, W>(work, precision);
    } else {
      return visit<Types>(work.wide_grad ? DType::kFloat32 : precision.param_dtype, [&](auto grad) SASGD_INLINED {
        using G = typename decltype(grad)::Type;
        return precision.small_momentum ? update_with_momentum<kRelative, W, G, __nv_bfloat16>(work, precision)
                                        : update_with_momentum<kRelative, W, G, W>(work, precision);
      });
    }
  });
}

__device__ __forceinline__ ThreadSums sum_any(const ChunkWork& work) {
  return visit<Types>(work.dtype, [&](auto weight) SASGD_INLINED {
    using W = typename decltype(weight)::Type;
    return allows_vectors(work.weight) ? sum_chunk<W, true>(work.weight, work.count)
                                       : sum_chunk<W, false>(work.weight, work.count);
  });
}

// `grad_dtype` is that of the gradient.
__device__ __forceinline__ ThreadSums sum_gradients_any(const ChunkWork& work, DType grad_dtype) {
  const bool vectors = allows_vectors(work.weight) && allows_vectors(work.grad);
  return visit<Types>(work.dtype, [&](auto weight) SASGD_INLINED {
    using W = typename decltype(weight)::Type;
    const auto sum = [&](auto grad) SASGD_INLINED {
      using G = typename decltype(grad)::Type;
      return vectors ? sum_gradient_chunk<W, G, true>(work) : sum_gradient_chunk<W, G, false>(work);
    };
    if constexpr (std::is_same_v<W, float>) {
      return visit<Types>(grad_dtype, sum);
    } else {
      return work.wide_grad ? sum(TypeTag<float>{}) : sum(weight);
    }
  });
}

}  // namespace cuda
}  // namespace sasgd
