// Tensors of every dtype and of many sizes, the plan of their steps, and what these carry.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "numbers.h"

namespace sasgd_test {

using sasgd::CarriedState;
using sasgd::GroupValues;
using sasgd::LayerInfo;
using sasgd::PlanOptions;
using sasgd::Precision;
using sasgd::TensorInfo;

struct Kind {
  DType weight;
  DType grad;
  Precision precision;
};

constexpr Kind kFloat32Kind = {DType::kFloat32, DType::kFloat32, {}};
constexpr Kind kPlainKinds[] = {
    kFloat32Kind,
    {DType::kBFloat16, DType::kBFloat16, {}},
    {DType::kFloat16, DType::kFloat16, {}},
    {DType::kBFloat16, DType::kFloat32, {}},
    {DType::kFloat16, DType::kFloat32, {}},
};

// Precision: the parameter's dtype, whether momentum is small, whether it is rounded stochastically.
constexpr Kind kMixedKinds[] = {
    {DType::kFloat32, DType::kBFloat16, {DType::kBFloat16, false, false, 0}},
    {DType::kFloat32, DType::kFloat16, {DType::kFloat16, false, false, 0}},
    {DType::kFloat32, DType::kFloat32, {DType::kBFloat16, true, true, 0}},
    {DType::kFloat32, DType::kFloat16, {DType::kFloat16, true, true, 0}},
    {DType::kFloat32, DType::kBFloat16, {DType::kBFloat16, true, false, 0}},
    {DType::kFloat32, DType::kFloat32, {DType::kFloat32, true, false, 0}},
    {DType::kFloat32, DType::kFloat32, {DType::kFloat32, true, true, 0}},
    {DType::kBFloat16, DType::kBFloat16, {DType::kFloat32, false, true, 0}},
    {DType::kBFloat16, DType::kFloat32, {DType::kFloat32, false, true, 0}},
};

// lr, momentum, dampening, weight_decay, nesterov, maximize
inline std::vector<GroupValues> every_momentum() {
  return {{0.1, 0, 0, 0.02, false, false}, {0.1, 0.9, 0.25, 0.02, false, true}, {0.05, 0.8, 0, 0.02, true, false}};
}

struct Tensor {
  TensorInfo info;
  Numbers weight;
  Numbers grad;
  Numbers momentum_buffer;
  Numbers param;              // without numbers, unless the weights are its master
  bool started = false;       // had its first update
  int64_t rounding_step = 0;  // how many updates were rounded stochastically

  bool has_param() const { return info.numel && sasgd::is_master(info.precision); }
  // Whether all that a step writes has the same bits.
  bool is_same(const Tensor& other) const {
    return weight == other.weight && momentum_buffer == other.momentum_buffer && param == other.param;
  }
};

// What a step is told of one tensor.
struct Input {
  uint64_t weight;
  uint64_t grad;  // null: the tensor is idle
  uint64_t momentum_buffer;
  DType grad_dtype;
  uint64_t param;
};

struct Case {
  std::vector<Tensor> tensors;
  std::vector<LayerInfo> layers;
  std::vector<GroupValues> groups;
  PlanOptions options{1e-3, false, true, false};
  double loss_scale = 1.0;

  // In half of the tensors the numbers get smaller from lane to lane, by so much that a float64 sum over them rounds,
  // and shows its order.
  void add_tensor(int64_t numel, int32_t group, const Kind& kind, Random& random) {
    const bool misaligned = tensors.size() % 2 == 1;
    const bool uneven = tensors.size() % 4 < 2;
    Precision precision = kind.precision;
    precision.stream = 0x0123456789abcdefu * (tensors.size() + 1);
    const bool has_param = sasgd::is_master(precision);
    // Gradients, small momentum and parameters are aligned, or not, by themselves too.
    const bool others_misaligned = tensors.size() % 3 == 1;
    Tensor tensor{{numel, group, -1, kind.weight, precision},
                  Numbers(numel, kind.weight, misaligned),
                  Numbers(numel, kind.grad, others_misaligned),
                  precision.small_momentum ? Numbers(numel, DType::kBFloat16, others_misaligned)
                                           : Numbers(numel, kind.weight, misaligned),
                  Numbers(has_param ? numel : 0, precision.param_dtype, has_param && others_misaligned)};
    for (int64_t i = 0; i < numel; ++i) {
      const float size = uneven ? std::ldexp(1.0f, -2 * static_cast<int>(i % 16)) : 1.0f;
      tensor.weight.set(i, size * random.next());
      tensor.grad.set(i, size * random.next());
      if (has_param) tensor.param.set(i, 1e3f);  // to be written by the first step
    }
    tensors.push_back(tensor);
  }

  // Makes the last tensor a layer's weight. Its norm is 2/3 or so.
  void add_layer(bool scaled, double rows_over_columns) {
    const double rows = static_cast<double>(tensors.back().info.numel) / 2;
    tensors.back().info.layer = static_cast<int32_t>(layers.size());
    layers.push_back({{rows, 0, scaled, false}, static_cast<int32_t>(tensors.size()) - 1, rows / rows_over_columns});
  }

  std::vector<TensorInfo> infos() const {
    std::vector<TensorInfo> infos;
    for (const Tensor& tensor : tensors) infos.push_back(tensor.info);
    return infos;
  }

  // What a step is told. In each, every fifth tensor is without a gradient, never the same two times running.
  std::vector<Input> inputs(int step, bool all = false) const {
    std::vector<Input> inputs;
    for (size_t t = 0; t < tensors.size(); ++t) {
      const Tensor& tensor = tensors[t];
      const bool idle = !all && (t + static_cast<size_t>(step)) % 5 == 0;
      const bool momentum = groups[static_cast<size_t>(tensor.info.group)].momentum != 0;
      inputs.push_back({tensor.weight.address(), idle ? 0 : tensor.grad.address(),
                        momentum ? tensor.momentum_buffer.address() : 0, tensor.grad.dtype(),
                        tensor.has_param() ? tensor.param.address() : 0});
    }
    return inputs;
  }

  // Notes which tensors a step has updated.
  void note_step(const std::vector<Input>& inputs) {
    for (size_t t = 0; t < tensors.size(); ++t) {
      if (!inputs[t].grad) continue;
      tensors[t].started = true;
      if (tensors[t].info.precision.stochastic && tensors[t].info.numel) ++tensors[t].rounding_step;
    }
  }
};

// What a plan carries from step to step, in memory of its own; it can be read and set.
struct Carried {
  std::vector<double> row_norm_sq;
  std::vector<double> sum_squares;
  std::vector<int64_t> stale_steps;
  std::vector<uint8_t> flags;
  std::vector<int64_t> rounding_steps;
  std::vector<double> gradient_norm_sq;
  std::vector<double> gradient_sums;

  explicit Carried(const Case& made)
      : row_norm_sq(made.layers.size()),
        sum_squares(made.layers.size()),
        stale_steps(made.layers.size()),
        flags(made.tensors.size()),
        gradient_norm_sq(made.tensors.size()),
        gradient_sums(made.tensors.size()) {
    for (const Tensor& tensor : made.tensors) rounding_steps.push_back(tensor.rounding_step);
  }
  Carried(const Carried&) = delete;
  Carried& operator=(const Carried&) = delete;

  CarriedState state() {
    return {row_norm_sq.data(),    sum_squares.data(),      stale_steps.data(),  flags.data(),
            rounding_steps.data(), gradient_norm_sq.data(), gradient_sums.data()};
  }
  int64_t all_stale_steps() const {
    int64_t all = 0;
    for (const int64_t steps : stale_steps) all += steps;
    return all;
  }
};

// One number of each input.
template <class T>
std::vector<T> each(const std::vector<Input>& inputs, T Input::* number) {
  std::vector<T> numbers;
  for (const Input& input : inputs) numbers.push_back(input.*number);
  return numbers;
}

// Every size, kind of precision and kind of momentum. A fifth of the tensors are no layers', a quarter of the layers
// unscaled.
template <size_t kCount, size_t kKinds>
Case every_kind_of_tensor(const int64_t (&sizes)[kCount], const Kind (&kinds)[kKinds]) {
  Case made;
  made.groups = every_momentum();
  made.loss_scale = 4;
  Random random;
  for (int32_t group = 0; group < 3; ++group) {
    for (const Kind& kind : kinds) {
      for (const int64_t numel : sizes) {
        made.add_tensor(numel, group, kind, random);
        const size_t b = made.layers.size();
        if (numel == 0 || made.tensors.size() % 5 == 0) continue;
        made.add_layer(b % 4 != 3, b % 2 == 0 ? 1.25 : 0.8);
        if (numel > 8) continue;
        for (int64_t i = 0; i < numel; ++i) made.tensors.back().weight.set(i, 0.0f);  // at the floor
      }
    }
  }
  return made;
}

// The other kinds of everything that a plan is told besides its tensors.
inline void freeze(Case& made) {
  made.options.track_norms = false;
  made.options.shape_decay = true;
  for (size_t b = 0; b < made.layers.size(); ++b) made.layers[b].backward_factor = b % 3 == 0 ? 1.5 : 0.6;
}

// The relative scale, in which a third of the layers are vectors. Its scales are 1 or so.
inline void make_relative(Case& made) {
  made.options.relative = true;
  for (size_t b = 0; b < made.layers.size(); ++b) {
    LayerInfo& layer = made.layers[b];
    layer.backward_factor = (b % 2 == 0 ? 1.5 : 0.6) / static_cast<double>(made.tensors[layer.tensor].info.numel);
    layer.is_vector = b % 3 == 2;
  }
}

}  // namespace sasgd_test
