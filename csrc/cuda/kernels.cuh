// The kernels: which chunks a thread block takes, and what the last one to finish leaves for the next step.
#pragma once

#include <cstdint>
#include <cstring>

#include "../layer_scale.h"
#include "chunk_loops.cuh"
#include "sums.cuh"
#include "tables.h"

namespace sasgd {
namespace cuda {

constexpr int kResidentThreadBlocks = 4;  // on a multiprocessor, at least: so that enough loads are on their way

template <class T>
__device__ __forceinline__ T* address(uint64_t base, int64_t offset, int item_size) {
  return base ? reinterpret_cast<T*>(base + static_cast<uint64_t>(offset * item_size)) : nullptr;
}

__device__ __forceinline__ int item_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

template <int kWords>
__device__ __forceinline__ GroupValues group_values(const LaunchArgs<kWords>& args, int group) {
  const Launch& launch = args.header.launch;
  const int first = launch.end_tensor - launch.first_tensor + group * kGroupWords;
  uint64_t words[kGroupWords];
#pragma unroll
  for (int i = 0; i < kGroupWords; ++i) words[i] = args.words[first + i];
  GroupWords sent;
  memcpy(&sent, words, sizeof sent);
  if (sent.lr) sent.values.lr = *global_memory(sent.lr);
  return sent.values;
}

__device__ __forceinline__ bool is_scaled(const Tables& tables, int32_t layer) {
  return layer >= 0 && tables.layers[layer].scaled;
}

// Whether a step leaves a scaled layer as it is, because the one before spoilt it: its norm is no number, which would
// spoil again what others have put right since. The next step knows the norm, from what this one reads.
__device__ __forceinline__ bool is_left(const LaunchHeader& header, int32_t layer) {
  const double norm = header.tables.row_norm_sq[layer];
  return header.options.track_norms && norm != norm;
}

// Looks up what a step does with a chunk; one thread does it for all.
template <bool kMixedPrecision, bool kRelative, int kWords>
__device__ ChunkWork step_of_chunk(const LaunchArgs<kWords>& args, int32_t chunk) {
  const LaunchHeader& header = args.header;
  const Tables& tables = header.tables;
  const int32_t t = tables.tensor_of_chunk[chunk];
  const uint64_t word = args.words[t - header.launch.first_tensor];
  ChunkWork work{};
  if (word == 0) return work;

  const TensorEntry tensor = tables.tensors[t];
  const Addresses base = tables.addresses[t];
  const GroupValues group = group_values(args, tensor.group);
  const ChunkPlace place = chunk_place(chunk - tensor.first_chunk, tensor.numel);
  work.wide_grad = word & kWideGradient;
  work.weight = address<void>(base.weight, place.offset, item_size(tensor.dtype));
  const DType param_dtype =
      kMixedPrecision && tensor.param_dtype != DType::kFloat32 ? tensor.param_dtype : tensor.dtype;
  work.grad = address<const void>(word & ~kWideGradient, place.offset, work.wide_grad ? 4 : item_size(param_dtype));
  const int momentum_size = kMixedPrecision && tensor.small_momentum ? 2 : item_size(tensor.dtype);
  work.momentum_buffer = address<void>(base.momentum_buffer, place.offset, momentum_size);
  work.count = place.count;
  work.dtype = tensor.dtype;
  work.takes_sums = header.options.track_norms && tensor.layer >= 0;
  work.takes_gradient = kRelative && is_scaled(tables, tensor.layer);
  work.momentum = !base.momentum_buffer ? Momentum::kNone : group.nesterov ? Momentum::kNesterov : Momentum::kClassic;

  Scales scales = plain_scales(group);
  if (is_scaled(tables, tensor.layer)) {
    const LayerTraits layer = tables.layers[tensor.layer];
    const double norm = tables.row_norm_sq[tensor.layer];
    work.is_left = is_left(header, tensor.layer);
    if constexpr (kRelative) {
      scales = relative_scales(group, layer, norm, tables.gradient_norm_sq[t], header.options);
    } else {
      scales = amended_scales(group, layer, norm, header.options);
    }
  }
  const double inverse = header.grad_scale ? 1.0 / static_cast<double>(*header.grad_scale) : 1.0;
  work.coefficients = make_coefficients(group, scales, inverse, !(tables.flags[t] & kStarted));
  return work;
}

// Looks up what a step in mixed precision needs besides.
__device__ __forceinline__ PrecisionWork precision_of_chunk(const Tables& tables, int32_t chunk) {
  const int32_t t = tables.tensor_of_chunk[chunk];
  const TensorEntry tensor = tables.tensors[t];
  const PrecisionEntry precision = tables.precision[t];
  const int64_t offset = chunk_place(chunk - tensor.first_chunk, tensor.numel).offset;
  PrecisionWork work{};
  work.param = address<void>(precision.param, offset, 2);
  work.param_dtype = tensor.param_dtype;
  work.small_momentum = tensor.small_momentum;
  work.stochastic = tensor.stochastic;
  work.place = static_cast<uint32_t>(offset);
  if (work.stochastic) work.key = random_key(precision.stream, tables.rounding_steps[t], offset);
  return work;
}

// Looks up what is to be summed of a gradient whose norm is not known.
template <int kWords>
__device__ ChunkWork gradient_of_chunk(const LaunchArgs<kWords>& args, int32_t chunk) {
  const Tables& tables = args.header.tables;
  if (tables.gradient_norm_sq[tables.tensor_of_chunk[chunk]] != 0) return {};
  return step_of_chunk<true, true>(args, chunk);
}

__device__ __forceinline__ DType gradient_dtype(const Tables& tables, int32_t chunk, const ChunkWork& work) {
  return work.wide_grad ? DType::kFloat32 : tables.tensors[tables.tensor_of_chunk[chunk]].param_dtype;
}

// Looks up what a norm pass does with a chunk.
template <int kWords>
__device__ ChunkWork norm_of_chunk(const LaunchArgs<kWords>& args, int32_t chunk) {
  const Tables& tables = args.header.tables;
  const int32_t t = tables.tensor_of_chunk[chunk];
  ChunkWork work{};
  if (!args.words[t - args.header.launch.first_tensor] || tables.flags[t] & kNormKept) return work;

  const TensorEntry tensor = tables.tensors[t];
  const ChunkPlace place = chunk_place(chunk - tensor.first_chunk, tensor.numel);
  work.weight = address<void>(tables.addresses[t].weight, place.offset, item_size(tensor.dtype));
  work.count = place.count;
  work.dtype = tensor.dtype;
  work.takes_sums = true;
  return work;
}

// The squared norm of a tensor's gradient, for the next step.
__device__ __forceinline__ void carry_gradient(const Tables& tables, int32_t t) {
  const double measured = tables.sums[tables.tensors[t].root].gradient;
  const double next = next_gradient_norm_sq(tables.gradient_norm_sq[t], measured);
  tables.gradient_sums[t] = measured;
  tables.gradient_norm_sq[t] = next;
  if (next != 0) tables.flags[t] |= kGradientKnown;
}

// What a launch leaves for the next step, one tensor to a thread.
template <Pass kPass, bool kMixedPrecision, bool kRelative, int kWords>
__device__ __forceinline__ void finish_tensor(const LaunchArgs<kWords>& args, int32_t t) {
  const LaunchHeader& header = args.header;
  const Tables& tables = header.tables;
  if (!args.words[t - header.launch.first_tensor]) return;
  const TensorEntry tensor = tables.tensors[t];
  const int32_t b = tensor.layer;
  if constexpr (kPass == Pass::kGradients) {
    if (tables.gradient_norm_sq[t] == 0) carry_gradient(tables, t);
    return;
  }
  constexpr bool kUpdate = kPass == Pass::kStep;
  bool is_unknown = false;
  if constexpr (kUpdate) {
    is_unknown = is_scaled(tables, b) && is_left(header, b);
    if (tables.addresses[t].momentum_buffer && !is_unknown) tables.flags[t] |= kStarted;
    if (kMixedPrecision && tensor.stochastic) ++tables.rounding_steps[t];
    if (b < 0) return;
    if (kRelative && tables.layers[b].scaled && !is_unknown) carry_gradient(tables, t);
    if (!header.options.track_norms) {
      const bool is_update = tables.layers[b].scaled && group_values(args, tensor.group).lr != 0;
      if (is_update && is_finite(tables.row_norm_sq[b])) tables.flags[t] |= kNormKept;
      return;
    }
    if (tables.layers[b].scaled && !is_unknown && !same_bits(tables.sums[tensor.root].read, tables.sum_squares[b])) {
      ++tables.stale_steps[b];
    }
  } else if (tables.flags[t] & kNormKept) {
    return;
  }
  tables.sum_squares[b] = tables.sums[tensor.root].written;
  const double norm = tables.sum_squares[b] / tables.layers[b].rows;
  // A norm pass leaves an infinite norm as it is: so infinite weights that nobody put right are noticed.
  tables.row_norm_sq[b] = kUpdate && tables.layers[b].scaled && !is_finite(norm) ? norm - norm : norm;
}

template <Pass kPass, bool kMixedPrecision, bool kRelative, int kWords>
__device__ __forceinline__ void run_pass(const LaunchArgs<kWords>& args) {
  SASGD_SHARED(ChunkWork, shared_work, 1);
  SASGD_SHARED(PrecisionWork, shared_precision, 1);
  SASGD_SHARED(Sums, of_warps, kWarps);
  const LaunchHeader& header = args.header;
  const Tables& tables = header.tables;
  if (kPass != Pass::kNorms && header.found_inf && *header.found_inf != 0) return;

  for (int32_t chunk = header.launch.first_chunk + blockIdx.x; chunk < header.launch.end_chunk; chunk += gridDim.x) {
    if (threadIdx.x == 0) {
      shared_work[0] = kPass == Pass::kStep    ? step_of_chunk<kMixedPrecision, kRelative>(args, chunk)
                       : kPass == Pass::kNorms ? norm_of_chunk(args, chunk)
                                               : gradient_of_chunk(args, chunk);
      if constexpr (kMixedPrecision) shared_precision[0] = precision_of_chunk(tables, chunk);
    }
    __syncthreads();  // shared_work is filled in
    const ChunkWork work = shared_work[0];
    if (work.count > 0) {
      ThreadSums own;
      if constexpr (kPass == Pass::kGradients) {
        own = sum_gradients_any(work, gradient_dtype(tables, chunk, work));
      } else if constexpr (kPass == Pass::kNorms) {
        own = sum_any(work);
      } else if (work.is_left) {
        own = sum_any(work);
      } else if constexpr (kMixedPrecision) {
        own = update_any<kRelative>(work, PrecisionWork(shared_precision[0]));
      } else {
        own = update_any<kRelative>(work, PlainWork{});
      }
      if (work.takes_sums) {
        const Sums sums = add_up(own, of_warps, kRelative && work.takes_gradient);
        if (threadIdx.x == 0) tables.sums[chunk] = sums;
      }
    }
    __syncthreads();  // shared_work and of_warps have been read
  }

  if (!is_last_thread_block(tables)) return;
  const Launch& launch = header.launch;
  if (kPass != Pass::kStep || header.options.track_norms) {
    for (int level = 0; level < launch.levels; ++level) {
      for (int32_t n = launch.level_begin[level] + threadIdx.x; n < launch.level_end[level]; n += kThreads) {
        add_up_children<kRelative>(tables, n);
      }
      __syncthreads();  // the next level reads this one
    }
  }
  for (int32_t t = launch.first_tensor + threadIdx.x; t < launch.end_tensor; t += kThreads) {
    finish_tensor<kPass, kMixedPrecision, kRelative>(args, t);
  }
  if (threadIdx.x == 0) *tables.finished_thread_blocks = 0;
}

// kMixedPrecision: the precision of some tensors is not plain. kRelative: norms of gradients are taken too, which costs
// registers.
template <int kWords, bool kMixedPrecision, bool kRelative>
__global__ void __launch_bounds__(kThreads, kResidentThreadBlocks)
    step_kernel(const __grid_constant__ LaunchArgs<kWords> args) {
  run_pass<Pass::kStep, kMixedPrecision, kRelative>(args);
}

template <int kWords>
__global__ void __launch_bounds__(kThreads) norm_kernel(const __grid_constant__ LaunchArgs<kWords> args) {
  run_pass<Pass::kNorms, false, false>(args);
}

// Of weights and gradients of any dtypes.
template <int kWords>
__global__ void __launch_bounds__(kThreads) gradient_kernel(const __grid_constant__ LaunchArgs<kWords> args) {
  run_pass<Pass::kGradients, false, true>(args);
}

}  // namespace cuda
}  // namespace sasgd
