#include "step.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "../layer_scale.h"
#include "parallel.h"

namespace sasgd {
namespace {

// Fixed, so that sums do not depend on the machine or the number of threads.
constexpr int64_t kChunk = 16384;

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> found;
#if defined(SASGD_HAVE_X86_VARIANTS)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    found.push_back(&avx512::kKernels);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) found.push_back(&avx2::kKernels);
#endif
  found.push_back(&baseline::kKernels);
  return found;
}

const Kernels*& current_kernels() {
  static const Kernels* kernels = available_kernels().front();
  return kernels;
}

template <class T>
T* address(uint64_t base, int64_t offset, DType dtype) {
  return base ? reinterpret_cast<T*>(base + static_cast<uint64_t>(offset) * (dtype == DType::kFloat32 ? 4 : 2))
              : nullptr;
}

bool same_bits(double a, double b) { return std::memcmp(&a, &b, sizeof a) == 0 || (a != a && b != b); }

}  // namespace

CpuPlan::CpuPlan(std::vector<TensorInfo> tensors, std::vector<BlockInfo> blocks, PlanOptions options)
    : tensors_(std::move(tensors)), blocks_(std::move(blocks)), options_(options) {
  for (size_t b = 0; b < blocks_.size(); ++b) {
    const size_t t = static_cast<size_t>(blocks_[b].tensor);
    if (t >= tensors_.size() || tensors_[t].block != static_cast<int32_t>(b)) {
      throw std::invalid_argument("blocks: block " + std::to_string(b) + " and its tensor do not refer to each other");
    }
  }
  for (const TensorInfo& tensor : tensors_) group_count_ = std::max(group_count_, tensor.group + 1);
  int64_t pending = kChunk;  // elements in the last task; starts a task
  for (size_t t = 0; t < tensors_.size(); ++t) {
    first_chunk_.push_back(static_cast<int64_t>(chunks_.size()));
    for (int64_t offset = 0; offset < tensors_[t].numel; offset += kChunk) {
      if (pending >= kChunk) {
        tasks_.push_back({static_cast<int64_t>(chunks_.size()), 0});
        pending = 0;
      }
      const int64_t count = std::min(kChunk, tensors_[t].numel - offset);
      chunks_.push_back({static_cast<int32_t>(t), offset, count});
      tasks_.back().end_chunk = static_cast<int64_t>(chunks_.size());
      pending += count;
    }
  }
  first_chunk_.push_back(static_cast<int64_t>(chunks_.size()));
  row_norm_sq.resize(blocks_.size());
  stale_steps.resize(blocks_.size());
  sum_squares_.resize(blocks_.size());
  chunk_sums_.resize(chunks_.size());
  coefficients_.resize(tensors_.size());
}

void CpuPlan::measure(const uint64_t* weights, const uint8_t* chosen_blocks, int threads) {
  const Kernels& kernels = *current_kernels();
  parallel_for(static_cast<int64_t>(tasks_.size()), threads, [&](int64_t task) {
    for (int64_t k = tasks_[task].first_chunk; k < tasks_[task].end_chunk; ++k) {
      const Chunk& chunk = chunks_[k];
      const TensorInfo& tensor = tensors_[chunk.tensor];
      if (tensor.block < 0 || !chosen_blocks[tensor.block]) continue;
      const void* weight = address<void>(weights[chunk.tensor], chunk.offset, tensor.dtype);
      chunk_sums_[k].written = kernels.sum_squares(weight, chunk.count, tensor.dtype);
    }
  });
  for (size_t b = 0; b < blocks_.size(); ++b) {
    if (!chosen_blocks[b]) continue;
    double sum = 0;
    const int32_t t = blocks_[b].tensor;
    for (int64_t k = first_chunk_[t]; k < first_chunk_[t + 1]; ++k) sum += chunk_sums_[k].written;
    sum_squares_[b] = sum;
    row_norm_sq[b] = sum / blocks_[b].rows;
  }
}

void CpuPlan::make_coefficients_of(const TensorStep* steps, const GroupValues* groups, double loss_scale) {
  const double inverse = 1.0 / loss_scale;
  for (size_t t = 0; t < tensors_.size(); ++t) {
    const GroupValues& group = groups[tensors_[t].group];
    coefficients_[t] = make_coefficients(group, 1.0, group.weight_decay, inverse, steps[t].first);
  }
  double m = options_.output_factor;
  for (size_t b = blocks_.size(); b-- > 0;) {
    const BlockInfo& block = blocks_[b];
    if (block.scaled) {
      const GroupValues& group = groups[tensors_[block.tensor].group];
      const double scale = layer_scale(row_norm_sq[b], m, options_.eps);
      const double decay = decay_scale(scale, m, group.weight_decay, options_.shape_decay);
      coefficients_[block.tensor] = make_coefficients(group, scale, decay, inverse, steps[block.tensor].first);
    }
    m = next_backward_factor(m, block);
  }
}

int64_t CpuPlan::step(const TensorStep* steps, const GroupValues* groups, double loss_scale, int threads) {
  const Kernels& kernels = *current_kernels();
  make_coefficients_of(steps, groups, loss_scale);
  parallel_for(static_cast<int64_t>(tasks_.size()), threads, [&](int64_t task) {
    for (int64_t k = tasks_[task].first_chunk; k < tasks_[task].end_chunk; ++k) {
      const Chunk& chunk = chunks_[k];
      const TensorInfo& tensor = tensors_[chunk.tensor];
      const TensorStep& now = steps[chunk.tensor];
      if (!now.grad) continue;
      ChunkStep work;
      work.weight = address<void>(now.weight, chunk.offset, tensor.dtype);
      work.grad = address<const void>(now.grad, chunk.offset, now.grad_dtype);
      work.momentum_buffer = address<void>(now.momentum_buffer, chunk.offset, tensor.dtype);
      work.count = chunk.count;
      work.dtype = tensor.dtype;
      work.grad_dtype = now.grad_dtype;
      work.nesterov = groups[tensor.group].nesterov;
      work.sum_squares = options_.track_norms && tensor.block >= 0;
      work.coefficients = coefficients_[chunk.tensor];
      chunk_sums_[k] = kernels.update(work);
    }
  });
  return options_.track_norms ? finish_sums(steps) : 0;
}

int64_t CpuPlan::finish_sums(const TensorStep* steps) {
  int64_t stale = 0;
  for (size_t b = 0; b < blocks_.size(); ++b) {
    const int32_t t = blocks_[b].tensor;
    if (!steps[t].grad) continue;
    ChunkSums sums;
    for (int64_t k = first_chunk_[t]; k < first_chunk_[t + 1]; ++k) {
      sums.read += chunk_sums_[k].read;
      sums.written += chunk_sums_[k].written;
    }
    if (blocks_[b].scaled && !same_bits(sums.read, sum_squares_[b])) {
      ++stale;
      ++stale_steps[b];
    }
    sum_squares_[b] = sums.written;
    row_norm_sq[b] = sums.written / blocks_[b].rows;
  }
  return stale;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* kernels : available_kernels()) names.emplace_back(kernels->instruction_set);
  return names;
}

void use_instruction_set(const std::string& name) {
  for (const Kernels* kernels : available_kernels()) {
    if (name == kernels->instruction_set) {
      current_kernels() = kernels;
      return;
    }
  }
  throw std::invalid_argument("name: got '" + name + "', want one of instruction_sets()");
}

}  // namespace sasgd
