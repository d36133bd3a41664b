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

// What is carried from step to step. The memory is the caller's, on the plan's device.
struct CarriedState {
  double* row_norm_sq;      // of each block: ||W||^2_{2,mu}, to be used by the next step
  double* sum_squares;      // of each block: that of its weights as the last step left them, or a norm pass took it
  int64_t* stale_steps;     // of each block: how many steps used the norm of weights that had been written unseen
  uint8_t* flags;           // of each tensor: kStarted, kNormKept
  int64_t* rounding_steps;  // of each tensor: how many steps of it have been rounded stochastically
};

constexpr uint8_t kStarted = 1;   // the momentum buffer has taken its first gradient
constexpr uint8_t kNormKept = 2;  // frozen norms: the scaled block's norm stays as it is

}  // namespace sasgd
