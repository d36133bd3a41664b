// Tensors of every dtype and of many sizes, in memory of exactly their size, and the plan of their steps.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../../csrc/cpu/step.h"
#include "sixteen_bits.h"

namespace sasgd_test {

using sasgd::BlockInfo;
using sasgd::CpuPlan;
using sasgd::DType;
using sasgd::GroupValues;
using sasgd::PlanOptions;
using sasgd::TensorInfo;
using sasgd::TensorStep;

// Numbers of a dtype. The memory ends with the last one, so that the address sanitizer sees an access beyond it.
class Storage {
 public:
  Storage(int64_t count, DType dtype, bool misaligned = false)
      : dtype_(dtype), skip_(misaligned ? item_size() : 0), bytes_(skip_ + static_cast<size_t>(count) * item_size()) {}

  uint64_t address() const { return reinterpret_cast<uint64_t>(bytes_.data() + skip_); }
  double get(int64_t i) const {
    if (dtype_ == DType::kFloat32) return read<float>(i);
    return plain_widen(read<uint16_t>(i), format());
  }
  void set(int64_t i, float value) {
    if (dtype_ == DType::kFloat32) return write(i, value);
    write(i, plain_narrow(value, format()));
  }
  bool operator==(const Storage& other) const { return bytes_ == other.bytes_; }
  bool operator!=(const Storage& other) const { return bytes_ != other.bytes_; }

 private:
  size_t item_size() const { return dtype_ == DType::kFloat32 ? 4 : 2; }
  Format format() const { return dtype_ == DType::kBFloat16 ? kBFloat16Format : kFloat16Format; }
  template <class T>
  T read(int64_t i) const {
    T value;
    std::memcpy(&value, bytes_.data() + skip_ + static_cast<size_t>(i) * sizeof value, sizeof value);
    return value;
  }
  template <class T>
  void write(int64_t i, T value) {
    std::memcpy(bytes_.data() + skip_ + static_cast<size_t>(i) * sizeof value, &value, sizeof value);
  }

  DType dtype_;
  size_t skip_;
  std::vector<unsigned char> bytes_;
};

// The same numbers on every machine: splitmix64.
class Random {
 public:
  float next() {  // in [-1, 1)
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<float>((z ^ (z >> 31)) >> 40) * 0x1p-23f - 1.0f;
  }

 private:
  uint64_t state_ = 2018;
};

constexpr DType kDTypes[][2] = {
    // of the weights, of the gradients
    {DType::kFloat32, DType::kFloat32},  {DType::kBFloat16, DType::kBFloat16}, {DType::kFloat16, DType::kFloat16},
    {DType::kBFloat16, DType::kFloat32}, {DType::kFloat16, DType::kFloat32},
};

// lr, momentum, dampening, weight_decay, nesterov, maximize
inline std::vector<GroupValues> every_momentum() {
  return {{0.1, 0, 0, 0.02, false, false}, {0.1, 0.9, 0.25, 0.02, false, true}, {0.05, 0.8, 0, 0.02, true, false}};
}

struct Tensor {
  TensorInfo info;
  DType grad_dtype;
  Storage weight;
  Storage grad;
  Storage momentum_buffer;
  bool started = false;  // had its first update
};

struct Case {
  std::vector<Tensor> tensors;
  std::vector<BlockInfo> blocks;
  std::vector<GroupValues> groups;
  PlanOptions options{1e-3, 1.0, false, true};
  double loss_scale = 1.0;

  // In half of the tensors the numbers get smaller from lane to lane, by so much that a float64 sum over them rounds,
  // and shows its order.
  void add_tensor(int64_t numel, int32_t group, DType dtype, DType grad_dtype, Random& random) {
    const bool misaligned = tensors.size() % 2 == 1;
    const bool uneven = tensors.size() % 4 < 2;
    Tensor tensor{{numel, group, -1, dtype},
                  grad_dtype,
                  Storage(numel, dtype, misaligned),
                  Storage(numel, grad_dtype, misaligned),
                  Storage(numel, dtype, misaligned)};
    for (int64_t i = 0; i < numel; ++i) {
      const float size = uneven ? std::ldexp(1.0f, -2 * static_cast<int>(i % 16)) : 1.0f;
      tensor.weight.set(i, size * random.next());
      tensor.grad.set(i, size * random.next());
    }
    tensors.push_back(tensor);
  }

  // Makes a block of the last tensor. Its norm is 2/3 or so.
  void add_block(bool scaled, double rows_over_columns) {
    const double rows = static_cast<double>(tensors.back().info.numel) / 2;
    tensors.back().info.block = static_cast<int32_t>(blocks.size());
    blocks.push_back({static_cast<int32_t>(tensors.size()) - 1, scaled, rows, rows / rows_over_columns});
  }

  // The plan, its norms measured.
  CpuPlan make_plan(int threads = 1) const {
    std::vector<TensorInfo> infos;
    for (const Tensor& tensor : tensors) infos.push_back(tensor.info);
    CpuPlan plan(infos, blocks, options);
    measure(plan, std::vector<uint8_t>(blocks.size(), 1), threads);
    return plan;
  }

  void measure(CpuPlan& plan, const std::vector<uint8_t>& chosen, int threads = 1) const {
    std::vector<uint64_t> weights;
    for (const Tensor& tensor : tensors) weights.push_back(tensor.weight.address());
    plan.measure(weights.data(), chosen.data(), threads);
  }

  // What a step is told. In each, every fifth tensor is without a gradient, never the same two times running.
  std::vector<TensorStep> inputs(int step, bool all = false) const {
    std::vector<TensorStep> inputs;
    for (size_t t = 0; t < tensors.size(); ++t) {
      const Tensor& tensor = tensors[t];
      const bool idle = !all && (t + static_cast<size_t>(step)) % 5 == 0;
      const bool momentum = groups[static_cast<size_t>(tensor.info.group)].momentum != 0;
      inputs.push_back({tensor.weight.address(), idle ? 0 : tensor.grad.address(),
                        momentum ? tensor.momentum_buffer.address() : 0, tensor.grad_dtype, !tensor.started});
    }
    return inputs;
  }

  // Runs a step; returns how many blocks it found stale.
  int64_t step(CpuPlan& plan, const std::vector<TensorStep>& inputs, int threads = 1) {
    const int64_t stale = plan.step(inputs.data(), groups.data(), loss_scale, threads);
    note_step(inputs);
    return stale;
  }

  // Notes which tensors a step has updated.
  void note_step(const std::vector<TensorStep>& inputs) {
    for (size_t t = 0; t < tensors.size(); ++t) tensors[t].started |= inputs[t].grad != 0;
  }
};

// Every size, dtype and kind of momentum. A fifth of the tensors are no blocks, a quarter of the blocks unscaled.
template <size_t kCount>
Case every_kind_of_tensor(const int64_t (&sizes)[kCount]) {
  Case made;
  made.groups = every_momentum();
  made.loss_scale = 4;
  made.options.output_factor = 1.5;
  Random random;
  for (int32_t group = 0; group < 3; ++group) {
    for (const auto& [dtype, grad_dtype] : kDTypes) {
      for (const int64_t numel : sizes) {
        made.add_tensor(numel, group, dtype, grad_dtype, random);
        const size_t b = made.blocks.size();
        if (numel == 0 || made.tensors.size() % 5 == 0) continue;
        made.add_block(b % 4 != 3, b % 2 == 0 ? 1.25 : 0.8);
        if (numel > 8) continue;
        for (int64_t i = 0; i < numel; ++i) made.tensors.back().weight.set(i, 0.0f);  // at the floor
      }
    }
  }
  return made;
}

inline void freeze(Case& made) {
  made.options.track_norms = false;
  made.options.shape_decay = true;
}

}  // namespace sasgd_test
