#include <algorithm>
#include <iterator>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "driver.cuh"
#include "kernels.cuh"
#include "step.h"

namespace sasgd {
namespace cuda {
namespace {

// Most networks fit the small arguments, which cost the host less; the large ones are the largest that CUDA takes.
constexpr int kHeaderWords = sizeof(LaunchHeader) / sizeof(uint64_t);
constexpr int kSmallWords = 4096 / sizeof(uint64_t) - kHeaderWords;
constexpr int kLargeWords = (has<kShortArguments> ? 8192 : 32764) / sizeof(uint64_t) - kHeaderWords;
static_assert(sizeof(LaunchHeader) % sizeof(uint64_t) == 0, "words follow the header without a gap");

}  // namespace
}  // namespace cuda

using namespace cuda;

int resident_thread_blocks(int device, bool mixed_precision, bool relative) {
  const std::string attempt = "asking how many thread blocks device " + std::to_string(device) + " holds";
  make_current(device);
  int multiprocessors = 0;
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), attempt);
  int least = std::numeric_limits<int>::max();
  // All kernels: asking loads them, which must not be left to a step or a capture.
  const auto ask = [&](auto kernel) {
    int of_one = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&of_one, kernel, kThreads, 0), attempt);
    least = std::min(least, of_one * multiprocessors);
  };
  if (relative) {
    mixed_precision ? ask(step_kernel<kLargeWords, true, true>) : ask(step_kernel<kLargeWords, false, true>);
    ask(gradient_kernel<kLargeWords>);
  } else if (mixed_precision) {
    ask(step_kernel<kLargeWords, true, false>);
  } else {
    ask(step_kernel<kSmallWords, false, false>);
    ask(step_kernel<kLargeWords, false, false>);
  }
  ask(norm_kernel<kSmallWords>);
  ask(norm_kernel<kLargeWords>);
  if (least < 1) throw std::runtime_error("CUDA: " + attempt + ": none of " + std::to_string(kThreads) + " threads");
  return least;
}

int cuda_version() { return CUDART_VERSION; }

std::vector<int> cuda_architectures() {
#if defined(__CUDA_ARCH_LIST__)
  return {__CUDA_ARCH_LIST__};
#else
  return {};  // under the emulation
#endif
}

int cuda_devices() {
  int driver = 0, count = 0;
  check(cudaDriverGetVersion(&driver), "asking for the driver's version");
  if (driver == 0) throw std::runtime_error("CUDA: no driver is installed");
  check(cudaGetDeviceCount(&count), "counting the devices of a driver for CUDA " + version_name(driver) +
                                        " by an extension built with CUDA " + version_name(CUDART_VERSION));
  return count;
}

CudaPlan::CudaPlan(int device, PlanSpec spec) : PlanBase(std::move(spec)), device_(device) {
  for (const TensorInfo& tensor : tensors_) mixed_precision_ = mixed_precision_ || !is_plain(tensor.precision);
  if ((has<kWithoutMixed> && mixed_precision_) || (has<kWithoutRelative> && options_.relative) ||
      (has<kWithoutLookUp> && tensors_.size() != 1)) {
    throw std::invalid_argument("plan: got one that this candidate of the kernels is built without");
  }
  for (const LayerInfo& layer : layers_) layer_traits_.push_back(layer);
  plan_launches();
  for (const PlannedLaunch& planned : launches_) plan_chunks(planned.tensors);
  for (PlannedLaunch& planned : launches_) {
    if constexpr (has<kTensorTrees>) {
      for (int32_t t = planned.tensors.first; t < planned.tensors.end; ++t) {
        entries_[t].first_node = static_cast<int32_t>(nodes_.size());
        plan_tree(planned, {t, t + 1});
      }
      planned.levels.clear();
    } else {
      plan_tree(planned, planned.tensors);
    }
  }
  lay_out_tables(0);
  resident_thread_blocks_ = resident_thread_blocks(device_, mixed_precision_, options_.relative);
}

// Deals the tensors out to as few launches as their words fit in.
void CudaPlan::plan_launches() {
  std::vector<int32_t> slot_of_group;
  int words = 0;
  for (size_t t = 0; t < tensors_.size(); ++t) {
    const TensorInfo& tensor = tensors_[t];
    const auto needs = [&] { return 1 + (slot_of_group[tensor.group] < 0 ? kGroupWords : 0); };
    if (t == 0 || words + needs() > kLargeWords) {
      launches_.push_back({{static_cast<int32_t>(t), 0}, {}, {}});
      slot_of_group.assign(static_cast<size_t>(group_count_), -1);
      words = 0;
    }
    words += needs();
    PlannedLaunch& planned = launches_.back();
    if (slot_of_group[tensor.group] < 0) {
      slot_of_group[tensor.group] = static_cast<int32_t>(planned.groups.size());
      planned.groups.push_back(tensor.group);
    }
    const bool scaled = tensor.layer >= 0 && layers_[tensor.layer].scaled;
    entries_.push_back({slot_of_group[tensor.group], tensor.layer, 0, 0, 0, 0, scaled, tensor.precision.stochastic});
    planned.tensors.end = static_cast<int32_t>(t) + 1;
  }
}

// Numbers the chunks of a launch's tensors.
void CudaPlan::plan_chunks(TensorRange tensors) {
  std::vector<int32_t> order(static_cast<size_t>(tensors.end - tensors.first));
  std::iota(order.begin(), order.end(), tensors.first);
  if constexpr (has<kTensorTrees>) {
    const auto is_larger = [&](int32_t a, int32_t b) { return tensors_[a].numel > tensors_[b].numel; };
    std::stable_sort(order.begin(), order.end(), is_larger);
  }
  for (const int32_t t : order) {
    const TensorInfo& tensor = tensors_[t];
    const int64_t chunks = tensor.numel / kChunk + (tensor.numel % kChunk != 0);
    if (chunks > std::numeric_limits<int32_t>::max() - static_cast<int64_t>(chunks_.size())) {
      throw std::invalid_argument("tensors: got more elements than a device can hold");
    }
    TensorEntry& entry = entries_[t];
    entry.first_chunk = static_cast<int32_t>(chunks_.size());
    entry.chunks = static_cast<int32_t>(chunks);
    const Precision& precision = tensor.precision;
    for (int32_t i = 0; i < entry.chunks; ++i) {
      const ChunkPlace place = chunk_place(i, tensor.numel);
      chunks_.push_back({place.offset, place.count, t, entry.group, tensor.layer, tensor.dtype, entry.scaled,
                         precision.param_dtype, precision.small_momentum, precision.stochastic});
    }
  }
}

// Level by level, until one entry is left of each layer: its root.
void CudaPlan::plan_tree(PlannedLaunch& planned, TensorRange tensors) {
  const int32_t chunks = static_cast<int32_t>(chunks_.size());
  std::vector<SumNode> ranges;  // what is left of each tensor
  for (int32_t t = tensors.first; t < tensors.end; ++t) {
    ranges.push_back({entries_[t].first_chunk, tensors_[t].layer >= 0 ? entries_[t].chunks : 0});
  }
  const auto is_unfinished = [](const SumNode& range) { return range.count > 1; };
  while (std::any_of(ranges.begin(), ranges.end(), is_unfinished)) {
    std::vector<int32_t>& first_nodes = planned.levels.emplace_back();
    for (SumNode& range : ranges) {
      first_nodes.push_back(static_cast<int32_t>(nodes_.size()));
      if (!is_unfinished(range)) continue;
      const int32_t first = chunks + static_cast<int32_t>(nodes_.size());
      for (int32_t i = 0; i < range.count; i += kFanIn) {
        nodes_.push_back({range.first + i, std::min(kFanIn, range.count - i)});
      }
      range = {first, (range.count + kFanIn - 1) / kFanIn};
    }
    first_nodes.push_back(static_cast<int32_t>(nodes_.size()));
  }
  for (int32_t t = tensors.first; t < tensors.end; ++t) entries_[t].root = ranges[t - tensors.first].first;
}

void CudaPlan::lay_out_tables(uint64_t begin) {
  uint64_t end = begin;
  const auto lay_out = [&](auto*& table, size_t items) {
    table = reinterpret_cast<std::remove_reference_t<decltype(table)>>(end);
    end += (items * sizeof(*table) + 15) / 16 * 16;
  };
  lay_out(tables_.chunks, chunks_.size());  // first, so that no entry lies across what memory is read by
  lay_out(tables_.tensors, entries_.size());
  lay_out(tables_.layers, layer_traits_.size());
  lay_out(tables_.nodes, nodes_.size());
  // Those before this are fixed.
  lay_out(tables_.addresses, tensors_.size());
  lay_out(tables_.precision, mixed_precision_ ? tensors_.size() : 0);
  lay_out(tables_.sums, chunks_.size() + nodes_.size());
  lay_out(tables_.finished_thread_blocks, has<kTensorTrees> ? tensors_.size() : 1);
  tables_.sums_of_nodes = tables_.sums + chunks_.size();
  table_bytes_ = static_cast<int64_t>(end - begin);
}

void CudaPlan::attach(uint64_t tables, const CarriedState& state, uint64_t stream) {
  static_cast<CarriedState&>(tables_) = state_ = state;
  lay_out_tables(tables);
  std::vector<uint8_t> image(reinterpret_cast<uint64_t>(tables_.addresses) - tables);
  const auto fill = [&](const auto* table, const auto& entries) {
    if (!entries.empty()) {
      std::memcpy(&image[reinterpret_cast<uint64_t>(table) - tables], entries.data(), entries.size() * sizeof(*table));
    }
  };
  fill(tables_.chunks, chunks_);
  fill(tables_.tensors, entries_);
  fill(tables_.layers, layer_traits_);
  fill(tables_.nodes, nodes_);
  send(tables_.chunks, image.data(), image.size(), stream);
}

void CudaPlan::place(std::vector<uint64_t> weights, std::vector<uint64_t> momentum_buffers,
                     std::vector<uint64_t> params, uint64_t stream) {
  PlanBase::place(std::move(weights), std::move(momentum_buffers), std::move(params));
  std::vector<Addresses> addresses;
  std::vector<PrecisionEntry> precision;
  for (size_t t = 0; t < tensors_.size(); ++t) {
    addresses.push_back({weights_[t], momentum_buffers_[t]});
    if (mixed_precision_) precision.push_back({tensors_[t].precision.stream, params_[t]});
  }
  send(tables_.addresses, addresses.data(), addresses.size() * sizeof(Addresses), stream);
  send(tables_.precision, precision.data(), precision.size() * sizeof(PrecisionEntry), stream);
}

// Memory that is not pinned is copied aside before the call returns.
void CudaPlan::send(const void* to, const void* from, size_t bytes, uint64_t stream) {
  if (bytes == 0) return;
  if (is_capturing(stream)) {
    throw std::runtime_error(
        "CUDA graph: tables of addresses have to be sent to the device, which a graph cannot record; take a step "
        "before the capture, with the same parameters");
  }
  make_current(device_);
  check(cudaMemcpyAsync(const_cast<void*>(to), from, bytes, cudaMemcpyHostToDevice, as_stream(stream)),
        "sending tables to device " + std::to_string(device_));
}

bool CudaPlan::is_capturing(uint64_t stream) const {
  make_current(device_);
  cudaStreamCaptureStatus status;
  check(cudaStreamIsCapturing(as_stream(stream), &status),
        "asking whether a stream of device " + std::to_string(device_) + " is being captured");
  return status != cudaStreamCaptureStatusNone;
}

void CudaPlan::measure(const uint8_t* chosen_layers, uint64_t stream) {
  for (const PlannedLaunch& planned : launches_) {
    const auto chosen = [&](int32_t t) -> uint64_t {
      return tensors_[t].layer >= 0 && chosen_layers[tensors_[t].layer];
    };
    launch<Pass::kNorms>(planned, chosen, nullptr, nullptr, {}, stream);
  }
}

void CudaPlan::step(const uint64_t* grads, const uint8_t* grad_dtypes, const GroupValues* groups,
                    const uint64_t* lr_addresses, const DeviceNumbers& numbers, uint64_t stream) {
  const auto word = [&](int32_t t) { return gradient_word(t, grads, grad_dtypes); };
  for (const PlannedLaunch& planned : launches_) {
    launch<Pass::kStep>(planned, word, groups, lr_addresses, numbers, stream);
  }
  ++steps_done_;
}

void CudaPlan::measure_gradients(const uint64_t* grads, const uint8_t* grad_dtypes, const GroupValues* groups,
                                 const uint64_t* lr_addresses, const DeviceNumbers& numbers, uint64_t stream) {
  if (!options_.relative) return;
  const auto word = [&](int32_t t) -> uint64_t {
    const bool is_scaled = tensors_[t].layer >= 0 && layers_[tensors_[t].layer].scaled;
    return is_scaled ? gradient_word(t, grads, grad_dtypes) : 0;
  };
  for (const PlannedLaunch& planned : launches_) {
    launch<Pass::kGradients>(planned, word, groups, lr_addresses, numbers, stream);
  }
}

uint64_t CudaPlan::gradient_word(int32_t t, const uint64_t* grads, const uint8_t* grad_dtypes) const {
  const Precision& precision = tensors_[t].precision;
  const DType param_dtype = is_master(precision) ? precision.param_dtype : tensors_[t].dtype;
  const bool is_wide = static_cast<DType>(grad_dtypes[t]) != param_dtype;
  return tensors_[t].numel && grads[t] ? grads[t] | (is_wide ? kWideGradient : 0) : 0;
}

template <Pass kPass, class Word>
void CudaPlan::launch(const PlannedLaunch& planned, const Word& word_of, const GroupValues* groups,
                      const uint64_t* lr_addresses, const DeviceNumbers& numbers, uint64_t stream) {
  const TensorRange range = narrowed(planned.tensors, [&](int32_t t) { return word_of(t) != 0; });
  if (range.first == range.end) return;
  const TensorEntry& last = entries_[range.end - 1];
  Launch now{range.first, range.end, entries_[range.first].first_chunk, last.first_chunk + last.chunks, 0, {}, {}};
  if constexpr (has<kTensorTrees>) {
    for (int32_t t = range.first; t < range.end; ++t) {
      if (word_of(t) == 0) continue;
      now.first_chunk = std::min(now.first_chunk, entries_[t].first_chunk);
      now.end_chunk = std::max(now.end_chunk, entries_[t].first_chunk + entries_[t].chunks);
    }
  }
  for (const std::vector<int32_t>& first_nodes : planned.levels) {
    now.level_begin[now.levels] = first_nodes[range.first - planned.tensors.first];
    now.level_end[now.levels++] = first_nodes[range.end - planned.tensors.first];
  }
  words_.clear();
  for (int32_t t = range.first; t < range.end; ++t) words_.push_back(word_of(t));
  if (kPass != Pass::kNorms) {
    // Of a group without a gradient here nobody reads the learning rate: the caller's may be gone.
    lrs_.assign(planned.groups.size(), 0);
    for (int32_t t = range.first; t < range.end; ++t) {
      if (words_[t - range.first]) lrs_[entries_[t].group] = lr_addresses[tensors_[t].group];
    }
    for (size_t slot = 0; slot < lrs_.size(); ++slot) {
      const GroupWords sent{groups[planned.groups[slot]], reinterpret_cast<const float*>(lrs_[slot])};
      words_.resize(words_.size() + kGroupWords);
      std::memcpy(&words_[words_.size() - kGroupWords], &sent, sizeof sent);
    }
  }
  if constexpr (has<kWithoutLookUp>) {
    const uint64_t wired[] = {weights_[0], momentum_buffers_[0], static_cast<uint64_t>(tensors_[0].numel),
                              static_cast<uint64_t>(tensors_[0].dtype)};
    words_.insert(words_.end(), std::begin(wired), std::end(wired));
  }
  const LaunchHeader header{tables_, now, options_, reinterpret_cast<const float*>(numbers.grad_scale),
                            reinterpret_cast<const float*>(numbers.found_inf)};
  const auto run = [&](auto kernel, auto& args) {
    args.header = header;
    std::copy(words_.begin(), words_.end(), args.words);
    make_current(device_);
    int32_t thread_blocks = std::min(now.end_chunk - now.first_chunk, resident_thread_blocks_);
    if (max_thread_blocks > 0) thread_blocks = std::min(thread_blocks, max_thread_blocks);
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(thread_blocks));
    config.blockDim = dim3(kThreads);
    config.stream = as_stream(stream);
    check(cudaLaunchKernelEx(&config, kernel, args),
          std::string("launching ") + (kPass == Pass::kStep ? "a step" : "a norm pass") + " over " +
              std::to_string(now.end_tensor - now.first_tensor) + " tensors on device " + std::to_string(device_));
  };
  // The driver copies the arguments; most of the large ones' words are never written.
  // Steps in mixed precision and in the relative scale are compiled for the large ones alone, since that takes long.
  const bool is_small = words_.size() <= static_cast<size_t>(kSmallWords);
  const bool is_plain_step = kPass == Pass::kStep && !mixed_precision_ && !options_.relative;
  if (is_small && (kPass == Pass::kNorms || is_plain_step)) {
    LaunchArgs<kSmallWords> args;
    run(kPass == Pass::kStep ? step_kernel<kSmallWords, false, false> : norm_kernel<kSmallWords>, args);
    return;
  }
  LaunchArgs<kLargeWords> args;
  if (kPass == Pass::kNorms) {
    run(norm_kernel<kLargeWords>, args);
  } else if (kPass == Pass::kGradients) {
    run(gradient_kernel<kLargeWords>, args);
  } else if (options_.relative) {
    run(mixed_precision_ ? step_kernel<kLargeWords, true, true> : step_kernel<kLargeWords, false, true>, args);
  } else {
    run(mixed_precision_ ? step_kernel<kLargeWords, true, false> : step_kernel<kLargeWords, false, false>, args);
  }
}

}  // namespace sasgd
