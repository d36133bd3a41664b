#include "step.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

#if defined(SASGD_HAVE_X86_VARIANTS)
#include <cpuid.h>
#endif

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

// What is chosen for the process: any thread may choose anew while others are in a step.
std::atomic<const Kernels*>& current_kernels() {
  static std::atomic<const Kernels*> kernels{available_kernels().front()};
  return kernels;
}

// By the processor's maker and family. Measured: docs/kernels.md.
int64_t best_prefetch_distance() {
#if defined(SASGD_HAVE_X86_VARIANTS)
  unsigned version, unused;
  if (__builtin_cpu_is("intel")) return 256;
  if (__builtin_cpu_is("amd") && __get_cpuid(1, &version, &unused, &unused, &unused)) {
    const unsigned family = (version >> 8 & 0xf) + (version >> 20 & 0xff);
    if (family == 0x1a) return 512;  // Zen 5, and what comes after it in the family
  }
#endif
  return 64;
}

std::atomic<int64_t>& current_prefetch_distance() {
  static std::atomic<int64_t> elements{best_prefetch_distance()};
  return elements;
}

template <class T>
T* address(uint64_t base, int64_t offset, DType dtype) {
  return base ? reinterpret_cast<T*>(base + static_cast<uint64_t>(offset) * (dtype == DType::kFloat32 ? 4 : 2))
              : nullptr;
}

}  // namespace

CpuPlan::CpuPlan(PlanSpec spec, std::function<int()> threads)
    : PlanBase(std::move(spec)), threads_(std::move(threads)) {
  int64_t elements = 0;
  for (const TensorInfo& tensor : tensors_) elements += tensor.numel;
  const int64_t task_size = std::min(std::max(elements / kTasks, kChunk), kLargestTask);
  int64_t pending = task_size;  // elements in the last task; starts a task
  for (size_t t = 0; t < tensors_.size(); ++t) {
    first_chunk_.push_back(static_cast<int64_t>(tensor_of_chunk_.size()));
    for (int64_t offset = 0; offset < tensors_[t].numel; offset += kChunk) {
      if (pending >= task_size) {
        tasks_.push_back(static_cast<int64_t>(tensor_of_chunk_.size()));
        pending = 0;
      }
      tensor_of_chunk_.push_back(static_cast<int32_t>(t));
      pending += std::min(kChunk, tensors_[t].numel - offset);
    }
  }
  first_chunk_.push_back(static_cast<int64_t>(tensor_of_chunk_.size()));
  tasks_.push_back(static_cast<int64_t>(tensor_of_chunk_.size()));
  sum_modes_.resize(layers_.size());
  has_jumped_.resize(layers_.size());
  chunk_sums_.resize(tensor_of_chunk_.size());
  coefficients_.resize(tensors_.size());
}

int CpuPlan::thread_count() const {
  const int count = threads_();
  if (count < 1) throw std::invalid_argument("threads: got " + std::to_string(count) + ", want 1 or more");
  return count;
}

template <class Body>
void CpuPlan::for_each_run(TensorRange range, int threads, const Body& body) {
  if (range.first == range.end) return;
  const auto first_task = std::upper_bound(tasks_.begin(), tasks_.end(), first_chunk_[range.first]) - 1;
  const auto end_task = std::lower_bound(tasks_.begin(), tasks_.end(), first_chunk_[range.end]);
  parallel_for(end_task - first_task, threads, [&](int64_t task) {
    for (int64_t k = first_task[task], end; k < first_task[task + 1]; k = end) {
      const int32_t t = tensor_of_chunk_[k];
      end = std::min(first_task[task + 1], first_chunk_[t + 1]);
      const int64_t offset = (k - first_chunk_[t]) * kChunk;
      body(t, offset, std::min((end - k) * kChunk, tensors_[t].numel - offset), &chunk_sums_[k]);
    }
  });
}

double CpuPlan::sum_of(int32_t tensor, double (ChunkSums::*sum)[kLanes]) const {
  double lanes[kLanes];
  int64_t k = first_chunk_[tensor];
  std::memcpy(lanes, chunk_sums_[k].*sum, sizeof lanes);
  while (++k < first_chunk_[tensor + 1]) {
    for (int i = 0; i < kLanes; ++i) lanes[i] += (chunk_sums_[k].*sum)[i];
  }
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

void CpuPlan::take_sums(const std::vector<int32_t>& chosen, int threads) {
  if (chosen.empty()) return;
  const Kernels& kernels = *current_kernels();
  const TensorRange range{chosen.front(), chosen.back() + 1};
  for_each_run(range, threads, [&](int32_t t, int64_t offset, int64_t count, ChunkSums* sums) {
    if (!std::binary_search(chosen.begin(), chosen.end(), t)) return;
    const DType dtype = tensors_[t].dtype;
    kernels.sum_squares(address<const void>(weights_[t], offset, dtype), count, dtype, sums);
  });
  for (const int32_t t : chosen) {
    const int32_t b = tensors_[t].layer;
    state_.sum_squares[b] = sum_of(t, &ChunkSums::written);
    sum_modes_[b] = float_mode();
    has_jumped_[b] = 0;
  }
}

void CpuPlan::measure(const uint8_t* chosen_layers) {
  std::vector<int32_t> chosen;
  for (int32_t t = 0; t < all().end; ++t) {
    const int32_t b = tensors_[t].layer;
    if (b >= 0 && chosen_layers[b] && !(state_.flags[t] & kNormKept)) chosen.push_back(t);
  }
  take_sums(chosen, thread_count());
  for (const int32_t t : chosen) state_.row_norm_sq[tensors_[t].layer] = norm_of_sums(tensors_[t].layer);
}

void CpuPlan::retake_sums(TensorRange range, const uint64_t* grads, int threads) {
  const uint64_t mode = float_mode();
  std::vector<int32_t> chosen, followed;
  for (int32_t t = range.first; t < range.end; ++t) {
    const int32_t b = tensors_[t].layer;
    if (!grads[t] || b < 0 || !layers_[b].scaled) continue;
    if (std::isfinite(state_.sum_squares[b]) && !has_jumped_[b] && sum_modes_[b] == mode) continue;
    chosen.push_back(t);
    if (same_bits(state_.row_norm_sq[b], norm_of_sums(b))) followed.push_back(b);
  }
  take_sums(chosen, threads);
  for (const int32_t b : followed) state_.row_norm_sq[b] = norm_of_sums(b);
}

void CpuPlan::make_coefficients_of(TensorRange range, const GroupValues* groups, double grad_scale) {
  const double inverse = 1.0 / grad_scale;
  for (int32_t t = range.first; t < range.end; ++t) {
    const GroupValues& group = groups[tensors_[t].group];
    const int32_t b = tensors_[t].layer;
    Scales scales = plain_scales(group);
    if (takes_gradient(t)) {
      scales = relative_scales(group, layers_[b], state_.row_norm_sq[b], state_.gradient_norm_sq[t], options_);
    } else if (b >= 0 && layers_[b].scaled) {
      scales = amended_scales(group, layers_[b], state_.row_norm_sq[b], options_);
    }
    coefficients_[t] = make_coefficients(group, scales, inverse, !(state_.flags[t] & kStarted));
  }
}

RunStep CpuPlan::run_of(int32_t t, int64_t offset, int64_t count, ChunkSums* sums, uint64_t grad,
                        uint8_t grad_dtype) const {
  const TensorInfo& tensor = tensors_[t];
  RunStep run{};
  run.grad_dtype = static_cast<DType>(grad_dtype);
  run.weight = address<void>(weights_[t], offset, tensor.dtype);
  run.grad = address<const void>(grad, offset, run.grad_dtype);
  const DType momentum_dtype = tensor.precision.small_momentum ? DType::kBFloat16 : tensor.dtype;
  run.momentum_buffer = address<void>(momentum_buffers_[t], offset, momentum_dtype);
  run.count = count;
  run.dtype = tensor.dtype;
  run.coefficients = coefficients_[t];
  run.sums = sums;
  run.takes_gradient = takes_gradient(t);
  run.precision = tensor.precision;
  run.param = address<void>(params_[t], offset, tensor.precision.param_dtype);
  run.offset = offset;
  run.rounding_step = state_.rounding_steps[t];
  run.prefetch_distance = current_prefetch_distance();
  return run;
}

void CpuPlan::measure_gradients(const uint64_t* grads, const uint8_t* grad_dtypes, const GroupValues* groups,
                                double grad_scale) {
  take_gradient_sums(all(), grads, grad_dtypes, groups, grad_scale, thread_count());
}

void CpuPlan::take_gradient_sums(TensorRange range, const uint64_t* grads, const uint8_t* grad_dtypes,
                                 const GroupValues* groups, double grad_scale, int threads) {
  const auto is_missing = [&](int32_t t) { return grads[t] && takes_gradient(t) && state_.gradient_norm_sq[t] == 0; };
  range = narrowed(range, is_missing);
  if (range.first == range.end) return;
  make_coefficients_of(range, groups, grad_scale);
  for_each_run(range, threads, [&](int32_t t, int64_t offset, int64_t count, ChunkSums* sums) {
    if (t < range.first || t >= range.end || !is_missing(t)) return;
    current_kernels().load()->sum_gradients(run_of(t, offset, count, sums, grads[t], grad_dtypes[t]));
  });
  for (int32_t t = range.first; t < range.end; ++t) {
    if (!is_missing(t)) continue;
    state_.gradient_sums[t] = sum_of(t, &ChunkSums::gradient);
    state_.gradient_norm_sq[t] = next_gradient_norm_sq(0, state_.gradient_sums[t]);
  }
}

int64_t CpuPlan::step(const uint64_t* grads, const uint8_t* grad_dtypes, const GroupValues* groups, double grad_scale) {
  const int threads = thread_count();
  const auto is_updated = [&](int32_t t) { return grads[t] != 0 && tensors_[t].numel > 0; };
  const TensorRange range = narrowed(all(), is_updated);
  const Kernels& kernels = *current_kernels();
  if (options_.track_norms) retake_sums(range, grads, threads);
  if (options_.relative) take_gradient_sums(range, grads, grad_dtypes, groups, grad_scale, threads);
  make_coefficients_of(range, groups, grad_scale);
  ++steps_done_;
  for_each_run(range, threads, [&](int32_t t, int64_t offset, int64_t count, ChunkSums* sums) {
    if (!grads[t]) return;
    const bool takes_sums = options_.track_norms && tensors_[t].layer >= 0;
    RunStep run = run_of(t, offset, count, takes_sums ? sums : nullptr, grads[t], grad_dtypes[t]);
    run.nesterov = groups[tensors_[t].group].nesterov;
    kernels.update(run);
  });

  const uint64_t mode = float_mode();
  int64_t stale = 0;
  for (int32_t t = range.first; t < range.end; ++t) {
    if (!is_updated(t)) continue;
    const TensorInfo& tensor = tensors_[t];
    if (momentum_buffers_[t]) state_.flags[t] |= kStarted;
    if (tensor.precision.stochastic) ++state_.rounding_steps[t];
    if (tensor.layer < 0) continue;
    if (options_.track_norms) {
      stale += carry_sums(t, mode);
    } else if (layers_[tensor.layer].scaled && groups[tensor.group].lr != 0 &&
               is_finite(state_.row_norm_sq[tensor.layer])) {
      state_.flags[t] |= kNormKept;
    }
  }
  return stale;
}

bool CpuPlan::carry_sums(int32_t tensor, uint64_t mode) {
  const int32_t b = tensors_[tensor].layer;
  const double before = sum_of(tensor, &ChunkSums::read), after = sum_of(tensor, &ChunkSums::written);
  if (takes_gradient(tensor)) {
    state_.gradient_sums[tensor] = sum_of(tensor, &ChunkSums::gradient);
    state_.gradient_norm_sq[tensor] =
        next_gradient_norm_sq(state_.gradient_norm_sq[tensor], state_.gradient_sums[tensor]);
  }
  const bool is_stale = layers_[b].scaled && !same_bits(before, state_.sum_squares[b]);
  if (is_stale) ++state_.stale_steps[b];
  state_.sum_squares[b] = after;
  state_.row_norm_sq[b] = norm_of_sums(b);
  sum_modes_[b] = mode;
  has_jumped_[b] = after > kJump * before;
  return is_stale;
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

int64_t prefetch_distance() { return current_prefetch_distance(); }

void use_prefetch_distance(int64_t elements) {
  if (elements < 0 || elements > kChunk) {
    throw std::invalid_argument("elements: got " + std::to_string(elements) + ", want 0 to " + std::to_string(kChunk));
  }
  current_prefetch_distance() = elements;
}

}  // namespace sasgd
