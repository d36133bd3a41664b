// What a thread block does with one chunk: the loops of the step and of the norm pass.
//
// A thread takes elements by their place in the chunk alone, whether memory is aligned or not and in tails too, and all
// sums have a fixed order: so a sum has the same bits in a step and in a norm pass, on every grid and every device.
#pragma once

#include <cstdint>
#include <type_traits>

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
  bool is_left;  // a step takes the sums alone
  Momentum momentum;
  UpdateCoefficients coefficients;
};

// What a mixed plan needs besides; ordinary ones have Ordinary.
struct MixedWork {
  static constexpr bool kMixed = true;
  void* copy;  // null: there is none
  DType copy_dtype;
  bool small_momentum;
  bool stochastic;
  uint32_t place;  // of the chunk's first element, its low 32 bits
  RandomKey key;
};

struct Ordinary {
  static constexpr bool kMixed = false;
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

// The random bits of an element, if its tensor is rounded by chance.
template <class Storage>
__device__ __forceinline__ uint32_t random_of(const Storage& storage, int at) {
  if constexpr (Storage::kMixed) {
    if (storage.stochastic) return random_bits(storage.place + static_cast<uint32_t>(at), storage.key);
  }
  return 0;
}

template <class T, class Storage>
__device__ __forceinline__ T round_for(const Storage& storage, float x, uint32_t random) {
  if constexpr (Storage::kMixed && std::is_same_v<T, __nv_bfloat16>) {
    if (storage.stochastic) return narrow_stochastically(x, random);
  }
  return narrow<T>(x);
}

// Rounds masters to the parameter, their copy.
template <class T, bool kVectors, int kCount>
__device__ __forceinline__ void store_copy(void* copy, int at, const Elements<float, kCount>& masters, int left) {
  Elements<T, kCount> rounded;
#pragma unroll
  for (int e = 0; e < kCount; ++e) rounded.value[e] = narrow<T>(masters.value[e]);
  store<kVectors>(global_memory(static_cast<T*>(copy)) + at, rounded, left);
}

// In mixed plans kNesterov stands for both kinds of momentum, which halves what has to be compiled.
template <Momentum kMomentum, class Storage>
__device__ __forceinline__ float along_of(float amended, float buffer, const ChunkWork& work, const Storage&) {
  if (Storage::kMixed && work.momentum == Momentum::kClassic) return buffer;
  return direction<kMomentum>(amended, buffer, work.coefficients);
}

template <class W, class G, class M, Momentum kMomentum, bool kVectors, bool kGradVectors, class Storage>
__device__ __forceinline__ ThreadSums update_chunk(const ChunkWork& work, const Storage& storage) {
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
        const uint32_t random = random_of(storage, at + e);
        float buffer = 0.0f;
        if constexpr (kMomentum != Momentum::kNone) {
          buffer = next_momentum(amended, widen(m[b].value[e]), c);
          m[b].value[e] = round_for<M>(storage, buffer, random >> 16);
        }
        w[b].value[e] =
            round_for<W>(storage, next_weight(before, along_of<kMomentum>(amended, buffer, work, storage), c), random);
        const float after = widen(w[b].value[e]);
        sums.read += before * before;
        sums.written += after * after;
      }
      store<kVectors>(weight + at, w[b], left);
      if constexpr (kMomentum != Momentum::kNone) store<kVectors>(momentum_buffer + at, m[b], left);
      if constexpr (Storage::kMixed && std::is_same_v<W, float>) {
        if (storage.copy && storage.copy_dtype == DType::kBFloat16) {
          store_copy<__nv_bfloat16, kVectors>(storage.copy, at, w[b], left);
        } else if (storage.copy) {
          store_copy<__half, kVectors>(storage.copy, at, w[b], left);
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

__device__ __forceinline__ bool allows_vectors(const void* address) {
  return reinterpret_cast<uint64_t>(address) % 16 == 0;
}

template <class W, class G, class M, Momentum kMomentum, class Storage>
__device__ __forceinline__ ThreadSums update_aligned(const ChunkWork& work, const Storage& storage) {
  bool vectors = allows_vectors(work.weight) && allows_vectors(work.momentum_buffer);
  if constexpr (Storage::kMixed) vectors = vectors && allows_vectors(storage.copy);
  if (!vectors) return update_chunk<W, G, M, kMomentum, false, false>(work, storage);
  // Gradients are often views of one flat buffer (DDP): weights and momentum need not suffer for it.
  return allows_vectors(work.grad) ? update_chunk<W, G, M, kMomentum, true, true>(work, storage)
                                   : update_chunk<W, G, M, kMomentum, true, false>(work, storage);
}

template <class W, class G, class M, class Storage>
__device__ __forceinline__ ThreadSums update_with_momentum(const ChunkWork& work, const Storage& storage) {
  if (work.momentum == Momentum::kNone) return update_aligned<W, G, W, Momentum::kNone>(work, storage);
  if constexpr (!Storage::kMixed) {
    if (work.momentum == Momentum::kClassic) return update_aligned<W, G, M, Momentum::kClassic>(work, storage);
  }
  return update_aligned<W, G, M, Momentum::kNesterov>(work, storage);
}

template <class W, class Storage>
__device__ __forceinline__ ThreadSums update_16_bits(const ChunkWork& work, const Storage& storage) {
  return work.wide_grad ? update_with_momentum<W, float, W>(work, storage)
                        : update_with_momentum<W, W, W>(work, storage);
}

template <class G>
__device__ __forceinline__ ThreadSums update_with_small_momentum(const ChunkWork& work, const MixedWork& storage) {
  return storage.small_momentum ? update_with_momentum<float, G, __nv_bfloat16>(work, storage)
                                : update_with_momentum<float, G, float>(work, storage);
}

__device__ __forceinline__ ThreadSums update_float32(const ChunkWork& work, const Ordinary& storage) {
  return update_with_momentum<float, float, float>(work, storage);
}

__device__ __forceinline__ ThreadSums update_float32(const ChunkWork& work, const MixedWork& storage) {
  const DType grad_dtype = work.wide_grad ? DType::kFloat32 : storage.copy_dtype;
  switch (grad_dtype) {
    case DType::kBFloat16:
      return update_with_small_momentum<__nv_bfloat16>(work, storage);
    case DType::kFloat16:
      return update_with_small_momentum<__half>(work, storage);
    default:
      return update_with_small_momentum<float>(work, storage);
  }
}

template <class Storage>
__device__ __forceinline__ ThreadSums update_any(const ChunkWork& work, const Storage& storage) {
  switch (work.dtype) {
    case DType::kBFloat16:
      return update_16_bits<__nv_bfloat16>(work, storage);
    case DType::kFloat16:
      return update_16_bits<__half>(work, storage);
    default:
      return update_float32(work, storage);
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
