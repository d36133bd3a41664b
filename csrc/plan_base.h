// What the plans of the CPU and of CUDA have in common: what is fixed, and the addresses that were placed.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "layer_scale.h"
#include "plan.h"

namespace sasgd {

// The tensors [first, end).
struct TensorRange {
  int32_t first;
  int32_t end;
};

// The shortest range within another that has all tensors for which is_in is true.
template <class Predicate>
TensorRange narrowed(TensorRange range, const Predicate& is_in) {
  while (range.first < range.end && !is_in(range.first)) ++range.first;
  while (range.first < range.end && !is_in(range.end - 1)) --range.end;
  return range;
}

class PlanBase {
 public:
  // Throws std::invalid_argument if tensors and layers do not refer to each other, or a layer has no elements.
  explicit PlanBase(PlanSpec spec)
      : tensors_(std::move(spec.tensors)), layers_(std::move(spec.layers)), options_(spec.options) {
    for (size_t b = 0; b < layers_.size(); ++b) {
      const size_t t = static_cast<size_t>(layers_[b].tensor);
      if (t >= tensors_.size() || tensors_[t].layer != static_cast<int32_t>(b) || tensors_[t].numel == 0) {
        throw std::invalid_argument("layers: layer " + std::to_string(b) +
                                    " and its tensor do not refer to each other");
      }
    }
    fill_backward_factors(layers_);
    for (const TensorInfo& tensor : tensors_) group_count_ = std::max(group_count_, tensor.group + 1);
    place({}, {}, {});
  }

  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const std::vector<LayerInfo>& layers() const { return layers_; }
  int32_t group_count() const { return group_count_; }
  // Memory that was attached; null before.
  const CarriedState& state() const { return state_; }
  // As placed last, or null.
  const std::vector<uint64_t>& weights() const { return weights_; }
  const std::vector<uint64_t>& momentum_buffers() const { return momentum_buffers_; }
  // How many steps were carried out, or launched. Python may be interrupted before it sees that one returned.
  int64_t steps_done() const { return steps_done_; }

 protected:
  void place(std::vector<uint64_t> weights, std::vector<uint64_t> momentum_buffers, std::vector<uint64_t> params) {
    const size_t count = tensors_.size();
    (weights_ = std::move(weights)).resize(count);
    (momentum_buffers_ = std::move(momentum_buffers)).resize(count);
    (params_ = std::move(params)).resize(count);
  }
  TensorRange all() const { return {0, static_cast<int32_t>(tensors_.size())}; }

  std::vector<TensorInfo> tensors_;
  std::vector<LayerInfo> layers_;
  PlanOptions options_;
  int32_t group_count_ = 0;
  int64_t steps_done_ = 0;
  CarriedState state_{};
  std::vector<uint64_t> weights_;
  std::vector<uint64_t> momentum_buffers_;
  std::vector<uint64_t> params_;
};

}  // namespace sasgd
