// Plain structs that describe one step: tensors, layers, hyperparameters. Addresses and numbers only.
#pragma once

#include <cstdint>
#include <vector>

namespace sasgd {

enum class DType : uint8_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// How a tensor is stored. By default its precision is plain.
struct Precision {
  DType param_dtype = DType::kFloat32;  // 16 bits: that of the parameter, whose float32 master the weights are
  bool small_momentum = false;          // the weights are float32, the momentum buffer is bfloat16
  bool stochastic = false;              // bfloat16 weights and momentum buffers are rounded stochastically
  uint64_t stream = 0;                  // of the random numbers for that
};

inline bool is_plain(const Precision& precision) {
  return precision.param_dtype == DType::kFloat32 && !precision.small_momentum && !precision.stochastic;
}

// Whether the weights are the master of a parameter.
inline bool is_master(const Precision& precision) { return precision.param_dtype != DType::kFloat32; }

// What is fixed about a tensor from step to step.
struct TensorInfo {
  int64_t numel;
  int32_t group;  // parameter group: index into the steps' GroupValues
  int32_t layer;  // index into the layers, or -1: it is no layer's weight
  DType dtype;    // of the weights, and of the momentum buffer unless that is small
  Precision precision;
};

// What is fixed about a layer and needed in every step.
struct LayerTraits {
  double rows;             // output units
  double backward_factor;  // m_b; 0: to be made by equation (23), where nobody gives it: see fill_backward_factors
  bool scaled;             // false: keeps its place in the backward factors, but its gradient is taken as it is
  bool is_vector;          // in the relative scale: the norm of the weights has no part in it
};

// What is fixed about a layer. Layers are ordered from input to output.
struct LayerInfo : LayerTraits {
  int32_t tensor;
  double columns;  // input units
};

struct PlanOptions {
  double eps;        // floor of row_norm_sq
  bool shape_decay;  // d_b = weight_decay / m_b instead of s_b * weight_decay
  bool track_norms;  // norms follow the weights; otherwise they stay as set or measured
  bool relative;     // the relative scale: gradients are divided by their own norm too
};

// What is fixed about a plan.
struct PlanSpec {
  std::vector<TensorInfo> tensors;
  std::vector<LayerInfo> layers;
  PlanOptions options;
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
  double* row_norm_sq;      // of each layer: ||W||^2_{2,mu}, to be used by the next step
  double* sum_squares;      // of each layer: that of its weights as the last step left them, or a norm pass took it
  int64_t* stale_steps;     // of each layer: how many steps used the norm of weights that had been written unseen
  uint8_t* flags;           // of each tensor: kStarted, kNormKept, kGradientKnown
  int64_t* rounding_steps;  // of each tensor: how many steps of it have been rounded stochastically
  // In the relative scale, of each tensor that is a scaled layer:
  double* gradient_norm_sq;  // v_b, to be used by the next step; 0: not known
  double* gradient_sums;     // q_b: the squared norm of the last step's gradient
};

constexpr uint8_t kStarted = 1;        // the momentum buffer has taken its first gradient
constexpr uint8_t kNormKept = 2;       // frozen norms: the scaled layer's norm stays as it is
constexpr uint8_t kGradientKnown = 4;  // on a device, in the relative scale: gradient_norm_sq is not 0

}  // namespace sasgd
