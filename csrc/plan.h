// Plain structs that describe one step: tensors, blocks, hyperparameters. Addresses and numbers only.
#pragma once

#include <cstdint>

namespace sasgd {

enum class DType : uint8_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// What is out of the ordinary about how a tensor is stored.
struct Storage {
  DType copy_dtype = DType::kFloat32;  // 16 bits: that of the parameter, whose float32 master the weights are
  bool small_momentum = false;         // the weights are float32, the momentum buffer is bfloat16
  bool stochastic = false;             // bfloat16 weights and momentum buffers are rounded stochastically
  uint64_t stream = 0;                 // of the random numbers for that
};

inline bool is_extraordinary(const Storage& storage) {
  return storage.copy_dtype != DType::kFloat32 || storage.small_momentum || storage.stochastic;
}

inline bool has_copy(const Storage& storage) { return storage.copy_dtype != DType::kFloat32; }

// What is fixed about a tensor from step to step.
struct TensorInfo {
  int64_t numel;
  int32_t group;  // parameter group: index into the steps' GroupValues
  int32_t block;  // index into the blocks, or -1: not a block
  DType dtype;    // of the weights, and of the momentum buffer unless that is small
  Storage storage;
};

// What is fixed about a block. Blocks are ordered from input to output.
struct BlockInfo {
  int32_t tensor;
  bool scaled;             // false: keeps its place in the backward factors, but its gradient is taken as it is
  double rows;             // output units
  double columns;          // input units
  double backward_factor;  // m_b; 0: to be made by equation (23), see fill_backward_factors
};

struct PlanOptions {
  double eps;        // floor of row_norm_sq
  bool shape_decay;  // d_b = weight_decay / m_b instead of s_b * weight_decay
  bool track_norms;  // norms follow the weights; otherwise they stay as set or measured
};

// Hyperparameters of one parameter group in one step.
struct GroupValues {
  double lr;
  double momentum;
  double dampening;
  double weight_decay;
  bool nesterov;
  bool maximize;
};

// One tensor's part in one step. A null gradient leaves the tensor as it is.
struct TensorStep {
  uint64_t weight;
  uint64_t grad;
  uint64_t momentum_buffer;   // null where momentum is 0
  DType grad_dtype;           // the weights', their copy's, or float32
  bool first;                 // the momentum buffer is zero and takes the gradient as it is
  uint64_t copy = 0;          // null where there is none
  int64_t rounding_step = 0;  // how many steps of this tensor have been rounded stochastically
};

}  // namespace sasgd
