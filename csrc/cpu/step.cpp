#include "step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "../layer_scale.h"
#include "parallel.h"

namespace sasgd {
namespace {

// One hand-over between threads for about this many parts of the work, and for this many elements at most: enough parts
// for an even load, and long ways through memory.
constexpr int64_t kTasks = 64;
constexpr int64_t kLargestTask = 16 * kChunk;
// After a step that made a sum of squares so many times as large, others may put back the weights, unseen.
constexpr double kJump = 100;

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

// By halving: a fixed order.
double total(double* lanes) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

}  // namespace

CpuPlan::CpuPlan(std::vector<TensorInfo> tensors, std::vector<BlockInfo> blocks, PlanOptions options)
    : tensors_(std::move(tensors)), blocks_(std::move(blocks)), options_(options) {
  for (size_t b = 0; b < blocks_.size(); ++b) {
    const size_t t = static_cast<size_t>(blocks_[b].tensor);
    if (t >= tensors_.size() || tensors_[t].block != static_cast<int32_t>(b)) {
      throw std::invalid_argument("blocks: block " + std::to_string(b) + " and its tensor do not refer to each other");
    }
  }
  fill_backward_factors(blocks_);
  for (const TensorInfo& tensor : tensors_) group_count_ = std::max(group_count_, tensor.group + 1);
  int64_t all = 0;
  for (const TensorInfo& tensor : tensors_) all += tensor.numel;
  const int64_t task_size = std::min(std::max(all / kTasks, kChunk), kLargestTask);
  int64_t pending = task_size;  // elements in the last task; starts a task
  for (size_t t = 0; t < tensors_.size(); ++t) {
    first_chunk_.push_back(static_cast<int64_t>(chunks_.size()));
    for (int64_t offset = 0; offset < tensors_[t].numel; offset += kChunk) {
      if (pending >= task_size) {
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
  sum_modes_.resize(blocks_.size());
  given_.resize(blocks_.size());
  has_jumped_.resize(blocks_.size());
  chunk_sums_.resize(chunks_.size());
  coefficients_.resize(tensors_.size());
}

template <class Body>
void CpuPlan::for_each_run(int threads, const Body& body) {
  parallel_for(static_cast<int64_t>(tasks_.size()), threads, [&](int64_t task) {
    for (int64_t k = tasks_[task].first_chunk, end; k < tasks_[task].end_chunk; k = end) {
      const Chunk& first = chunks_[k];
      end = std::min(tasks_[task].end_chunk, first_chunk_[first.tensor + 1]);
      body(first.tensor, first.offset, chunks_[end - 1].offset + chunks_[end - 1].count - first.offset,
           &chunk_sums_[k]);
    }
  });
}

ChunkSums CpuPlan::sums_of(int32_t tensor) const {
  ChunkSums sums{};
  for (int64_t k = first_chunk_[tensor]; k < first_chunk_[tensor + 1]; ++k) {
    for (int i = 0; i < kLanes; ++i) {
      sums.read[i] += chunk_sums_[k].read[i];
      sums.written[i] += chunk_sums_[k].written[i];
    }
  }
  return sums;
}

void CpuPlan::take_sums(const uint64_t* weights, const uint8_t* chosen_blocks, int threads) {
  const Kernels& kernels = *current_kernels();
  for_each_run(threads, [&](int32_t t, int64_t offset, int64_t count, ChunkSums* sums) {
    const TensorInfo& tensor = tensors_[t];
    if (tensor.block < 0 || !chosen_blocks[tensor.block]) return;
    kernels.sum_squares(address<const void>(weights[t], offset, tensor.dtype), count, tensor.dtype, sums);
  });
  for (size_t b = 0; b < blocks_.size(); ++b) {
    if (!chosen_blocks[b]) continue;
    ChunkSums sums = sums_of(blocks_[b].tensor);
    sum_squares_[b] = total(sums.written);
    sum_modes_[b] = float_mode();
    has_jumped_[b] = 0;
  }
}

void CpuPlan::measure(const uint64_t* weights, const uint8_t* chosen_blocks, int threads) {
  take_sums(weights, chosen_blocks, threads);
  for (size_t b = 0; b < blocks_.size(); ++b) {
    if (chosen_blocks[b]) use_sums(b);
  }
}

void CpuPlan::use_sums(size_t block) {
  row_norm_sq[block] = sum_squares_[block] / blocks_[block].rows;
  given_[block] = 0;
}

void CpuPlan::give_norm(size_t block, double norm) {
  row_norm_sq[block] = norm;
  given_[block] = 1;
}

void CpuPlan::retake_sums(const TensorStep* steps, int threads) {
  const uint64_t mode = float_mode();
  std::vector<uint8_t> chosen(blocks_.size());
  for (size_t b = 0; b < blocks_.size(); ++b) {
    const bool is_useful = std::isfinite(sum_squares_[b]) && !has_jumped_[b] && sum_modes_[b] == mode;
    chosen[b] = blocks_[b].scaled && steps[blocks_[b].tensor].grad && !is_useful;
  }
  if (std::find(chosen.begin(), chosen.end(), 1) == chosen.end()) return;
  std::vector<uint64_t> weights;
  for (size_t t = 0; t < tensors_.size(); ++t) weights.push_back(steps[t].weight);
  take_sums(weights.data(), chosen.data(), threads);
  for (size_t b = 0; b < blocks_.size(); ++b) {
    if (chosen[b] && !given_[b]) use_sums(b);
  }
}

void CpuPlan::make_coefficients_of(const TensorStep* steps, const GroupValues* groups, double loss_scale) {
  const double inverse = 1.0 / loss_scale;
  for (size_t t = 0; t < tensors_.size(); ++t) {
    const GroupValues& group = groups[tensors_[t].group];
    coefficients_[t] = make_coefficients(group, 1.0, group.weight_decay, inverse, steps[t].first);
  }
  for (size_t b = 0; b < blocks_.size(); ++b) {
    const BlockInfo& block = blocks_[b];
    if (!block.scaled) continue;
    const GroupValues& group = groups[tensors_[block.tensor].group];
    const double scale = layer_scale(row_norm_sq[b], block.backward_factor, options_.eps);
    const double decay = decay_scale(scale, block.backward_factor, group.weight_decay, options_.shape_decay);
    coefficients_[block.tensor] = make_coefficients(group, scale, decay, inverse, steps[block.tensor].first);
  }
}

int64_t CpuPlan::step(const TensorStep* steps, const GroupValues* groups, double loss_scale, int threads) {
  const Kernels& kernels = *current_kernels();
  if (options_.track_norms) retake_sums(steps, threads);
  make_coefficients_of(steps, groups, loss_scale);
  ++steps_done;
  for_each_run(threads, [&](int32_t t, int64_t offset, int64_t count, ChunkSums* sums) {
    const TensorInfo& tensor = tensors_[t];
    const TensorStep& now = steps[t];
    if (!now.grad) return;
    RunStep run;
    run.weight = address<void>(now.weight, offset, tensor.dtype);
    run.grad = address<const void>(now.grad, offset, now.grad_dtype);
    const DType momentum_dtype = tensor.storage.small_momentum ? DType::kBFloat16 : tensor.dtype;
    run.momentum_buffer = address<void>(now.momentum_buffer, offset, momentum_dtype);
    run.count = count;
    run.dtype = tensor.dtype;
    run.grad_dtype = now.grad_dtype;
    run.nesterov = groups[tensor.group].nesterov;
    run.coefficients = coefficients_[t];
    run.sums = options_.track_norms && tensor.block >= 0 ? sums : nullptr;
    run.storage = tensor.storage;
    run.copy = address<void>(now.copy, offset, tensor.storage.copy_dtype);
    run.offset = offset;
    run.rounding_step = now.rounding_step;
    kernels.update(run);
  });
  return options_.track_norms ? carry_sums(steps) : 0;
}

int64_t CpuPlan::carry_sums(const TensorStep* steps) {
  int64_t stale = 0;
  for (size_t b = 0; b < blocks_.size(); ++b) {
    if (!steps[blocks_[b].tensor].grad) continue;
    ChunkSums sums = sums_of(blocks_[b].tensor);
    const double before = total(sums.read);
    if (blocks_[b].scaled && !same_bits(before, sum_squares_[b])) {
      ++stale;
      ++stale_steps[b];
    }
    sum_squares_[b] = total(sums.written);
    sum_modes_[b] = float_mode();
    use_sums(b);
    has_jumped_[b] = sum_squares_[b] > kJump * before;
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
