// The arithmetic of one element of a step, for the CPU and CUDA alike: the only place where it stands in C++. Its twin
// in Triton's language is sasgd_fused/backends/triton/update_rule.py.
//
// V is float, or a vector of floats with the same operators. No operation is contracted into a fused multiply-add
// (the build passes -ffp-contract=off, and -fmad=false to nvcc), so every width and instruction set gives the same
// bits.
#pragma once

#include "plan.h"

#if defined(__CUDACC__)
#define SASGD_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SASGD_HOST_DEVICE inline
#endif

namespace sasgd {

// The coefficients of one tensor in one step, rounded once from float64.
struct UpdateCoefficients {
  float grad_scale;   // s_b, or 1; negated for maximize, divided by the loss scale
  float decay_scale;  // d_b, or weight_decay
  float carry;        // momentum, or 0 on this tensor's first update
  float share;        // 1 - dampening, or 1 on this tensor's first update
  float momentum;
  float lr;
};

enum class Momentum { kNone, kClassic, kNesterov };

// g = s_b grad + d_b W
template <class V>
SASGD_HOST_DEVICE V amended_gradient(V grad, V weight, const UpdateCoefficients& c) {
  return c.grad_scale * grad + c.decay_scale * weight;
}

// buf = momentum * buf + (1 - dampening) * g
template <class V>
SASGD_HOST_DEVICE V next_momentum(V g, V momentum_buffer, const UpdateCoefficients& c) {
  return c.carry * momentum_buffer + c.share * g;
}

// What the weights move along: g, buf, or g + momentum * buf.
template <Momentum kMomentum, class V>
SASGD_HOST_DEVICE V direction(V g, V momentum_buffer, const UpdateCoefficients& c) {
  if constexpr (kMomentum == Momentum::kNone) {
    return g;
  } else if constexpr (kMomentum == Momentum::kClassic) {
    return momentum_buffer;
  } else {
    return g + c.momentum * momentum_buffer;
  }
}

// W = W - lr * direction
template <class V>
SASGD_HOST_DEVICE V next_weight(V weight, V along, const UpdateCoefficients& c) {
  return weight - c.lr * along;
}

}  // namespace sasgd
