// The kernels: which chunks a thread block takes, and what the last one to finish leaves for the next step.
#pragma once

#include <cstdint>
#include <cstring>

#include "../layer_scale.h"
#include "candidates.h"
#include "chunk_loops.cuh"
#include "prefetch.cuh"
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

// The word of a tensor; 0 where the launch is not about it.
template <int kWords>
__device__ __forceinline__ uint64_t word_of(const LaunchArgs<kWords>& args, int32_t t) {
  const Launch& launch = args.header.launch;
  if (has<kTensorTrees> && (t < launch.first_tensor || t >= launch.end_tensor)) return 0;
  return args.words[t - launch.first_tensor];
}

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

// Whether a step leaves a scaled layer as it is, because the one before spoilt it: its norm is no number, which would
// spoil again what others have put right since. The next step knows the norm, from what this one reads.
__device__ __forceinline__ bool is_left(const PlanOptions& options, double norm) {
  return options.track_norms && norm != norm;
}

__device__ __forceinline__ ChunkEntry entry_of(const Tables& tables, int32_t chunk) {
  uint4 halves[2];  // both are on their way at once; of the fields a compiler would load some later
#pragma unroll
  for (int i = 0; i < 2; ++i) halves[i] = reinterpret_cast<const uint4*>(tables.chunks + chunk)[i];
  ChunkEntry entry;
  memcpy(&entry, halves, sizeof entry);
  return entry;
}

// Looks up what a step does with a chunk; one thread does it for all. Whatever the entry leads to is loaded before any
// of it is looked at, the word for no gradient too, since each wait takes most of a microsecond.
template <bool kMixedPrecision, bool kRelative, int kWords>
__device__ ChunkWork step_of_chunk(const LaunchArgs<kWords>& args, const ChunkEntry& entry) {
  const LaunchHeader& header = args.header;
  const Tables& tables = header.tables;
  const int32_t t = entry.tensor;
  const uint64_t word = word_of(args, t);
  ChunkWork work{};
  const float loss_scale = header.grad_scale ? *header.grad_scale : 1.0f;
  const Addresses base = tables.addresses[t];
  const uint8_t flags = tables.flags[t];
  const GroupValues group = group_values(args, entry.group);
  Scales scales = plain_scales(group);
  if (entry.scaled) {
    const LayerTraits layer = tables.layers[entry.layer];
    const double norm = tables.row_norm_sq[entry.layer];
    work.is_left = is_left(header.options, norm);
    if constexpr (kRelative) {
      scales = relative_scales(group, layer, norm, tables.gradient_norm_sq[t], header.options);
    } else {
      scales = amended_scales(group, layer, norm, header.options);
    }
  }
  const double inverse = header.grad_scale ? 1.0 / static_cast<double>(loss_scale) : 1.0;
  work.coefficients = make_coefficients(group, scales, inverse, !(flags & kStarted));

  work.wide_grad = word & kWideGradient;
  work.weight = address<void>(base.weight, entry.offset, item_size(entry.dtype));
  const DType param_dtype = kMixedPrecision && entry.param_dtype != DType::kFloat32 ? entry.param_dtype : entry.dtype;
  work.grad = address<const void>(word & ~kWideGradient, entry.offset, work.wide_grad ? 4 : item_size(param_dtype));
  const int momentum_size = kMixedPrecision && entry.small_momentum ? 2 : item_size(entry.dtype);
  work.momentum_buffer = address<void>(base.momentum_buffer, entry.offset, momentum_size);
  work.count = word ? entry.count : 0;
  work.dtype = entry.dtype;
  work.takes_sums = header.options.track_norms && entry.layer >= 0;
  work.takes_gradient = kRelative && entry.scaled;
  work.momentum = !base.momentum_buffer ? Momentum::kNone : group.nesterov ? Momentum::kNesterov : Momentum::kClassic;
  return work;
}

// kWithoutLookUp: what a step does with a chunk of its only tensor, by its arguments alone.
template <int kWords>
__device__ ChunkWork wired_chunk(const LaunchArgs<kWords>& args, int32_t chunk) {
  const GroupValues group = group_values(args, 0);
  const uint64_t* wired = args.words + 1 + kGroupWords;
  const DType dtype = static_cast<DType>(wired[3]);
  const int64_t offset = chunk * kChunk, left = static_cast<int64_t>(wired[2]) - offset;
  ChunkWork work{};
  work.weight = address<void>(wired[0], offset, item_size(dtype));
  work.grad = address<const void>(args.words[0], offset, item_size(dtype));
  work.momentum_buffer = address<void>(wired[1], offset, item_size(dtype));
  work.count = static_cast<int32_t>(left < kChunk ? left : kChunk);
  work.dtype = dtype;
  work.takes_sums = args.header.options.track_norms;
  work.momentum = group.nesterov ? Momentum::kNesterov : Momentum::kClassic;
  work.coefficients = make_coefficients(group, plain_scales(group), 1.0, false);
  return work;
}

// Looks up what a step in mixed precision needs besides.
__device__ __forceinline__ PrecisionWork precision_of_chunk(const Tables& tables, const ChunkEntry& entry) {
  const PrecisionEntry precision = tables.precision[entry.tensor];
  PrecisionWork work{};
  work.param = address<void>(precision.param, entry.offset, 2);
  work.param_dtype = entry.param_dtype;
  work.small_momentum = entry.small_momentum;
  work.stochastic = entry.stochastic;
  work.place = static_cast<uint32_t>(entry.offset);
  if (work.stochastic) {
    work.key = random_key(precision.stream, tables.rounding_steps[entry.tensor], entry.offset);
  }
  return work;
}

// Looks up what is to be summed of a gradient whose norm is not known.
template <int kWords>
__device__ ChunkWork gradient_of_chunk(const LaunchArgs<kWords>& args, const ChunkEntry& entry) {
  if (args.header.tables.gradient_norm_sq[entry.tensor] != 0) return {};
  return step_of_chunk<true, true>(args, entry);
}

__device__ __forceinline__ DType gradient_dtype(const Tables& tables, int32_t chunk, const ChunkWork& work) {
  return work.wide_grad ? DType::kFloat32 : tables.chunks[chunk].param_dtype;
}

// Looks up what a norm pass does with a chunk.
template <int kWords>
__device__ ChunkWork norm_of_chunk(const LaunchArgs<kWords>& args, const ChunkEntry& entry) {
  const Tables& tables = args.header.tables;
  const int32_t t = entry.tensor;
  ChunkWork work{};
  if (!word_of(args, t) || tables.flags[t] & kNormKept) return work;

  work.weight = address<void>(tables.addresses[t].weight, entry.offset, item_size(entry.dtype));
  work.count = entry.count;
  work.dtype = entry.dtype;
  work.takes_sums = true;
  return work;
}

// Leaves the squared norm of a tensor's gradient for the next step; returns the flag that says so.
__device__ __forceinline__ uint8_t carry_gradient(const Tables& tables, int32_t t, double measured) {
  const double next = next_gradient_norm_sq(tables.gradient_norm_sq[t], measured);
  tables.gradient_sums[t] = measured;
  tables.gradient_norm_sq[t] = next;
  return next != 0 ? kGradientKnown : 0;
}

// What a launch leaves for the next step, one tensor to a thread.
template <Pass kPass, bool kMixedPrecision, bool kRelative, int kWords>
__device__ __forceinline__ void finish_tensor(const LaunchArgs<kWords>& args, int32_t t) {
  const LaunchHeader& header = args.header;
  const Tables& tables = header.tables;
  if (!word_of(args, t)) return;
  const TensorEntry tensor = tables.tensors[t];
  const int32_t b = tensor.layer;
  if constexpr (kPass == Pass::kGradients) {
    const double measured = tables.sums[tensor.root].gradient;
    if (tables.gradient_norm_sq[t] == 0) tables.flags[t] |= carry_gradient(tables, t, measured);
    return;
  }
  constexpr bool kUpdate = kPass == Pass::kStep;
  // All loads come before the first store: it waits for what it is made of, and what follows would wait with it.
  uint8_t flags = tables.flags[t];
  const bool has_momentum = kUpdate && tables.addresses[t].momentum_buffer;
  double used_norm = 0, carried_sum = 0, rows = 1;
  Sums sums{};
  if (b >= 0) {
    used_norm = tables.row_norm_sq[b];
    carried_sum = tables.sum_squares[b];
    rows = tables.layers[b].rows;
    sums = tables.sums[tensor.root];
  }
  if constexpr (kUpdate) {
    const bool is_unknown = tensor.scaled && is_left(header.options, used_norm);
    if (has_momentum && !is_unknown) flags |= kStarted;
    if (kMixedPrecision && tensor.stochastic) ++tables.rounding_steps[t];
    if (kRelative && tensor.scaled && !is_unknown) flags |= carry_gradient(tables, t, sums.gradient);
    if (!header.options.track_norms && tensor.scaled && is_finite(used_norm)) {
      if (group_values(args, tensor.group).lr != 0) flags |= kNormKept;
    }
    tables.flags[t] = flags;
    if (b < 0 || !header.options.track_norms) return;
    if (tensor.scaled && !is_unknown && !same_bits(sums.read, carried_sum)) ++tables.stale_steps[b];
  } else if (flags & kNormKept) {
    return;
  }
  tables.sum_squares[b] = sums.written;
  const double norm = sums.written / rows;
  // A norm pass leaves an infinite norm as it is: so infinite weights that nobody put right are noticed.
  tables.row_norm_sq[b] = kUpdate && tensor.scaled && !is_finite(norm) ? norm - norm : norm;
}

// kTensorTrees: the tree of one tensor, level by level, and what is left of it for the next step.
template <Pass kPass, bool kMixedPrecision, bool kRelative, int kWords>
__device__ __forceinline__ void finish_with_tree(const LaunchArgs<kWords>& args, int32_t t) {
  const LaunchHeader& header = args.header;
  const TensorEntry tensor = header.tables.tensors[t];
  const bool has_sums = tensor.layer >= 0 && (kPass != Pass::kStep || header.options.track_norms);
  for (int32_t first = tensor.first_node, count = tensor.chunks; has_sums && count > 1;) {
    count = (count + kFanIn - 1) / kFanIn;
    for (int32_t n = first + threadIdx.x; n < first + count; n += kThreads) {
      add_up_children<kRelative>(header.tables, n);
    }
    __syncthreads();  // the next level of the tensor reads this one
    first += count;
  }
  if (threadIdx.x == 0) {
    finish_tensor<kPass, kMixedPrecision, kRelative>(args, t);
    header.tables.finished_thread_blocks[t] = 0;
  }
}

template <Pass kPass, bool kMixedPrecision, bool kRelative, int kWords>
__device__ __forceinline__ void run_pass(const LaunchArgs<kWords>& args) {
  SASGD_SHARED(ChunkWork, shared_work, 1);
  SASGD_SHARED(PrecisionWork, shared_precision, 1);
  SASGD_SHARED(Sums, of_warps, kWarps);
  SASGD_SHARED(int32_t, shared_tensor, 1);    // of the chunk
  SASGD_SHARED(int32_t, finished_tensor, 1);  // with the chunk, or -1
  const LaunchHeader& header = args.header;
  const Tables& tables = header.tables;
  if constexpr (has<kPrefetch> && kPass == Pass::kStep) prefetch_tables(tables, header.launch);
  if (kPass != Pass::kNorms && header.found_inf && *header.found_inf != 0) return;

  for (int32_t chunk = header.launch.first_chunk + blockIdx.x; chunk < header.launch.end_chunk; chunk += gridDim.x) {
    if (threadIdx.x == 0) {
      const ChunkEntry entry = entry_of(tables, chunk);
      if constexpr (has<kWithoutLookUp> && kPass == Pass::kStep) {
        shared_work[0] = wired_chunk(args, chunk);
      } else {
        shared_work[0] = kPass == Pass::kStep    ? step_of_chunk<kMixedPrecision, kRelative>(args, entry)
                         : kPass == Pass::kNorms ? norm_of_chunk(args, entry)
                                                 : gradient_of_chunk(args, entry);
      }
      if constexpr (kMixedPrecision) shared_precision[0] = precision_of_chunk(tables, entry);
      if constexpr (has<kTensorTrees>) shared_tensor[0] = entry.tensor;
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
    if constexpr (has<kTensorTrees>) {
      if (threadIdx.x == 0) {
        const int32_t t = shared_tensor[0];
        const bool is_finished = work.count > 0 && is_last(tables.finished_thread_blocks[t], tables.tensors[t].chunks);
        finished_tensor[0] = is_finished ? t : -1;
      }
    }
    __syncthreads();  // shared_work and of_warps have been read
    if constexpr (has<kTensorTrees>) {
      const int32_t t = finished_tensor[0];
      if (t >= 0) finish_with_tree<kPass, kMixedPrecision, kRelative>(args, t);
    }
  }

  if constexpr (has<kTensorTrees> || (has<kWithoutEpilogue> && kPass == Pass::kStep)) return;
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
  if constexpr (!(kMixedPrecision && has<kWithoutMixed>) && !(kRelative && has<kWithoutRelative>)) {
    run_pass<Pass::kStep, kMixedPrecision, kRelative>(args);
  }
}

template <int kWords>
__global__ void __launch_bounds__(kThreads) norm_kernel(const __grid_constant__ LaunchArgs<kWords> args) {
  run_pass<Pass::kNorms, false, false>(args);
}

// Of weights and gradients of any dtypes.
template <int kWords>
__global__ void __launch_bounds__(kThreads) gradient_kernel(const __grid_constant__ LaunchArgs<kWords> args) {
  if constexpr (!has<kWithoutRelative>) run_pass<Pass::kGradients, false, true>(args);
}

}  // namespace cuda
}  // namespace sasgd
