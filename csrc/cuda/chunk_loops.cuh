// What a thread block does with one chunk: the loops of the step and of the norm pass.
//
// A thread takes elements by their place in the chunk alone, whether memory is aligned or not and in tails too, and all
// sums have a fixed order: so a sum has the same bits in a step and in a norm pass, on every grid and every device.
#pragma once

#include <cstdint>

#include "../update_rule.h"
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
  Momentum momentum;
  UpdateCoefficients coefficients;
};

// A thread's sums of squares over a chunk, in float32: at most kChunk / kThreads elements each.
struct ThreadSums {
  float read = 0.0f;
  float written = 0.0f;
};

// Eight elements of each array are on their way before the first is waited for: two vectors of float32, one of 16 bits.
template <class W>
struct Pattern {
  static constexpr int kElements = 16 / sizeof(W);
  static constexpr int kBatch = 8 / kElements;
  static constexpr int kStride = kThreads * kElements;  // of one batch to the next
};

template <class W, class G, Momentum kMomentum, bool kVectors, bool kGradVectors>
__device__ __forceinline__ ThreadSums update_chunk(const ChunkWork& work) {
  using P = Pattern<W>;
  W* weight = global_memory(static_cast<W*>(work.weight));
  const G* grad = global_memory(static_cast<const G*>(work.grad));
  W* momentum_buffer = kMomentum == Momentum::kNone ? nullptr : global_memory(static_cast<W*>(work.momentum_buffer));
  const UpdateCoefficients c = work.coefficients;
  ThreadSums sums;
  for (int i = threadIdx.x * P::kElements; i < work.count; i += P::kBatch * P::kStride) {
    Elements<W, P::kElements> w[P::kBatch], m[P::kBatch];
    Elements<G, P::kElements> g[P::kBatch];
#pragma unroll
    for (int b = 0; b < P::kBatch; ++b) {
      const int at = i + b * P::kStride, left = work.count - at;
      load<kVectors>(w[b], weight + at, left);
      load<kGradVectors>(g[b], grad + at, left);
      if constexpr (kMomentum != Momentum::kNone) load<kVectors>(m[b], momentum_buffer + at, left);
    }
#pragma unroll
    for (int b = 0; b < P::kBatch; ++b) {
      const int at = i + b * P::kStride, left = work.count - at;
#pragma unroll
      for (int e = 0; e < P::kElements; ++e) {
        const float before = widen(w[b].value[e]);
        const float amended = amended_gradient(widen(g[b].value[e]), before, c);
        float buffer = 0.0f;
        if constexpr (kMomentum != Momentum::kNone) {
          buffer = next_momentum(amended, widen(m[b].value[e]), c);
          m[b].value[e] = narrow<W>(buffer);
        }
        w[b].value[e] = narrow<W>(next_weight(before, direction<kMomentum>(amended, buffer, c), c));
        const float after = widen(w[b].value[e]);
        sums.read += before * before;
        sums.written += after * after;
      }
      store<kVectors>(weight + at, w[b], left);
      if constexpr (kMomentum != Momentum::kNone) store<kVectors>(momentum_buffer + at, m[b], left);
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

__device__ __forceinline__ bool allows_vectors(const void* address) {
  return reinterpret_cast<uint64_t>(address) % 16 == 0;
}

template <class W, class G, Momentum kMomentum>
__device__ __forceinline__ ThreadSums update_aligned(const ChunkWork& work) {
  if (!allows_vectors(work.weight) || !allows_vectors(work.momentum_buffer)) {
    return update_chunk<W, G, kMomentum, false, false>(work);
  }
  // Gradients are often views of one flat buffer (DDP): weights and momentum need not suffer for it.
  return allows_vectors(work.grad) ? update_chunk<W, G, kMomentum, true, true>(work)
                                   : update_chunk<W, G, kMomentum, true, false>(work);
}

template <class W, class G>
__device__ __forceinline__ ThreadSums update_with_momentum(const ChunkWork& work) {
  switch (work.momentum) {
    case Momentum::kNone:
      return update_aligned<W, G, Momentum::kNone>(work);
    case Momentum::kClassic:
      return update_aligned<W, G, Momentum::kClassic>(work);
    default:
      return update_aligned<W, G, Momentum::kNesterov>(work);
  }
}

template <class W>
__device__ __forceinline__ ThreadSums update_with_grad(const ChunkWork& work) {
  return work.wide_grad ? update_with_momentum<W, float>(work) : update_with_momentum<W, W>(work);
}

__device__ __forceinline__ ThreadSums update_any(const ChunkWork& work) {
  switch (work.dtype) {
    case DType::kBFloat16:
      return update_with_grad<__nv_bfloat16>(work);
    case DType::kFloat16:
      return update_with_grad<__half>(work);
    default:
      return update_with_momentum<float, float>(work);
  }
}

template <class W>
__device__ __forceinline__ ThreadSums sum_aligned(const ChunkWork& work) {
  return allows_vectors(work.weight) ? sum_chunk<W, true>(work.weight, work.count)
                                     : sum_chunk<W, false>(work.weight, work.count);
}

__device__ __forceinline__ ThreadSums sum_any(const ChunkWork& work) {
  switch (work.dtype) {
    case DType::kBFloat16:
      return sum_aligned<__nv_bfloat16>(work);
    case DType::kFloat16:
      return sum_aligned<__half>(work);
    default:
      return sum_aligned<float>(work);
  }
}

}  // namespace cuda
}  // namespace sasgd
