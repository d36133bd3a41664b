// Plain structs that describe one step: tensors, blocks, hyperparameters. Addresses and numbers only.
#pragma once

#include <cstdint>

namespace sasgd {

enum class DType : uint8_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// What is fixed about a tensor from step to step.
struct TensorInfo {
  int64_t numel;
  int32_t group;  // parameter group: index into the steps' GroupValues
  int32_t block;  // index into the blocks, or -1: not a block
  DType dtype;    // of the weights and the momentum buffer
};

// What is fixed about a block. Blocks are ordered from input to output.
struct BlockInfo {
  int32_t tensor;
  bool scaled;     // false: keeps its place in the backward factors, but its gradient is taken as it is
  double rows;     // output units
  double columns;  // effective input units: rows / columns is m_{b,z} of equation (24)
};

struct PlanOptions {
  double eps;            // floor of row_norm_sq
  double output_factor;  // m at the output of the last block
  bool shape_decay;      // d_b = weight_decay / m_b instead of s_b * weight_decay
  bool track_norms;      // norms follow the weights; otherwise they stay as set or measured
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
  uint64_t momentum_buffer;  // null where momentum is 0
  DType grad_dtype;          // the weight's or float32
  bool first;                // the momentum buffer is zero and takes the gradient as it is
};

}  // namespace sasgd
